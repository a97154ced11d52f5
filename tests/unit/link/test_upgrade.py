"""Tests of the HTTP upgrade of a link, on a transport in memory."""

from __future__ import annotations

import pytest
from websockets.protocol import State

from nexus.errors import RejectedError, RemoteProtocolError
from nexus.link.connection import (
    WRITE_HIGH_BYTES,
    WRITE_LOW_BYTES,
    LinkEnd,
)
from nexus.protocol.constants import (
    UPGRADE_HEAD_MAX_BYTES,
)
from tests.support.framing import BINARY, TEXT, frame
from tests.support.links import LinkHarness

STREAM_ID = bytes(range(16))
both_roles = pytest.mark.parametrize("server", [True, False], ids=["hub", "backend"])
HEAD = "GET {path} HTTP/1.1\r\nHost: hub.example\r\n{fields}\r\n"
FIELDS = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


def status(harness: LinkHarness) -> bytes:
    return harness.transport.take().partition(b"\r\n")[0]


@both_roles
async def test_the_upgrade_opens_the_link(server: bool) -> None:
    """Then both sides may speak."""
    harness = LinkHarness(server=server).open()
    assert harness.link.opened.result() is None
    assert harness.transport.limits == (WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
    harness.link.send_text("token")
    assert harness.frames() == [("text", b"token")]


async def test_a_server_may_refuse_whoever_connected() -> None:
    """The answer says why, and no WebSocket comes to be."""
    seen: list[object] = []

    def admit(transport: object) -> str:
        seen.append(transport)
        return "no certificate of this fleet"

    harness = LinkHarness(server=True, admit=admit)
    harness.feed(HEAD.format(path="/connect", fields=FIELDS).encode())
    assert seen == [harness.transport]
    answer = harness.transport.take()
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert answer.endswith(b"\r\n\r\nno certificate of this fleet\n")
    assert harness.transport.closed
    with pytest.raises(RemoteProtocolError):
        harness.link.opened.result()


@both_roles
async def test_frames_in_the_segment_of_the_upgrade_are_not_lost(server: bool) -> None:
    """A peer that pipelines saves a round trip."""
    behind = frame(TEXT, b"token", masked=server) + frame(BINARY, b"data", masked=server)
    harness = LinkHarness(server=server).open(behind)
    assert harness.owner.heard == [("text", "token"), ("binary", b"data")]


async def test_a_head_may_come_byte_by_byte() -> None:
    """It is judged when it is whole."""
    harness = LinkHarness(server=True)
    harness.feed(harness.request(), chunk=1)
    harness.hear()
    assert harness.peer.state is State.OPEN


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("/connect", FIELDS, b"HTTP/1.1 101 Switching Protocols"),
        ("/connect?x=1", FIELDS, b"HTTP/1.1 101 Switching Protocols"),
        ("/", FIELDS, b"HTTP/1.1 404 Not Found"),
        ("/connect/", FIELDS, b"HTTP/1.1 404 Not Found"),
        ("/connect", "", b"HTTP/1.1 426 Upgrade Required"),
        ("/connect", FIELDS.replace("websocket", "h2c"), b"HTTP/1.1 426 Upgrade Required"),
        ("/connect", FIELDS.replace("dGhl", ""), b"HTTP/1.1 400 Bad Request"),
        ("/connect", FIELDS.replace("13", "8"), b"HTTP/1.1 400 Bad Request"),
    ],
)
async def test_a_hub_answers_every_request_in_http(path: str, fields: str, answer: bytes) -> None:
    """Only a proper upgrade on its path is one."""
    harness = LinkHarness(server=True)
    harness.feed(HEAD.format(path=path, fields=fields).encode())
    assert status(harness) == answer
    opened = answer.startswith(b"HTTP/1.1 101")
    assert harness.transport.closed is not opened
    if not opened:
        with pytest.raises(RemoteProtocolError):
            harness.link.opened.result()


async def test_other_methods_are_refused() -> None:
    """With an answer of the library."""
    harness = LinkHarness(server=True)
    harness.feed(HEAD.format(path="/connect", fields=FIELDS).replace("GET", "POST").encode())
    assert status(harness).startswith(b"HTTP/1.1 4")
    assert harness.transport.closed


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"NOT HTTP\r\n\r\n", b"GET / HTTP/2\r\n\r\n"])
async def test_what_is_not_http_is_closed(head: bytes) -> None:
    """There is nothing to answer."""
    harness = LinkHarness(server=True)
    harness.feed(head)
    assert harness.transport.take() == b""
    assert harness.transport.closed
    with pytest.raises(RemoteProtocolError, match="did not receive a valid HTTP request"):
        harness.link.opened.result()


@pytest.mark.parametrize("chunk", [None, 1000], ids=["one segment", "many"])
@pytest.mark.parametrize("ends", [True, False], ids=["whole", "without end"])
async def test_a_head_longer_than_16_kib_is_refused(chunk: int | None, ends: bool) -> None:
    """However it arrives; nothing more is kept of it."""
    long = HEAD.format(path="/connect", fields=FIELDS + "X: y\r\n" * 3000).encode()
    assert len(long) > UPGRADE_HEAD_MAX_BYTES
    harness = LinkHarness(server=True)
    harness.feed(long if ends else long[:-4], chunk)
    assert status(harness).startswith(b"HTTP/1.1 431 ")
    assert harness.transport.closed
    with pytest.raises(RemoteProtocolError, match="longer than 16384 bytes"):
        harness.link.opened.result()


async def test_a_backend_gives_up_on_an_endless_answer() -> None:
    """A hub that answers with anything else than a head."""
    harness = LinkHarness(server=False)
    harness.feed(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000)
    assert harness.transport.closed
    with pytest.raises(RemoteProtocolError, match="longer than"):
        harness.link.opened.result()


@pytest.mark.parametrize("chunk", [None, 1, 7], ids=["one segment", "byte by byte", "pieces"])
@pytest.mark.parametrize("eof", [True, False], ids=["closed behind", "kept open"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("404 Not Found\r\nContent-Length: 9\r\n", "not here\n"),
        ("503 Service Unavailable\r\nContent-Length: 0\r\n", ""),
        ("502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        ("403 Forbidden\r\nContent-Length: 12\r\n", "a\r\n\r\nb\r\n\r\nc\n"),
        ("204 No Content\r\n", ""),
    ],
)
async def test_a_hubs_refusal_in_http_is_a_rejection(head: str, body: str, eof: bool, chunk: int | None) -> None:
    """With its status, whether its body came with the head or not, and the connection ended or not."""
    harness = LinkHarness(server=False)
    harness.feed(f"HTTP/1.1 {head}\r\n{body}".encode(), chunk)
    if eof:
        harness.link.eof_received()
        harness.lose()
    with pytest.raises(RejectedError, match=head.partition("\r\n")[0]) as caught:
        harness.link.opened.result()
    assert caught.value.http_status == int(head[:3])


async def test_a_refusal_whose_body_ends_with_the_connection_is_one_too() -> None:
    """It has no length of its own."""
    harness = LinkHarness(server=False)
    harness.feed(b"HTTP/1.1 429 Too Many Requests\r\n\r\nslow down")
    assert not harness.link.opened.done()
    harness.link.eof_received()
    harness.lose()
    with pytest.raises(RejectedError, match="429 Too Many Requests"):
        harness.link.opened.result()


async def test_an_upgrade_with_a_wrong_key_fails() -> None:
    """It says what was wrong with it."""
    harness = LinkHarness(server=False)
    harness.feed(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: x\r\n\r\n"
    )
    assert harness.transport.closed
    with pytest.raises(RemoteProtocolError, match="Sec-WebSocket-Accept"):
        harness.link.opened.result()


@both_roles
async def test_a_connection_that_ends_during_the_upgrade_fails_it(server: bool) -> None:
    """The owner is told, too; whoever does not wait is not warned."""
    harness = LinkHarness(server=server)
    end = harness.lose(ConnectionResetError("reset"))
    assert end == LinkEnd(1006, "", "reset")
    assert harness.link.lost.result() == end
    with pytest.raises(RemoteProtocolError, match="ended during the upgrade: reset"):
        harness.link.opened.result()


@both_roles
async def test_a_waiter_that_was_cancelled_hides_nothing(server: bool) -> None:
    """Cancelling who awaits a future cancels the future; the owner hears of the end all the same."""
    harness = LinkHarness(server=server).open()
    harness.link.lost.cancel()
    assert harness.lose().code == 1006
    early = LinkHarness(server=server)
    early.link.opened.cancel()
    early.feed(b"\r\n\r\n")
    early.lose()
    waiting = LinkHarness(server=server)
    waiting.link.opened.cancel()
    waiting.open()
