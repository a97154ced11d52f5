"""nexus.tls.links: real handshakes over loopback on both event loops, by aiofastnet and, without it, by the loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import aiofastnet
import pytest

from nexus.sockets import LINK_UNSENT_BYTES
from nexus.tls import links
from nexus.tls.contexts import hub_client_context, hub_server_context, identified_client_context
from nexus.tls.links import accept_tls, connect
from nexus.tls.peer_contexts import peer_certificate
from nexus.tls.pyopenssl_context import PeerServerContext
from tests.support.hub import eventually
from tests.support.peer_certificates import NODE, Authority, der, store
from tests.support.peer_links import BufferedEnd, CopiedEnd, RefusedError, meet

ON_BOTH_LOOPS = True
BULK_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def root() -> Authority:
    """The CA that everybody believes."""
    return Authority.root()


@pytest.fixture
def dialling(root: Authority, tmp_path: Path) -> ssl.SSLContext:
    """The context of a client."""
    return hub_client_context(root.save(tmp_path / "ca.pem"))


@pytest.fixture
def accepting(root: Authority, tmp_path: Path) -> ssl.SSLContext:
    """The context of a hub."""
    return hub_server_context(store(tmp_path, "hub", root.issue()))


@pytest.fixture(params=[True, False], ids=["aiofastnet", "without"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as installed, once as where there is no aiofastnet."""
    if not request.param:
        monkeypatch.setattr(links, "aiofastnet", None)


async def closed(sock: socket.socket) -> None:
    """Wait until nothing holds the socket open any more: a loop may give it up a turn later."""
    await eventually(lambda: sock.fileno() < 0, "the socket is closed")


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("kind", [CopiedEnd, BufferedEnd])
async def test_bytes_arrive_in_both_directions_at_once(
    accepting: ssl.SSLContext, dialling: ssl.SSLContext, kind: Callable[[], CopiedEnd | BufferedEnd]
) -> None:
    """All of them, in order, and the close of one side is the end of the other."""
    up, down = os.urandom(BULK_BYTES), os.urandom(BULK_BYTES)
    async with meet(accepting, dialling, kind) as (server, client):
        assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        await asyncio.gather(client.send(up, 70_000), server.send(down, 1_000_000))
        await eventually(lambda: client.received == BULK_BYTES, "the client has everything")
        client.transport.close()
        async with asyncio.timeout(20):
            await server.lost
            await client.lost
        assert (server.received, server.hash.digest()) == (BULK_BYTES, hashlib.sha256(up).digest())
        assert (client.received, client.hash.digest()) == (BULK_BYTES, hashlib.sha256(down).digest())


@pytest.mark.usefixtures("_both")
async def test_a_server_of_another_name_or_ca_is_refused(
    accepting: ssl.SSLContext, dialling: ssl.SSLContext, tmp_path: Path
) -> None:
    """With the error of the standard library, which operators are told in words."""
    with pytest.raises(RefusedError) as caught:
        async with meet(accepting, dialling, host="another.example"):
            pytest.fail("another name was accepted")
    assert isinstance(caught.value.dialling, ssl.SSLCertVerificationError)
    assert "hostname mismatch" in caught.value.dialling.verify_message.lower()
    strange = hub_client_context(Authority.root("Another").save(tmp_path / "another.pem"))
    with pytest.raises(RefusedError) as caught:
        async with meet(accepting, strange):
            pytest.fail("another CA was accepted")
    assert isinstance(caught.value.dialling, ssl.SSLCertVerificationError)
    assert "certificate" in caught.value.dialling.verify_message


@pytest.mark.usefixtures("_both")
async def test_a_silent_client_is_given_up(accepting: ssl.SSLContext) -> None:
    """After the time limit, and its socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ConnectionAbortedError):
        await accept_tls(BufferedEnd(), ours, accepting, timeout_s=0.05)
    await closed(ours)


async def test_a_context_that_drives_connections_itself_is_left_to_the_event_loop(
    root: Authority, dialling: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiofastnet would not ask it, and so not judge the other node."""
    ca_file, hub = root.save(tmp_path / "ca.pem"), store(tmp_path, "node", root.issue())
    pair = root.issue()
    context = PeerServerContext(hub, ca_file)

    async def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("aiofastnet was asked")

    monkeypatch.setattr(aiofastnet, "connect_accepted_socket", forbidden)
    async with meet(context, identified_client_context(store(tmp_path, "dialler", pair), ca_file)) as (server, _):
        assert peer_certificate(server.transport) == der(pair)


@pytest.mark.usefixtures("_both")
async def test_what_cannot_be_overtaken_is_short(accepting: ssl.SSLContext, dialling: ssl.SSLContext) -> None:
    """On both ends: what is in the kernel and not sent yet."""
    async with meet(accepting, dialling) as (server, client):
        for end in (server, client):
            sock = end.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == LINK_UNSENT_BYTES


async def test_links_are_driven_by_aiofastnet(accepting: ssl.SSLContext, dialling: ssl.SSLContext) -> None:
    """By its engine on OpenSSL itself where Python is linked with one that can be found, as in the image."""
    async with meet(accepting, dialling) as (server, client):
        for end in (server, client):
            assert isinstance(end.transport, aiofastnet.Transport)


async def test_a_failed_dial_leaves_no_socket_open(dialling: ssl.SSLContext) -> None:
    """The other side closes at once."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(ConnectionError):
        await connect(BufferedEnd(), ours, dialling, NODE)
    await closed(ours)


@pytest.mark.usefixtures("_both")
async def test_whoever_is_cancelled_during_a_handshake_leaves_no_socket_open(dialling: ssl.SSLContext) -> None:
    """As a time limit around the whole dial does it."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connect(BufferedEnd(), ours, dialling, NODE)
    await closed(ours)


@pytest.mark.usefixtures("_both")
async def test_a_link_may_do_without_tls() -> None:
    """To a ``ws://`` address; what cannot be overtaken is as short."""
    accepted: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(await reader.readexactly(5))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        sock = socket.create_connection(server.sockets[0].getsockname())
        sock.setblocking(False)
        end = BufferedEnd()
        await connect(end, sock, None, NODE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == LINK_UNSENT_BYTES
        end.transport.write(b"hello")
        async with asyncio.timeout(20):
            assert await accepted.get() == b"hello"
            await end.lost
