"""Sockets for the DNS library that a cancelled question leaves closed.

The library's own are transports of the event loop. uvloop forgets a datagram transport whose creation is cancelled, and
a loop with a forgotten transport never ends its closing: a node that stops in the wrong moment would hang. These are
plain sockets, closed by whoever opened them. They are connected, so the system drops what others send, and a port
without a name server is known at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Self

from dns.exception import Timeout

Destination = tuple[str, int]


class DnsSockets:
    """What ``dns.asyncresolver`` opens sockets with, its ``Backend``."""

    async def make_socket(
        self,
        af: int,
        socktype: int,
        proto: int = 0,
        source: Destination | None = None,
        destination: Destination | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 — the library's signature
    ) -> DnsSocket:
        """Return a socket that is connected to ``destination``; a ``source`` is never asked for.

        Raises:
            OSError: it cannot be.
            Timeout: not in time.
        """
        del source
        if destination is None:
            raise NotImplementedError("a name server has an address")
        sock = socket.socket(af, socktype, proto)
        try:
            sock.setblocking(False)
            async with _limit(timeout):
                await asyncio.get_running_loop().sock_connect(sock, destination)
        except BaseException:
            sock.close()
            raise
        return DnsSocket(sock)

    def datagram_connection_required(self) -> bool:
        """Return whether the destination of a datagram socket must be known when it is made."""
        return True

    async def sleep(self, interval: float) -> None:
        """Wait some seconds."""
        await asyncio.sleep(interval)


class DnsSocket:
    """A connected socket of either kind; every limit is in seconds, and raises ``Timeout``."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected, non-blocking socket, and close it in the end."""
        self.family = sock.family
        self._sock = sock

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close it."""
        self._sock.close()

    async def sendto(self, what: bytes, destination: object, timeout: float | None) -> int:  # noqa: ASYNC109
        """Send a datagram to where the socket is connected, and return its bytes."""
        del destination
        await self.sendall(what, timeout)
        return len(what)

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, object]:  # noqa: ASYNC109
        """Return a datagram and where it came from."""
        return await self.recv(size, timeout), self._sock.getpeername()

    async def sendall(self, what: bytes, timeout: float | None) -> None:  # noqa: ASYNC109
        """Send bytes."""
        async with _limit(timeout):
            await asyncio.get_running_loop().sock_sendall(self._sock, what)

    async def recv(self, size: int, timeout: float | None) -> bytes:  # noqa: ASYNC109
        """Return bytes, none at the end of a stream."""
        async with _limit(timeout):
            return await asyncio.get_running_loop().sock_recv(self._sock, size)


@contextlib.asynccontextmanager
async def _limit(seconds: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Timeout(timeout=seconds) from None  # type: ignore[no-untyped-call]  # the library's
