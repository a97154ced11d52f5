"""A stream as a program sees it that handles streams itself instead of forwarding them to a socket."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from nexus.errors import LocalProtocolError, StreamReset
from nexus.link.stream import Stream
from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer
from nexus.protocol.reasons import Reason

# Above it the other side gets no more credits; as for a socket's transport.
_HIGH_BYTES: Final = 64 * 1024
_LOW_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What the hub says of a stream: ``hostname`` is the route key, ``client`` the public client's ``ip:port``."""

    hub: str
    hostname: str
    port: int
    client: str
    transport: str
    is_tls: bool


class Connection:
    """One stream to read and write; made by the client, given to the handler, closed when the handler returns."""

    def __init__(self, stream: Stream, info: StreamInfo) -> None:
        """Become the endpoint of ``stream``."""
        self.info = info
        self._stream = stream
        self._received: deque[Buffer] = deque()
        self._waiting_bytes = 0
        self._full = False
        self._eof = False
        self._reset = False
        self._eof_written = False
        self._readable = asyncio.Event()
        self._sendable = asyncio.Event()
        self._sendable.set()

    # -- For the handler --------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return the bytes that arrived next, b"" after the client's last byte.

        Raises:
            StreamReset: the stream broke; bytes may be missing.
        """
        while not self._received:
            if self._reset:
                raise StreamReset("the stream was reset by the other side")
            if self._eof:
                return b""
            self._readable.clear()
            await self._readable.wait()
        payload = bytes(self._received.popleft())
        self._waiting_bytes -= len(payload)
        if self._full and self._waiting_bytes <= _LOW_BYTES:
            self._full = False
            self._stream.endpoint_full(False)
        return payload

    async def write(self, data: bytes) -> None:
        """Send ``data``, waiting while the other side is slow.

        Raises:
            StreamReset: the stream has ended.
            LocalProtocolError: behind ``write_eof``.
        """
        if self._eof_written:
            raise LocalProtocolError("write after write_eof")
        for at in range(0, len(data), PAYLOAD_MAX_BYTES):
            await self._sendable.wait()
            if self._stream.ended or self._reset:
                raise StreamReset("the stream has ended")
            self._stream.send(data[at : at + PAYLOAD_MAX_BYTES])

    def write_eof(self) -> None:  # the handler's side; the endpoint's is `end_writing`
        """Say that nothing more will be written; reading goes on where the hub knows half-close."""
        self._eof_written = True
        self._stream.send_eof()

    def close(self) -> None:
        """End the stream in order."""
        self._stream.end_cleanly()

    def abort(self) -> None:
        """Break the stream, visibly for the client."""
        self._stream.close(Reason.LOCAL_ERROR)

    def endpoint(self) -> _Endpoint:
        """Return what the stream talks to."""
        return _Endpoint(self)

    def deliver(self, payload: Buffer) -> None:
        """Take bytes from the stream."""
        self._received.append(payload)
        self._waiting_bytes += len(payload)
        self._readable.set()
        if not self._full and self._waiting_bytes > _HIGH_BYTES:
            self._full = True
            self._stream.endpoint_full(True)

    def end(self, *, reset: bool) -> None:
        """Note the end of what arrives."""
        self._eof = True
        self._reset = self._reset or reset
        if reset:
            self._received.clear()
            self._waiting_bytes = 0
        self._readable.set()
        if self._stream.ended or reset:
            self._sendable.set()

    def allow_sending(self, *, wanted: bool) -> None:
        """Let ``write`` go on, or wait."""
        if wanted:
            self._sendable.set()
        else:
            self._sendable.clear()

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the handler has not read."""
        return self._waiting_bytes


class _Endpoint:
    """``nexus.link.stream.Endpoint`` on a Connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, payload: Buffer) -> None:
        self._connection.deliver(payload)

    def write_eof(self) -> None:
        self._connection.end(reset=False)

    def finish(self) -> None:
        self._connection.end(reset=False)
        self._connection.allow_sending(wanted=True)

    def abort(self) -> None:
        self._connection.end(reset=True)

    def read_more(self, wanted: bool) -> None:
        self._connection.allow_sending(wanted=wanted)

    def unwritten_bytes(self) -> int:
        return self._connection.waiting_bytes
