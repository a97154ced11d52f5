"""Sessions without sockets: a fake link, endpoint and role, and two sessions coupled to a pair."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import cast

from nexus.link.connection import Link, LinkEnd
from nexus.link.session import EventHandlers, Session
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL, DATA_HEADER_BYTES, FEATURES, KIND_CONTROL
from nexus.protocol.framing import Buffer
from nexus.protocol.messages import Control, parse_control
from nexus.protocol.window import SendWindow

LOST = LinkEnd(1006, "", "the cable was cut")


@dataclass
class Sent:
    """One thing on the wire: a binary ``message``, a ``ping`` or a ``pong``."""

    kind: str
    payload: bytes

    @property
    def control(self) -> Control | None:
        """The control message, if it is one."""
        if self.kind == "message" and self.payload[0] == KIND_CONTROL:
            return parse_control(self.payload[1:])
        return None


class FakeLink:
    """Keeps what a session sends; ``room`` messages of data fit until it is no longer writable."""

    data_kind = b"\x01"

    def __init__(self) -> None:
        self.writable = True
        self.room: int | None = None
        self.held = False
        self.released_at = -math.inf
        self.wire: deque[Sent] = deque()
        self.log: list[Sent] = []
        self.waiting = 0
        self.flows: Container[bytes] = ()  # their datagrams may join what waits
        self.closing = False
        self.round_trip_s: float | None = None
        self.clock_s = 0.0
        self.on_release: Callable[[], None] = lambda: None
        self.texts: list[str] = []
        self.on_text: Callable[[str], None] = lambda _text: None
        self.limits: list[int] = []
        self.closed: list[tuple[int, str]] = []
        self.turns: deque[Callable[[], None]] = deque()  # what asked for the next turn of the event loop

    def _put(self, kind: str, payload: bytes) -> None:
        if not self.closing:
            sent = Sent(kind, payload)
            self.wire.append(sent)
            self.log.append(sent)

    def send_data(self, stream_id: bytes, payload: Buffer) -> None:
        assert self.writable or stream_id in self.flows, "data was sent although the link is full"
        self._put("message", self.data_kind + stream_id + bytes(payload))
        if self.room is not None:
            self.room -= 1
            self.writable = self.room > 0

    def send_message(self, message: bytes) -> None:
        self._put("message", message)

    def send_text(self, text: str) -> None:
        self.texts.append(text)
        self.on_text(text)

    def limit_messages(self, limit: int) -> None:
        self.limits.append(limit)

    def close(self, code: int, reason: str) -> None:
        self.closing = True
        self.closed.append((code, reason))

    def ping(self, payload: bytes = b"") -> None:
        self._put("ping", payload)

    def now(self) -> float:
        return self.clock_s

    def next_turn(self, callback: Callable[[], None]) -> None:
        self.turns.append(callback)

    def is_closing(self) -> bool:
        return self.closing

    def waiting_bytes(self) -> int:
        return self.waiting

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.released_at = self.clock_s
            self.on_release()

    def held_until(self, now: float) -> float:
        return now if self.held else self.released_at

    # -- For tests --------------------------------------------------------------------------------------------------

    def data(self, stream: Stream | None = None) -> list[bytes]:
        """The payloads of the data messages sent so far."""
        return [
            sent.payload[DATA_HEADER_BYTES:]
            for sent in self.log
            if sent.kind == "message"
            and sent.payload[0] != KIND_CONTROL
            and (stream is None or sent.payload[1:DATA_HEADER_BYTES] == stream.id)
        ]

    def controls(self, event: str = "") -> list[Control]:
        """The control messages sent so far, perhaps only those of one event."""
        found = [sent.control for sent in self.log]
        return [control for control in found if control is not None and event in {"", control.event}]

    def pings(self) -> list[bytes]:
        """The payloads of the pings sent so far."""
        return [sent.payload for sent in self.log if sent.kind == "ping"]


class FakeEndpoint:
    """An endpoint that reads when asked and takes ``takes`` bytes at once before it is full."""

    def __init__(self, stream: Stream, takes: int | None = None) -> None:
        self.stream = stream
        self.takes = takes
        self.delivered = bytearray()
        self.waiting = bytearray()
        self.reading = True
        self.full = False
        self.eof = self.finished = self.aborted = False

    def write(self, payload: Buffer) -> None:
        assert not any((self.eof, self.finished, self.aborted)), "written to after its end"
        if self.takes is None:
            self.delivered += payload
            return
        self.waiting += payload
        if len(self.waiting) > self.takes and not self.full:
            self.full = True
            self.stream.endpoint_full(True)

    def write_eof(self) -> None:
        assert not self.eof
        self.eof = True

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        self.aborted = True
        self.waiting.clear()

    def read_more(self, wanted: bool) -> None:
        self.reading = wanted

    def unwritten_bytes(self) -> int:
        return len(self.waiting)

    # -- For tests --------------------------------------------------------------------------------------------------

    def drain(self, size: int | None = None) -> None:
        """Deliver some of what waits, or all."""
        size = len(self.waiting) if size is None else size
        self.delivered += self.waiting[:size]
        del self.waiting[:size]
        if self.full and not self.waiting:
            self.full = False
            if not self.finished:
                self.stream.endpoint_full(False)

    def received(self) -> bytes:
        """Everything that reached this endpoint."""
        return bytes(self.delivered + self.waiting)


class FakeRole:
    """Notes what the session tells it; ``ends_on_eof`` behaves as a backend client, else as a hub."""

    def __init__(self, *, ends_on_eof: bool = False, events: EventHandlers | None = None) -> None:
        self.events: EventHandlers = events or {}
        self.ends_on_eof = ends_on_eof
        self.holds = True
        self.session: Session | None = None
        self.unknown: list[bytes] = []
        self.untold: list[Stream] = []
        self.overflows: list[Stream] = []
        self.pauses: list[bytes] = []
        self.texts: list[str] = []
        self.pongs: list[bytes] = []
        self.ended: list[tuple[Stream, str]] = []
        self.ends: list[LinkEnd] = []

    def unknown_stream(self, stream_id: bytes) -> None:
        self.unknown.append(stream_id)

    def ended_sending(self, stream: Stream) -> None:
        self.untold.append(stream)
        if self.ends_on_eof:
            stream.end_cleanly()

    def overflowed(self, stream: Stream) -> None:
        self.overflows.append(stream)
        if self.holds:
            stream.session.hold_for(stream)

    def paused(self, stream_id: bytes) -> None:
        self.pauses.append(stream_id)

    def text_received(self, text: str) -> None:
        self.texts.append(text)

    def pong_received(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def stream_ended(self, stream: Stream, reason: str) -> None:
        self.ended.append((stream, str(reason)))

    def session_ended(self, end: LinkEnd) -> None:
        self.ends.append(end)


class Side:
    """One session with everything fake around it."""

    def __init__(self, features: Iterable[str] = FEATURES, *, ends_on_eof: bool = False) -> None:
        self.link = FakeLink()
        self.role = FakeRole(ends_on_eof=ends_on_eof)
        self.session = Session(cast(Link, self.link), self.role, tuple(features))
        self.link.flows = self.session.flows

    def open(
        self, number: int = 1, window: SendWindow | None = None, takes: int | None = None
    ) -> tuple[Stream, FakeEndpoint]:
        """Return a stream in the table with its endpoint."""
        stream = self.dialling(number, window)
        endpoint = FakeEndpoint(stream, takes)
        stream.attach(endpoint)
        return stream, endpoint

    def dialling(self, number: int = 1, window: SendWindow | None = None) -> Stream:
        """Return a stream in the table that has no endpoint yet."""
        stream = Stream(
            self.session, number.to_bytes(2, "little") * 8, window or SendWindow(CREDITS_INITIAL, paced=False)
        )
        self.session.streams[stream.id] = stream
        return stream

    def take(self, sent: Sent) -> None:
        """Let one thing arrive."""
        if sent.kind == "message":
            self.session.message_received(sent.payload)
        elif sent.kind == "pong":
            self.session.pong_received(sent.payload)
        else:
            self.link._put("pong", sent.payload)

    def make_writable(self, room: int | None = None) -> None:
        """Give the link room again."""
        self.link.room = room
        if not self.link.writable:
            self.link.writable = True
            self.session.writable_changed()

    def tables(self) -> int:
        """How many entries of streams the session holds anywhere."""
        session = self.session
        return sum(
            len(table)
            for table in (session.streams, session._waiting, session._unpaced, session._paced, session._overflowing)
        )


class SessionPair:
    """A hub's and a backend's session; ``deliver`` carries what they send, in order."""

    def __init__(self, *, half_close: bool = True, credits_known: bool = True) -> None:
        features = FEATURES if half_close else ()
        self.hub = Side(features)
        self.backend = Side(features, ends_on_eof=True)
        self.credits_known = credits_known
        self.streams: list[tuple[FakeEndpoint, FakeEndpoint]] = []

    def open(self, takes: int | None = None) -> tuple[FakeEndpoint, FakeEndpoint]:
        """Open a stream as hub and backend do; return the client's end and the service's."""
        number = len(self.streams) + 1
        client, at_hub = self.hub.open(number, SendWindow(paced=True), takes)
        backend = SendWindow(CREDITS_INITIAL if self.credits_known else 0, paced=False)
        stream, at_backend = self.backend.open(number, backend, takes)
        if self.credits_known:
            client.receive_credits(stream.receive_window.size)
        else:
            stream.grants = client.grants = False
        self.streams.append((at_hub, at_backend))
        return at_hub, at_backend

    def deliver(self, to: Side, count: int | None = None) -> int:
        """Let up to ``count`` things arrive at one side; return how many did."""
        source = self.backend if to is self.hub else self.hub
        done = 0
        while source.link.wire and not to.link.held and (count is None or done < count):
            to.take(source.link.wire.popleft())
            done += 1
        return done

    def settle(self) -> None:
        """Carry, drain and make room until nothing moves any more."""
        moved = True
        while moved:
            moved = bool(self.deliver(self.hub) + self.deliver(self.backend))
            for pair in self.streams:
                for endpoint in pair:
                    moved = moved or bool(endpoint.waiting)
                    endpoint.drain()
            for side in (self.hub, self.backend):
                moved = moved or not side.link.writable
                side.make_writable()

    def lose(self) -> None:
        """End both links."""
        for side in (self.hub, self.backend):
            side.link.closing = True
            side.link.writable = False
            side.session.link_lost(LOST)
