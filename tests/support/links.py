"""A link on a transport in memory, with the ``websockets`` library as its other side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from nexus.link.connection import Admit, Link, LinkEnd
from nexus.protocol.constants import CONNECT_PATH, HANDSHAKE_MESSAGE_MAX_BYTES
from tests.support.framing import URI

Protocol = ServerProtocol | ClientProtocol


class MemoryTransport(asyncio.Transport):
    """Keeps what is written until ``take``; ``backlog`` is what it says is waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.backlog = 0
        self.reading = True
        self.closed = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written to after its end"
        self.writes += 1
        self.written += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(bytes(data) for data in list_of_data))

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def get_write_buffer_size(self) -> int:
        return self.backlog

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Owner:
    """Notes everything a link tells, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []
        self.link: Link | None = None
        self.hold_after: object = None

    def _note(self, kind: str, what: object) -> None:
        self.heard.append((kind, what))
        if what == self.hold_after and self.link is not None:
            self.link.hold()

    def message_received(self, message: bytes) -> None:
        self._note("binary", message)

    def text_received(self, text: str) -> None:
        self._note("text", text)

    def pong_received(self, payload: bytes) -> None:
        self._note("pong", payload)

    def writable_changed(self) -> None:
        assert self.link is not None
        self._note("writable", self.link.writable)

    def link_lost(self, end: LinkEnd) -> None:
        self._note("lost", end)

    def told(self, kind: str) -> list[object]:
        """What was told of one kind."""
        return [what for one, what in self.heard if one == kind]


class LinkHarness:
    """A link of either role, its transport, its owner, and the peer."""

    def __init__(self, *, server: bool, admit: Admit | None = None) -> None:
        self.owner = Owner()
        self.server = server
        ours: Protocol = ServerProtocol(max_size=1) if server else ClientProtocol(URI, max_size=1)
        self.peer: Protocol = (
            ClientProtocol(URI) if server else ServerProtocol(max_size=HANDSHAKE_MESSAGE_MAX_BYTES * 2)
        )
        self.link = Link(ours, self.owner, path=CONNECT_PATH, admit=admit)
        self.owner.link = self.link
        self.transport = MemoryTransport()
        self.link.connection_made(self.transport)

    def feed(self, data: bytes, chunk: int | None = None) -> None:
        """Let bytes arrive as an event loop does: into the link's own buffer, not while it does not read."""
        at = 0
        while at < len(data) and not self.transport.closed:
            assert self.transport.reading
            view = self.link.get_buffer(-1)
            size = min(len(view), chunk or len(data), len(data) - at)
            assert size, "an event loop fails on an empty buffer"
            view[:size] = data[at : at + size]
            self.link.buffer_updated(size)
            at += size

    def request(self) -> bytes:
        """Return the peer's upgrade request."""
        assert isinstance(self.peer, ClientProtocol)
        self.peer.send_request(self.peer.connect())
        return self.peer_output()

    def open(self, behind: bytes = b"") -> LinkHarness:
        """Complete the upgrade, with more bytes in the segment that completes it."""
        if self.server:
            self.feed(self.request() + behind)
            self.hear()
        else:
            assert isinstance(self.peer, ServerProtocol)
            (request,) = self.hear()
            assert isinstance(request, Request)
            self.peer.send_response(self.peer.accept(request))
            self.feed(self.peer_output() + behind)
        assert self.peer.state is State.OPEN
        return self

    def hear(self) -> list[object]:
        """End the turn of the event loop; let the peer take what the link wrote, and return what it makes of it."""
        self.link.write_out()
        self.peer.receive_data(self.transport.take())
        return list(self.peer.events_received())

    def frames(self) -> list[tuple[str, bytes]]:
        """Return the frames the link wrote."""
        events = self.hear()
        return [(event.opcode.name.lower(), bytes(event.data)) for event in events if isinstance(event, Frame)]

    def peer_output(self) -> bytes:
        """Return what the peer has to send."""
        return b"".join(self.peer.data_to_send())

    def lose(self, error: Exception | None = None) -> LinkEnd:
        """End the transport; return how the link says that it ended."""
        self.transport.closed = True
        self.link.connection_lost(error)
        (end,) = self.owner.told("lost")
        assert isinstance(end, LinkEnd)
        return end
