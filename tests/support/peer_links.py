"""Two ends of a TLS connection over loopback, as links have them, from an accepting and a dialling context."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable

from nexus.tls.links import accept_tls, connect
from tests.support.peer_certificates import NODE

ROOM_BYTES = 64 * 1024


class End:
    """What both kinds of protocol note about their connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.received = 0
        self.hash = hashlib.sha256()
        self.tail = b""  # the last bytes, to compare short messages
        self.saw_eof = False
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's has no common base

    def note(self, data: bytes | memoryview) -> None:
        self.received += len(data)
        self.hash.update(data)
        self.tail = (self.tail + bytes(data))[-100:]

    def eof_received(self) -> None:
        self.saw_eof = True

    @property
    def is_paused(self) -> bool:
        """Whether the transport takes nothing more at present."""
        return not self._may_write.is_set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()
        if not self.lost.done():
            self.lost.set_result(exc)

    async def send(self, data: bytes, piece: int) -> None:
        """Write all of ``data`` in pieces, as fast as the other side takes them."""
        for at in range(0, len(data), piece):
            await self._may_write.wait()
            self.transport.write(data[at : at + piece])


class CopiedEnd(End, asyncio.Protocol):
    """Is handed bytes."""

    def data_received(self, data: bytes) -> None:
        self.note(data)


class BufferedEnd(End, asyncio.BufferedProtocol):
    """Lends the loop its own room."""

    def __init__(self) -> None:
        super().__init__()
        self._room = bytearray(ROOM_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return memoryview(self._room)

    def buffer_updated(self, nbytes: int) -> None:
        self.note(memoryview(self._room)[:nbytes])


class RefusedError(Exception):
    """A handshake failed; holds what the accepting and the dialling side say, None where that side was content."""

    def __init__(self, accepting: object, dialling: object) -> None:
        super().__init__(f"accepting: {accepting!r}; dialling: {dialling!r}")
        self.accepting = accepting if isinstance(accepting, BaseException) else None
        self.dialling = dialling if isinstance(dialling, BaseException) else None


@contextlib.asynccontextmanager
async def meet(
    accepting: ssl.SSLContext,
    dialling: ssl.SSLContext,
    kind: Callable[[], CopiedEnd | BufferedEnd] = BufferedEnd,
    host: str = NODE,
    timeout_s: float = 20,
) -> AsyncIterator[tuple[End, End]]:
    """Yield the accepted and the dialled end after both handshakes; raises RefusedError where one failed."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def accept() -> End:
            sock, _ = await loop.sock_accept(listener)
            end = kind()
            await accept_tls(end, sock, accepting, timeout_s)
            return end

        async def dial() -> End:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            end = kind()
            await connect(end, sock, dialling, host)
            return end

        server, client = await asyncio.gather(accept(), dial(), return_exceptions=True)
    try:
        if isinstance(server, BaseException) or isinstance(client, BaseException):
            raise RefusedError(server, client)
        yield server, client
    finally:
        for end in (server, client):
            if isinstance(end, End):
                end.transport.abort()
                await asyncio.wait_for(end.lost, 20)
