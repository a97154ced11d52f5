"""Tests of nexus.peek itself: TLS first, else HTTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzz_peek import check, in_pieces
from nexus.peek import CLIENT_HELLO_MAX_BYTES, HTTP_HEAD_MAX_BYTES, PEEK_MAX_BYTES, Peeked, PeekStatus, peek
from tests.support.client_hello import VECTORS, alpn, hello_of, padding, record, sni

HELLO = hello_of(sni(b"App.example.com"), alpn(b"h2"))
REQUEST = b"GET /x HTTP/1.1\r\nHost: App.example.com:80\r\n\r\n"
SAMPLES = [HELLO, REQUEST, *((VECTORS / f"{name}.bin").read_bytes() for name in ("node", "openssl_tls12"))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HELLO, Peeked("tls", "app.example.com", alpn=("h2",))),
        (hello_of(), Peeked("tls", None)),
        (hello_of(sni(b"tcp:25")), Peeked("tls", None)),
        (REQUEST, Peeked("http", "app.example.com", path="/x")),
        (b"GET / HTTP/1.0\r\n\r\n", Peeked("http", None, path="/")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Peeked("http", None, path="*")),
        (b"GET / HTTP/1.1\r\nHost: [tcp:25]:80\r\n\r\n", PeekStatus.NOT_THIS),
    ],
)
def test_a_connection_is_tls_or_http_with_or_without_a_host(data: bytes, expected: Peeked | PeekStatus) -> None:
    """The answer is the same whole, dripped, and with more behind it."""
    assert peek(data) == expected
    assert peek(data + b"\0more") == expected
    assert in_pieces(data, 1) == expected


@pytest.mark.parametrize("data", [b"", HELLO[:-1], REQUEST[:-1], b"\x16", b"P", b"PRI * HTTP/2.0\r\n\r"])
def test_an_unfinished_beginning_asks_for_more(data: bytes) -> None:
    """Of either kind, even when there is nothing yet."""
    assert peek(data) is PeekStatus.NEED_MORE


@pytest.mark.parametrize(
    "first",
    [b"\0\x1d", b"\x15", b"\x80", b"\xff", b"\x16\x30", b"@", b"\r\n", b"SSH-2.0-x\r", b"\x16\x03\x01\0\x01\x02"],
)
def test_what_is_neither_is_known_at_its_first_wrong_byte(first: bytes) -> None:
    """DNS over TCP, SSH and the like never wait for a time-out (weak point W11)."""
    assert peek(first) is PeekStatus.NOT_THIS


def test_what_exceeds_its_bounds_is_told_from_what_is_neither() -> None:
    """A hello and a request too long are not the port claim's business; a flood without lines is."""
    assert peek(record(b"\x01\x00\x90\x00")) is PeekStatus.TOO_LARGE
    assert peek(hello_of(sni(b"a"), padding(CLIENT_HELLO_MAX_BYTES))) is PeekStatus.TOO_LARGE
    assert peek(REQUEST[:-2] + b"X: y\r\n" * HTTP_HEAD_MAX_BYTES) is PeekStatus.TOO_LARGE
    assert peek(b"A" * HTTP_HEAD_MAX_BYTES) is PeekStatus.NOT_THIS


@given(st.sampled_from(SAMPLES), st.integers(0), st.integers(0, 255), st.integers(0))
def test_one_changed_byte_means_the_same_however_the_bytes_come(data: bytes, place: int, value: int, cut: int) -> None:
    """Whole, in reads of any size and byte by byte; no answer names a port key."""
    changed = bytearray(data)
    changed[place % len(data)] = value
    check(bytes(changed))
    assert in_pieces(bytes(changed), 1) == in_pieces(bytes(changed), cut % len(data) + 1) == peek(changed)


@given(st.binary(min_size=1, max_size=60), st.sampled_from([b"", HELLO[:5], HELLO[:60], REQUEST[:16]]))
def test_at_the_largest_size_the_answer_is_final(junk: bytes, start: bytes) -> None:
    """A listener never needs to read beyond PEEK_MAX_BYTES."""
    data = start + junk * (PEEK_MAX_BYTES // len(junk) + 1)
    check(data[:PEEK_MAX_BYTES])
    assert peek(data[:PEEK_MAX_BYTES]) is not PeekStatus.NEED_MORE
