"""nexus.web: what is asked of web servers, and what is believed of their answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus import web as module
from nexus.errors import WebError
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import WebContext
from nexus.web import WebAnswer, WebClient, parse_max_age
from tests.support.ports import free_ports
from tests.support.processes import Pki
from tests.support.web_server import (
    Answer,
    Asked,
    WebServer,
    http,
    reply,
    silence,
    web_context,
    web_server,
)

ON_BOTH_LOOPS = True
WAIT_S = 10.0
MAX = 1000


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[WebServer]:
    """A server that says yes."""
    async with web_server(pki, reply(200, b"yes", Cache_Control="public, max-age=77")) as running:
        yield running


async def _failure(web: WebClient, url: str, timeout_s: float = WAIT_S) -> WebError:
    with pytest.raises(WebError) as caught:
        await web.get(url, max_bytes=MAX, timeout_s=timeout_s)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


async def test_a_get_is_answered(server: WebServer, web: WebClient) -> None:
    """The server sees the hub's certificate, no cookie, and that nothing compressed is wanted."""
    assert await web.get(server.url("/status?x=1"), max_bytes=MAX) == WebAnswer(200, b"yes", 77)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/status?x=1", b"")
    assert asked.client_names == ("hub.example.com",)
    assert (asked.headers["accept-encoding"], asked.headers["user-agent"]) == ("identity", "nexus-proxy")
    assert not {"cookie", "authorization"} & asked.headers.keys()


async def test_a_post_carries_its_document(server: WebServer, web: WebClient) -> None:
    """As JSON; each request has a connection of its own."""
    for _ in range(2):
        assert (await web.post_json(server.url(), {"token": "é"}, max_bytes=MAX)).status == 200
    assert [asked.body for asked in server.asked] == [b'{"token": "\\u00e9"}'] * 2
    assert server.asked[0].headers["content-type"] == "application/json"
    assert server.asked[0].headers["connection"] == "close"


@pytest.mark.parametrize("status", [204, 301, 307, 404, 500])
async def test_every_status_is_an_answer(server: WebServer, web: WebClient, status: int) -> None:
    """Redirects are never followed, on this server or to another."""
    server.answer = reply(status, b"" if status == 204 else b"no", Location=server.url("/elsewhere"))
    answer = await web.post_json(server.url(), {}, max_bytes=MAX)
    assert answer.status == status
    assert [asked.path for asked in server.asked] == ["/verify"]


async def test_cookies_are_not_kept(server: WebServer, web: WebClient) -> None:
    """A server cannot mark a node."""
    server.answer = reply(200, b"", Set_Cookie="a=b")
    for _ in range(2):
        await web.get(server.url(), max_bytes=MAX)
    assert "cookie" not in server.asked[1].headers


async def test_netrc_is_not_read(
    server: WebServer, web: WebClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords of people are not for verifiers."""
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await web.get(server.url(), max_bytes=MAX)
    assert "authorization" not in server.asked[0].headers


async def test_an_answer_is_bounded_in_bytes(server: WebServer, web: WebClient) -> None:
    """To the byte, told or not; a compressed one is not unpacked."""
    server.answer = reply(200, b"x" * MAX, Content_Encoding="gzip")
    assert (await web.get(server.url(), max_bytes=MAX)).body == b"x" * MAX
    for head in (b"Content-Length: 1001\r\n\r\n", b"Connection: close\r\n\r\n"):
        server.answer = _raw(b"HTTP/1.1 200 OK\r\n" + head + b"x" * (MAX + 1))
        failure = await _failure(web, server.url())
        assert (str(failure), failure.answered) == ("the answer is longer than 1000 bytes", True)


async def test_a_long_answer_may_be_cut(server: WebServer, web: WebClient) -> None:
    """Where its beginning is enough."""
    server.answer = reply(404, b"x" * 100_000)
    assert await web.post_json(server.url(), {}, max_bytes=MAX, is_cut=True) == WebAnswer(404, b"x" * MAX)


async def test_an_endless_answer_ends_at_its_bound(server: WebServer, web: WebClient) -> None:
    """Long before its end, of which there is none."""

    async def flood(asked: Asked, writer: asyncio.StreamWriter) -> None:
        del asked
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    server.answer = flood
    assert (await _failure(web, server.url())).answered


def _raw(data: bytes) -> Answer:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        del asked
        writer.write(data)

    return answer


async def _drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
    del asked
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [silence, _drip])
async def test_time_is_bounded_for_all_of_it(server: WebServer, web: WebClient, answer: Answer) -> None:
    """A slow drip that never pauses long is cut off as well."""
    server.answer = answer
    failure = await _failure(web, server.url(), timeout_s=0.2)
    assert (str(failure), failure.answered) == ("no answer within 0.2 s", False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(7),
)
async def test_what_is_not_http_is_no_answer(server: WebServer, web: WebClient, data: bytes) -> None:
    """One kind of error, whatever the library makes of it."""
    server.answer = _raw(data)
    failure = await _failure(web, server.url())
    assert not failure.answered
    assert str(failure).startswith("cannot be ")


async def test_who_cannot_be_reached_is_told_in_words(web: WebClient, pki: Pki, server: WebServer) -> None:
    """Nobody there, no such name, another certificate, no TLS, no URL."""
    (port,) = free_ports(1)
    assert "cannot be reached" in str(await _failure(web, f"https://127.0.0.1:{port}/"))
    assert "cannot be" in str(await _failure(web, "https://nobody.invalid/"))
    assert "certificate is not trusted" in str(await _failure(web, f"https://127.0.0.1:{server.port}/"))
    assert "cannot be asked" in str(await _failure(web, "https://[x/"))
    async with web_server(pki, reply(200, b""), tls=False) as plain:
        assert (await web.get(plain.url(scheme="http"), max_bytes=MAX)).status == 200
    async with await asyncio.start_server(_greet, "127.0.0.1", 0) as mail:
        number = mail.sockets[0].getsockname()[1]
        assert "TLS failed" in str(await _failure(web, f"https://127.0.0.1:{number}/"))


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader
    writer.write(b"220 mail.example ESMTP\r\n")
    writer.close()


async def test_the_system_does_not_trust_the_tests(server: WebServer, pki: Pki) -> None:
    """Without a file of roots the system's decide."""
    web = WebClient(web_context(pki, trusted=False))
    assert "certificate is not trusted" in str(await _failure(web, server.url()))
    await web.aclose()
    await web.aclose()


async def test_a_renewed_certificate_is_shown_at_the_next_request(server: WebServer, pki: Pki) -> None:
    """The context is asked for each time; one that cannot be loaded leaves the old one in use."""
    issued = [read_certificate(CertificateFiles(*pki.issue("node", name))) for name in ("a.example", "b.example")]
    current = issued[0]
    web = WebClient(WebContext(lambda: current, pki.ca_file))
    await web.get(server.url(), max_bytes=MAX)
    current = issued[1]
    await web.get(server.url(), max_bytes=MAX)
    assert [asked.client_names for asked in server.asked] == [("a.example",), ("b.example",)]
    await web.aclose()


async def test_the_environment_s_proxy_is_used(
    server: WebServer, web: WebClient, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its password is in no message."""
    connects: list[Asked] = []

    async def refuse(asked: Asked, writer: asyncio.StreamWriter) -> None:
        connects.append(asked)
        writer.write(http(503, b""))

    async with web_server(pki, refuse, tls=False) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        failure = await _failure(web, "https://verifier.example/")
        assert "secret" not in str(failure)
    assert (connects[0].method, connects[0].path) == ("CONNECT", "verifier.example:443")
    assert connects[0].headers["proxy-authorization"].startswith("Basic ")
    assert (await web.get(server.url(), max_bytes=MAX)).status == 200  # loopback is never proxied


async def test_connections_are_bounded(server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for one is served when it is free."""
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(web.get(server.url(), max_bytes=MAX))
    assert len(server.asked) == 8
    assert server.most_requests <= 2


def test_the_context_speaks_modern_tls_only(pki: Pki) -> None:
    """TLS 1.2 or newer, verified names."""
    context = web_context(pki)()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.check_hostname


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("", None),
        ("public", None),
        ("max-age=60", 60),
        ("public, Max-Age=60, must-revalidate", 60),
        ('max-age="60"', 60),
        ("s-maxage=60", None),
        ("x-max-age=60", None),
        ("max-age=-1", None),
        ("max-age=" + "9" * 400, 999_999_999),
        ("no-store", 0),
        ("max-age=60, no-cache", 0),
        ("private, NO-STORE, max-age=5", 0),
        ("max-age=60, no-cache-ish", 60),
    ],
)
def test_max_age(field: str, seconds: int | None) -> None:
    """RFC 9111 section 5.2.2."""
    assert parse_max_age(field) == seconds


async def test_the_end_waits_until_every_socket_is_closed(pki: Pki, server: WebServer) -> None:
    """Also those of answers without a body, which the library lets go before the answer is looked at."""
    web = WebClient(web_context(pki))
    server.answer = reply(404, b"")
    for _ in range(3):
        await web.get(server.url(), max_bytes=MAX)
    await web.aclose()
    assert not [sock for sock in web._sockets._opened if sock.fileno() >= 0]


async def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may never answer the end of TLS."""
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.01)
    sockets = module.Sockets()
    with sockets.open((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as sock:
        await sockets.wait_closed()
        assert sock.fileno() >= 0
