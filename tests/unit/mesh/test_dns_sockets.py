"""Sockets of the DNS library: connected, limited in time, closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from dns.exception import Timeout

from nexus.mesh.dns_sockets import DnsSockets

ON_BOTH_LOOPS = True
KINDS = pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener that accepts nobody by itself."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


async def test_datagrams_go_both_ways_and_come_from_nobody_else(server: socket.socket) -> None:
    """Whatever the library says of the destination, it is the one of the beginning."""
    address = server.getsockname()
    async with await DnsSockets().make_socket(socket.AF_INET, socket.SOCK_DGRAM, destination=address) as sock:
        assert await sock.sendto(b"question", address, 1) == len(b"question")
        question, client = server.recvfrom(100)
        assert question == b"question"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"forged", client)
        server.sendto(b"answer", client)
        assert await sock.recvfrom(100, 20) == (b"answer", address)


async def test_a_stream_goes_both_ways_and_ends(listener: socket.socket) -> None:
    """The end is no bytes."""
    address = listener.getsockname()
    async with await DnsSockets().make_socket(socket.AF_INET, socket.SOCK_STREAM, 0, None, address, 20) as sock:
        accepted, _ = listener.accept()
        with accepted:
            await sock.sendall(b"question", 20)
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert await sock.recv(100, 20) == b"answer"
        assert await sock.recv(100, 20) == b""


@KINDS
async def test_silence_ends_in_time(kind: int, server: socket.socket, listener: socket.socket) -> None:
    """In the words that the library knows."""
    address = (server if kind == socket.SOCK_DGRAM else listener).getsockname()
    async with await DnsSockets().make_socket(socket.AF_INET, kind, destination=address) as sock:
        with pytest.raises(Timeout):
            await sock.recv(100, 0.01)


async def test_a_port_without_a_server_is_known_at_once(listener: socket.socket) -> None:
    """Over TCP when it is connected; over UDP when the answer is waited for."""
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await DnsSockets().make_socket(socket.AF_INET, socket.SOCK_STREAM, destination=("127.0.0.1", port))
    async with await DnsSockets().make_socket(
        socket.AF_INET, socket.SOCK_DGRAM, destination=("127.0.0.1", port)
    ) as sock:
        await sock.sendto(b"question", None, 1)
        with pytest.raises(ConnectionRefusedError):
            await sock.recvfrom(100, 20)


async def test_a_socket_without_a_destination_is_refused() -> None:
    """The library has one for each, since it was told that one is needed."""
    assert DnsSockets().datagram_connection_required()
    with pytest.raises(NotImplementedError):
        await DnsSockets().make_socket(socket.AF_INET, socket.SOCK_DGRAM)
