"""backend_client.client: its life with a hub, and every way in which that ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from http import HTTPStatus

import pytest

from backend_client.client import BackendClient, HealthChecks, Identity
from backend_client.events import Event, EventKind
from backend_client.tokens import TokenRequest
from nexus.hub.server import HubLimits
from nexus.protocol.constants import FEATURES
from nexus.tls.contexts import hub_client_context
from tests.support.clients import Events, Tokens, be_impatient, forwarder, running
from tests.support.fake_hub import HubSession, fake_hub
from tests.support.hub import WAIT_S, eventually, running_hub, token
from tests.support.processes import Pki

ON_BOTH_LOOPS = True
SHORT_S = 0.05
STREAM = b"\x07" * 16


@pytest.fixture
def events() -> Events:
    """What the client tells."""
    return Events()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client tries again at once."""
    be_impatient(monkeypatch)


async def test_it_comes_back_when_the_hub_went_away(events: Events, impatient: None) -> None:
    """Sums go on, gauges begin anew."""
    async with fake_hub() as hub, running(hub.url, events=events) as client:
        session = await hub.session()
        await session.connect(STREAM)
        await session.send_data(STREAM, b"12345")
        await session.control("disconnect")
        session.websocket.transport.abort()
        ended = await events.next(EventKind.DISCONNECTED)
        assert ended.hub == hub.url
        await events.next(EventKind.CONNECTED)
        await hub.session()
        stats = client.stats
        assert (stats.sessions_total, stats.streams_total, stats.bytes_from_hub, stats.streams) == (2, 1, 5, 0)
        assert (stats.failures, stats.last_error) == (0, "")


async def test_a_restarted_hub_is_found_again(events: Events, impatient: None) -> None:
    """On the same port, after a time when nobody listened."""
    async with contextlib.AsyncExitStack() as stack:
        async with fake_hub() as hub:
            client = await stack.enter_async_context(running(hub.url, events=events))
        assert "1001" in (await events.next(EventKind.DISCONNECTED)).detail
        await events.next(EventKind.FAILED)
        async with fake_hub(port=hub.port) as again:
            await again.session()
            await client.wait_connected()
            assert client.stats.sessions_total == 2
            client.stop()
            await events.next(EventKind.STOPPED)


async def test_the_delay_after_a_session_is_told(events: Events) -> None:
    """It is short and random."""
    async with fake_hub() as hub, running(hub.url, events=events):
        (await hub.session()).websocket.transport.abort()
        assert 0 < (await events.next(EventKind.DISCONNECTED)).retry_s <= 1


async def test_several_hubs_are_served_at_once() -> None:
    """Sessions are independent; one that ends does not concern the other."""
    async with fake_hub() as first, fake_hub() as second, running(first.url) as one, running(second.url) as two:
        (await first.session()).websocket.transport.abort()
        await eventually(lambda: not one.stats.connected, "the first one is gone")
        assert two.stats.connected


async def test_stopping_says_goodbye(events: Events) -> None:
    """With a close frame, in order: draining, then stopped; stopping twice is no different."""
    async with fake_hub() as hub:
        async with running(hub.url, events=events) as client:
            session = await hub.session()
            client.stop()
            client.stop()
            assert await session.closed() == (1001, "the backend stops")
        assert events.kinds == [
            EventKind.CONNECTED,
            EventKind.DRAINING,
            EventKind.DISCONNECTED,
            EventKind.STOPPED,
        ]
        assert not client.stats.connected


@pytest.mark.parametrize("stage", ["token", "challenge", "acceptance"])
async def test_stopping_while_connecting_ends_at_once(events: Events, stage: str) -> None:
    """Whatever it waits for; the hub sees the connection end."""
    tokens = Tokens()
    tokens.slow = asyncio.Event()
    reached = asyncio.Event()

    async def script(session: HubSession) -> None:
        if stage == "challenge":
            await session.token()
        else:
            await session.challenge()
        if stage == "acceptance":
            assert tokens.slow is not None
            tokens.slow.set()
            await session.token()
        reached.set()
        await session.closed()

    async with fake_hub(script) as hub:
        async with running(hub.url, tokens=tokens, events=events, connected=False):
            await reached.wait()
        await hub.session()
    assert events.kinds == [EventKind.DRAINING, EventKind.STOPPED]


async def test_stopping_while_waiting_for_the_next_attempt_ends_at_once(events: Events) -> None:
    """Whatever the delay."""
    status = HTTPStatus.TOO_MANY_REQUESTS
    async with (
        asyncio.timeout(WAIT_S),
        fake_hub(status=status) as hub,
        running(hub.url, events=events, connected=False),
    ):
        await events.next(EventKind.FAILED)
    assert events.kinds[-1] is EventKind.STOPPED


async def test_a_stopped_client_does_not_start() -> None:
    """Nothing is dialled."""
    async with fake_hub() as hub:
        client = BackendClient(hub.url, Identity("b"), Tokens(), forwarder())
        client.stop()
        await client.run()
        assert hub.connections == 0


@pytest.mark.parametrize("connected", [False, True])
async def test_a_cancelled_client_leaves_no_session_behind(connected: bool) -> None:
    """A session that nobody serves would keep its streams hanging."""
    reached = asyncio.Event()

    async def script(session: HubSession) -> None:
        if connected:
            await session.handshake()
        else:
            await session.challenge()
        reached.set()

    tokens = Tokens()
    tokens.slow = None if connected else asyncio.Event()
    async with fake_hub(script) as hub:
        client = BackendClient(hub.url, Identity("b"), tokens, forwarder())
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(client.run())
            await reached.wait()
            if connected:
                await client.wait_connected()
            session = await hub.session()
            task.cancel()
        assert await session.closed() == (1006, "")
        assert not client.stats.connected
        assert client._session is None


async def test_an_event_handler_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The session goes on; the log tells."""

    def fail(event: Event) -> None:
        raise LookupError(event.kind)

    async with fake_hub() as hub, running(hub.url, events=fail) as client:  # type: ignore[arg-type]
        assert client.stats.connected
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert failures[0] == "the event handler failed on 'connected'"


async def test_health_checks_ask_for_idle_streams_and_end_lost_ones(events: Events) -> None:
    """A stream that the hub knows stays, one that it does not know is ended with ``timeout``."""

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    known, unknown = b"\x01" * 16, b"\x02" * 16
    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    health = HealthChecks(enabled=True, inactivity_s=0.0, pong_s=SHORT_S)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        fake_hub() as hub,
        running(hub.url, events=events, health=health, to=forwarder({443: target})) as client,
    ):
        session = await hub.session()
        for stream_id in (known, unknown):
            await session.connect(stream_id)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pong(session, known, ended))
            gone = await session.control("disconnect")
            ended.set()
        assert (gone.stream_id, gone.reason) == (unknown, "timeout")
        assert client.stats.streams == 1


async def _pong(session: HubSession, stream_id: bytes, ended: asyncio.Event) -> None:
    """Answer pings for one stream."""
    while not ended.is_set():
        await session.send("pong_client", stream_id)
        await asyncio.sleep(SHORT_S / 10)


async def test_a_hub_of_ours_offers_its_features(pki: Pki) -> None:
    """Client and hub of this repository agree on everything there is."""

    class Real:
        async def token(self, request: TokenRequest) -> str:
            return token(request.stage, request.nonce, hostnames=request.hostnames)

    async with running_hub(pki, limits=HubLimits()) as hub:
        url, context = f"wss://localhost:{hub.port}/connect", hub_client_context(pki.ca_file)
        async with running(url, tokens=Real(), context=context):
            await eventually(lambda: hub.session().session.features == set(FEATURES), "the hub knows")
