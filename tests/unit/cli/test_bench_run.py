"""The two ends of ``nexus bench``: what its streams begin with, and what the backend does with a stream of others."""

from __future__ import annotations

import pytest

from backend_client.connection import Connection, StreamInfo
from cli.bench_run import Bench, Place, Result, client_hello
from nexus.peek import Peeked, peek
from nexus.protocol.constants import CREDITS_INITIAL, FEATURES
from nexus.protocol.window import SendWindow
from tests.support.sessions import Side

HOST = "bench.example.com"
INFO = StreamInfo("wss://hub", HOST, 443, "203.0.113.9:51234", "tcp", is_tls=True)


def test_the_hello_is_one_that_nodes_understand() -> None:
    """The name is in it, and it is one record."""
    hello = client_hello(HOST)
    peeked = peek(hello)
    assert isinstance(peeked, Peeked)
    assert peeked.host == HOST
    assert int.from_bytes(hello[3:5], "big") == len(hello) - 5


def test_results_are_objects_of_json() -> None:
    """With the reasons of what failed."""
    result = Result("a", {"MiB/s": 1.5}, 2, ("reset",))
    assert result.as_object() == {"name": "a", "figures": {"MiB/s": 1.5}, "failed": 2, "reasons": ["reset"]}


def test_the_cookie_is_shown_to_nobody() -> None:
    """It is all that tells streams of this run from others."""
    bench = Bench(Place("localhost", 443, "a.example.com"))
    assert len(bench.cookie) == 16
    assert "cookie" not in repr(bench)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"cookie-of-16-byt" + b"S" + (5).to_bytes(8, "big"), bytes(5)),
        (b"cookie-of-16-byt" + b"T" + (3).to_bytes(8, "big") + b"abc", (3).to_bytes(8, "big")),
        (b"cookie-of-16-byt" + b"C" + bytes(8), b"C"),
        (b"cookie-of-16-byt" + b"E" + bytes(8) + b"an early message", b"an early message"),
    ],
)
async def test_the_backend_does_what_a_stream_of_this_run_asks(sent: bytes, answer: bytes) -> None:
    """Sends, counts, closes, or returns what came, also with the order itself."""
    side, connection = stream_of(sent)
    await Bench(Place("localhost", 443, HOST), b"cookie-of-16-byt").handle(connection)
    assert b"".join(side.link.data()) == answer


async def test_a_stream_of_others_is_broken() -> None:
    """Somebody else asked for the name: neither answered nor left hanging."""
    side, connection = stream_of(b"another-16-bytes" + b"S" + (5).to_bytes(8, "big"))
    await Bench(Place("localhost", 443, HOST), b"cookie-of-16-byt").handle(connection)
    assert not side.link.data()
    assert side.link.controls("disconnect")


def stream_of(sent: bytes) -> tuple[Side, Connection]:
    """Return a stream on which a hello and these bytes came, and its session with a fake link."""
    side = Side(FEATURES, ends_on_eof=True)
    stream = side.dialling(1, SendWindow(CREDITS_INITIAL, paced=False))
    connection = Connection(stream, INFO)
    stream.attach(connection.endpoint())
    side.session.message_received(b"\x01" + stream.id + client_hello(HOST) + sent)
    stream.receive_eof()
    return side, connection
