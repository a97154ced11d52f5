"""What ``nexus bench`` does: it is backend and public client at once, and times what goes through the node between.

Each stream begins with a ClientHello for the name, so that the node finds the way; what follows is nobody's business
but ours, so there is no TLS and no certificate. It says what the backend is to do: a secret of this run, a letter, a
number of bytes. Bytes are counted at both ends: a stream that does not complete is counted as failed, never as slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Final

from backend_client.connection import Connection
from nexus.errors import StreamReset

TIMEOUT_S: Final = 30.0
MIB: Final = 1 << 20
_BLOCK: Final = bytes(256 * 1024)
_COOKIE_BYTES: Final = 16
_ORDER: Final = struct.Struct(f"!{_COOKIE_BYTES}scQ")
_SEND, _TAKE, _ECHO, _CLOSE = b"S", b"T", b"E", b"C"
_MESSAGE: Final = bytes(64)  # of a round trip
_RECORD_HEADER_BYTES: Final = 5  # RFC 8446 5.1: type, version, length


@dataclass(frozen=True, slots=True)
class Place:
    """Where the public port of the node is, and for which name."""

    host: str
    port: int
    name: str


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement; ``figures`` by their name with its unit, ``failed`` streams that did not complete."""

    name: str
    figures: dict[str, float]
    failed: int = 0
    reasons: tuple[str, ...] = ()

    def as_object(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {"name": self.name, "figures": self.figures, "failed": self.failed, "reasons": list(self.reasons)}


@dataclass
class Bench:
    """One run against one place; ``handle`` is the backend's side."""

    place: Place
    cookie: bytes = field(default_factory=lambda: secrets.token_bytes(_COOKIE_BYTES), repr=False)

    # -- The backend ------------------------------------------------------------------------------------------------

    async def handle(self, connection: Connection) -> None:
        """Do what a stream asks for; one that is not of this run is broken."""
        with contextlib.suppress(StreamReset, asyncio.IncompleteReadError):
            reader = _Reading(connection)
            head = await reader.exactly(_RECORD_HEADER_BYTES)
            await reader.exactly(int.from_bytes(head[3:5], "big"))
            cookie, order, size = _ORDER.unpack(await reader.exactly(_ORDER.size))
            if not secrets.compare_digest(cookie, self.cookie):
                connection.abort()
                return
            await _obey(connection, reader, order, size)

    # -- The public client ------------------------------------------------------------------------------------------

    async def bulk(self, *, upload: bool, streams: int, size: int) -> Result:
        """Move ``size`` bytes in each of some streams at once."""
        started = time.perf_counter()
        outcomes = await asyncio.gather(*(_outcome(self._move(upload, size)) for _ in range(streams)))
        taken_s = time.perf_counter() - started
        reasons = tuple(sorted({outcome for outcome in outcomes if outcome}))
        good = sum(not outcome for outcome in outcomes)
        name = f"{'upload' if upload else 'download'}, {streams} streams"
        return Result(name, {"MiB/s": good * size / MIB / taken_s}, streams - good, reasons)

    async def round_trips(self, seconds: float) -> Result:
        """Send 64 bytes there and back on one stream, again and again."""
        found: list[float] = []
        reason = await _outcome(self._echo(seconds, found))
        if len(found) < 2:
            return Result("round trips", {}, 1, (reason,))
        cuts = quantiles(found, n=100)
        figures = {"p50 ms": cuts[49] * 1000, "p99 ms": cuts[98] * 1000, "trips/s": len(found) / seconds}
        return Result("round trips", figures, int(bool(reason)), (reason,) if reason else ())

    async def connections(self, at_once: int, seconds: float) -> Result:
        """Open streams, so many at once; each gets an answer of one byte and an orderly end."""
        end = time.perf_counter() + seconds
        counts = [0, 0]
        reasons: set[str] = set()

        async def keep_at_it() -> None:
            while time.perf_counter() < end:
                reason = await _outcome(self._open_and_close())
                counts[bool(reason)] += 1
                if reason:
                    reasons.add(reason)

        await asyncio.gather(*(keep_at_it() for _ in range(at_once)))
        figures = {"connections/s": counts[0] / seconds}
        return Result(f"connections, {at_once} at once", figures, counts[1], tuple(sorted(reasons)))

    async def _open(self, order: bytes, size: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = self.place
        reader, writer = await asyncio.open_connection(place.host, place.port, limit=MIB)
        writer.write(client_hello(place.name) + _ORDER.pack(self.cookie, order, size))
        return reader, writer

    async def _move(self, upload: bool, size: int) -> None:
        reader, writer = await self._open(_TAKE if upload else _SEND, size)
        try:
            if upload:
                await _send(_Writing(writer), size)
                came = int.from_bytes(await reader.readexactly(8), "big")
            else:
                came = 0
                while chunk := await reader.read(MIB):
                    came += len(chunk)
            if came != size:
                raise ConnectionError(f"{came} of {size} bytes arrived")
        finally:
            writer.close()

    async def _echo(self, seconds: float, found: list[float]) -> None:
        reader, writer = await self._open(_ECHO)
        try:
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end:
                writer.write(_MESSAGE)
                await reader.readexactly(len(_MESSAGE))
                found.append(time.perf_counter() - started)
        finally:
            writer.close()

    async def _open_and_close(self) -> None:
        reader, writer = await self._open(_CLOSE)
        try:
            if await reader.read() != _CLOSE:
                raise ConnectionError("the answer did not come")
        finally:
            writer.close()


def client_hello(name: str) -> bytes:
    """Return the ClientHello that OpenSSL sends for a name, in one record."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class _Reading:
    """Reads exact amounts of a stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.rest = b""

    async def exactly(self, count: int) -> bytes:
        while len(self.rest) < count:
            chunk = await self._connection.read()
            if not chunk:
                raise asyncio.IncompleteReadError(self.rest, count)
            self.rest += chunk
        found, self.rest = self.rest[:count], self.rest[count:]
        return found


class _Writing:
    """A public client's socket, with the one method that sending takes."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def _obey(connection: Connection, reader: _Reading, order: bytes, size: int) -> None:
    if order == _SEND:
        await _send(connection, size)
    elif order == _TAKE:
        came = len(reader.rest)
        while came < size and (chunk := await connection.read()):
            came += len(chunk)
        await connection.write(came.to_bytes(8, "big"))
    elif order == _ECHO:
        await connection.write(reader.rest)  # the first message may have come with the order
        while chunk := await connection.read():
            await connection.write(chunk)
    else:
        await connection.write(_CLOSE)


async def _send(to: Connection | _Writing, size: int) -> None:
    while size > 0:
        await to.write(_BLOCK[:size])
        size -= len(_BLOCK)


async def _outcome(action: Awaitable[None]) -> str:
    """Return what went wrong, "" if nothing."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await action
    except TimeoutError:
        return f"not over within {TIMEOUT_S:g} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""
