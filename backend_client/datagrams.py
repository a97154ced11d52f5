"""UDP flows at the backend: each has a connected socket of its own, so that answers find their client.

Strategy: as at the hub nothing waits, except for the first datagrams while the service's name is looked up. Sockets are
read in batches from the event loop's readiness callback. A flow without credits is not read: the kernel keeps, and
then drops, what the service says meanwhile. The hub tells when a flow is over; there is no clock here.

Source: spec backend-protocol 7.2, 10; weak points W4, W26.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from backend_client.flow_table import FlowTable
from backend_client.lookups import Lookups, ServiceAddress
from backend_client.mapping import Target
from nexus.link.endpoint import receive_view
from nexus.link.session import Session
from nexus.protocol.constants import CREDITS_BATCH
from nexus.protocol.framing import Buffer
from nexus.protocol.messages import credit_message, simple_message
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow

_log = logging.getLogger("nexus.client")

BATCH_DATAGRAMS: Final = 16  # ours: of one flow, before the other flows have a turn
PENDING_MAX: Final = 64  # original: datagrams of one flow that wait for its socket
PENDING_MAX_BYTES: Final = 4 * 1024 * 1024  # ours: of all flows of a client together
DATAGRAM_COST_BYTES: Final = 64  # CPython's 33 of an object and 8 of a queue, rounded up


@dataclass(slots=True)
class DatagramStats:
    """What the flows of a client counted; counters only ever rise. ``pending_bytes`` is what waits for sockets now."""

    from_hub: int = 0
    to_hub: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    pending_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FlowParts:
    """What the flows of a client have in common; the table is that of the whole process."""

    table: FlowTable[LocalFlow]
    lookups: Lookups = field(default_factory=Lookups)
    stats: DatagramStats = field(default_factory=DatagramStats)


class LocalFlow:
    """One flow of the session: a ``SessionFlow`` with a socket to the service."""

    __slots__ = (
        "_address",
        "_held",
        "_lookups",
        "_loop",
        "_pending",
        "_reading",
        "_session",
        "_sock",
        "_stats",
        "_table",
        "_target",
        "_view",
        "_window",
        "grants",
        "id",
    )

    def __init__(self, session: Session, flow_id: bytes, granted: int, target: Target, parts: FlowParts) -> None:
        """Start to collect datagrams; ``granted`` credits let the service's be sent (0: the hub counts none).

        Whoever made it puts it into the table.
        """
        self.id = flow_id
        self.grants = granted > 0
        self._session = session
        self._window = SendWindow(granted, paced=False)
        self._target = target
        self._table = parts.table
        self._lookups = parts.lookups
        self._stats = parts.stats
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._address: ServiceAddress | None = None
        self._pending: deque[bytes] = deque()
        self._held = 0
        self._reading = False
        self._view = receive_view()

    def connect(self, address: ServiceAddress) -> None:
        """Open the socket and send what has gathered; a no-op for a flow that has ended meanwhile.

        Raises:
            OSError: there is no descriptor, or no route.
        """
        if self.id not in self._session.flows:
            return
        self._address = address
        try:
            self._sock = _connected(address)
        except OSError as error:
            self._lookups.failed(self._target, address, error)
            raise
        self._read_if_allowed()
        while self._pending and self._sock is not None:
            self._write(self._sock, self._take_pending())

    # -- From the session -------------------------------------------------------------------------------------------

    def receive(self, datagram: Buffer) -> None:
        """Send a datagram to the service; every datagram from the hub is granted again, dropped ones too."""
        self._stats.from_hub += 1
        self._table.used(self)
        self._held += 1
        if self._held >= CREDITS_BATCH and self.grants:
            self._session.send_control(credit_message(self.id, self._held))
            self._held = 0
        if self._sock is not None:
            self._write(self._sock, datagram)
        else:
            self._keep(datagram)

    def receive_credits(self, count: int) -> None:
        """Read the service again."""
        self._window.paused = False
        self._window.grant(count)
        self._read_if_allowed()

    def receive_pause(self) -> None:
        """Do not read the service until a grant or a resume."""
        self._window.paused = True
        self._read_if_allowed()

    def receive_disconnect(self, reason: str) -> None:
        """Close the socket."""
        del reason
        self._release()

    def session_lost(self) -> None:
        """Close the socket."""
        self._release()

    def close(self, reason: Reason) -> None:
        """Tell the hub that the flow is over; a no-op once it is."""
        if self._session.flows.pop(self.id, None) is not None:
            self._session.send_control(simple_message("disconnect", self.id, reason))
        self._release()

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _keep(self, datagram: Buffer) -> None:
        cost = len(datagram) + DATAGRAM_COST_BYTES
        if len(self._pending) >= PENDING_MAX or self._stats.pending_bytes + cost > PENDING_MAX_BYTES:
            self._stats.dropped["service_not_ready"] += 1
        else:
            self._pending.append(bytes(datagram))
            self._stats.pending_bytes += cost

    def _take_pending(self) -> bytes:
        datagram = self._pending.popleft()
        self._stats.pending_bytes -= len(datagram) + DATAGRAM_COST_BYTES
        return datagram

    def _write(self, sock: socket.socket, datagram: Buffer) -> None:
        try:
            sock.send(datagram)
        except BlockingIOError:
            self._stats.dropped["service_slow"] += 1
        except ConnectionRefusedError as error:  # of an earlier datagram: nothing listens there
            self._stats.dropped["service_refused"] += 1
            self._failed(error)
            self.close(Reason.LOCAL_ERROR)
        except OSError as error:  # larger than the path takes, or no route
            self._stats.dropped["service_unreachable"] += 1
            self._failed(error)
            _log.debug("a datagram of %d bytes for %s: %s", len(datagram), self._target, error)
            self._read_anew()

    def _readable(self) -> None:
        """Send on what the service says: zero bytes are a datagram, too."""
        sock, session, view = self._sock, self._session, self._view
        self._table.used(self)
        for _ in range(BATCH_DATAGRAMS):
            if sock is None or not self._window.can_send():
                break
            try:
                size, _, flags, _ = sock.recvmsg_into((view,))
            except BlockingIOError:
                return
            except OSError as error:
                _log.debug("a flow to %s ended: %s", self._target, error)
                self._failed(error)
                self.close(Reason.LOCAL_ERROR)
                return
            if flags & socket.MSG_TRUNC:
                self._stats.dropped["oversize_from_service"] += 1
            elif session.send_datagram(self.id, bytes(view[:size])):
                self._window.take()
                self._stats.to_hub += 1
            else:
                self._stats.dropped["hub_slow"] += 1
        self._read_if_allowed()

    def _failed(self, error: OSError) -> None:
        if self._address is not None:
            self._lookups.failed(self._target, self._address, error)

    def _read_if_allowed(self) -> None:
        wanted = self._sock is not None and self._window.can_send()
        if wanted is self._reading or self._sock is None:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._sock.fileno(), self._readable)
        else:
            self._loop.remove_reader(self._sock.fileno())

    def _read_anew(self) -> None:
        """Register with the event loop again: uvloop drops a socket whose error epoll saw before ``send`` took it."""
        if self._reading and self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _release(self) -> None:
        self._table.remove(self)
        while self._pending:
            self._take_pending()
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._reading:
                self._loop.remove_reader(sock.fileno())
            self._reading = False
            with contextlib.suppress(OSError):
                sock.close()


def _connected(address: ServiceAddress) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(address.address)
    except BaseException:
        sock.close()
        raise
    return sock
