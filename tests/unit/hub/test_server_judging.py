"""nexus.hub.server while tokens are judged: slowly, in vain, again and again, and again when they are revoked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from backend_client.events import EventKind
from backend_client.tokens import HmacTokenProvider
from nexus import limits as limits_module
from nexus.auth.claims import Claims
from nexus.auth.mint import TokenSpec
from nexus.auth.revocation import parse_revocations
from nexus.errors import TokenUnverified
from nexus.hub.server import HubLimits
from nexus.link import hold
from nexus.link.connection import Link
from tests.support.clients import Events, running
from tests.support.hub import HOST, NAME, WAIT_S, Backend, Hub, eventually, running_hub, token, verify
from tests.support.processes import SECRET, Pki

ON_BOTH_LOOPS = True
OTHER = "other.example.com"


@pytest.fixture
async def hub(pki: Pki) -> AsyncIterator[Hub]:
    """A hub without limits of its own."""
    async with running_hub(pki) as found:
        yield found


def _note_pongs(backend: Backend) -> list[bytes]:
    """Return a list of the payloads of all pongs that arrive from now on."""
    pongs: list[bytes] = []
    process = backend.websocket.process_event

    def note(event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PONG:
            pongs.append(bytes(event.data))
        process(event)

    backend.websocket.process_event = note  # type: ignore[method-assign]
    return pongs


@pytest.mark.parametrize("slow_stage", [0, 1])
async def test_a_slow_verification_gives_signs_of_life(
    pki: Pki, slow_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An original backend leaves after 10 s without one; ours does not take an empty pong for acceptance."""
    monkeypatch.setattr(hold, "SIGN_OF_LIFE_S", 0.005)
    judged = asyncio.Event()
    seen = 0

    async def check(text: str, now: float) -> Claims:
        nonlocal seen
        seen += 1
        if seen == slow_stage + 1:
            await judged.wait()
        return await verify(text, now)

    async with running_hub(pki, check=check) as hub:
        backend = await hub.dial()
        pongs = _note_pongs(backend)
        if slow_stage == 0:
            await backend.websocket.send(token())
        else:
            await backend.websocket.send(token("attest", await backend.challenge()))
            answer = await backend.websocket.ping(b"accepted?")
        await eventually(lambda: len(pongs) >= 4, "four signs of life")
        assert set(pongs) == {b""}
        assert not hub.registry.sessions
        judged.set()
        if slow_stage == 0:
            await backend.websocket.send(token("attest", json.loads(str(await backend.receive()))["nonce"]))
            answer = await backend.websocket.ping(b"accepted?")
        async with asyncio.timeout(WAIT_S):
            await answer
        assert len(hub.registry.sessions) == 1
        (session,) = hub.registry.sessions
        await eventually(lambda: session.session.link._hold._timer is None, "the signs have ended")
        await backend.pong()  # behind the last of them
        silent = len(pongs)
        await backend.pong()
        assert len(pongs) == silent + 1


async def test_a_backend_of_ours_waits_for_a_slow_verification(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is connected when the hub has accepted it, not at the first sign of life."""
    monkeypatch.setattr(hold, "SIGN_OF_LIFE_S", 0.005)
    judged, beats = asyncio.Event(), 0
    give, stages = Link._give_sign_of_life, 0

    async def check(text: str, now: float) -> Claims:
        nonlocal stages
        stages += 1
        if stages == 2:
            await judged.wait()
        return await verify(text, now)

    def count(link: Link) -> bool:
        nonlocal beats
        beats += 1
        return give(link)

    monkeypatch.setattr(Link, "_give_sign_of_life", count)
    tokens, events = HmacTokenProvider(SECRET, TokenSpec(subject="")), Events()
    async with running_hub(pki, check=check) as hub:
        url = f"wss://localhost:{hub.port}/connect"
        async with running(url, tokens=tokens, events=events, connected=False, context=hub.context) as client:
            await eventually(lambda: beats >= 4, "four signs of life")
            assert EventKind.CONNECTED not in events.kinds
            judged.set()
            async with asyncio.timeout(WAIT_S):
                await client.wait_connected()
            assert len(hub.registry.sessions) == 1


async def test_a_token_that_could_not_be_verified_is_refused_in_words_that_pass(pki: Pki) -> None:
    """W28: and is not held against its source, since it is no fault of the backend's."""

    async def check(text: str, now: float) -> Claims:
        raise TokenUnverified("the verifier is down")

    async with running_hub(pki, check=check, limits=HubLimits(refusals_per_source=1)) as hub:
        for _ in range(3):
            backend = await hub.dial()
            await backend.websocket.send(token())
            assert await backend.closed() == (1008, "the token could not be verified, try later")
        assert hub.registry.totals.auth_failures == {"stage0": 3}


async def test_a_source_that_is_refused_too_often_is_turned_away(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """W28: before TLS, for a while; who is let in meanwhile wipes the slate clean."""
    async with running_hub(pki, limits=HubLimits(refusals_per_source=3)) as hub:

        async def refused() -> None:
            backend = await hub.dial()
            await backend.websocket.send(token(secret="x" * 32))
            assert (await backend.closed())[0] == 1008

        await refused()
        await refused()
        established = await hub.backend()
        for _ in range(3):
            await refused()
        assert "127.0.0.1 was refused too often" in caplog.text
        reader, _ = await hub.connection(tls=False)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        assert hub.registry.totals.auth_failures == {"stage0": 5, "turned_away": 1}
        await established.pong()  # sessions are not concerned
        monkeypatch.setattr(limits_module, "REFUSALS_INTERVAL_S", 0.0)
        await hub.backend()


async def test_a_subject_that_holds_all_its_sessions_is_not_turned_away(pki: Pki) -> None:
    """Its old session may be a dead one that is not found yet; it must be able to come back when it is."""
    async with running_hub(pki, limits=HubLimits(refusals_per_source=1, sessions_per_subject=1)) as hub:
        first = await hub.backend()
        for _ in range(2):
            backend = await hub.dial()
            await backend.websocket.send(token("attest", await backend.challenge()))
            assert "maxSessionsPerSubject" in (await backend.closed())[1]
        await first.websocket.close()
        await eventually(lambda: not hub.registry.sessions, "the first session is gone")
        await hub.backend()


async def test_a_token_that_is_revoked_during_the_handshake_makes_no_session(hub: Hub) -> None:
    """The second one may be good; the session would stand on both."""
    backend = await hub.dial()
    nonce = await backend.challenge(token(token_id="stolen"))
    hub.server.close_revoked(parse_revocations("jti stolen", "list"))
    await backend.websocket.send(token("attest", nonce, token_id="another"))
    assert await backend.closed() == (1008, "invalid token: its jti is revoked")
    assert not hub.registry.sessions
    assert hub.registry.totals.auth_failures == {"stage1": 1}


async def test_sessions_on_a_revoked_token_are_ended(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """By any name of either of their tokens; others go on, and nothing is routed to the ended one any more."""
    first, second = await hub.backend(), await hub.backend(subject="other", hostnames=(OTHER,), token_id="t1")
    hub.server.close_revoked(parse_revocations("sub nobody\njti t2", "list"))
    await first.pong()
    hub.server.close_revoked(parse_revocations("jti t1", "list"))
    assert await second.closed() == (1008, "revoked")
    await first.pong()
    assert hub.registry.table.routes() == (HOST,)
    hub.server.close_revoked(parse_revocations(f"sub {NAME} before 2100-01-01T00:00:00Z", "list"))
    assert await first.closed() == (1008, "revoked")
    await eventually(lambda: not hub.registry.sessions, "no session is left")
    assert hub.registry.totals.session_ends == {"1008": 2}
    assert "ending the session of other at 127.0.0.1" in caplog.text
