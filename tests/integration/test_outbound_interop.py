"""Outbound connections with original peers: a Go client at our node, and our SOCKS5 listener at a Go hub."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from backend_client import outbound
from backend_client.client import BackendClient
from backend_client.socks5_listener import Socks5Listener
from nexus.sockets import listen
from nexus.tls.contexts import hub_client_context
from tests.support import socks
from tests.support.go_client import GoClient, go_client
from tests.support.go_hub import GoHub, go_hub
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    LocalNode,
    Reader,
    Writer,
    digest,
    drain_eof,
    exchange,
    head,
    local_client,
    local_node,
    pattern,
    serve,
    standard,
    upload,
)
from tests.support.ports import free_ports
from tests.support.processes import Pki

SIZE = 16 * 1024 * 1024
both_ages = pytest.mark.parametrize("knows_credits", [True, False], ids=["v0.3.14", "v0.3.1"])
OUTBOUND = {"allowOutbound": True, "outboundPrivateNetworks": ["127.0.0.0/8"]}


async def _no_dial() -> tuple[Reader, Writer]:
    raise OSError("nothing is served here")


@contextlib.asynccontextmanager
async def _go_client(
    node: LocalNode, pki: Pki, target: str, *, knows_credits: bool = True
) -> AsyncIterator[tuple[GoClient, int]]:
    """Run a Go client; give the port of its listener, whose connections all go to ``target``."""
    client = GoClient(node.hub_url, hub_client_context(pki.ca_file), _no_dial, knows_credits=knows_credits)
    client.claims_outbound = True

    async def relay(reader: Reader, writer: Writer) -> None:
        await client.outbound(target, reader, writer)

    async with go_client(client), serve(relay) as port:
        yield client, port


@contextlib.asynccontextmanager
async def _go_hub(pki: Pki, *, knows_credits: bool = True) -> AsyncIterator[tuple[GoHub, int, BackendClient]]:
    """Run a Go hub and our client with a SOCKS5 listener; give the listener's port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("gohub", "localhost"))
    async with (
        go_hub(GoHub(context, knows_credits=knows_credits)) as hub,
        local_client(hub.url, pki, {hub.port: 1}) as client,
        asyncio.TaskGroup() as tasks,
    ):
        sock = listen("127.0.0.1", 0, "socks5ListenAddr")
        port = sock.getsockname()[1]
        listener = Socks5Listener(sock, [client], None)
        tasks.create_task(listener.run())
        try:
            yield hub, port, client
        finally:
            listener.stop()


# -- A Go client at our node -------------------------------------------------------------------------------------------


@both_ages
async def test_a_slow_download_by_a_go_client_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: towards its slow user nothing overflows, and the target's FIN ends the stream at once, as it expects."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki, **OUTBOUND) as node,
        _go_client(node, pki, f"127.0.0.1:{target}", knows_credits=knows_credits) as (client, port),
    ):
        body = await exchange(port, head("GET", f"/bytes/{SIZE}"), paced=True)
        assert digest(body) == digest(pattern(SIZE))
        assert not client.kills
        await eventually(lambda: not node.node.stats().outbound_connections, "the connection is closed")


@both_ages
async def test_a_slow_upload_by_a_go_client_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: the target is slow, the client sends on credit or is held up, and no byte is lost."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki, **OUTBOUND) as node,
        _go_client(node, pki, f"127.0.0.1:{target}", knows_credits=knows_credits) as (client, port),
    ):
        assert await upload(port, SIZE, "/slow-sink") == digest(pattern(SIZE))
        assert not client.kills
        await eventually(lambda: not node.node.stats().outbound_connections, "the connection is closed")


async def test_a_go_client_is_refused_in_words(pki: Pki) -> None:
    """And its session goes on."""
    (unused,) = free_ports(1)
    async with (
        local_node(pki, **OUTBOUND) as node,
        _go_client(node, pki, f"127.0.0.1:{unused}") as (client, port),
    ):
        assert await exchange(port, b"") == b""
        assert client.refusals == ["the target refused the connection"]
        assert node.node.stats().sessions == 1


async def test_a_go_client_that_waited_too_long_leaves_no_orphan(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """W27: it says so, which the original hub does not understand while it dials."""
    monkeypatch.setattr("tests.support.go_client.ANSWER_TIMEOUT_S", 0.05)
    with socks.silent_port() as silent:
        async with (
            local_node(pki, **OUTBOUND) as node,
            _go_client(node, pki, f"127.0.0.1:{silent}") as (_, port),
        ):
            assert await exchange(port, b"") == b""
            await eventually(lambda: not node.node.stats().outbound_connections, "the dial has stopped")
            assert node.node.stats().outbound_refusals_total == {"given_up": 1}


# -- Our client at a Go hub --------------------------------------------------------------------------------------------


@both_ages
async def test_a_slow_download_through_a_go_hub_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: the hub's credits are granted as the user reads; without them it is paused."""
    async with serve(standard, slow=True) as target, _go_hub(pki, knows_credits=knows_credits) as (hub, port, _):
        async with asyncio.timeout(WAIT_S), socks.connected(port, "127.0.0.1", target, slow=True) as (reader, writer):
            writer.write(head("GET", f"/bytes/{SIZE}"))
            assert digest(await drain_eof(reader, paced=True)) == digest(pattern(SIZE))
        assert not hub.kills


@both_ages
async def test_a_slow_upload_through_a_go_hub_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: within the 128 messages that the hub holds for a slow target."""
    async with serve(standard, slow=True) as target, _go_hub(pki, knows_credits=knows_credits) as (hub, port, _):
        async with asyncio.timeout(WAIT_S), socks.connected(port, "127.0.0.1", target) as (reader, writer):
            writer.write(head("PUT", "/slow-sink", Content_Length=SIZE) + pattern(SIZE))
            assert (await drain_eof(reader)).decode() == digest(pattern(SIZE))
        assert (hub.kills, hub.late_messages) == ([], 0)


async def test_a_refusal_of_a_go_hub_is_a_refused_connection(pki: Pki) -> None:
    """Its words are its own: reply 5, as its own client gives (spec backend-protocol 12)."""
    (unused,) = free_ports(1)
    async with _go_hub(pki) as (_, port, _):
        with pytest.raises(socks.SocksError) as caught:
            async with asyncio.timeout(WAIT_S), socks.connected(port, "127.0.0.1", unused):
                pass
        assert caught.value.code == 5


async def test_a_late_success_of_a_go_hub_is_given_back(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """W27: the hub goes on dialling for a client that has given up; the orphan is closed as soon as it is there."""
    monkeypatch.setattr(outbound, "OUTBOUND_ANSWER_TIMEOUT_S", 0.05)
    async with serve(standard) as target, _go_hub(pki) as (hub, port, client):
        hub.dials.clear()
        with pytest.raises(socks.SocksError) as caught:
            async with asyncio.timeout(WAIT_S), socks.connected(port, "127.0.0.1", target):
                pass
        assert caught.value.code == 1
        assert hub.reasons == ["timeout"]
        hub.dials.set()
        await eventually(lambda: hub.reasons == ["timeout", "unknown"], "the orphan is given back")
        await eventually(lambda: not hub.streams, "the hub has closed it")
        assert client.stats.streams == 0
