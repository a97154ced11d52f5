"""backend_client.api: one call to become a backend, as a program uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import backend_client
from backend_client import Connection, EventKind, connect
from nexus.addresses import parse_network
from nexus.auth.grants import Policy
from nexus.errors import ConfigError
from nexus.hub.targets import OutboundPolicy
from nexus.routing.decide import Reject, RejectReason
from nexus.tls.contexts import hub_client_context
from nexus.transport import OpenRequest
from tests.support.clients import Events, Tokens
from tests.support.fake_hub import FakeHub, HubSession, fake_hub
from tests.support.hub import WAIT_S, Hub, eventually, running_hub
from tests.support.processes import SECRET, Pki

ON_BOTH_LOOPS = True
NAMES = ["App.Example.com.", "*.Wild.example.com"]
ID = b"\x07" * 16


@pytest.fixture
async def hub(pki: Pki) -> AsyncIterator[Hub]:
    """A real hub."""
    async with running_hub(pki) as running:
        yield running


async def handle(connection: Connection) -> None:
    """Echo until the end."""
    while data := await connection.read():
        await connection.write(data)


@contextlib.asynccontextmanager
async def echo(hub: FakeHub, **options: Any) -> AsyncIterator[tuple[backend_client.BackendClient, HubSession]]:
    """Serve an echo at a fake hub."""
    async with connect(hub.url, NAMES, tokens=Tokens(), handler=handle, **options) as client, asyncio.timeout(WAIT_S):
        await client.wait_connected()
        yield client, await hub.session()


async def test_ports_are_claimed_beside_names_or_alone(pki: Pki) -> None:
    """The tokens say so, and the hub routes by them."""
    policy = Policy(allowed_tcp_ports=frozenset({25}), allowed_udp_ports=frozenset({53}))
    async with running_hub(pki, policy=policy) as hub:
        url, trust = f"wss://localhost:{hub.port}/connect", hub_client_context(pki.ca_file)
        ports: dict[str, Any] = {"tcp_ports": [25], "udp_ports": [53], "forward": {25: "127.0.0.1:1"}}
        async with connect(url, [], tokens=SECRET, context=trust, **ports) as client, asyncio.timeout(WAIT_S):
            await client.wait_connected()
            assert set(hub.session().grant.route_keys) == {"tcp:25", "udp:53"}
            assert client.stats.datagrams_dropped == 0


@pytest.mark.parametrize("kind", ["text", "file"])
async def test_a_secret_is_all_it_takes(hub: Hub, pki: Pki, tmp_path: Path, kind: str) -> None:
    """As text or in a file; names are claimed as a hub writes them, under the backend's name and weight."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    url, context = f"wss://localhost:{hub.port}/connect", hub_client_context(pki.ca_file)
    tokens = SECRET if kind == "text" else file
    async with connect(url, NAMES, tokens=tokens, handler=handle, name="me", weight=5, context=context) as client:
        async with asyncio.timeout(WAIT_S):
            await client.wait_connected()
        grant = hub.session().grant
        assert (grant.hostnames, grant.subject, grant.weight) == (("app.example.com", "*.wild.example.com"), "me", 5)
    await eventually(lambda: not hub.registry.sessions, "the hub is left")
    request = OpenRequest("app.example.com", is_tls=True, local_port=443, client="c:1")
    assert hub.registry.open_stream(request) == Reject(RejectReason.NO_BACKEND, "app.example.com")


async def test_a_handler_serves_streams() -> None:
    """Both ways, and the events tell of it."""
    events = Events()
    async with fake_hub() as hub, echo(hub, on_event=events) as (client, session):
        await session.connect(ID)
        await session.send_data(ID, b"hello")
        assert await session.receive(ID, 5) == b"hello"
        assert client.stats.streams == 1
        await session.send("disconnect", ID)
        await events.next(EventKind.STREAM_CLOSED)
        assert events.kinds == [EventKind.CONNECTED, EventKind.STREAM_OPENED, EventKind.STREAM_CLOSED]


async def test_ports_are_forwarded_to_services() -> None:
    """To the target of the public port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(2) * 2)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, fake_hub() as hub, connect(hub.url, NAMES, tokens=Tokens(), forward={443: target}):
        session = await hub.session()
        await session.connect(ID)
        await session.send_data(ID, b"ab")
        assert await session.receive(ID, 4) == b"abab"
        await session.send("disconnect", ID)
        await session.settle()


@pytest.mark.parametrize("options", [{}, {"handler": handle, "forward": {443: "127.0.0.1:1"}}])
async def test_either_a_handler_or_targets_must_be_given(options: dict[str, Any]) -> None:
    """Not both, not neither."""
    with pytest.raises(ValueError, match="either a handler or targets"):
        async with connect("ws://127.0.0.1:1/connect", NAMES, tokens="s", **options):
            pass


@pytest.mark.parametrize(("hub", "target"), [("ws://127.0.0.1:1/connect", "nowhere"), ("nonsense", "127.0.0.1:1")])
async def test_mistakes_are_told_before_anything_runs(hub: str, target: str) -> None:
    """As errors of the configuration."""
    with pytest.raises(ConfigError):
        async with connect(hub, NAMES, tokens="s", forward={443: target}):
            pass


async def test_an_exception_in_the_context_is_raised_as_it_is() -> None:
    """Behind the drain: the hub is told goodbye, and no group is made of it."""
    error = LookupError("mine")
    async with fake_hub() as hub:
        with pytest.raises(LookupError) as caught:
            async with echo(hub) as (_, session):
                raise error
        assert caught.value is error
        assert await session.closed() == (1001, "the backend stops")


async def test_a_cancelled_context_ends_at_once() -> None:
    """Without a drain, for it may have been a time limit."""
    async with fake_hub() as hub:
        try:
            async with asyncio.timeout(None) as limit, echo(hub) as (_, session):
                limit.reschedule(0)
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            assert await session.closed() == (1006, "")
        else:
            pytest.fail("the time limit was swallowed")


async def test_a_program_dials_out_through_a_hub_that_allows_it(pki: Pki) -> None:
    """With ``outbound`` the token claims the right; bytes and both FINs arrive."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    policy = OutboundPolicy(allowed=True, private_networks=(parse_network("127.0.0.0/8"),))
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        running_hub(pki, policy=Policy(allow_outbound=True), outbound=policy) as hub,
        connect(
            f"wss://localhost:{hub.port}/connect",
            NAMES,
            tokens=SECRET,
            handler=handle,
            outbound=True,
            context=hub_client_context(pki.ca_file),
        ) as client,
        asyncio.timeout(WAIT_S),
    ):
        await client.wait_connected()
        connection = await client.open_outbound("127.0.0.1", port)
        await connection.write(b"hello")
        connection.write_eof()
        assert await connection.read() == b"HELLO"
        assert await connection.read() == b""
        await eventually(lambda: not hub.session().outbound.held, "the connection is closed")
