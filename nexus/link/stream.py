"""One stream: the credits, the order and the ends of one proxied connection, between a session and an endpoint.

The endpoint (usually a socket, ``endpoint.py``) calls ``send``, ``send_eof`` and ``endpoint_lost``; the session calls
the ``receive_*`` methods. Nothing here waits: what cannot be sent now stays in ``_unsent`` while the endpoint does not
read, so at most one read (or the prelude) is ever held.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nexus.protocol.constants import (
    CREDITS_INITIAL,
    CREDITS_OVERSHOOT,
    FIRST_GRANT_AFTER,
    PAYLOAD_MAX_BYTES,
)
from nexus.protocol.framing import Buffer
from nexus.protocol.reasons import Reason, is_clean
from nexus.protocol.window import ReceiveWindow, SendWindow

if TYPE_CHECKING:
    from nexus.link.session import Session
    from nexus.link.splice import Gate


class Endpoint(Protocol):
    """The byte stream at a stream's end; calls never block and never raise."""

    def write(self, payload: Buffer) -> None:
        """Take bytes; report through ``Stream.endpoint_full`` when too many wait."""

    def write_eof(self) -> None:
        """End the direction towards this endpoint once what was written is delivered."""

    def finish(self) -> None:
        """Deliver what was written, then end both directions."""

    def abort(self) -> None:
        """Break both directions, visibly (RST)."""

    def read_more(self, wanted: bool) -> None:
        """Read from this endpoint, or stop reading."""

    def unwritten_bytes(self) -> int:
        """Return how many bytes wait to be delivered."""


class Attempt:
    """A dialled stream's first way to its far end, until that answers: what was sent, and what to do without answer.

    ``failed`` is told why and returns whether the stream goes on by another way (``Stream.move``). While it waits for
    an answer a stream sends no more than UNCREDITED_MAX messages, so no more are kept.
    """

    __slots__ = ("failed", "kept")

    def __init__(self, failed: Callable[[Stream, str], bool]) -> None:
        """Keep nothing yet."""
        self.failed = failed
        self.kept: list[Buffer] = []


class _Nowhere:
    """The endpoint of a stream that has none yet (being dialled) or any more: keeps what arrives for ``attach``."""

    def __init__(self) -> None:
        self.written: list[Buffer] = []
        self.bytes = 0
        self.eof = self.finished = self.aborted = False

    def write(self, payload: Buffer) -> None:
        self.written.append(payload)
        self.bytes += len(payload)

    def write_eof(self) -> None:
        self.eof = True

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.aborted = True
        self.written.clear()
        self.bytes = 0

    def read_more(self, wanted: bool) -> None:
        """Nothing to read from."""

    def unwritten_bytes(self) -> int:
        return self.bytes


class Stream:
    """One stream of one session.

    ``ended`` is true from the moment the session forgets it. ``grants`` is false towards a hub that knows no credits:
    it is paused and resumed instead (a grant would undo the pause). ``held_up`` is set where bytes may wait for this
    side (a bandwidth cap) and tells whether some do.
    """

    __slots__ = (
        "_end_pending",
        "_eof_pending",
        "_eof_told",
        "_full",
        "_in_queue",
        "_reading",
        "_ungranted",
        "_unsent",
        "active",
        "attempt",
        "bytes_received",
        "bytes_sent",
        "ended",
        "endpoint",
        "gate",
        "grants",
        "held_up",
        "id",
        "idle_since",
        "receive_window",
        "received_eof",
        "send_window",
        "sent_eof",
        "session",
        "stalled_bytes",
    )

    def __init__(
        self,
        session: Session,
        stream_id: bytes,
        window: SendWindow,
        endpoint: Endpoint | None = None,
        receive_window: int = CREDITS_INITIAL,
    ) -> None:
        """Start with ``window`` towards the peer; ``receive_window`` messages are asked for from it.

        The caller grants the ``size`` that ``receive_window`` then has: a session with many streams gives less.
        """
        self.session = session
        self.id = stream_id
        self.endpoint: Endpoint = endpoint or _Nowhere()
        self.send_window = window
        self.receive_window = ReceiveWindow(session.reserve_window(receive_window))
        self.grants = True
        self.held_up: Callable[[], bool] | None = None
        self.attempt: Attempt | None = None
        self.gate: Gate | None = None  # of the node's cap, where it is another than the session's
        self.bytes_sent = 0
        self.bytes_received = 0
        self.sent_eof = False
        self.received_eof = False
        self.ended = False
        self.active = True
        self.idle_since = 0.0
        self.stalled_bytes = 0
        self._unsent: deque[Buffer] = deque()
        self._end_pending = False
        self._eof_pending = False
        self._eof_told = False
        self._full = endpoint is None
        self._in_queue = False
        self._reading = True
        self._ungranted = 0

    def grant_late(self) -> None:
        """Make the first grant once some messages are here: a peer that paces itself until then mostly needs none."""
        self._ungranted = self.receive_window.size

    def attach(self, endpoint: Endpoint) -> None:
        """Give a dialled stream its endpoint, with everything that arrived meanwhile."""
        waiting = self.endpoint
        self.endpoint = endpoint
        self._full = False
        if not isinstance(waiting, _Nowhere):
            return
        if self.ended and not waiting.finished:
            endpoint.abort()
            return
        if not self._reading:
            endpoint.read_more(False)
        for payload in waiting.written:
            endpoint.write(payload)
        if waiting.finished:
            endpoint.finish()
        elif waiting.eof:
            endpoint.write_eof()
        if not self._full:
            self._drained()

    # -- From the endpoint ------------------------------------------------------------------------------------------

    def send(self, payload: Buffer) -> None:
        """Send bytes read from the endpoint, now or as soon as credits and the link allow."""
        if self.ended or not payload:
            return
        self.active = True
        session = self.session
        if (
            not self._unsent
            and session.link.writable
            and self.send_window.can_send()
            and len(payload) <= PAYLOAD_MAX_BYTES
        ):
            self.send_window.take()
            self.bytes_sent += len(payload)
            session.bytes_sent += len(payload)
            session.link.send_data(self.id, payload)
            if self.attempt is not None:
                self.attempt.kept.append(payload)
            if not self.send_window.can_send():
                self._want_read(wanted=False)
                session.out_of_credit(self)
            return
        view = memoryview(payload)
        self._unsent.extend(view[at : at + PAYLOAD_MAX_BYTES] for at in range(0, len(payload), PAYLOAD_MAX_BYTES))
        self._want_read(wanted=False)
        self.pump_soon()

    def send_eof(self) -> None:
        """The endpoint will send no more: say so after the last byte."""
        if self.ended or self._eof_pending or self.sent_eof:
            return
        self.active = True
        self._eof_pending = True
        if not self._unsent:
            self._send_eof_now()

    def endpoint_lost(self, reason: Reason = Reason.RESET) -> None:
        """The endpoint broke: tell the peer at once and drop what was not sent."""
        if not self.ended:
            self.session.send_control(self.session.wire.disconnect(self.id, reason))
            self._end(reason)

    def endpoint_full(self, full: bool) -> None:
        """The endpoint has too much to deliver, or has room again; credits follow."""
        self._full = full
        if self.ended:
            return
        if not self.grants:
            self._pause_peer(full)
        if not full:
            self.active = True
            self._drained()

    def use_pauses(self) -> None:
        """Slow the peer down by pauses from now on: it turned out to know no credits."""
        self.grants = False
        if self._full:
            self._pause_peer(full=True)

    def endpoint_keeps(self, messages: int) -> None:
        """A full endpoint has delivered all but the last ``messages``: credits for the others follow."""
        self.active = True
        self._grant(messages)

    # -- From the session -------------------------------------------------------------------------------------------

    def receive(self, payload: Buffer) -> None:
        """Deliver one data message."""
        self.active = True
        if self.attempt is not None:
            self.answered()
        self.receive_window.receive()
        if self._ungranted and self.receive_window.held >= FIRST_GRANT_AFTER:
            self.session.send_control(self.session.wire.credits(self.id, self._ungranted))
            self._ungranted = 0
        if self.received_eof:
            return
        self.bytes_received += len(payload)
        if len(payload):
            self.endpoint.write(payload)
        if not self._full:
            self._grant()
        elif self.receive_window.held > self.receive_window.size + CREDITS_OVERSHOOT:
            # In messages, not bytes: small ones cost memory, too, and a larger window (of the operator) may fill up.
            self.session.role.overflowed(self)

    def receive_credits(self, count: int) -> None:
        """Handle ``resume_stream``: it ends a pause and may grant credits."""
        self.send_window.paused = False
        self.receive_grant(count)

    def receive_grant(self, count: int) -> None:
        """Handle credits that end no pause."""
        self.attempt = None
        self.send_window.grant(count)
        self.resume()

    def receive_pause(self) -> None:
        """Handle ``pause_stream``."""
        self.attempt = None
        self.send_window.paused = True
        self._want_read(wanted=False)

    def receive_eof(self) -> None:
        """Handle ``half_close``: the peer will send no more."""
        self.active = True
        self.attempt = None
        if not self.received_eof:
            self.received_eof = True
            if not self.sent_eof:
                self.endpoint.write_eof()
            elif self._eof_told:
                self._finish()
            else:
                self.end_cleanly()

    def receive_disconnect(self, reason: str) -> None:
        """Handle ``disconnect``: deliver what arrived if the peer ended cleanly, else break visibly.

        As the only answer to an attempt it is a refusal: nothing was delivered.
        """
        if self._failed(reason):
            return
        if is_clean(reason) and self.attempt is None:
            self.endpoint.finish()
        else:
            self.endpoint.abort()
        self._end(reason or Reason.NORMAL)

    def session_lost(self) -> None:
        """The link is gone: nobody knows what did not arrive, so the end must be seen as broken."""
        if self._failed(Reason.SESSION_ENDED):
            return
        self.endpoint.abort()
        self._end(Reason.SESSION_ENDED)

    def close(self, reason: Reason) -> None:
        """End the stream from this side, in the middle."""
        if not self.ended:
            self.session.send_control(self.session.wire.disconnect(self.id, reason))
            self.endpoint.abort()
            self._end(reason)

    def end_cleanly(self) -> None:
        """End the stream from this side after the last byte: the peer and the endpoint see an orderly end.

        Where bytes still wait to be sent the end follows them; until then the stream goes on.
        """
        if self._unsent:
            self._end_pending = True
        elif not self.ended:
            self.session.send_control(self.session.wire.disconnect(self.id, Reason.NORMAL))
            self._finish()

    # -- By another way ---------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """Keep to the way that was tried: its far end gave a sign, or may be one that gives none."""
        self.attempt = None
        self.session.out_of_credit(self)

    def move(self, session: Session, stream_id: bytes, announce: Callable[[Stream], None]) -> None:
        """Start anew on another session, with everything sent so far; only while there is an ``attempt``.

        ``announce`` tells that session's far end of the stream before anything of it is sent there.
        """
        kept = self.attempt.kept if self.attempt is not None else []
        self.session.drop(self)
        if self._in_queue:
            self.session.unqueue(self)
        self.session, self.id = session, stream_id
        self.send_window = SendWindow(paced=True)
        self.receive_window = ReceiveWindow(session.reserve_window(CREDITS_INITIAL))
        self._unsent.extendleft(reversed(kept))
        kept.clear()
        self._eof_pending = self._eof_pending or self.sent_eof
        self.sent_eof = self._eof_told = self._in_queue = False
        session.streams[stream_id] = self
        announce(self)
        if self._eof_pending and not self._unsent:
            self._send_eof_now()
        else:
            self.resume()

    def _failed(self, reason: str) -> bool:
        """Give up the attempt; return whether the stream goes on by another way."""
        return self.attempt is not None and not self.ended and self.attempt.failed(self, reason)

    # -- Progress ---------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Send and read again after credits, a pong or a resume."""
        if self._unsent:
            self.pump_soon()
        elif self.send_window.can_send():
            self._want_read(wanted=True)

    def pump_soon(self) -> None:
        """Join the session's round robin where something can be sent."""
        if not self.send_window.can_send():
            self.session.out_of_credit(self)
        elif not self._in_queue:
            self._in_queue = True
            self.session.queue(self)

    def pump(self) -> bool:
        """Send one waiting message (a turn of the round robin); return whether the stream wants another turn."""
        self._in_queue = False
        if self.ended or not self._unsent or not self.send_window.can_send():
            return False
        payload = self._unsent.popleft()
        self.send_window.take()
        self.bytes_sent += len(payload)
        self.session.bytes_sent += len(payload)
        self.session.link.send_data(self.id, payload)
        if self.attempt is not None:
            self.attempt.kept.append(payload)
        if not self._unsent:
            if self._end_pending:
                self.end_cleanly()
                return False
            if self._eof_pending:
                self._send_eof_now()
                return False
            if self.send_window.can_send():
                self._want_read(wanted=True)
                return False
        if not self.send_window.can_send():
            self.session.out_of_credit(self)
            return False
        self._in_queue = True
        return True

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for credits or for the link."""
        return sum(map(len, self._unsent))

    @property
    def is_waiting(self) -> bool:
        """Whether the stream waits for credits, for the link, or for its endpoint to take bytes."""
        return bool(self._unsent) or self._full or not self._reading

    def idle_s(self, now: float) -> float:
        """Return for how long nothing moved in either direction, as seen by successive calls.

        A stream that waits for its peer (no credits, paused, link full), is held up or has a link that is not read is
        not idle; one whose endpoint takes none of the bytes that wait for it is.
        """
        waiting = self.endpoint.unwritten_bytes()
        moved = self.active or waiting != self.stalled_bytes or (self.held_up is not None and self.held_up())
        if moved or (not waiting and (self._unsent or not (self._reading or self.sent_eof))):
            self.active = False
            self.stalled_bytes = waiting
            self.idle_since = now
        return now - max(self.idle_since, self.unread_until(now))

    def unread_until(self, now: float) -> float:
        """Return until when something for this stream may have been here unread, see ``Link.held_until``.

        Minus infinity where bytes wait for its endpoint: then that is what holds it back, and perhaps the link, too.
        """
        return -math.inf if self.endpoint.unwritten_bytes() else self.session.link.held_until(now)

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _want_read(self, *, wanted: bool) -> None:
        if wanted is not self._reading:
            self._reading = wanted
            if not (self._eof_pending or self.sent_eof):
                self.endpoint.read_more(wanted)

    def _pause_peer(self, full: bool) -> None:
        """Slow down a hub that knows no credits; flag and level are one thing, so they cannot disagree."""
        wire = self.session.wire
        self.session.send_control(wire.pause(self.id, Reason.BUFFER_FULL) if full else wire.resume(self.id))

    def _drained(self) -> None:
        """Go on after the endpoint took what waited; what the link held back may fill it at once."""
        self.session.endpoint_drained(self)
        if not self._full:
            self._grant()

    def _grant(self, kept: int = 0) -> None:
        count = self.receive_window.release(kept)
        if count and self.grants and not self.ended:
            count += self.session.adjust_window(self.receive_window, count)
            if count:
                self.session.send_control(self.session.wire.credits(self.id, count))

    def _send_eof_now(self) -> None:
        self._eof_pending = False
        self.sent_eof = True
        self._eof_told = self.session.send_eof(self)
        if self.received_eof:
            self._finish()

    def _finish(self) -> None:
        """Both directions ended in order: both sides know, no message is owed."""
        if not self.ended:
            self.endpoint.finish()
            self._end(Reason.NORMAL)

    def _end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        self._unsent.clear()
        self.session.forget(self, reason)
