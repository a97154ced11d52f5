"""backend_client.client: against a hub that accepts, dawdles, refuses, misbehaves and goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import pytest

from backend_client import client as module
from backend_client.backoff import (
    JITTER,
    PERSISTENT_REJECTIONS,
    RATE_LIMITED_S,
    REJECTED_BASE_S,
    STABLE_SESSION_S,
    TRANSIENT_BASE_S,
)
from backend_client.client import BackendClient, Identity
from backend_client.events import EventKind
from backend_client.tokens import CachingProvider, IssuedToken, TokenIssuer, TokenRequest
from nexus.auth.claims import UdpRoute
from nexus.errors import ConfigError, OutboundError, TokenProviderError
from nexus.tls.contexts import hub_client_context
from tests.support.clients import Events, Tokens, be_impatient, forwarder, running
from tests.support.fake_hub import NONCE, FakeHub, HubSession, fake_hub
from tests.support.hub import HOST, eventually, running_hub, token
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


def about(delay_s: float) -> Any:
    """Match a delay with its jitter."""
    return pytest.approx(delay_s, rel=JITTER)


# -- Handshake ------------------------------------------------------------------------------------------------------


async def test_the_handshake_is_that_of_the_protocol(events: Events) -> None:
    """Two tokens, trimmed, the second for the hub's nonce; no credential in the upgrade."""
    tokens = Tokens()
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events) as client:
        session = await hub.session()
        assert session.path == "/connect"
        assert session.tokens == ["handshake-token", "attest-token"]
        assert [request.nonce for request in tokens.requests] == ["", NONCE]
        assert tokens.requests[0] == TokenRequest("handshake", "", "backend", hostnames=(HOST,), weight=2)
        assert client.stats.connected
        assert client.stats.sessions_total == 1
        assert client.stats.connected_for_s >= 0
        assert events.kinds == [EventKind.CONNECTED]
        assert events.all[0].hub == hub.url
        headers = session.websocket.request.headers if session.websocket.request else {}
        assert not {"authorization", "cookie", "origin"} & {name.lower() for name in headers}


async def test_it_is_connected_only_once_the_hub_has_accepted(events: Events) -> None:
    """That the second token was sent proves nothing."""
    accept = asyncio.Event()

    async def script(session: HubSession) -> None:
        await session.challenge()
        await session.token()
        await accept.wait()
        await session.accept()

    async with fake_hub(script) as hub, running(hub.url, events=events, connected=False) as client:
        await eventually(lambda: hub.connections, "it has dialled")
        await asyncio.sleep(0)
        assert not client.stats.connected
        assert client.stats.connected_for_s == 0.0
        accept.set()
        await events.next(EventKind.CONNECTED)
        assert client.stats.connected


async def test_the_first_token_is_there_before_the_hub_is_dialled(events: Events, impatient: None) -> None:
    """The hub's clock runs from the upgrade on: without a token there is nothing to dial for (W14)."""
    tokens = Tokens()
    tokens.error = TokenProviderError("the command failed")
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert failed.detail == "the command failed"
        assert hub.connections == 0
        tokens.error = None
        await client.wait_connected()
        assert hub.connections == 1


async def test_a_provider_that_breaks_its_contract_costs_one_attempt(events: Events, impatient: None) -> None:
    """Its name is told, its words are not: they may hold a secret."""
    tokens = Tokens()
    tokens.error = LookupError("secret-in-here")
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert failed.detail == "the token provider failed: LookupError"
        tokens.error = None
        await client.wait_connected()
    assert not [event for event in events.all if "secret" in event.detail]


async def test_a_slow_second_token_does_not_stop_the_reading(events: Events) -> None:
    """Pings of the hub are answered meanwhile, and what else it says is not kept (W8)."""
    tokens = Tokens()
    tokens.slow = asyncio.Event()

    async def script(session: HubSession) -> None:
        await session.challenge()
        for _ in range(3):
            await session.settle()
            await session.websocket.send("keep this in mind")
            await session.connect(STREAM)
        assert tokens.slow is not None
        tokens.slow.set()
        await session.token()
        await session.accept()

    async with fake_hub(script) as hub, running(hub.url, tokens=tokens, events=events) as client:
        await hub.session()
        assert client.stats.streams == 0
    assert EventKind.FAILED not in events.kinds


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("no JSON", "not JSON"),
        ('{"type":"welcome","nonce":"n"}', "not a handshake_challenge"),
        ('{"type":"handshake_challenge"}', "no nonce"),
        ('{"type":"handshake_challenge","nonce":"  "}', "no nonce"),
        (b"\x02{}", "binary"),
    ],
)
async def test_a_wrong_challenge_is_a_failed_attempt(events: Events, challenge: str | bytes, words: str) -> None:
    """A transient one: another hub may stand behind the name at the next try."""

    async def script(session: HubSession) -> None:
        await session.token()
        await session.websocket.send(challenge)
        await session.websocket.wait_closed()

    async with fake_hub(script) as hub, running(hub.url, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert words in failed.detail
        assert failed.retry_s == about(TRANSIENT_BASE_S)
        assert client.stats.last_error == failed.detail
        assert client.stats.failures == 1


async def test_a_late_challenge_is_a_failed_attempt(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says what did not come."""
    monkeypatch.setattr(module, "CHALLENGE_TIMEOUT_S", SHORT_S)

    async def script(session: HubSession) -> None:
        await session.token()
        assert await session.closed() == (1006, "")

    async with fake_hub(script) as hub, running(hub.url, events=events, connected=False):
        assert (await events.next(EventKind.FAILED)).detail == f"no challenge from the hub within {SHORT_S:g} s"
        await hub.session()


async def test_a_hub_that_never_accepts_is_a_failed_attempt(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pong behind the second token means no session."""
    monkeypatch.setattr(module, "ACCEPT_TIMEOUT_S", SHORT_S)

    async def script(session: HubSession) -> None:
        await session.challenge()
        await session.token()
        assert await session.closed() == (1006, "")

    async with fake_hub(script) as hub, running(hub.url, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert failed.detail == f"the hub did not accept the session within {SHORT_S:g} s"
        await hub.session()
        assert client.stats.sessions_total == 0


async def test_a_hub_that_judges_for_long_is_not_taken_for_dead(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing meanwhile, so the client's patience with unanswered pings begins behind it."""
    monkeypatch.setattr(module, "CLIENT_PING_INTERVAL_S", SHORT_S / 10)
    monkeypatch.setattr(module, "CLIENT_DEAD_AFTER_S", SHORT_S / 5)

    async def script(session: HubSession) -> None:
        await session.challenge()
        await session.token()
        await asyncio.sleep(2 * SHORT_S)
        await session.accept()

    async with fake_hub(script) as hub, running(hub.url, events=events):
        assert events.kinds[0] is EventKind.CONNECTED


async def test_a_hub_that_falls_silent_is_left(
    events: Events, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session without any sign of life ends, and the next one begins."""
    monkeypatch.setattr(module, "CLIENT_PING_INTERVAL_S", SHORT_S / 5)
    monkeypatch.setattr(module, "CLIENT_DEAD_AFTER_S", 2 * SHORT_S / 5)
    async with fake_hub() as hub, running(hub.url, events=events):
        session = await hub.session()
        session.websocket.answers_pings = False
        assert "no sign of life" in (await events.next(EventKind.DISCONNECTED)).detail
        await events.next(EventKind.CONNECTED)


# -- Refusals -------------------------------------------------------------------------------------------------------


class Issuer(TokenIssuer):
    """Counts how often a token is made."""

    issued = 0

    async def issue(self, request: TokenRequest) -> IssuedToken:
        """Return one."""
        self.issued += request.stage == "handshake"
        return IssuedToken("token")


async def _refuse_first(session: HubSession) -> None:
    await session.token()
    await session.websocket.close(1008, "invalid token: expired")


async def _refuse_second(session: HubSession) -> None:
    await session.challenge()
    await session.token()
    await session.websocket.close(1008, "invalid token: expired")


async def _refuse_while_the_token_is_made(session: HubSession) -> None:
    await session.challenge()
    await session.websocket.close(1008, "invalid token: expired")


async def _refuse_later(session: HubSession) -> None:
    await session.handshake()
    await session.websocket.close(1008, "invalid token: expired")


@pytest.mark.parametrize("script", [_refuse_first, _refuse_second, _refuse_while_the_token_is_made, _refuse_later])
async def test_a_refused_token_is_told_as_such(events: Events, script: Any) -> None:
    """With the hub's words and a longer wait; a kept token is forgotten, for the secret may have changed."""
    issuer = Issuer()
    tokens = CachingProvider(issuer, 3600)
    async with fake_hub(script) as hub, running(hub.url, tokens=tokens, events=events, connected=False) as client:
        rejected = await events.next(EventKind.REJECTED)
        assert rejected.detail == "invalid token: expired"
        assert rejected.retry_s == about(REJECTED_BASE_S)
        assert (client.rejections, client.stats.failures, client.stats.connected) == (1, 1, False)
        assert issuer.issued == 1
        await tokens.token(TokenRequest("handshake", "", "backend", (HOST,), weight=2))
        assert issuer.issued == 2


async def test_a_refusal_without_words_has_some_all_the_same(events: Events, impatient: None) -> None:
    """At every stage."""

    async def first(session: HubSession) -> None:
        hub.script = second
        await session.token()
        await session.websocket.close(1008)

    async def second(session: HubSession) -> None:
        await session.challenge()
        await session.token()
        await session.websocket.close(1008)

    async with fake_hub(first) as hub, running(hub.url, events=events, connected=False):
        for _ in range(2):
            assert "1008" in (await events.next(EventKind.REJECTED)).detail


async def test_a_session_that_ends_before_it_is_up_is_a_failed_attempt(events: Events) -> None:
    """Without 1008 nobody knows that the token was the reason."""

    async def script(session: HubSession) -> None:
        await session.challenge()
        await session.token()
        await session.websocket.close(1011, "out of order")

    async with fake_hub(script) as hub, running(hub.url, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert failed.detail == "the hub ended the session before it was up: closed with code 1011 (out of order)"
        assert client.rejections == 0


@pytest.mark.parametrize(
    ("status", "kind", "retry_s"),
    [
        (HTTPStatus.UNAUTHORIZED, EventKind.REJECTED, about(REJECTED_BASE_S)),
        (HTTPStatus.FORBIDDEN, EventKind.REJECTED, about(REJECTED_BASE_S)),
        (HTTPStatus.TOO_MANY_REQUESTS, EventKind.FAILED, about(RATE_LIMITED_S)),
        (HTTPStatus.SERVICE_UNAVAILABLE, EventKind.FAILED, about(TRANSIENT_BASE_S)),
        (HTTPStatus.FOUND, EventKind.FAILED, about(TRANSIENT_BASE_S)),
        (HTTPStatus.OK, EventKind.FAILED, about(TRANSIENT_BASE_S)),
    ],
)
async def test_an_http_answer_says_how_long_to_wait(
    events: Events, status: HTTPStatus, kind: EventKind, retry_s: Any
) -> None:
    """By its number, never by words in it (W30)."""
    async with fake_hub(status=status) as hub, running(hub.url, events=events, connected=False) as client:
        event = await events.next(kind)
        assert str(status.value) in event.detail
        assert event.retry_s == retry_s
        assert client.rejections == (kind is EventKind.REJECTED)


async def test_a_lasting_refusal_is_an_error_in_the_log(
    events: Events, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a person should hear of it, and it goes on trying."""
    async with fake_hub(_refuse_first) as hub, running(hub.url, events=events, connected=False) as client:
        for _ in range(PERSISTENT_REJECTIONS - 1):
            await events.next(EventKind.REJECTED)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        await events.next(EventKind.REJECTED)
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert errors
        assert f"refused the token {PERSISTENT_REJECTIONS} times" in errors[0]
        hub.script = HubSession.handshake
        await client.wait_connected()


async def test_a_refusal_after_a_long_session_is_the_first_of_its_row(
    events: Events, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused before that session is over."""
    monkeypatch.setattr(module, "STABLE_SESSION_S", 0.0)
    assert STABLE_SESSION_S > 0
    async with fake_hub(_refuse_first) as hub, running(hub.url, events=events, connected=False) as client:
        await events.next(EventKind.REJECTED)
        await events.next(EventKind.REJECTED)
        hub.script = HubSession.handshake
        await client.wait_connected()
        hub.script = _stall
        session = await _open_session(hub)
        await session.websocket.close(1008, "your time is up")
        assert (await events.next(EventKind.REJECTED)).detail == "your time is up"
        assert client.rejections == 1


async def _stall(session: HubSession) -> None:
    await session.websocket.wait_closed()


async def _open_session(hub: FakeHub) -> HubSession:
    """Return the next session that is not over."""
    while True:
        session = await hub.session()
        if session.websocket.close_code is None:
            return session


async def test_no_token_is_in_an_event_or_in_the_log(
    pki: Pki, events: Events, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """At the most talkative level, accepted or refused, by a real hub."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("nexus.websocket").setLevel(logging.DEBUG)

    class Real:
        refused = True

        async def token(self, request: TokenRequest) -> str:
            secret = {"secret": "x" * 32} if self.refused else {}
            return token(request.stage, request.nonce, hostnames=request.hostnames, **secret)

    provider = Real()
    async with running_hub(pki) as hub:
        url, context = f"wss://localhost:{hub.port}/connect", hub_client_context(pki.ca_file)
        async with running(url, tokens=provider, events=events, connected=False, context=context) as client:
            await events.next(EventKind.REJECTED)
            provider.refused = False
            await client.wait_connected()
    told = [event.detail for event in events.all]
    told += [record.getMessage() for record in caplog.records if record.name.startswith("nexus")]
    assert not [text for text in told if "eyJ" in text]


# -- Hubs that cannot be reached ------------------------------------------------------------------------------------


async def test_a_password_in_the_url_is_for_the_hub_alone(events: Events) -> None:
    """It logs in there, and is in nothing that the client tells."""
    async with (
        fake_hub() as hub,
        running(hub.url.replace("://", "://user:hush@") + "?key=hush", events=events) as client,
    ):
        session = await hub.session()
        assert session.websocket.request is not None
        assert session.websocket.request.headers["Authorization"] == "Basic dXNlcjpodXNo"
        assert session.path.endswith("?key=hush")
        assert client.hub == hub.url.replace("://", "://********@") + "?********"
    assert {event.hub for event in events.all} == {client.hub}


async def test_an_address_that_is_none_is_not_repeated() -> None:
    """Its parts may be a password."""
    with pytest.raises(ConfigError) as caught:
        BackendClient("wss://user:hush", Identity("b"), Tokens(), forwarder())
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("hub", ["http://h/connect", "nonsense", "wss:///connect", "wss://h:99999/", "wss://h/#x"])
async def test_an_address_that_is_none_is_an_error_at_once(hub: str) -> None:
    """With a mend, before anything runs."""
    with pytest.raises(ConfigError, match="wss://host:port/connect"):
        BackendClient(hub, Identity("b"), Tokens(), forwarder())


@pytest.mark.parametrize("hub", ["ws://127.0.0.1:1/connect", f"ws://{'a' * 70}.example/connect"])
async def test_a_hub_that_cannot_be_reached_is_tried_again(events: Events, hub: str) -> None:
    """Nobody is there, or the name cannot be one."""
    async with running(hub, events=events, connected=False) as client:
        failed = await events.next(EventKind.FAILED)
        assert failed.retry_s == about(TRANSIENT_BASE_S)
        assert failed.detail
        assert client.stats.last_error == failed.detail


async def test_a_hub_with_an_unknown_certificate_is_not_trusted(pki: Pki, events: Events) -> None:
    """By default only the system's roots are."""
    async with running_hub(pki) as hub:
        url = f"wss://localhost:{hub.port}/connect"
        async with running(url, events=events, connected=False) as client:
            assert "caFile" in (await events.next(EventKind.FAILED)).detail
            assert client._context is not None
            assert client._context.check_hostname
        assert not hub.registry.sessions


async def test_a_hub_that_never_answers_is_a_failed_attempt(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP, TLS and the upgrade have one limit together."""
    monkeypatch.setattr(module, "DIAL_HUB_TIMEOUT_S", SHORT_S)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts, nobody reads
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/connect"
        async with running(url, events=events, connected=False):
            assert (await events.next(EventKind.FAILED)).detail == f"no connection to the hub within {SHORT_S:g} s"


async def test_the_kernel_s_own_timeout_keeps_its_words(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the limit of the client that has passed."""

    def proxy_for(*_: object, **__: object) -> str:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr("nexus.proxies.proxy_for", proxy_for)
    async with running("ws://127.0.0.1:1/connect", events=events, connected=False):
        assert "Connection timed out" in (await events.next(EventKind.FAILED)).detail


async def test_an_error_without_words_is_told_by_its_kind(events: Events) -> None:
    """An empty line would help nobody."""
    tokens = Tokens()
    tokens.error = TokenProviderError()
    async with running("ws://127.0.0.1:1/connect", tokens=tokens, events=events, connected=False):
        assert (await events.next(EventKind.FAILED)).detail == "TokenProviderError"


@contextlib.asynccontextmanager
async def connect_proxy(target: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run an HTTP proxy that leads every tunnel to one port of loopback; note the requests."""
    requests: list[bytes] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's name is resolved by the proxy."""
    async with fake_hub() as hub, connect_proxy(hub.port) as (port, requests):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with running("ws://hub.invalid:8443/connect"):
            session = await hub.session()
            assert session.tokens[0] == "handshake-token"
    assert requests[0].startswith(b"CONNECT hub.invalid:8443 HTTP/1.1\r\n")


# -- Outbound connections -------------------------------------------------------------------------------------------


async def test_what_a_backend_claims_is_what_its_tokens_are_asked_for() -> None:
    """UDP routes and outbound rights among it."""
    routes = (UdpRoute(53), UdpRoute(123, 20))
    identity = Identity("b", ("a.example",), (25,), 3, routes, outbound_allowed=True, allowed_outbound_ports=(587,))
    assert identity.request("attest", "n") == TokenRequest(
        "attest", "n", "b", ("a.example",), (25,), routes, 3, outbound_allowed=True, allowed_outbound_ports=(587,)
    )


async def test_a_program_opens_a_connection_through_the_hub(events: Events) -> None:
    """It reads and writes it like one that the hub announced."""
    async with fake_hub() as hub, running(hub.url, events=events) as client, asyncio.TaskGroup() as tasks:
        session = await hub.session()
        opening = tasks.create_task(client.open_outbound("mail.example.net", 25))
        request = await session.control("outbound_connect")
        assert request.target_addr == "mail.example.net:25"
        await session.send("outbound_result", request.stream_id, success=True, credits=64)
        await session.send_data(request.stream_id, b"220 hello")
        connection = await opening
        assert (connection.info.hub, connection.info.hostname, connection.info.port) == (
            hub.url,
            "mail.example.net",
            25,
        )
        assert await connection.read() == b"220 hello"
        await connection.write(b"EHLO")
        assert await session.receive(request.stream_id, 4) == b"EHLO"
        assert client.stats.streams == client.stats.streams_total == 1
        connection.close()
        assert (await session.control("disconnect")).reason == "normal"
        assert EventKind.STREAM_OPENED in events.kinds


async def test_a_connection_that_the_hub_refuses_is_an_error() -> None:
    """With the hub's words."""
    async with fake_hub() as hub, running(hub.url) as client, asyncio.TaskGroup() as tasks:
        session = await hub.session()
        opening = tasks.create_task(_refused(client))
        request = await session.control("outbound_connect")
        await session.send("outbound_result", request.stream_id, reason="not today")
        assert str(await opening) == "not today"


async def test_without_a_session_there_is_no_connection() -> None:
    """Neither before the first one, nor once the client stops."""
    async with fake_hub() as hub:
        client = BackendClient(hub.url, Identity("b"), Tokens(), forwarder())
        assert not client.is_connected
        assert "no session" in str(await _refused(client))
        async with running(hub.url) as other:
            assert other.is_connected
            other.stop()
            assert not other.is_connected
            assert "no session" in str(await _refused(other))


async def _refused(client: BackendClient) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        await client.open_outbound("mail.example.net", 25)
    return caught.value
