"""The STUN server on loopback, asked by a real client library and by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import pytest
from aioice import stun

from nexus.listeners import stun as module
from nexus.listeners.stun import StunServer
from nexus.sockets import listen_udp
from tests.support.hub import eventually

ON_BOTH_LOOPS = True
REQUEST = bytes.fromhex("000100002112a442") + bytes(12)


@dataclass
class Served:
    """A server and its port."""

    server: StunServer
    port: int


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """One on all addresses."""
    with contextlib.ExitStack() as stack:
        sockets = listen_udp("", 0, "stunPort")
        for sock in sockets:
            stack.enter_context(contextlib.closing(sock))
        server = StunServer()
        server.listen(sockets)
        yield Served(server, sockets[0].getsockname()[1])
        server.close()


class Asking(asyncio.DatagramProtocol):
    """The client of the library ``aioice``: it retries, and matches answers by transaction."""

    def __init__(self) -> None:
        self.transaction: stun.Transaction | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.transaction is not None
        self.transaction.response_received(stun.parse_message(data), addr)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        self.transport.sendto(bytes(message), addr)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_a_client_library_learns_its_address(served: Served, host: str) -> None:
    """By IPv4 and IPv6; the answer comes from the address that was asked."""
    loop = asyncio.get_running_loop()
    own = "::1" if ":" in host else "127.0.0.1"
    transport, asking = await loop.create_datagram_endpoint(Asking, local_addr=(own, 0))
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    asking.transaction = stun.Transaction(request, (host, served.port), asking)
    async with asyncio.timeout(10):
        answer, came_from = await asking.transaction.run()
    assert answer.attributes["XOR-MAPPED-ADDRESS"] == transport.get_extra_info("sockname")[:2]
    assert came_from[:2] == (host, served.port)
    assert served.server.requests == {"answered": 1}
    transport.close()
    await asking.closed.wait()


def client(port: int) -> socket.socket:
    """Return a socket that asks the server."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect(("127.0.0.1", port))
    return sock


async def test_what_is_no_request_is_dropped_in_silence(served: Served) -> None:
    """And counted; the next request is answered."""
    with contextlib.closing(client(served.port)) as sock:
        for datagram in (b"", b"GET / HTTP/1.1", bytes(1400), bytes.fromhex("01010000") + REQUEST[4:]):
            sock.send(datagram)
        sock.send(REQUEST)
        await eventually(lambda: served.server.requests["answered"] == 1, "the request is answered")
        assert served.server.requests == {"ignored": 4, "answered": 1}
        assert len(sock.recv(100)) == 40
        with pytest.raises(BlockingIOError):
            sock.recv(100)


async def test_nothing_is_sent_to_port_0(served: Served) -> None:
    """Only a forged request comes from there."""
    (sock,) = [sock for sock in served.server._sockets if sock.family == socket.AF_INET]
    assert served.server._answer(sock, REQUEST, b"", ("127.0.0.1", 0), 0.0) == "ignored"
    assert served.server._answer(sock, REQUEST, b"", ("127.0.0.1", 9), 0.0) == "answered"


async def test_one_source_gets_a_trickle(served: Served) -> None:
    """A forged address earns nobody a flood; other sources are served meanwhile."""
    total = 200
    with contextlib.closing(client(served.port)) as sock:
        for _ in range(total):
            sock.send(REQUEST)
        await eventually(lambda: served.server.requests.total() == total, "all are seen")
        assert served.server.requests["answered"] <= 2 * module.ANSWERS_PER_SOURCE_S
        assert served.server.requests["limited"] >= total - 2 * module.ANSWERS_PER_SOURCE_S
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.5", 0))
        before = served.server.requests["answered"]
        other.sendto(REQUEST, ("127.0.0.1", served.port))
        await eventually(lambda: served.server.requests["answered"] == before + 1, "another source is served")


async def test_an_answer_that_cannot_leave_is_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs that answer alone."""

    def refuse(*_: object) -> bytes:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(module, "binding_success", refuse)
    with contextlib.closing(client(served.port)) as sock:
        sock.send(REQUEST)
        await eventually(lambda: served.server.requests["unsent"] == 1, "it is counted")
