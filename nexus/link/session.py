"""A session: the streams of one authenticated link, of either role.

The role (hub or backend client) adds its own events through ``events`` and decides what an unknown stream and an end of
data mean; everything that both sides do alike stands here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from nexus.errors import RemoteProtocolError
from nexus.limits import LineBudget
from nexus.link.connection import Link, LinkEnd
from nexus.link.flow import SessionFlow
from nexus.link.stream import Stream
from nexus.protocol.constants import (
    DATA_HEADER_BYTES,
    FEATURE_HALF_CLOSE,
    WINDOW_MIN,
)
from nexus.protocol.framing import Buffer
from nexus.protocol.messages import Control
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SHRINK_MIN, ReceiveWindow
from nexus.protocol.wire import SESSION_WIRE, Wire

if TYPE_CHECKING:
    from nexus.link.splice import Gate

_log = logging.getLogger("nexus.session")
# What all streams of a session may have granted at their start, in messages: 512 MiB of full ones. Beyond it a new
# stream gets WINDOW_MIN, 512 KiB. By so much they may grow, apart from that: thousands of streams that idle with what
# they were granted must not keep a busy one small.
WINDOWS_MAX: Final = 16_384
# What may wait for the link before datagrams are dropped: above the mark at which streams stop (128 KiB), so that a
# burst of new flows gets through beside full streams, and far below the 16 MiB at which the link is given up.
DATAGRAMS_WAITING_MAX_BYTES: Final = 1024 * 1024
# A lost link may have 200,000 flows. So many end in about a millisecond; then everybody else has a turn.
LOST_FLOWS_PER_TURN: Final = 500
_PACE_PREFIX = b"pace:"

EventHandlers = Mapping[str, Callable[[Control], None]]


class Role(Protocol):
    """What the hub and the backend client do differently."""

    events: EventHandlers

    def unknown_stream(self, stream_id: bytes) -> None:
        """A data message for a stream that is not here."""

    def ended_sending(self, stream: Stream) -> None:
        """The endpoint sent its last byte and the peer does not know half-close."""

    def overflowed(self, stream: Stream) -> None:
        """The peer sent more than its window and the endpoint is slow."""

    def paused(self, stream_id: bytes) -> None:
        """The peer paused a stream or a flow."""

    def text_received(self, text: str) -> None:
        """A text message in the session."""

    def pong_received(self, payload: bytes) -> None:
        """A pong that the session did not ask for itself."""

    def stream_ended(self, stream: Stream, reason: str) -> None:
        """A stream is gone."""

    def session_ended(self, end: LinkEnd) -> None:
        """The link is gone; every stream was ended before."""


class Session:
    """The streams of one link. It is the link's owner from the end of the handshake on."""

    def __init__(self, link: Link, role: Role, features: tuple[str, ...], wire: Wire = SESSION_WIRE) -> None:
        """Take over ``link``; ``features`` is what both sides know, ``wire`` how they write it."""
        self.link = link
        self.wire = wire
        self.role = role
        self.streams: dict[bytes, Stream] = {}
        self.flows: dict[bytes, SessionFlow] = {}
        self.features = frozenset(features)
        self.gate: Gate | None = None  # of a node's bandwidth cap
        self.bytes_sent = 0
        self.bytes_received = 0
        self.window_messages = 0  # at their start
        self.grown_messages = 0
        self.peer = "the peer"  # for log lines
        self.faults = 0
        self.ended = False
        self._fault_lines = LineBudget()
        self._waiting: deque[Stream] = deque()
        self._turning = False
        self._unpaced: dict[Stream, None] = {}  # out of room, in order; confirmed by the next ping's pong
        self._paced: dict[Stream, None] = {}  # confirmed by the pong that is due
        self._pace_number = 0
        self._pace_due = False
        self._overflowing: set[Stream] = set()

    # -- Link owner -------------------------------------------------------------------------------------------------

    def message_received(self, message: bytes) -> None:
        """Dispatch one binary message; malformed ones are dropped, as the original does."""
        kind = message[0] if message else 0
        if kind == self.wire.data_kind and len(message) >= DATA_HEADER_BYTES:
            stream = self.streams.get(message[1:DATA_HEADER_BYTES])
            if stream is not None:
                self.bytes_received += len(message) - DATA_HEADER_BYTES
                stream.receive(memoryview(message)[DATA_HEADER_BYTES:])
            else:
                self._receive_datagram(message)
        else:
            self._receive_control(message)

    def text_received(self, text: str) -> None:
        """Hand text to the role."""
        self.role.text_received(text)

    def pong_received(self, payload: bytes) -> None:
        """Let paced streams go on, or hand the pong to the role."""
        if not self._pace_due or payload != self._pace_payload():
            self.role.pong_received(payload)
            # The original gives up a pong that it cannot write within 1 s: ask again at the next sign of life.
            if self._pace_due and not payload.startswith(_PACE_PREFIX):
                self.link.ping(self._pace_payload())
            return
        self._pace_due = False
        confirmed, self._paced = self._paced, {}
        for stream in confirmed:
            if not stream.ended and stream.attempt is None and stream.send_window.confirm():
                stream.resume()
        self._ping_for_pace()

    def writable_changed(self) -> None:
        """Send what waits while the link has room."""
        if self.link.writable:
            self._turn()

    def link_lost(self, end: LinkEnd) -> None:
        """End every stream visibly, and every flow, many of them within some turns of the event loop."""
        self.ended = True
        for stream in list(self.streams.values()):
            stream.session_lost()
        self._end_lost_flows()
        self._waiting.clear()
        self._overflowing.clear()
        self._unpaced.clear()
        self._paced.clear()
        self.role.session_ended(end)

    def knows(self, stream_id: bytes) -> bool:
        """Tell whether the id is that of a stream or a flow."""
        return stream_id in self.streams or stream_id in self.flows

    # -- For streams ------------------------------------------------------------------------------------------------

    def queue(self, stream: Stream) -> None:
        """Give a stream its turns; called once until its turn says that it wants no more."""
        self._waiting.append(stream)
        if self.link.writable and len(self._waiting) == 1:
            self._turn()

    def unqueue(self, stream: Stream) -> None:
        """Take a stream out of the round robin before its turn."""
        self._waiting.remove(stream)

    def out_of_credit(self, stream: Stream) -> None:
        """Ask for a sign of life from a peer that does not grant credits, see ``SendWindow``."""
        window = stream.send_window
        if window.paced and not window.limited and window.available <= 0 and stream not in self._paced:
            self._unpaced[stream] = None
            self._ping_for_pace()

    def hold_for(self, stream: Stream) -> None:
        """Stop reading the link until a slow endpoint took its bytes: all that helps against a peer without credits."""
        self._overflowing.add(stream)
        self.link.hold()

    def endpoint_drained(self, stream: Stream) -> None:
        """Note that a stream's endpoint has room again."""
        if stream in self._overflowing:
            self._overflowing.discard(stream)
            if not self._overflowing:
                self.link.release()

    def reserve_window(self, wanted: int) -> int:
        """Return the first grant of a new stream: what it wants while the budget for that lasts, then WINDOW_MIN."""
        size = wanted if self.window_messages + wanted <= WINDOWS_MAX else min(wanted, WINDOW_MIN)
        self.window_messages += size
        return size

    def adjust_window(self, window: ReceiveWindow, released: int) -> int:
        """Double a window that holds its sender back, within what all may grow; halve one that only makes a queue.

        Returns what to grant besides the messages that were released, negative: what of them not to grant.
        """
        round_trip_s = self.link.round_trip_s
        if round_trip_s is None:
            return 0
        now = self.link.now()
        if window.is_long(released, now, round_trip_s):
            window.excess = max(min(window.size // 2, window.size - SHRINK_MIN), 0)
        if window.excess:
            less = min(released, window.excess)
            grown, first = window.shrink(less)
            self.grown_messages -= grown
            self.window_messages -= first
            return -less
        if not window.is_short(released, now, round_trip_s):
            return 0
        more = min(window.size, self.wire.window_max - window.size, WINDOWS_MAX - self.grown_messages)
        if more <= 0:
            return 0
        window.grow(more)
        self.grown_messages += more
        return more

    def has_room(self) -> bool:
        """Tell whether a datagram, or the announcement of a flow, may still join what waits for the link."""
        return not self.link.is_closing() and self.link.waiting_bytes() < DATAGRAMS_WAITING_MAX_BYTES

    def send_datagram(self, flow_id: bytes, datagram: Buffer) -> bool:
        """Send one datagram, at most PAYLOAD_MAX_BYTES; return False where it had to be dropped."""
        if not self.has_room():
            return False
        self.bytes_sent += len(datagram)
        self.link.send_data(flow_id, datagram)
        return True

    def send_control(self, message: bytes) -> None:
        """Send one control message behind everything sent so far."""
        self.link.send_message(message)

    def send_eof(self, stream: Stream) -> bool:
        """Tell the peer that the stream's endpoint sent its last byte; return whether it knows how to take that."""
        if FEATURE_HALF_CLOSE in self.features:
            self.link.send_message(self.wire.half_close(stream.id))
            return True
        self.role.ended_sending(stream)
        return False

    def forget(self, stream: Stream, reason: str) -> None:
        """Drop a stream that ended."""
        self.drop(stream)
        self.role.stream_ended(stream, reason)

    def drop(self, stream: Stream) -> None:
        """Know nothing of a stream any more: it ended, or goes on in another session."""
        if self.streams.pop(stream.id, None) is not None:
            window = stream.receive_window
            self.window_messages -= window.first
            self.grown_messages -= window.size - window.first
        self._unpaced.pop(stream, None)
        self._paced.pop(stream, None)
        self.endpoint_drained(stream)

    def note_fault(self, what: str) -> None:
        """Count what the peer does against the protocol; the first few in each interval are warnings."""
        self.faults += 1
        level = logging.WARNING if self._fault_lines.admit(self.link.now()) else logging.DEBUG
        _log.log(level, "%s %s", self.peer, what)

    def buffered_bytes(self) -> int:
        """Return the bytes that wait in this process, towards the peer and towards endpoints."""
        return self.link.waiting_bytes() + sum(stream.endpoint.unwritten_bytes() for stream in self.streams.values())

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Round robin: one message of every waiting stream, again and again, until the link is full."""
        if self._turning:  # a transport may find room while it is written to
            return
        self._turning = True
        waiting = self._waiting
        while waiting and self.link.writable:
            if waiting[0].pump():
                waiting.rotate(-1)
            else:
                waiting.popleft()
        self._turning = False

    def _end_lost_flows(self) -> None:
        for _ in range(LOST_FLOWS_PER_TURN):
            if not self.flows:
                return
            _, flow = self.flows.popitem()
            flow.session_lost()
        if self.flows:
            self.link.next_turn(self._end_lost_flows)

    def _ping_for_pace(self) -> None:
        if self._unpaced and not self._pace_due:
            self._pace_due = True
            self._paced, self._unpaced = self._unpaced, {}
            self._pace_number += 1
            self.link.ping(self._pace_payload())

    def _pace_payload(self) -> bytes:
        return _PACE_PREFIX + b"%d" % self._pace_number

    def _receive_datagram(self, message: bytes) -> None:
        flow = self.flows.get(message[1:DATA_HEADER_BYTES])
        if flow is not None:
            self.bytes_received += len(message) - DATA_HEADER_BYTES
            flow.receive(memoryview(message)[DATA_HEADER_BYTES:])
        else:
            self.role.unknown_stream(message[1:DATA_HEADER_BYTES])

    def _receive_control(self, message: bytes) -> None:
        try:
            control = self.wire.parse(message)
        except RemoteProtocolError as error:
            self.note_fault(f"sent a control message that was dropped: {error}")
            return
        stream = self.streams.get(control.stream_id)
        if stream is not None and (handle := _STREAM_EVENTS.get(control.event)) is not None:
            handle(stream, control)
        elif control.stream_id in self.flows and control.event in _STREAM_EVENTS:
            self._receive_flow_event(control)
        elif (role_handler := self.role.events.get(control.event)) is not None:
            role_handler(control)

    def _receive_flow_event(self, control: Control) -> None:
        flow = self.flows[control.stream_id]
        match control.event:
            case "disconnect":
                del self.flows[control.stream_id]
                flow.receive_disconnect(control.reason)
            case "resume_stream" | "credits":
                flow.receive_credits(control.credits)
            case "pause_stream":
                flow.receive_pause()
                self.role.paused(flow.id)

    def end_all(self, reason: Reason) -> None:
        """Break every stream and flow, telling the peer why."""
        for stream in list(self.streams.values()):
            stream.close(reason)
        for flow in list(self.flows.values()):
            flow.close(reason)


def _on_pause(stream: Stream, _control: Control) -> None:
    stream.receive_pause()
    stream.session.role.paused(stream.id)


def _on_half_close(stream: Stream, _control: Control) -> None:
    if FEATURE_HALF_CLOSE in stream.session.features:
        stream.receive_eof()


# What an event of both roles means for its stream; one for a stream that is not here any more means nothing.
_STREAM_EVENTS: Final[Mapping[str, Callable[[Stream, Control], None]]] = {
    "disconnect": lambda stream, control: stream.receive_disconnect(control.reason),
    "pause_stream": _on_pause,
    "resume_stream": lambda stream, control: stream.receive_credits(control.credits),
    "half_close": _on_half_close,
    "credits": lambda stream, control: stream.receive_grant(control.credits),
}
