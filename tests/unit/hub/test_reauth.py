"""nexus.hub.reauth: sessions that are asked for a fresh token, over TLS, and deferrals with a clock of their own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed

from nexus.auth.claims import Claims
from nexus.auth.grants import Grant, Policy
from nexus.errors import TokenUnverified
from nexus.hub import backend as backends
from nexus.hub import reauth as module
from nexus.hub.backend import BackendSession
from nexus.hub.reauth import Reauthenticator
from nexus.hub.registry import Registry
from nexus.link.connection import Link
from nexus.protocol.constants import HANDSHAKE_MESSAGE_MAX_BYTES, MESSAGE_MAX_BYTES
from nexus.transport import OpenRequest
from tests.support.hub import HOST, NAME, WAIT_S, Backend, Hub, eventually, running_hub, token, verify
from tests.support.processes import SECRET, Pki
from tests.support.sessions import FakeEndpoint, FakeLink

ON_BOTH_LOOPS = True
TERMS: Mapping[str, Any] = {"reauth_interval_s": 1, "reauth_grace_s": 30}
LONG: Mapping[str, Any] = {"reauth_interval_s": 10**6}


@pytest.fixture
async def hub(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A hub that asks at once where the interval is short."""
    be_quick(monkeypatch)
    async with running_hub(pki) as running:
        yield running


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second of an interval take no time."""
    monkeypatch.setattr(module, "challenge_delay_s", lambda grant, _draw: max(grant.reauth_interval_s - 1, 0))


async def question(backend: Backend) -> str:
    """Return the nonce of the next challenge."""
    text = await backend.receive()
    assert isinstance(text, str)
    document = json.loads(text)
    assert list(document) == ["type", "nonce"]
    assert document["type"] == "reauth_challenge"
    nonce = document["nonce"]
    assert isinstance(nonce, str)
    return nonce


async def outcome(hub: Hub, name: str, count: int = 1) -> None:
    """Wait until re-authentications of this outcome have been counted."""
    await eventually(lambda: hub.registry.totals.reauthentications[name] == count, f"{count} of {name}")


# -- Renewal ---------------------------------------------------------------------------------------------------------


async def test_a_session_is_asked_again_and_again_with_a_fresh_nonce(hub: Hub) -> None:
    """Each token is for its own nonce; routes and weight stay."""
    backend = await hub.backend(weight=3, **TERMS)
    nonces = []
    for _ in range(5):
        nonces.append(await question(backend))
        await backend.websocket.send(token("reauth", nonces[-1], weight=3, **TERMS))
    await outcome(hub, "renewed", 5)
    assert len(set(nonces)) == 5
    assert {len(nonce) for nonce in nonces} == {43}
    assert hub.registry.table.routes() == (HOST,)
    assert not hub.registry.totals.ignored_texts


async def test_the_terms_of_the_session_are_those_of_the_last_token(hub: Hub) -> None:
    """Interval, grace, cap, status URI and policy version are replaced; an absent cap keeps the present one."""
    backend = await hub.backend(maintenance_grace_cap_s=7, policy_version="1", **TERMS)
    assert hub.session().grant.policy_version == "1"
    status = "https://a.example/up"
    changed: Mapping[str, Any] = {"reauth_grace_s": 9, "policy_version": "2", "authorizer_status_uri": status}
    await backend.websocket.send(token("reauth", await question(backend), **changed, **LONG))
    await outcome(hub, "renewed")
    grant = hub.session().grant
    assert (grant.reauth_interval_s, grant.reauth_grace_s, grant.maintenance_grace_cap_s) == (10**6, 9, 7)
    assert (grant.policy_version, grant.authorizer_status_uri) == ("2", status)


async def test_a_token_without_interval_ends_re_authentication_for_good(hub: Hub) -> None:
    """The session goes on and its task is over."""
    backend = await hub.backend(**TERMS)
    await backend.websocket.send(token("reauth", await question(backend)))
    await outcome(hub, "renewed")
    assert hub.session().grant.reauth_interval_s == 0
    await backend.pong()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await backend.websocket.recv()


async def test_a_session_without_interval_has_no_task(hub: Hub) -> None:
    """What nobody asked for costs nothing."""
    await hub.backend()
    before = len(asyncio.all_tasks())
    await hub.backend(**LONG)
    with_interval = len(asyncio.all_tasks())
    await hub.backend()
    assert len(asyncio.all_tasks()) - with_interval == with_interval - before - 1


async def test_another_subject_changes_nothing(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sub` is looked at in the first token only, so the count of sessions by subject stays true."""
    be_quick(monkeypatch)
    async with running_hub(pki) as hub:
        backend = await hub.backend(**TERMS)
        await backend.websocket.send(token("reauth", await question(backend), subject="somebody else", **LONG))
        await outcome(hub, "renewed")
        assert hub.session().grant.subject == NAME
        assert (hub.registry.sessions_of(NAME), hub.registry.sessions_of("somebody else")) == (1, 0)
        await backend.websocket.close()
        await eventually(lambda: not hub.registry.sessions, "the session is gone")
        assert hub.registry.sessions_of(NAME) == 0


async def test_traffic_flows_while_a_token_is_awaited_and_judged(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings are answered and streams carry data in both directions meanwhile; nothing is held (W8)."""
    be_quick(monkeypatch)
    judging, judged = asyncio.Event(), asyncio.Event()

    async def slowly(text: str, now: float) -> Claims:
        claims = await verify(text, now)
        if claims.policy_version == "2":
            judging.set()
            await judged.wait()
        return claims

    async with running_hub(pki, check=slowly) as hub:
        backend = await hub.backend(**TERMS)
        nonce = await question(backend)
        stream = hub.session().open_stream(OpenRequest(HOST, is_tls=True, local_port=443, client="192.0.2.1:5"), HOST)
        assert stream is not None
        endpoint = FakeEndpoint(stream)
        stream.attach(endpoint)
        for sent in (b"asked", b"judging"):
            await backend.websocket.send(b"\x01" + stream.id + sent)
            stream.send(sent)
            await eventually(partial(_ends_with, endpoint, sent), "the stream flows")
            await backend.pong()
            if sent == b"asked":
                await backend.websocket.send(token("reauth", nonce, policy_version="2", **LONG))
                await judging.wait()
        assert (await backend.control()).event == "connect"
        assert [await backend.receive() for _ in range(2)] == [b"\x01" + stream.id + b for b in (b"asked", b"judging")]
        judged.set()
        await outcome(hub, "renewed")


def _ends_with(endpoint: FakeEndpoint, data: bytes) -> bool:
    return endpoint.received().endswith(data)


async def test_an_instant_answer_counts() -> None:
    """W8: an answer that is here before the question has left is the answer to it."""
    link = FakeLink()
    session = BackendSession(
        cast(Link, link), Grant(reauth_interval_s=1), Registry(), "192.0.2.1:5", asyncio.TaskGroup()
    )
    link.on_text = lambda text: session.text_received(f"answer to {text}")
    assert await session.ask("question", 30) == "answer to question"


async def test_only_the_first_text_counts(hub: Hub) -> None:
    """What comes before the question, and while its answer is judged, is dropped and counted."""
    backend = await hub.backend(**TERMS)
    nonce = await question(backend)
    await backend.websocket.send(token("reauth", nonce, **LONG))
    await backend.websocket.send("not a token")
    await outcome(hub, "renewed")
    await backend.websocket.send("unsolicited")
    await backend.pong()
    assert hub.registry.totals.ignored_texts == 2
    assert hub.registry.totals.reauthentications == {"renewed": 1}


async def test_an_early_answer_is_none(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text from before the question is not kept for it."""
    be_quick(monkeypatch)
    may_ask = asyncio.Event()

    async def ask_status(_uri: str) -> str:
        await may_ask.wait()
        return ""

    async with running_hub(pki, ask_status=ask_status) as hub:
        backend = await hub.backend(authorizer_status_uri="https://a.example/up", **TERMS)
        await backend.websocket.send("too early")
        await backend.pong()
        assert hub.registry.totals.ignored_texts == 1
        may_ask.set()
        await backend.websocket.send(token("reauth", await question(backend), **LONG))
        await outcome(hub, "renewed")


async def test_an_answer_may_be_as_long_as_a_first_token_and_come_in_fragments(hub: Hub) -> None:
    """While a question is open the limit of the handshake holds, so no token is good at login and too long later."""
    names = tuple(f"host-{number}.example.com" for number in range(1500))
    backend = await hub.backend(hostnames=names, **TERMS)
    nonce = await question(backend)
    text = token("reauth", nonce, hostnames=names, **LONG)
    assert MESSAGE_MAX_BYTES < len(text) <= HANDSHAKE_MESSAGE_MAX_BYTES
    await backend.websocket.send([text[at : at + 4096] for at in range(0, len(text), 4096)])
    await outcome(hub, "renewed")
    await backend.websocket.send("x" * (MESSAGE_MAX_BYTES + 1))
    assert (await backend.closed())[0] == 1009


# -- Failure ---------------------------------------------------------------------------------------------------------

Answer = Callable[[str], str]
FAILURES: Mapping[str, tuple[str, Answer]] = {
    "not a token": ("invalid token", lambda _nonce: "let me stay"),
    "empty": ("invalid token", lambda _nonce: ""),
    "bad signature": ("signature", lambda nonce: token("reauth", nonce, secret="x" * 32)),
    "expired": ("expired", lambda nonce: token("reauth", nonce, ttl_s=-1)),
    "wrong nonce": ("nonce", lambda _nonce: token("reauth", "n" * 43)),
    "no nonce": ("nonce", lambda _nonce: token("reauth", "")),
    "other names": ("other hostnames", lambda nonce: token("reauth", nonce, hostnames=(HOST, "b.example.com"))),
    "fewer names": ("no hostname", lambda nonce: token("reauth", nonce, hostnames=())),
    "other weight": ("weight 2", lambda nonce: token("reauth", nonce, weight=2)),
    "negative weight": ("weight -1", lambda nonce: token("reauth", nonce, weight=-1)),
    "bad status URI": ("authorizer_status_uri", lambda n: token("reauth", n, authorizer_status_uri="http://a")),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_a_wrong_answer_ends_the_session(hub: Hub, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """With 1008 and a reason, its routes gone and its streams broken; no secret is told at any log level."""
    caplog.set_level(logging.DEBUG)
    words, answer = FAILURES[case]
    backend = await hub.backend(**TERMS)
    nonce = await question(backend)
    session = hub.session()
    stream = session.open_stream(OpenRequest(HOST, is_tls=True, local_port=443, client="192.0.2.1:5"), HOST)
    assert stream is not None
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    await backend.websocket.send(answer(nonce))
    code, reason = await backend.closed()
    assert code == 1008
    assert reason.startswith("re-authentication failed: ")
    assert words in reason
    await eventually(lambda: not hub.registry.sessions, "the session is gone")
    assert endpoint.aborted
    assert len(hub.registry.table) == 0
    assert hub.registry.totals.reauthentications == {"refused": 1}
    assert f"ended the session of {session.name}: re-authentication failed" in caplog.text
    told = [reason, *(record.getMessage() for record in caplog.records if record.name.startswith("nexus"))]
    for secret in (SECRET, "eyJ", "let me stay", "n" * 43, nonce):
        assert not [line for line in told if secret in line]


async def test_weight_zero_is_no_other_weight(hub: Hub) -> None:
    """A token need not repeat it (spec backend-protocol 3.2)."""
    backend = await hub.backend(weight=5, **TERMS)
    await backend.websocket.send(token("reauth", await question(backend), weight=0, **LONG))
    await outcome(hub, "renewed")
    assert hub.session().grant.weight == 5


async def test_no_answer_within_the_grace_ends_the_session(hub: Hub) -> None:
    """The reason names the claim to raise."""
    backend = await hub.backend(reauth_interval_s=1, reauth_grace_s=1)
    await question(backend)
    code, reason = await backend.closed()
    assert code == 1008
    assert reason == "re-authentication failed: no token within 1 s (reauth_grace_seconds)"
    assert hub.registry.totals.reauthentications == {"timeout": 1}


def fake_session() -> tuple[BackendSession, FakeLink]:
    """Return a session without a socket, and its link."""
    link, tasks = FakeLink(), asyncio.TaskGroup()
    return BackendSession(cast(Link, link), Grant(reauth_interval_s=1), Registry(), "192.0.2.1:5", tasks), link


@pytest.mark.parametrize("still", [True, False], ids=["held", "held meanwhile"])
async def test_an_answer_behind_a_held_link_is_waited_for(still: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot be heard, because a slow client holds up the link, is not cut for silence; but not without end."""
    session, link = fake_session()

    def hold_up(_text: str) -> None:
        link.hold()
        link.clock_s += 1.0
        if not still:
            link.release()

    link.on_text = hold_up
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(session.ask("question", 0.0))
        await eventually(lambda: link.texts, "it is asked")
        for _ in range(5):
            await asyncio.sleep(0)
        session.text_received("late")
        assert await asking == "late"
    monkeypatch.setattr(backends, "HELD_GRACE_S", 0.0)
    with pytest.raises(TimeoutError):
        await session.ask("question", 0.0)
    session.text_received("too late")
    assert link.limits == [HANDSHAKE_MESSAGE_MAX_BYTES, MESSAGE_MAX_BYTES] * 2


async def test_a_hold_before_the_question_is_no_excuse() -> None:
    """What was behind it has been read."""
    session, link = fake_session()
    link.hold()
    link.release()
    with pytest.raises(TimeoutError):
        await session.ask("question", 0.0)


async def test_a_verifier_that_fails_ends_the_session(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody stays in because nobody could be asked."""
    be_quick(monkeypatch)
    calls: list[str] = []

    async def check(text: str, now: float) -> Claims:
        calls.append(text)
        if len(calls) > 2:
            raise TokenUnverified("the verifier cannot be reached")
        return await verify(text, now)

    async with running_hub(pki, check=check) as hub:
        backend = await hub.backend(**TERMS)
        await backend.websocket.send(token("reauth", await question(backend), **TERMS))
        assert await backend.closed() == (1008, "re-authentication failed: the token could not be verified, try later")
        assert hub.registry.totals.reauthentications == {"unverified": 1}


async def test_a_session_that_ends_is_not_asked_any_more(hub: Hub) -> None:
    """Its task is gone with it, whatever it was waiting for."""
    before = len(asyncio.all_tasks())
    waiting, asked = await hub.backend(**LONG), await hub.backend(**TERMS)
    await question(asked)
    for backend in (waiting, asked):
        await backend.websocket.close()
    await eventually(lambda: len(asyncio.all_tasks()) == before, "every task of theirs has ended")
    assert not hub.registry.totals.reauthentications


async def test_a_flood_of_text_is_dropped(hub: Hub) -> None:
    """Nothing of it is kept, and the session goes on."""
    backend = await hub.backend(**LONG)
    try:
        for _ in range(2000):
            await backend.websocket.send("x" * 1000)
        await backend.pong()
    except ConnectionClosed:  # pragma: no cover — what the test is there to find
        pytest.fail("the session ended")
    assert hub.registry.totals.ignored_texts == 2000
    assert len(hub.registry.sessions) == 1


# -- Maintenance -----------------------------------------------------------------------------------------------------


class Clock:
    """Sleeps at once, and remembers how long; ``times`` runs out after so many sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Let others run, once."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Authorizer:
    """Is up or down as told, one answer after the other; then up."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def ask(self, uri: str) -> str:
        """Return the next answer."""
        self.asked.append(uri)
        return self.answers.pop(0) if self.answers else ""


class Rounds:
    """A session on a fake link that answers every question, run until ``rounds`` are over."""

    def __init__(self, authorizer: Authorizer, *rounds: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        self.link = FakeLink()
        self.link.on_text = self._answer
        self.registry = Registry()
        grant = Grant(hostnames=(HOST,), authorizer_status_uri="https://a.example/up", **first)
        self.session = BackendSession(cast(Link, self.link), grant, self.registry, "192.0.2.1:5", asyncio.TaskGroup())
        self.clock = Clock()
        self.rounds = list(rounds)
        self._reauthenticator = Reauthenticator(
            verify, Policy(), authorizer.ask, self.registry.totals, sleep=self.clock.sleep, draw=lambda: 0.0
        )

    def _answer(self, text: str) -> None:
        terms = self.rounds.pop(0) if self.rounds else {}
        self.session.text_received(token("reauth", json.loads(text)["nonce"], **terms))

    async def run(self) -> None:
        """Run until a token asks for no more."""
        async with asyncio.timeout(WAIT_S):
            await self._reauthenticator.run(self.session)

    @property
    def counted(self) -> Mapping[str, int]:
        """The outcomes."""
        return self.registry.totals.reauthentications


async def test_an_authorizer_that_is_up_defers_nothing() -> None:
    """It is asked once a round."""
    authorizer = Authorizer()
    rounds = Rounds(authorizer, first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 300})
    await rounds.run()
    assert rounds.clock.slept == [60]
    assert authorizer.asked == ["https://a.example/up"]
    assert rounds.counted == {"renewed": 1}


async def test_an_authorizer_that_is_down_defers_the_question(caplog: pytest.LogCaptureFixture) -> None:
    """By one interval each time, until it is up; the log has no URI."""
    caplog.set_level(logging.DEBUG)
    rounds = Rounds(
        Authorizer("status 503", "status 503"), first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 300}
    )
    await rounds.run()
    assert rounds.clock.slept == [60, 60, 60]
    assert rounds.counted == {"deferred": 2, "renewed": 1}
    assert "status 503): re-authentication deferred by 60 s, 60 of 300 s were used" in caplog.text
    assert "a.example" not in caplog.text


async def test_once_the_cap_is_used_up_the_question_is_asked_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """The last deferral is what remains of the cap; the session is not ended for it."""
    rounds = Rounds(Authorizer(*["no answer"] * 9), first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 150})
    await rounds.run()
    assert rounds.clock.slept == [60, 60, 60, 30]
    assert rounds.counted == {"deferred": 3, "renewed": 1}
    assert not rounds.link.closed
    assert "used up" in caplog.text


async def test_a_cap_of_zero_never_defers() -> None:
    """The token's author decides."""
    rounds = Rounds(Authorizer("down"), first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 0})
    await rounds.run()
    assert rounds.clock.slept == [60]
    assert rounds.counted == {"renewed": 1}


async def test_each_round_has_the_whole_cap() -> None:
    """What one round used up, a fresh token gives back, whether the authorizer came up or not."""
    down = ["down"] * 3
    rounds = Rounds(
        Authorizer(*down, *down, "down", "", *down),
        *[{"reauth_interval_s": 60, "authorizer_status_uri": "https://a.example/up"}] * 3,
        first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 120},
    )
    await rounds.run()
    used_up = [60, 60, 60]
    assert rounds.clock.slept == [*used_up, *used_up, 60, 60, *used_up]
    assert rounds.counted == {"deferred": 7, "renewed": 4}


async def test_a_token_that_clears_the_status_uri_ends_the_deferrals() -> None:
    """Nobody is asked any more (spec backend-protocol 3.2)."""
    authorizer = Authorizer("down")
    rounds = Rounds(
        authorizer, {"reauth_interval_s": 30}, first={"reauth_interval_s": 60, "maintenance_grace_cap_s": 300}
    )
    await rounds.run()
    assert rounds.clock.slept == [60, 60, 30]
    assert len(authorizer.asked) == 2


async def test_a_bug_in_a_round_ends_the_session_visibly(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody stays in unasked because of a mistake of ours, and the hub goes on."""
    be_quick(monkeypatch)

    async def broken(_uri: str) -> str:
        raise LookupError("a bug")

    async with running_hub(pki, ask_status=broken) as hub:
        backend = await hub.backend(authorizer_status_uri="https://a.example/up", **TERMS)
        assert (await backend.closed())[0] == 1006
        assert "unexpected failure" in caplog.text
        await hub.backend()
