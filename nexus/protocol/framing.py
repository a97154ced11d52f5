"""The hot-path WebSocket codec: splits inbound bytes into messages and builds the headers of outbound ones.

Strategy: nearly all traffic is binary messages, in one frame or (original clients) in 4 KiB fragments. ``FrameReader``
handles exactly these, straight from the receive buffer, touching each payload once (unmask or copy). Every other frame
(text, ping, pong, close, reserved bits, wrong masking, too long, a continuation that continues nothing) is handed out
unparsed as a ``RareFrame`` for the ``websockets`` library to judge, so that library decides every error and its answer.
A text frame may be longer than the receive buffer (a peer's announcement): it is handed on in pieces as it comes.
``fuzz/`` and ``tests/unit/protocol/test_framing.py`` hold both paths against each other.

The library's C ``apply_mask`` is an argument, so this module needs the standard library only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from nexus.protocol.constants import DATA_HEADER_BYTES, KIND_DATA, MESSAGE_MAX_BYTES

Buffer: TypeAlias = bytes | bytearray | memoryview
ApplyMask: TypeAlias = Callable[[Buffer, bytes | bytearray], bytes]

_FIN: Final = 0x80
_CONTINUATION: Final = 0x00
_TEXT: Final = 0x01
_BINARY: Final = 0x02
_OPCODES: Final = frozenset({_CONTINUATION, _TEXT, _BINARY, 0x08, 0x09, 0x0A})  # RFC 6455 11.8: the rest is reserved
_MASKED: Final = 0x80
_LENGTH_16: Final = 126
_UNPACK_16: Final = struct.Struct("!H").unpack_from
_UNPACK_64: Final = struct.Struct("!Q").unpack_from
_PACK_SMALL: Final = struct.Struct("!BBB16s").pack
_PACK_LARGE: Final = struct.Struct("!BBHB16s").pack
_PACK_HEADER_16: Final = struct.Struct("!BBH").pack
_FIN_BINARY: Final = _FIN | _BINARY
_MASK_POOL_BYTES: Final = 4096
TEXT_PASSED_ON_BYTES: Final = 65_536  # ours: a shorter text frame is waited for, as it fits into any receive buffer


@dataclass(frozen=True, slots=True)
class RareFrame:
    """A frame for the ``websockets`` library: raw bytes, whole or, where its header already is an error, only the head.

    ``fragment_bytes`` is the size of the fragmented binary message it interrupts, None outside one. A message of its
    kind may have ``message_max_bytes``. A long text frame comes in several pieces.
    """

    raw: bytes
    fragment_bytes: int | None
    message_max_bytes: int


class FrameReader:
    """Splits what one side of a WebSocket sends into messages.

    ``fragment_bytes`` is the size so far of the fragmented message under way. ``max_message_bytes`` may be raised or
    lowered between calls (the handshake has a bound of its own); ``max_text_bytes`` holds for text.
    """

    __slots__ = (
        "_apply_mask",
        "_fragments",
        "_mask_bit",
        "_passing",
        "_rare_fragments",
        "fragment_bytes",
        "max_message_bytes",
        "max_text_bytes",
    )

    def __init__(self, *, masked: bool, apply_mask: ApplyMask, max_message_bytes: int = MESSAGE_MAX_BYTES) -> None:
        """Read frames of a client (``masked``) or of a server."""
        self._mask_bit = _MASKED if masked else 0
        self._apply_mask = apply_mask
        self._fragments: list[bytes] | None = None
        self._rare_fragments = False
        self.fragment_bytes = 0
        self.max_message_bytes = max_message_bytes
        self.max_text_bytes = max_message_bytes
        self._passing = 0  # so much of a text frame is still to come

    def receive(self, view: memoryview, end: int) -> tuple[list[bytes | RareFrame], int]:
        """Take every complete frame from ``view[:end]``.

        Returns the messages in order (``bytes`` is a whole binary message) and how many bytes they took; the caller
        keeps the rest and calls again with it in front. After a RareFrame that the library refused, call no more.
        """
        out: list[bytes | RareFrame] = []
        at = self._pass_on(view, end, out) if self._passing else 0
        mask_bit = self._mask_bit
        while end - at >= 2:
            first = view[at]
            second = view[at + 1]
            length = second & 0x7F
            body = at + 2
            if length >= _LENGTH_16:
                body += 2 if length == _LENGTH_16 else 8
                if end < body:
                    at += self._cut_short(view, at, end, out)
                    break
                length = (_UNPACK_16 if length == _LENGTH_16 else _UNPACK_64)(view, at + 2)[0]
            if mask_bit:
                body += 4
            stop = body + length
            if (
                first != _FIN_BINARY
                or second & _MASKED != mask_bit
                or self._fragments is not None
                or self._rare_fragments
                or length > self.max_message_bytes
            ):
                taken = self._other(view, at, body, stop, end, out)
                if not taken:
                    break
                at = taken
                continue
            if stop > end:
                break
            if mask_bit:
                out.append(self._apply_mask(view[body:stop], bytes(view[body - 4 : body])))
            else:
                out.append(bytes(view[body:stop]))
            at = stop
        return out, at

    def _other(self, view: memoryview, at: int, body: int, stop: int, end: int, out: list[bytes | RareFrame]) -> int:
        """Take a fragment of a binary message, or hand the frame out; return where the next one starts, 0 to wait."""
        first = view[at]
        starts = first & ~_FIN == _BINARY and self._fragments is None and not self._rare_fragments
        continues = first & ~_FIN == _CONTINUATION and self._fragments is not None
        fits = self.fragment_bytes + stop - body <= self.max_message_bytes
        if not (starts or continues) or view[at + 1] & _MASKED != self._mask_bit or not fits:
            return self._rare(view, at, body, stop, end, out)
        if stop > end:
            return 0
        payload = view[body:stop]
        fragments = self._fragments if self._fragments is not None else []
        if stop > body:  # an endless row of empty fragments costs no memory
            fragments.append(
                self._apply_mask(payload, bytes(view[body - 4 : body])) if self._mask_bit else bytes(payload)
            )
        if first & _FIN:
            out.append(b"".join(fragments))
            self._fragments = None
            self.fragment_bytes = 0
        else:
            self._fragments = fragments
            self.fragment_bytes += stop - body
        return stop

    def _rare(self, view: memoryview, at: int, body: int, stop: int, end: int, out: list[bytes | RareFrame]) -> int:
        """Hand out one frame once it is complete; a head that is already wrong goes at once, with all that is here."""
        length = stop - body
        opcode = view[at] & 0x0F
        is_text = opcode == _TEXT or (opcode == _CONTINUATION and self._rare_fragments)
        limit = self.max_text_bytes if is_text else self.max_message_bytes
        wrong = self._is_wrong(view, at) or self.fragment_bytes + length > limit
        if not wrong and stop > end and not (is_text and length > TEXT_PASSED_ON_BYTES and end >= body):
            return 0
        taken = min(stop, end)
        out.append(self._hand_out(view, at, taken, limit))
        if is_text:
            self._rare_fragments = not view[at] & _FIN
            self.fragment_bytes = self.fragment_bytes + length if self._rare_fragments else 0
            self._passing = 0 if wrong else stop - taken
        return taken

    def _pass_on(self, view: memoryview, end: int, out: list[bytes | RareFrame]) -> int:
        """Hand out more of a long text frame; return how many octets went."""
        taken = min(self._passing, end)
        self._passing -= taken
        out.append(self._hand_out(view, 0, taken, self.max_text_bytes))
        return taken

    def _cut_short(self, view: memoryview, at: int, end: int, out: list[bytes | RareFrame]) -> int:
        """Hand out a head whose first two octets are wrong already; return how many octets went."""
        if not self._is_wrong(view, at):
            return 0
        out.append(self._hand_out(view, at, end, self.max_message_bytes))
        return end - at

    def _is_wrong(self, view: memoryview, at: int) -> bool:
        return view[at + 1] & _MASKED != self._mask_bit or view[at] & 0x0F not in _OPCODES

    def _hand_out(self, view: memoryview, start: int, stop: int, limit: int) -> RareFrame:
        return RareFrame(bytes(view[start:stop]), self.fragment_bytes if self._fragments is not None else None, limit)


def data_header(stream_id: bytes, payload_bytes: int, kind: int = KIND_DATA) -> bytes:
    """Return what precedes the payload of a data message in an unmasked (server to client) frame."""
    length = DATA_HEADER_BYTES + payload_bytes
    if length < _LENGTH_16:
        return _PACK_SMALL(_FIN_BINARY, length, kind, stream_id)
    return _PACK_LARGE(_FIN_BINARY, _LENGTH_16, length, kind, stream_id)


def frame_header(length: int, mask: bytes = b"") -> bytes:
    """Return the header of a binary frame of ``length`` < 65,536 bytes, with its mask where the sender is a client."""
    bit = _MASKED if mask else 0
    if length < _LENGTH_16:
        return bytes((_FIN_BINARY, bit | length)) + mask
    return _PACK_HEADER_16(_FIN_BINARY, bit | _LENGTH_16, length) + mask


class Masker:
    """Masks what a client sends (RFC 6455 section 5.3), with keys from the system's random source, drawn in bulk."""

    __slots__ = ("_apply_mask", "_at", "_kind", "_pool")

    def __init__(self, apply_mask: ApplyMask, kind: int = KIND_DATA) -> None:
        """Draw the first key at the first message; ``kind`` is the first octet of a data message."""
        self._apply_mask = apply_mask
        self._kind = bytes((kind,))
        self._pool = b""
        self._at = _MASK_POOL_BYTES

    def key(self) -> bytes:
        """Return four unpredictable bytes."""
        if self._at >= _MASK_POOL_BYTES:
            self._pool = os.urandom(_MASK_POOL_BYTES)
            self._at = 0
        self._at += 4
        return self._pool[self._at - 4 : self._at]

    def data_frame(self, stream_id: bytes, payload: Buffer) -> tuple[bytes, bytes]:
        """Return header and payload of a masked data message, the payload read once and copied once."""
        key = self.key()
        # The payload starts at octet 17 of the message, so its mask is the key rotated by 17 % 4 = 1.
        head = frame_header(DATA_HEADER_BYTES + len(payload), key)
        return (
            head + self._apply_mask(self._kind + stream_id, key),
            self._apply_mask(payload, key[1:] + key[:1]),
        )

    def frame(self, message: bytes) -> bytes:
        """Return a whole masked binary frame."""
        key = self.key()
        return frame_header(len(message), key) + self._apply_mask(message, key)
