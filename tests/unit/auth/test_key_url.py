"""nexus.auth.key_url: a key set behind a URL, fetched, kept, renewed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from nexus.auth import key_url as module
from nexus.auth.key_url import (
    FRESH_DEFAULT_S,
    FRESH_MAX_S,
    FRESH_MIN_S,
    KEY_SET_MAX_BYTES,
    RETRY_S,
    KeyUrl,
)
from nexus.web import WebClient
from tests.support.hub import eventually
from tests.support.processes import Pki
from tests.support.signing import jwk, key_set, private_key
from tests.support.web_server import Answer, Asked, WebServer, http, reply, silence, web_server

WAIT_S = 10.0
OLD = key_set(jwk(private_key("ES256"), kid="old")).encode()
NEW = key_set(jwk(private_key("ES256"), kid="old"), jwk(private_key("ES256", 2), kid="new")).encode()


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[WebServer]:
    """An issuer with one key."""
    async with web_server(pki, reply(200, OLD)) as running:
        yield running


@pytest.fixture
async def key_url(server: WebServer, web: WebClient) -> AsyncIterator[KeyUrl]:
    """Keys that are kept fresh, and were fetched once."""
    found = KeyUrl(server.url("/jwks"), web)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(found.run())
        await eventually(lambda: sum(found.fetches.values()) == 1, "it was fetched once")
        yield found
        task.cancel()


def _ids(key_url: KeyUrl) -> list[str]:
    return [key.key_id for key in key_url.keys]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, FRESH_DEFAULT_S),
        ({"Cache_Control": "max-age=1000"}, 1000),
        ({"Cache_Control": "max-age=1"}, FRESH_MIN_S),
        ({"Cache_Control": "no-store"}, FRESH_MIN_S),
        ({"Cache_Control": "max-age=999999"}, FRESH_MAX_S),
    ],
)
async def test_a_set_is_good_for_as_long_as_it_says(
    server: WebServer, web: WebClient, headers: dict[str, str], wait_s: float
) -> None:
    """Within bounds."""
    server.answer = reply(200, OLD, **headers)
    key_url = KeyUrl(server.url("/jwks"), web)
    assert key_url.keys == ()
    assert key_url.fetched_at is None
    assert await key_url.fetch() == wait_s
    assert _ids(key_url) == ["old"]
    assert key_url.fetches == {"ok": 1}
    assert [(asked.method, asked.path) for asked in server.asked] == [("GET", "/jwks")]


async def _reset(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    writer.transport.abort()


async def _elsewhere(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(http(302, NEW, Location=f"https://{asked.headers['host']}/elsewhere"))


FAULTS: dict[str, tuple[Answer, str]] = {
    "reset": (_reset, "cannot be"),
    "500": (reply(500, NEW), "it answered HTTP 500 instead of 200"),
    "redirect": (_elsewhere, "it answered HTTP 302 instead of 200"),
    "HTML": (reply(200, b"<html>"), "it holds no key"),
    "no set": (reply(200, b'{"error": "try later"}'), "it is no key set"),
    "empty": (reply(200, b""), "it holds no key"),
    "not UTF-8": (reply(200, b'{"keys": "\xff"}'), "it is not UTF-8 text"),
    "huge": (reply(200, b" " * (KEY_SET_MAX_BYTES + 1)), "the answer is longer than 1048576 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_last_good_set_stays(
    server: WebServer, web: WebClient, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever comes later; the log says why, how old the set is, and once is enough. It is tried again soon."""
    caplog.set_level(logging.INFO)
    key_url = KeyUrl(server.url("/jwks"), web)
    await key_url.fetch()
    server.answer, why = FAULTS[fault]
    assert [await key_url.fetch() for _ in range(6)] == [RETRY_S, 60, 120, 240, FRESH_MIN_S, FRESH_MIN_S]
    assert _ids(key_url) == ["old"]
    assert key_url.fetches == {"ok": 1, "failed": 6}
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith(f"backendsJWKSURL: not fetched: {why}")
    assert "s old" in message
    server.answer = reply(200, NEW)
    assert await key_url.fetch() == FRESH_DEFAULT_S
    assert _ids(key_url) == ["old", "new"]


@pytest.mark.parametrize("document", [b'{"keys": []}', b'{"keys": [{"kty": "oct"}]}'])
async def test_an_issuer_that_withdraws_all_its_keys_is_heard(
    server: WebServer, web: WebClient, document: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its old ones are believed no longer; one line says so, and it is asked again soon."""
    key_url = KeyUrl(server.url("/jwks"), web)
    await key_url.fetch()
    server.answer = reply(200, document)
    assert [await key_url.fetch() for _ in range(2)] == [FRESH_MIN_S] * 2
    assert key_url.keys == ()
    assert key_url.fetches == {"ok": 1, "empty": 2}
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "backendsJWKSURL: the set holds no usable key" in message
    server.answer = reply(200, NEW)
    assert await key_url.fetch() == FRESH_DEFAULT_S
    assert _ids(key_url) == ["old", "new"]


async def test_an_issuer_that_is_not_there_yet_gives_no_keys(
    server: WebServer, web: WebClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The node runs on; the keys come when the issuer does."""
    server.answer = reply(503, b"")
    key_url = KeyUrl(server.url("/jwks"), web)
    await key_url.fetch()
    assert (key_url.keys, key_url.fetched_at) == ((), None)
    assert "there is none yet" in caplog.text
    server.answer = reply(200, OLD)
    await key_url.fetch()
    assert _ids(key_url) == ["old"]


async def test_keys_that_are_skipped_are_told_of_once(
    server: WebServer, web: WebClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Until they change."""
    server.answer = reply(200, key_set({"kty": "oct"}, jwk(private_key("ES256"))).encode())
    key_url = KeyUrl(server.url("/jwks"), web)
    for _ in range(3):
        await key_url.fetch()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "backendsJWKSURL: keys[0] has a kty other than RSA, EC and OKP: skipped"
    ]


async def test_it_is_fetched_again_when_it_is_time(
    server: WebServer, key_url: KeyUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself."""
    monkeypatch.setattr(module, "UNKNOWN_ID_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "FRESH_MIN_S", 0.01)
    server.answer = reply(200, NEW, Cache_Control="no-cache")
    assert await key_url.renew()
    await eventually(lambda: key_url.fetches["ok"] >= 4, "it was fetched again and again")


async def test_an_unknown_id_renews_the_set_now_and_then(
    server: WebServer, key_url: KeyUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one fetch in half a minute, however many tokens name ids that nobody has."""
    server.answer = reply(200, NEW)
    assert not any([await key_url.renew() for _ in range(5)])
    assert len(server.asked) == 1
    monkeypatch.setattr(module, "UNKNOWN_ID_PAUSE_S", 0.0)
    assert await key_url.renew()
    assert _ids(key_url) == ["old", "new"]
    monkeypatch.undo()
    assert not await key_url.renew()
    assert len(server.asked) == 2


async def test_all_wait_for_one_fetch(server: WebServer, key_url: KeyUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come while it is under way as well."""
    monkeypatch.setattr(module, "UNKNOWN_ID_PAUSE_S", 0.0)
    go = asyncio.Event()

    async def late(asked: Asked, writer: asyncio.StreamWriter) -> None:
        del asked
        await go.wait()
        writer.write(http(200, NEW))

    server.answer = late
    async with asyncio.TaskGroup() as tasks:
        early = [tasks.create_task(key_url.renew()) for _ in range(3)]
        await eventually(lambda: len(server.asked) == 2, "it is asked")
        monkeypatch.undo()
        later = [tasks.create_task(key_url.renew()) for _ in range(3)]
        await asyncio.sleep(0)
        go.set()
    assert all(task.result() for task in (*early, *later))
    assert len(server.asked) == 2


async def test_a_renewal_that_fails_or_takes_too_long_says_so(
    server: WebServer, key_url: KeyUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token at hand is refused for now; the others go on."""
    monkeypatch.setattr(module, "UNKNOWN_ID_PAUSE_S", 0.0)
    server.answer = reply(500, b"")
    assert not await key_url.renew()
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.05)
    server.answer = silence
    assert not await key_url.renew()
    assert _ids(key_url) == ["old"]
