"""nexus.dial: names with several addresses, on real loopback sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import pytest

from nexus import dial as module
from nexus.dial import open_socket, resolve

ON_BOTH_LOOPS = True
Resolve = Callable[..., object]


def listening() -> socket.socket:
    """Return a socket that connections complete on, without anybody accepting them."""
    return socket.create_server(("127.0.0.1", 0))


def resolving_to(*addresses: str) -> Resolve:
    """Return a resolver that knows one name with these IPv4 addresses, and addresses as themselves."""

    async def getaddrinfo(host: str, port: int, **_hints: object) -> object:
        found = addresses if host == "hub.example" else (host,)  # uvloop asks for addresses, too
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo


async def test_the_socket_is_connected_and_sends_small_writes_at_once() -> None:
    """It is what a link or a tunnel needs."""
    with listening() as server:
        sock = await open_socket("127.0.0.1", server.getsockname()[1])
        with sock:
            assert sock.getpeername() == server.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getblocking()


async def test_an_address_that_refuses_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 answers with a reset, 127.0.0.1 accepts."""
    with listening() as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving_to("127.0.0.2", "127.0.0.1"))
        with await open_socket("hub.example", server.getsockname()[1]) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


async def test_an_address_that_never_answers_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with IPv6 that leads nowhere: the second address is tried while the first one still is."""
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def hang_on_the_first(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            await asyncio.Event().wait()
        await connect(sock, address)

    with listening() as server:
        monkeypatch.setattr(loop, "getaddrinfo", resolving_to("127.0.0.2", "127.0.0.1"))
        monkeypatch.setattr(loop, "sock_connect", hang_on_the_first)
        async with asyncio.timeout(10):
            with await open_socket("hub.example", server.getsockname()[1]) as sock:
                assert sock.getpeername()[0] == "127.0.0.1"


async def test_a_name_without_a_reachable_address_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    """All attempts failed."""
    with listening() as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving_to("127.0.0.1", "127.0.0.2"))
    with pytest.raises(OSError, match=r"[Cc]onnect|[Mm]ultiple"):
        await open_socket("hub.example", port)


async def test_a_socket_that_takes_no_option_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that is reset already, where the system says so."""
    opened: list[socket.socket] = []

    async def connect(*_args: object, **_options: object) -> socket.socket:
        opened.append(socket.socket(socket.AF_UNIX))  # which knows no TCP_NODELAY
        return opened[0]

    monkeypatch.setattr(module, "start_connection", connect)
    with pytest.raises(OSError, match=r".+"):
        await open_socket("127.0.0.1", 443)
    assert opened[0].fileno() == -1


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2")])
async def test_uvloops_runtimeerror_is_an_oserror(monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]) -> None:
    """It says so where a descriptor is not free; callers know of one kind of failure."""

    async def fail(*_args: object) -> None:
        raise RuntimeError("File descriptor 7 is used by transport")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", resolving_to(*addresses))
    monkeypatch.setattr(loop, "sock_connect", fail)
    with pytest.raises(OSError, match="used by transport") as caught:
        await open_socket("hub.example", 443)
    assert caught.value.errno == errno.EBADF


async def test_a_name_without_an_address_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver may also answer with nothing."""
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving_to())
    with pytest.raises(OSError, match="no address"):
        await resolve("hub.example", 443)
