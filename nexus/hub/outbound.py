"""Connections that a backend has the hub dial: checks, slots, the dial, and then a stream like any other.

A slot is taken when a request is accepted and given back once: when its dial came to nothing, or when its socket is
closed. The table of slots is all there is to count, so the count cannot drift, and a limit holds whatever is under way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from functools import partial

from aiohappyeyeballs import AddrInfoType

from nexus.auth.grants import Grant
from nexus.dial import connect
from nexus.hub.registry import Registry
from nexus.hub.targets import OutboundPolicy, Target, check_request, failure_of, pick_addresses
from nexus.link.session import Session
from nexus.link.splice import endpoint_for
from nexus.link.stream import Stream
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import OutboundRefusal, Reason
from nexus.protocol.window import SendWindow
from nexus.resolver import TooManyLookupsError
from nexus.sockets import keep_alive

_log = logging.getLogger("nexus.hub")

GIVEN_UP = "given_up"  # beside the refusals in the metrics: the backend took its request back


class _Slot:
    """One connection from request to close; ``dial`` is the task until there is a socket."""

    __slots__ = ("dial", "stream_id")

    def __init__(self, stream_id: bytes) -> None:
        self.stream_id = stream_id
        self.dial: asyncio.Task[None] | None = None


class Outbound:
    """What one session dials."""

    def __init__(
        self, session: Session, grant: Grant, policy: OutboundPolicy, registry: Registry, tasks: asyncio.TaskGroup
    ) -> None:
        """Dial in ``tasks``, and count in the totals of ``registry``."""
        self.policy = policy
        self._session = session
        self._grant = grant
        self._registry = registry
        self._tasks = tasks
        self._slots: dict[bytes, _Slot] = {}

    @property
    def held(self) -> int:
        """How many connections there are, those being dialled and those not quite closed included."""
        return len(self._slots)

    def owns(self, stream: Stream) -> bool:
        """Tell whether a stream of the session is one of these."""
        return stream.id in self._slots

    def request(self, request: Control) -> None:
        """Handle ``outbound_connect``; the answer comes now or when the dial is over."""
        stream_id = request.stream_id
        in_use = self._session.knows(stream_id) or stream_id in self._slots
        target = check_request(request, self.policy, self._grant, held=self.held, id_in_use=in_use)
        if self._registry.closed:
            target = OutboundRefusal.STOPPING
        if isinstance(target, OutboundRefusal):
            self._refuse(stream_id, target)
            return
        slot = self._slots[stream_id] = _Slot(stream_id)
        slot.dial = self._tasks.create_task(self._serve(slot, target))
        # Not in the task itself: one that is cancelled before its first step runs nothing of its own.
        slot.dial.add_done_callback(lambda _task: self._dial_over(slot))

    def give_up(self, stream_id: bytes) -> None:
        """Stop a dial whose connection nobody waits for any more; without one this does nothing."""
        slot = self._slots.get(stream_id)
        if slot is not None and slot.dial is not None:
            slot.dial.cancel()
            self._release(slot)
            self._registry.totals.outbound_refusals[GIVEN_UP] += 1

    def end(self) -> None:
        """Stop every dial: the session is over. Its streams end by themselves."""
        for slot in self._slots.values():
            if slot.dial is not None:
                slot.dial.cancel()

    # -- Inside -----------------------------------------------------------------------------------------------------

    async def _serve(self, slot: _Slot, target: Target) -> None:
        """Dial and answer; nothing escapes but cancellation."""
        try:
            dialled = await self._dial(target)
            if isinstance(dialled, OutboundRefusal):
                self._refuse(slot.stream_id, dialled)
            else:
                await self._join(slot, dialled)
        except Exception:  # noqa: BLE001 — a bug of ours must not end the hub
            _log.exception("unexpected failure of an outbound connection")
            if slot.dial is not None:
                self._refuse(slot.stream_id, OutboundRefusal.FAILED)

    async def _dial(self, target: Target) -> socket.socket | OutboundRefusal:
        try:
            async with asyncio.timeout(self.policy.dial_timeout_s):
                # By the subject: a backend has no more lookups for having more sessions.
                owner = self._grant.subject or self
                found = await self._registry.resolver.resolve(owner, target.host, target.port)
                # The very addresses that were judged, not the name again: its next answer may be another one.
                addresses = pick_addresses(found, self.policy.private_networks)
                return await _connect(addresses) if addresses else OutboundRefusal.PRIVATE
        except TooManyLookupsError:
            return OutboundRefusal.LOOKUPS
        except (socket.gaierror, UnicodeError):  # a name that IDNA refuses is a UnicodeError
            return OutboundRefusal.NAME
        except OSError as error:
            return failure_of(error)

    async def _join(self, slot: _Slot, sock: socket.socket) -> None:
        """Announce the stream, then connect it with its socket."""
        session = self._session
        if session.knows(slot.stream_id) or session.link.is_closing():
            sock.close()
            self._refuse(slot.stream_id, OutboundRefusal.ID)
            return
        # Known before it is announced, and announced before the socket is read.
        stream = session.streams[slot.stream_id] = Stream(session, slot.stream_id, SendWindow(paced=True))
        slot.dial = None  # from here on the socket has the slot, and a disconnect the stream
        self._registry.totals.outbound += 1
        self._answer(Control("outbound_result", stream.id, success=True, credits=stream.receive_window.size))
        protocol, endpoint = endpoint_for(stream, on_closed=partial(self._release, slot))
        try:
            await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
        except BaseException:
            sock.close()
            self._release(slot)
            stream.close(Reason.LOCAL_ERROR)
            raise
        stream.attach(endpoint)

    def _refuse(self, stream_id: bytes, refusal: OutboundRefusal) -> None:
        _log.debug("refused an outbound connection: %s", refusal)
        self._registry.totals.outbound_refusals[refusal.name.lower()] += 1
        self._answer(Control("outbound_result", stream_id, reason=refusal))

    def _answer(self, answer: Control) -> None:
        self._session.send_control(serialize_control(answer))

    def _dial_over(self, slot: _Slot) -> None:
        if slot.dial is not None:
            self._release(slot)

    def _release(self, slot: _Slot) -> None:
        if self._slots.get(slot.stream_id) is slot:
            del self._slots[slot.stream_id]


async def _connect(addresses: Sequence[AddrInfoType]) -> socket.socket:
    sock = await connect(addresses)
    try:
        keep_alive(sock)  # a target that vanishes must not keep its slot
    except BaseException:
        sock.close()
        raise
    return sock
