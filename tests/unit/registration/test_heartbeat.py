"""Registering with an orchestrator: a real HTTPS server on loopback that sees the node's certificate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import pytest

from nexus.registration import heartbeat as module
from nexus.registration.answers import Outcome, Verdict
from nexus.registration.heartbeat import Heartbeat, Registration
from nexus.web import WebClient
from tests.support.hub import eventually
from tests.support.processes import Pki
from tests.support.web_server import Asked, WebServer, reply, reply_json, silence, web_context, web_server

ON_BOTH_LOOPS = True


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[WebServer]:
    """An orchestrator that takes everybody."""
    async with web_server(pki, reply_json({"heartbeat_interval": 60})) as running:
        yield running


@pytest.fixture
async def web(pki: Pki) -> AsyncIterator[WebClient]:
    """The node's client, which shows the hub's certificate."""
    client = WebClient(web_context(pki))
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Outcome, int]]:
    """Let no wait be longer than a moment; return what was waited for."""
    seen: list[tuple[Outcome, int]] = []

    def wait_after(outcome: Outcome, failures: int, random: float) -> float:
        assert 0 <= random < 1
        seen.append((outcome, failures))
        return 0.01

    monkeypatch.setattr(module, "wait_after", wait_after)
    return seen


@contextlib.asynccontextmanager
async def beating(
    server: WebServer, web: WebClient, *, identity: list[bool] | None = None, **told: object
) -> AsyncIterator[Heartbeat]:
    """Register until the test is over."""
    known = identity if identity is not None else [True]
    registration = Registration(server.url("/nodes?key=secret"), 8443, **told)  # type: ignore[arg-type]
    made = Heartbeat(registration, web, lambda: known[-1])
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.run())
        yield made
        task.cancel()


async def test_it_says_what_the_original_says(server: WebServer, web: WebClient) -> None:
    """By POST, with the hub's certificate as its identity, again and again."""
    async with beating(server, web, region="eu", stun_port=3478) as it:
        await eventually(lambda: it.outcomes["registered"] >= 3, "it repeats it")
    first = server.asked[0]
    assert (first.method, first.path) == ("POST", "/nodes?key=secret")
    assert first.headers["content-type"] == "application/json"
    assert json.loads(first.body) == {"region": "eu", "backendPort": 8443, "services": {"stunPort": 3478}}
    assert first.client_names == ("hub.example.com",)
    assert it.registered_at is not None


async def test_what_there_is_not_is_left_out(server: WebServer, web: WebClient) -> None:
    """As the original does."""
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["registered"], "it is registered")
    assert json.loads(server.asked[0].body) == {"backendPort": 8443}


async def test_failures_are_told_once_and_the_way_back_too(
    server: WebServer, web: WebClient, caplog: pytest.LogCaptureFixture, impatient: list[tuple[Outcome, int]]
) -> None:
    """Without the key in the URL."""
    caplog.set_level(logging.INFO)
    server.answer = reply(401, b"no such node")
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["refused"] >= 3, "it goes on")
        server.answer = reply(500, b"")
        await eventually(lambda: it.outcomes["failed"] >= 2, "another failure")
        assert it.problem.endswith("/nodes?********: not registered: it answered HTTP 500; see its own log")
        assert it.failures == it.outcomes["refused"] + it.outcomes["failed"]
        server.answer = reply_json({})
        await eventually(lambda: it.outcomes["registered"] >= 2, "and back")
        assert (it.problem, it.failures) == ("", 0)
        assert it.next_at is not None
    lines = [record.getMessage() for record in caplog.records if record.name == "nexus.registration"]
    assert [line.partition(": not registered: ")[2][:35] for line in lines] == [
        "it refuses this node with HTTP 401;",
        "it answered HTTP 500; see its own l",
        "",
    ]
    assert lines[-1].startswith("registered with https://localhost:")
    assert "secret" not in caplog.text
    assert [failures for _, failures in impatient[:3]] == [1, 2, 3]
    assert impatient[-1][1] == 0


async def test_a_failure_whose_words_vary_is_told_once(
    server: WebServer, web: WebClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as by the number of the request."""

    async def refuse(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await reply(401, b"request %d is refused" % len(server.asked))(asked, writer)

    server.answer = refuse
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["refused"] >= 3, "it goes on")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "nexus.registration"]
    assert "HTTP 401" in line
    assert line.endswith("; it said: request 1 is refused")


async def test_an_orchestrator_that_is_away_or_silent_is_a_failure(
    server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch, impatient: list[tuple[Outcome, int]]
) -> None:
    """With the mend."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.05)
    server.answer = silence
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["failed"], "it gives up")
    assert impatient[0][0].why == ("no answer within 0.05 s; check the URL, and that this machine may connect there")


@pytest.mark.parametrize(("status", "verdict"), [(401, "refused"), (404, "failed")])
async def test_of_a_long_answer_the_status_counts(
    server: WebServer, web: WebClient, impatient: list[tuple[Outcome, int]], status: int, verdict: str
) -> None:
    """A page for people is longer than what a node reads."""
    server.answer = reply(status, b"<html>" + b"x" * 100_000)
    async with beating(server, web) as it:
        await eventually(it.outcomes.total, "it has an answer")
    assert impatient[0][0].verdict.value == verdict
    assert f"HTTP {status}" in impatient[0][0].why


async def test_a_redirect_is_followed_and_a_circle_is_left(server: WebServer, web: WebClient) -> None:
    """With the same body; a bounded number of times."""
    server.answer = reply(307, b"", Location="/moved")
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["failed"], "the circle is left")
    assert [asked.path for asked in server.asked[:4]] == ["/nodes?key=secret", "/moved", "/moved", "/moved"]
    assert server.asked[1].body == server.asked[0].body


async def test_a_redirect_that_leads_nowhere_is_told_with_its_end(
    server: WebServer, web: WebClient, impatient: list[tuple[Outcome, int]]
) -> None:
    """Whoever looks at the first server would find nothing wrong."""
    server.answer = reply(307, b"", Location="https://localhost:1/moved?key=secret")
    async with beating(server, web) as it:
        await eventually(lambda: it.outcomes["failed"], "it fails")
    assert impatient[0][0].why.startswith("redirected to https://localhost:1/moved?********: cannot be reached: ")


async def test_without_a_certificate_nothing_is_asked(
    server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orchestrator would not know who asks."""
    monkeypatch.setattr(module, "_IDENTITY_POLL_S", 0.01)
    identity = [False]
    asked: list[int] = []
    monkeypatch.setattr("nexus.registration.heartbeat.asyncio.sleep", _counting(asked, asyncio.sleep))
    async with beating(server, web, identity=identity) as it:
        await eventually(lambda: len(asked) >= 3, "it waits")
        assert not server.asked
        identity.append(True)
        await eventually(lambda: it.outcomes["registered"], "it is registered")


def _counting(counted: list[int], sleep: object) -> object:
    async def counting(delay_s: float) -> None:
        counted.append(1)
        await sleep(delay_s)  # type: ignore[operator]

    return counting


def test_what_became_of_it_has_a_word_each() -> None:
    """They are labels of a metric."""
    assert {verdict.value for verdict in Verdict} == {"registered", "refused", "failed"}
