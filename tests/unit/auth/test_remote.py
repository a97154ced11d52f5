"""nexus.auth.remote: a verifier over real HTTPS, sound and otherwise."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from nexus.auth import remote
from nexus.auth.remote import RemoteVerifier
from nexus.auth.verdict import VERDICT_MAX_BYTES, VerifierDown
from nexus.errors import AuthError, TokenUnverified
from nexus.limits import STRANGERS_LINES_MAX
from nexus.web import WebClient
from tests.support.hub import eventually
from tests.support.ports import free_ports
from tests.support.processes import Pki
from tests.support.web_server import (
    Answer,
    Asked,
    WebServer,
    http,
    reply,
    reply_json,
    silence,
    web_context,
    web_server,
)

TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl"
GOOD = {"valid": True, "claims": {"sub": "shop"}}


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[WebServer]:
    """A verifier that accepts every token."""
    async with web_server(pki, reply_json(GOOD)) as running:
        yield running


async def test_an_accepted_token_gives_its_claims(server: WebServer, web: WebClient) -> None:
    """The verifier is sent the token as it is, and sees the hub's certificate."""
    verifier = RemoteVerifier(server.url("/check"), web)
    assert await verifier.verify(TOKEN) == {"sub": "shop"}
    (asked,) = server.asked
    assert (asked.method, asked.path, json.loads(asked.body)) == ("POST", "/check", {"token": TOKEN})
    assert asked.client_names == ("hub.example.com",)
    assert verifier.answers == {"accepted": 1}


async def test_a_refusal_is_final(server: WebServer, web: WebClient) -> None:
    """The verifier's own words are passed on; it is no trouble of the node's."""
    server.answer = reply_json({"valid": False, "error": "expired"})
    verifier = RemoteVerifier(server.url(), web)
    with pytest.raises(AuthError, match="invalid token: the verifier refuses it: expired"):
        await verifier.verify(TOKEN)
    assert verifier.answers == {"refused": 1}


async def _drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _reset(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    writer.transport.abort()


async def _elsewhere(asked: Asked, writer: asyncio.StreamWriter) -> None:
    location = f"https://{asked.headers['host']}/elsewhere"
    writer.write(http(307, json.dumps(GOOD).encode(), Location=location))


FAULTS: dict[str, tuple[Answer, type[TokenUnverified], str]] = {
    "silent": (silence, VerifierDown, "down"),
    "slow drip": (_drip, VerifierDown, "down"),
    "reset": (_reset, VerifierDown, "down"),
    "500": (reply(500, b""), VerifierDown, "down"),
    "503 that looks like a verdict": (reply(503, json.dumps(GOOD).encode()), VerifierDown, "down"),
    "400": (reply(400, b""), TokenUnverified, "no_verdict"),
    "401": (reply(401, b""), TokenUnverified, "no_verdict"),
    "403": (reply(403, b""), TokenUnverified, "no_verdict"),
    "HTML": (reply(200, b"<html>welcome</html>", Content_Type="text/html"), TokenUnverified, "no_verdict"),
    "valid without claims": (reply_json({"valid": True}), TokenUnverified, "no_verdict"),
    "wrong types": (reply_json({"valid": "yes", "claims": {}}), TokenUnverified, "no_verdict"),
    "huge": (reply(200, b" " * (VERDICT_MAX_BYTES + 1)), TokenUnverified, "no_verdict"),
    "redirect": (_elsewhere, TokenUnverified, "no_verdict"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_verifier_that_fails_or_lies_lets_nobody_in(
    server: WebServer, web: WebClient, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """W28: refused, counted, logged in words for the operator, and told to the backend in words that pass."""
    server.answer, kind, count = FAULTS[fault]
    verifier = RemoteVerifier(server.url(), web, timeout_s=0.3)
    with pytest.raises(TokenUnverified) as caught:
        await verifier.verify(TOKEN)
    assert type(caught.value) is kind
    assert str(caught.value) == "the token could not be verified, try later"
    assert verifier.answers == {count: 1}
    (record,) = [record for record in caplog.records if record.name == "nexus.auth"]
    assert record.getMessage() == f"remoteVerifierURL: {caught.value.detail}"
    assert TOKEN not in record.getMessage()
    assert [asked.path for asked in server.asked] == ["/verify"]


async def test_a_verifier_that_is_not_there_or_not_trusted_is_down(pki: Pki, server: WebServer, web: WebClient) -> None:
    """No connection, another certificate, roots that do not know it."""
    (port,) = free_ports(1)
    stranger = WebClient(web_context(pki, trusted=False))
    for url, client in (
        (f"https://localhost:{port}/", web),
        (f"https://127.0.0.1:{server.port}/", web),
        (server.url(), stranger),
    ):
        with pytest.raises(VerifierDown):
            await RemoteVerifier(url, client).verify(TOKEN)
    assert not server.asked
    await stranger.aclose()


async def test_few_are_asked_at_once(server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for a place."""
    monkeypatch.setattr(remote, "VERIFICATIONS_MAX", 2)
    verifier = RemoteVerifier(server.url(), web)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(verifier.verify(TOKEN))
    assert len(server.asked) == 6
    assert server.most_requests <= 2


async def test_who_waited_while_all_others_failed_sees_a_verifier_that_is_down(
    server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an outage the fallback is there for everybody, not only for those who had a place."""
    monkeypatch.setattr(remote, "VERIFICATIONS_MAX", 1)
    verifier = RemoteVerifier(server.url(), web, place_wait_s=0.5)
    fails = asyncio.Event()

    async def fail_once(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if len(server.asked) == 1:
            await fails.wait()
            await _reset(asked, writer)
        await silence(asked, writer)

    server.answer = fail_once
    async with asyncio.TaskGroup() as tasks:
        first, second = (tasks.create_task(_outcome(verifier)) for _ in range(2))
        await eventually(lambda: server.asked, "the first is asked for")
        third = tasks.create_task(_outcome(verifier))
        fails.set()
        assert type(await first) is type(await third) is VerifierDown
        assert len(server.asked) == 2
        second.cancel()
    assert verifier.answers == {"down": 2}


async def _outcome(verifier: RemoteVerifier) -> Exception | None:
    try:
        await verifier.verify(TOKEN)
    except TokenUnverified as error:
        return error
    return None


async def test_tokens_that_take_all_places_do_not_make_the_verifier_look_down(
    server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or strangers could choose the fallback to local keys by sending many."""
    monkeypatch.setattr(remote, "VERIFICATIONS_MAX", 1)
    verifier = RemoteVerifier(server.url(), web, place_wait_s=0.05)
    answers = asyncio.Event()

    async def slowly(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await answers.wait()
        await reply_json(GOOD)(asked, writer)

    server.answer = slowly
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(verifier.verify(TOKEN))
        await eventually(lambda: server.asked, "the first is asked for")
        with pytest.raises(TokenUnverified) as caught:
            await verifier.verify(TOKEN)
        answers.set()
    assert not isinstance(caught.value, VerifierDown)
    assert first.result() == GOOD["claims"]
    assert verifier.answers == {"accepted": 1, "busy": 1}
    assert len(server.asked) == 1


async def test_trouble_does_not_flood_the_log(
    server: WebServer, web: WebClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The metrics count all of it."""
    caplog.set_level(logging.INFO)
    server.answer = reply(500, b"")
    verifier = RemoteVerifier(server.url(), web)
    for _ in range(STRANGERS_LINES_MAX + 2):
        with pytest.raises(VerifierDown):
            await verifier.verify(TOKEN)
    assert len([record for record in caplog.records if record.name == "nexus.auth"]) == STRANGERS_LINES_MAX
    assert verifier.answers == {"down": STRANGERS_LINES_MAX + 2}
