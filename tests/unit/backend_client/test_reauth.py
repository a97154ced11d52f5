"""backend_client.reauth: a hub asks again, and the client answers without ceasing to read (W8)."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from backend_client import reauth
from backend_client.backoff import REJECTED_BASE_S
from backend_client.connection import Connection
from backend_client.events import EventKind
from backend_client.reauth import SUPERSEDED_MAX
from nexus.errors import TokenProviderError
from tests.support.clients import Events, Tokens, be_impatient, forwarder, running
from tests.support.fake_hub import HubSession, fake_hub
from tests.support.hub import eventually

ON_BOTH_LOOPS = True
STREAM = b"\x07" * 16


@pytest.fixture
def events() -> Events:
    """What the client tells."""
    return Events()


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """A provider whose tokens for re-authentication can be made to take long; they are fetched without a pause."""
    monkeypatch.setattr(reauth, "FETCH_INTERVAL_S", 0.0)
    provider = Tokens()
    provider.slow_stage = "reauth"
    return provider


async def ask(session: HubSession, nonce: str) -> None:
    """Send a challenge."""
    await session.websocket.send(json.dumps({"type": "reauth_challenge", "nonce": nonce}))


async def answers(session: HubSession, count: int) -> list[str]:
    """Return the texts of the client behind its two tokens, once there are so many."""
    await eventually(lambda: len(session.tokens) >= 2 + count, f"{count} answers")
    return session.tokens[2:]


async def test_a_challenge_is_answered_with_a_token_for_its_nonce(events: Events, tokens: Tokens) -> None:
    """As often as the hub asks, and told as it happens; white space around the token is not sent."""
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        for nonce in ("n-1", " n 2 "):
            await ask(session, nonce)
            await events.next(EventKind.REAUTH_STARTED)
            await events.next(EventKind.REAUTH_COMPLETED)
        assert await answers(session, 2) == ["reauth-token", "reauth-token"]
        assert tokens.stages == ["handshake", "attest", "reauth", "reauth"]
        assert [request.nonce for request in tokens.requests[2:]] == ["n-1", " n 2 "]
        assert tokens.requests[2].hostnames == tokens.requests[0].hostnames


async def test_streams_flow_while_a_token_is_fetched(events: Events, tokens: Tokens) -> None:
    """W8: pings are answered, streams open and move, for as long as the provider takes."""
    tokens.slow = asyncio.Event()

    async def echo(connection: Connection) -> None:
        while chunk := await connection.read():
            await connection.write(chunk)

    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events, to=forwarder(handler=echo)) as client:
        session = await hub.session()
        await ask(session, "n")
        await eventually(lambda: "reauth" in tokens.stages, "a token is being fetched")
        await session.connect(STREAM)
        for number in range(20):
            await session.send_data(STREAM, b"tick %02d" % number)
            assert await session.receive(STREAM, 7) == b"tick %02d" % number
            await session.settle()
        assert not session.tokens[2:]
        tokens.slow.set()
        assert await answers(session, 1) == ["reauth-token"]
        assert client.stats.connected
        assert client.stats.sessions_total == 1


async def test_the_newest_challenge_counts(tokens: Tokens) -> None:
    """One token is fetched at a time; the older one's is not sent, which the hub would take for the newer one's."""
    tokens.slow = asyncio.Event()
    async with fake_hub() as hub, running(hub.url, tokens=tokens):
        session = await hub.session()
        await ask(session, "old")
        await eventually(lambda: "reauth" in tokens.stages, "a token is being fetched")
        for nonce in ("newer", "newest"):
            await ask(session, nonce)
        await session.settle()
        assert tokens.stages.count("reauth") == 1
        assert not tokens.cancelled
        tokens.slow.set()
        await answers(session, 1)
        await session.settle()
        assert session.tokens[2:] == ["reauth-token"]
        assert [request.nonce for request in tokens.requests[2:]] == ["old", "newest"]


async def test_a_token_that_fails_for_an_older_challenge_costs_nothing(events: Events, tokens: Tokens) -> None:
    """The newer one is answered."""
    tokens.slow = asyncio.Event()
    tokens.error = TokenProviderError("the nonce is too old")
    tokens.failing_nonce = "old"
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        await ask(session, "old")
        await eventually(lambda: "reauth" in tokens.stages, "a token is being fetched")
        await ask(session, "new")
        await session.settle()
        tokens.slow.set()
        assert await answers(session, 1) == ["reauth-token"]
        assert EventKind.DISCONNECTED not in events.kinds


async def test_tokens_are_fetched_at_a_measured_pace(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that waits for each answer cannot start program after program at once."""
    monkeypatch.setattr(reauth, "FETCH_INTERVAL_S", 3600.0)
    async with fake_hub() as hub, running(hub.url, tokens=tokens):
        session = await hub.session()
        await ask(session, "first")
        await answers(session, 1)
        await ask(session, "second")
        await session.settle()
        assert tokens.stages.count("reauth") == 1


async def test_a_hub_that_waits_for_no_answer_is_left(events: Events, tokens: Tokens) -> None:
    """With a reason, and without a token for each of its challenges."""
    tokens.slow = asyncio.Event()
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        for number in range(SUPERSEDED_MAX + 2):
            await ask(session, f"n-{number}")
        ended = await events.next(EventKind.DISCONNECTED)
        assert f"asked {SUPERSEDED_MAX + 1} times to re-authenticate without waiting" in ended.detail
        assert tokens.stages.count("reauth") == 1
        assert events.kinds.count(EventKind.REAUTH_STARTED) == 1


async def test_without_a_token_the_session_ends_and_the_client_comes_back(
    events: Events, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event says why and what to mend, and when the next attempt comes."""
    be_impatient(monkeypatch)
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events) as client:
        session = await hub.session()
        tokens.error = TokenProviderError("the command failed")
        await ask(session, "n")
        ended = await events.next(EventKind.DISCONNECTED)
        assert "no token to re-authenticate with: the command failed; mend" in ended.detail
        assert EventKind.REAUTH_COMPLETED not in events.kinds
        await events.next(EventKind.FAILED)
        tokens.error = None
        await events.next(EventKind.CONNECTED)
        assert client.stats.sessions_total == 2


async def test_a_challenge_without_a_nonce_ends_the_session(events: Events, tokens: Tokens) -> None:
    """Nobody could answer it (spec backend-protocol 4)."""
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        await ask(await hub.session(), " ")
        ended = await events.next(EventKind.DISCONNECTED)
        assert "no nonce" in ended.detail
        assert ended.retry_s > 0
        assert "reauth" not in tokens.stages


async def test_a_session_that_ends_fetches_no_token_any_more(events: Events, tokens: Tokens) -> None:
    """Nor is one sent on the session that follows."""
    tokens.slow = asyncio.Event()
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        await ask(session, "n")
        await eventually(lambda: "reauth" in tokens.stages, "a token is being fetched")
        session.websocket.transport.abort()
        await events.next(EventKind.DISCONNECTED)
        await eventually(lambda: tokens.cancelled, "the provider is let off")


async def test_a_refused_answer_is_a_refusal(events: Events, tokens: Tokens) -> None:
    """A hub of ours says why; the client does not come back at once as if the session had just ended."""
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        await ask(session, "n")
        await answers(session, 1)
        await session.websocket.close(1008, "re-authentication failed: token has weight 2")
        refused = await events.next(EventKind.REJECTED)
        assert refused.detail == "re-authentication failed: token has weight 2"
        assert refused.retry_s > REJECTED_BASE_S / 2


async def test_neither_token_nor_nonce_is_told(
    events: Events, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    """In no event and at no log level."""
    caplog.set_level(logging.DEBUG, logger="nexus")
    async with fake_hub() as hub, running(hub.url, tokens=tokens, events=events):
        session = await hub.session()
        await ask(session, "hush-nonce")
        await answers(session, 1)
        await session.websocket.send("hush-nonce")
        await session.settle()
    told = [repr(event) for event in events.all]
    told += [record.getMessage() for record in caplog.records if record.name.startswith("nexus")]
    assert not [text for text in told if "hush-nonce" in text or "reauth-token" in text]
