"""A handshake that the node makes itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from nexus.acme.challenges import ALPN_PROTOCOL, challenge_context
from nexus.listeners import handshake
from nexus.listeners.handshake import LocalHandshake
from tests.support.hub import eventually

HOST = "hub.example.com"


@dataclass
class Served:
    """A port, and how many connections are gone."""

    port: int = 0
    closed: list[int] = field(default_factory=list)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A listener that peeked nothing."""
    made = Served()
    context = challenge_context(HOST, "token.thumbprint")

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            LocalHandshake(context, transport, lambda: made.closed.append(1))

    server = await asyncio.get_running_loop().create_server(Accepted, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_PROTOCOL])
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_it_ends_in_order_behind_the_handshake(served: Served, version: ssl.TLSVersion) -> None:
    """With a goodbye, as the CA expects no data."""
    context = client_context()
    context.minimum_version = context.maximum_version = version
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context, server_hostname=HOST)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == ALPN_PROTOCOL
        assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    await eventually(lambda: served.closed == [1], "the connection is forgotten")


@pytest.mark.parametrize(
    ("data", "kind"), [(b"no TLS at all\r\n\r\n", b""), (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x15")]
)
async def test_what_is_no_handshake_is_ended(served: Served, data: bytes, kind: bytes) -> None:
    """By an alert, where it is TLS."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(data)
        answer = await reader.read()
        assert answer[:1] == kind
        writer.close()
        await writer.wait_closed()
    await eventually(lambda: served.closed == [1], "the connection is forgotten")


async def test_silence_is_not_waited_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is cut."""
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT_S", 0.05)
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    await eventually(lambda: served.closed == [1], "the connection is forgotten")


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_client_that_goes_is_forgotten(served: Served, orderly: bool) -> None:
    """In the middle of the handshake."""
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(b"\x16\x03\x01")
        if not orderly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await eventually(lambda: served.closed == [1], "the connection is forgotten")
