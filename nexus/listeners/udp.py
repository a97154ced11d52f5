"""A public UDP port: one flow per client address, datagrams relayed one by one, nothing ever waited for.

Strategy: the sockets are read in batches straight from the event loop's readiness callback, since neither loop has a
``recvmmsg`` to offer. What cannot go on now (no backend, its link is full, the client's socket is full) is dropped and
counted under its reason. IPv4 and IPv6 have sockets of their own. On a socket that is bound to all addresses the
kernel is asked which of them the client used (RFC 3542 section 6), and the answer leaves from that one: a resolver
drops an answer from another address.

Source: spec backend-protocol 10, node-and-mesh 6; weak points W4, W26, node W14.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from nexus.limits import UNBOUNDED, SourceCounter
from nexus.link.flow import Address, Drop, Flow
from nexus.link.flow_table import FlowTable
from nexus.listeners.origin import ANCILLARY_BYTES, ask_for_origin, origin_of, reply_from
from nexus.protocol.framing import Buffer
from nexus.protocol.reasons import Reason
from nexus.routing.decide import Reject, RejectReason
from nexus.sockets import format_address, source_key
from nexus.transport import Dialer, OpenRequest

_log = logging.getLogger("nexus.listeners")

BATCH_DATAGRAMS: Final = 64  # ours: a full batch takes about half a millisecond; then everybody else has a turn
SWEEP_S: Final = 1.0  # the original looks every 5 s; a look costs nothing where nothing expired
# Each ended flow is a message to its backend: so many at once, and then the links are let catch up.
SWEEP_FLOWS: Final = 1000
SWEEP_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class UdpSettings:
    """Bounds of the public UDP ports; see the config docs."""

    flows_max: int = 200_000
    datagram_max_bytes: int = 2048
    flows_per_source: int = UNBOUNDED


@dataclass(slots=True)
class UdpStats:
    """What the ports counted; counters only ever rise."""

    to_backends: int = 0
    to_clients: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    flow_ends: Counter[str] = field(default_factory=Counter)


class UdpListeners:
    """All public UDP ports of a node: they share the bounds and the counters."""

    def __init__(self, dialer: Dialer, settings: UdpSettings) -> None:
        """Open flows through ``dialer``."""
        self.dialer = dialer
        self.settings = settings
        self.stats = UdpStats()
        self.sources = SourceCounter(UNBOUNDED, settings.flows_per_source)
        self._bounded = settings.flows_per_source != UNBOUNDED
        self.ports: dict[int, UdpPort] = {}

    @property
    def flows(self) -> int:
        """How many flows there are."""
        return sum(len(port.flows) for port in self.ports.values())

    def admit(self, client: Address) -> bool:
        """Count one flow more of a client's source, where these are bounded; return whether it may be."""
        return not self._bounded or self.sources.admit(source_key(client[0]))

    def release(self, client: Address) -> None:
        """Give one flow of a client's source back."""
        if self._bounded:
            self.sources.release(source_key(client[0]))

    def listen(self, sockets: Iterable[socket.socket]) -> None:
        """Start to read sockets, those of one number as one port."""
        for sock in sockets:
            number = int(sock.getsockname()[1])
            port = self.ports.setdefault(number, UdpPort(self, number))
            port.read(sock)

    def close(self) -> None:
        """Read nothing more; answers of backends still leave."""
        for port in self.ports.values():
            port.close()

    async def sweep(self) -> None:
        """End idle flows until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            unfinished = [port.expire(loop.time()) for port in self.ports.values()]
            await asyncio.sleep(SWEEP_AGAIN_S if any(unfinished) else SWEEP_S)


class UdpPort:
    """One public port, with the flows of its clients."""

    def __init__(self, listeners: UdpListeners, number: int) -> None:
        """Start without sockets."""
        self.number = number
        self.listeners = listeners
        self.flows: FlowTable[Address, Flow] = FlowTable(listeners.settings.flows_max)
        self._readers: list[_Reader] = []

    def read(self, sock: socket.socket) -> None:
        """Read one more socket; its owner closes it behind ``close``."""
        self._readers.append(_Reader(self, sock))

    def close(self) -> None:
        """Read nothing more."""
        for reader in self._readers:
            reader.close()

    def expire(self, now: float) -> bool:
        """End flows that were idle for as long as the port's backends ask; return whether more may be waiting.

        One whose link is full stays for another idle time.
        """
        idle_s = self.listeners.dialer.flow_idle_s(self.number)
        for _ in range(SWEEP_FLOWS):
            flow = self.flows.expired(now, idle_s)
            if flow is None:
                return False
            if flow.session.has_room() or flow.session.link.is_closing():
                self.end(flow, "idle")
            else:  # its backend cannot be told now; behind the others, it holds up none of them
                self.flows.seen(flow.client, now)
        return True

    def end(self, flow: Flow, why: str) -> None:
        """End a flow from this side."""
        self.forget(flow, why)
        flow.close(Reason.TIMEOUT if why == "idle" else Reason.NORMAL)

    def forget(self, flow: Flow, why: str) -> None:
        """Note that a flow is over."""
        self.flows.remove(flow.client, flow)
        self.listeners.stats.flow_ends[why] += 1
        self.listeners.release(flow.client)


class _Reader:
    """One socket of a port; the ``FlowOwner`` of the flows whose last datagram came in here."""

    __slots__ = ("_limit", "_loop", "_port", "_sock", "_stats")

    def __init__(self, port: UdpPort, sock: socket.socket) -> None:
        self._port = port
        self._sock = sock
        self._limit = port.listeners.settings.datagram_max_bytes
        self._stats = port.listeners.stats
        self._loop = asyncio.get_running_loop()
        ask_for_origin(sock)
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())

    # -- From clients -----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        now = self._loop.time()
        receive, limit = self._sock.recvmsg, self._limit
        for _ in range(BATCH_DATAGRAMS):
            try:
                datagram, ancillary, _, client = receive(limit + 1, ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # of one datagram that went out before; the socket lives on
                _log.debug("UDP port %d: %s", self._port.number, error)
                continue
            if len(datagram) > limit:
                self._stats.dropped["oversize_from_client"] += 1
            else:
                self._receive(datagram, client, origin_of(ancillary), now)

    def _receive(self, datagram: bytes, client: Address, local: bytes, now: float) -> None:
        flow = self._port.flows.seen(client, now)
        if flow is not None and flow.session.link.is_closing():  # it will not come back: choose another backend now
            self._port.end(flow, "session")
            flow = None
        if flow is None:
            flow = self._open(client, now)
            if flow is None:
                return
        flow.owner = self  # a client may ask several addresses of the port, and answers leave from the last one
        flow.local = local
        flow.send(datagram)

    def _open(self, client: Address, now: float) -> Flow | None:
        port, listeners = self._port, self._port.listeners
        if not listeners.admit(client):
            self._stats.dropped[RejectReason.OVERLOADED.value] += 1
            return None
        request = OpenRequest(None, is_tls=False, local_port=port.number, client=format_address(client))
        flow = listeners.dialer.open_flow(request, self, client)
        if isinstance(flow, Reject):
            listeners.release(client)
            self._stats.dropped[flow.reason.value] += 1
            return None
        evicted = port.flows.add(client, flow, now)
        if evicted is not None:
            port.end(evicted, "evicted")
        return flow

    # -- From backends ----------------------------------------------------------------------------------------------

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        """Send one datagram to the flow's client; too large, it costs that datagram and not the flow."""
        self._port.flows.seen(flow.client, self._loop.time())
        if len(datagram) > self._limit:
            self._stats.dropped["oversize_from_backend"] += 1
            return
        try:
            self._sock.sendmsg((datagram,), reply_from(flow.local), 0, flow.client)
        except BlockingIOError:
            self._stats.dropped["client_slow"] += 1
        except OSError:  # no route to the client, a firewall, a datagram too large for the path, a closed socket
            self._stats.dropped["client_unreachable"] += 1
        else:
            self._stats.to_clients += 1

    def sent(self, flow: Flow) -> None:
        """Count it."""
        del flow
        self._stats.to_backends += 1

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        """Count them."""
        del flow
        self._stats.dropped[why] += count

    def flow_ended(self, flow: Flow) -> None:
        """Forget it."""
        self._port.forget(flow, "backend")
