"""Two ways to read the frames of a WebSocket, to be held against each other by tests and by ``fuzz/``.

``read_alone`` is the ``websockets`` library by itself. ``read_with_codec`` is our ``FrameReader``, with the library
only for the frames that it hands out, put together as ``nexus.link.connection`` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.uri import WebSocketURI

from nexus.protocol.constants import MESSAGE_MAX_BYTES
from nexus.protocol.framing import FrameReader, RareFrame

FIN = 0x80
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
URI = WebSocketURI(secure=True, host="hub.example", port=443, path="/connect", query="")
_BUFFER_BYTES = 1 << 20
_INVALID_TEXT = 1007

Protocol = ServerProtocol | ClientProtocol


@dataclass
class Seen:
    """What a reader made of its bytes: events in order, what it answered, and how it closed."""

    events: list[tuple[str, bytes]] = field(default_factory=list)
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    close_sent: int | None = None
    close_received: int | None = None


def frame(
    opcode: int, payload: bytes, *, masked: bool, fin: bool = True, rsv: int = 0, length_bytes: int | None = None
) -> bytes:
    """Return one frame; ``rsv`` sets reserved bits (0x40, 0x20, 0x10), ``length_bytes`` forces 0, 2 or 8."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65_536 else 8
    code = {0: size, 2: 126, 8: 127}[length_bytes]
    head = (
        bytes(((FIN if fin else 0) | rsv | opcode, (0x80 if masked else 0) | code))
        + size.to_bytes(8, "big")[8 - length_bytes :]
    )
    if not masked:
        return head + payload
    key = b"\x13\x57\x9b\xdf"
    pad = (key * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")  # RFC 6455 5.3, all octets at once
    return head + key + mixed.to_bytes(size, "big")


def protocol(*, masked: bool) -> Protocol:
    """Return the library's protocol, open, that reads masked frames (a server) or unmasked ones (a client)."""
    if masked:
        return ServerProtocol(state=State.OPEN, max_size=MESSAGE_MAX_BYTES)
    return ClientProtocol(URI, state=State.OPEN, max_size=MESSAGE_MAX_BYTES)


class Assembler:
    """Joins the library's fragments to messages, and checks that text is UTF-8, which it leaves to its user."""

    def __init__(self, websocket: Protocol, seen: Seen) -> None:
        self.websocket = websocket
        self.seen = seen
        self._opcode = Opcode.TEXT
        self._parts: list[bytes] = []

    def take_events(self) -> None:
        """Note what the library made of its input."""
        for event in self.websocket.events_received():
            assert isinstance(event, Frame)
            if event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                self._take_data(event)
            else:
                self.seen.events.append((event.opcode.name.lower(), bytes(event.data)))

    def _take_data(self, event: Frame) -> None:
        if event.opcode is not Opcode.CONT:
            self._opcode, self._parts = event.opcode, []
        self._parts.append(bytes(event.data))
        if not event.fin:
            return
        message = b"".join(self._parts)
        if self._opcode is Opcode.TEXT:
            try:
                message.decode()
            except UnicodeDecodeError:
                self.websocket.fail(_INVALID_TEXT, "text is not UTF-8")
                return
        self.seen.events.append((self._opcode.name.lower(), message))

    def finish(self) -> Seen:
        """Add the answers and the close codes."""
        websocket = self.websocket
        for data in websocket.data_to_send():
            if data:
                self.seen.answers.append(_answer(data))
        self.seen.close_sent = websocket.close_sent.code if websocket.close_sent else None
        self.seen.close_received = websocket.close_rcvd.code if websocket.close_rcvd else None
        return self.seen


def _answer(data: bytes) -> tuple[int, bytes]:
    """Return opcode and payload of a short frame that the library wrote; its mask is random."""
    opcode, masked, size = data[0] & 0x0F, data[1] & 0x80, data[1] & 0x7F
    body = data[2:]
    payload = apply_mask(body[4:], body[:4]) if masked else body
    assert len(payload) == size
    # What a failure says in words may differ with how much was read; its code may not.
    return opcode, bytes(payload[:2]) if opcode == CLOSE else bytes(payload)


def read_alone(chunks: Iterable[bytes], *, masked: bool) -> Seen:
    """Read with the ``websockets`` library by itself."""
    websocket = protocol(masked=masked)
    assembler = Assembler(websocket, Seen())
    take_frame = websocket.recv_frame

    def recv_frame(one: Frame) -> None:
        take_frame(one)
        assembler.take_events()  # before the next frame, so that bad text counts first

    setattr(websocket, "recv_frame", recv_frame)  # noqa: B010 — mypy forbids to assign a method
    for chunk in chunks:
        websocket.receive_data(chunk)
    return assembler.finish()


def read_with_codec(chunks: Iterable[bytes], *, masked: bool) -> Seen:
    """Read with our codec, and the library for the rest."""
    websocket = protocol(masked=masked)
    assembler = Assembler(websocket, Seen())
    reader = FrameReader(masked=masked, apply_mask=apply_mask)
    view = memoryview(bytearray(_BUFFER_BYTES))
    end = 0
    for chunk in chunks:
        view[end : end + len(chunk)] = chunk
        end += len(chunk)
        items, used = reader.receive(view, end)
        view[: end - used] = view[used:end]
        end -= used
        if not _take(items, assembler):
            break
    return assembler.finish()


def _take(items: Sequence[bytes | RareFrame], assembler: Assembler) -> bool:
    """Return whether reading goes on."""
    websocket = assembler.websocket
    for item in items:
        if isinstance(item, bytes):
            assembler.seen.events.append(("binary", item))
            continue
        if item.fragment_bytes is not None:
            websocket.current_size = item.fragment_bytes
        websocket.receive_data(item.raw)
        if item.fragment_bytes is not None:
            websocket.current_size = None
        assembler.take_events()
        if websocket.state is not State.OPEN:
            return False
    return True
