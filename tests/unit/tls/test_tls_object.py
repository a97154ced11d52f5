"""nexus.tls.tls_object: next to the server end of ``ssl`` itself, fed in memory by the same clients."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus.tls.certificates import Certificate
from nexus.tls.contexts import hub_server_context, identified_client_context
from nexus.tls.pyopenssl_context import PeerServerContext
from tests.support.peer_certificates import NODE, Authority, store

KIB = 1024
RECORD_BYTES = 16 * KIB


class Pair:
    """A server's and a client's end; what the client sends reaches the server in steps of ``step`` bytes."""

    def __init__(self, accepting: ssl.SSLContext, dialling: ssl.SSLContext, step: int = 1 << 30) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._to_client, self._from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = accepting.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.client = dialling.wrap_bio(self._to_client, self._from_client, server_hostname=NODE)
        self._step = step

    def deliver(self) -> bool:
        """Take what the server sent to the client, and one step the other way; tell whether a step was left."""
        self._to_client.write(self.outgoing.read())
        self.incoming.write(self._from_client.read(self._step))
        return self._from_client.pending > 0

    def until_done(self, *calls: Callable[[], object]) -> None:
        """Call each until it no longer wants to read."""
        waiting = list(calls)
        for _ in range(100_000):
            waiting = [call for call in waiting if _wants_more(call)]
            if not (self.deliver() or waiting):
                return
        pytest.fail("it never ends")

    def shake_hands(self) -> None:
        """Complete both handshakes."""
        self.until_done(self.client.do_handshake, self.server.do_handshake)

    def read_all(self, buffer: memoryview | None = None) -> bytes:
        """Let the server read until it wants more, as asyncio does."""
        found = b""
        while True:
            try:
                got = self.server.read(256 * KIB) if buffer is None else self.server.read(len(buffer), buffer)
            except ssl.SSLWantReadError:
                return found
            if not got:
                return found
            found += bytes(buffer[:got]) if buffer is not None and isinstance(got, int) else bytes(got)


def _wants_more(call: Callable[[], object]) -> bool:
    try:
        call()
    except ssl.SSLWantReadError:
        return True
    return False


@pytest.fixture(params=["ssl", "ours"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """Two ends, the server's that of ``ssl`` or ours."""
    return make(tmp_path, ours=request.param == "ours")


def make(directory: Path, *, ours: bool, step: int = 1 << 30) -> Pair:
    """Make two ends."""
    root = Authority.root()
    ca_file = root.save(directory / "ca.pem")
    shown: Certificate = store(directory, "node", root.issue())
    accepting = PeerServerContext(shown, ca_file) if ours else hub_server_context(shown)
    return Pair(accepting, identified_client_context(shown, ca_file), step)


def test_it_wants_more_until_the_handshake_is_complete(pair: Pair) -> None:
    """Both before the first byte and after the first flight."""
    for _ in range(2):
        with pytest.raises(ssl.SSLWantReadError):
            pair.server.do_handshake()
    pair.shake_hands()
    assert pair.server.version() == "TLSv1.3"
    assert pair.server.cipher() == pair.client.cipher()
    assert pair.server.compression() is None
    assert pair.server.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_bytes_may_come_in_any_steps(tmp_path: Path, step: int) -> None:
    """Also in the middle of a record's header."""
    pair = make(tmp_path, ours=True, step=step)
    pair.shake_hands()
    pair.client.write(b"a" * 20_000)
    found = b""
    while pair.deliver():
        found += pair.read_all()
    assert found + pair.read_all() == b"a" * 20_000


@pytest.mark.parametrize("room", [1, 10, RECORD_BYTES, 100 * KIB])
def test_all_that_came_is_read_in_whatever_portions(pair: Pair, room: int) -> None:
    """Into memory of the caller's."""
    pair.shake_hands()
    data = os.urandom(3 * RECORD_BYTES + 5 if room > 10 else 3000)
    pair.client.write(data)
    pair.deliver()
    assert pair.read_all(memoryview(bytearray(room))) == data


def test_what_is_left_to_read_shows(pair: Pair) -> None:
    """In the loop's memory or as pending; uvloop reads for as long as one of them is not 0, and no longer."""
    pair.shake_hands()
    data = os.urandom(3 * RECORD_BYTES + 5)
    pair.client.write(data)
    pair.client.write(b"more")
    pair.deliver()
    found = b""
    while pair.incoming.pending or pair.server.pending():
        portion = pair.server.read(10_000)
        assert isinstance(portion, bytes)
        found += portion
    assert found == data + b"more"


def test_no_more_than_one_record_is_taken_from_the_loop(pair: Pair) -> None:
    """So that a loop sees how much waits and stops reading the socket in time."""
    pair.shake_hands()
    pair.client.write(bytes(10 * RECORD_BYTES))
    pair.deliver()
    before = pair.incoming.pending
    assert len(pair.server.read(100)) == 100
    assert 0 < before - pair.incoming.pending <= RECORD_BYTES + 256


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES, 300 * KIB + 1])
def test_a_write_takes_everything(pair: Pair, kind: Callable[[bytes], bytes], size: int) -> None:
    """As one call, of any kind of bytes."""
    pair.shake_hands()
    data = os.urandom(size)
    assert pair.server.write(kind(data)) == size
    pair.deliver()
    found = b""
    while len(found) < size:
        found += pair.client.read(256 * KIB)
    assert found == data


def test_a_goodbye_is_an_end_that_stays(pair: Pair) -> None:
    """In both forms of reading; what came before it is read first."""
    pair.shake_hands()
    pair.client.write(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.deliver()
    assert pair.server.read(100) == b"last words"
    assert pair.server.read(100) == b""
    assert not pair.server.read(100, bytearray(100))
    pair.until_done(pair.server.unwrap, pair.client.unwrap)


def test_its_own_goodbye_is_complete_when_the_other_side_has_said_it_too(pair: Pair) -> None:
    """It wants to read until then."""
    pair.shake_hands()
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.unwrap()
    pair.deliver()
    assert pair.client.read(10) == b""
    pair.until_done(pair.server.unwrap, pair.client.unwrap)


def test_data_after_its_own_goodbye_is_an_error(pair: Pair) -> None:
    """Which loops report; they read before."""
    pair.shake_hands()
    pair.client.write(b"too late")
    pair.deliver()
    with pytest.raises(ssl.SSLError):
        pair.server.unwrap()


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5, b"\x16\x03\x01\xff\xff", b"SSH-2.0-x\r\n"])
def test_what_is_no_tls_fails_at_once(pair: Pair, bad: bytes) -> None:
    """By the header of what would be a record."""
    pair.incoming.write(bad)
    with pytest.raises(ssl.SSLError) as caught:
        pair.server.do_handshake()
    assert not isinstance(caught.value, ssl.SSLWantReadError)
    assert str(caught.value)


@pytest.mark.parametrize("call", ["read", "write", "unwrap"])
def test_a_record_that_was_tampered_with_ends_it(pair: Pair, call: str) -> None:
    """An alert tells the other side; nothing is read, written or said afterwards."""
    pair.shake_hands()
    pair.incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError) as caught:
        pair.server.read(10)
    assert not isinstance(caught.value, ssl.SSLWantReadError)
    pair.deliver()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        pair.client.read(10)
    again = {
        "read": lambda: pair.server.read(10),
        "write": lambda: pair.server.write(b"x"),
        "unwrap": pair.server.unwrap,
    }
    with pytest.raises(ssl.SSLError):
        again[call]()


def test_a_certificate_is_shown_as_der_alone(tmp_path: Path) -> None:
    """Before the handshake there is none."""
    pair = make(tmp_path, ours=True)
    assert pair.server.getpeercert(binary_form=True) is None
    pair.shake_hands()
    assert pair.server.getpeercert() == {}
    shown = ssl.PEM_cert_to_DER_cert((tmp_path / "node.pem").read_text())
    assert pair.server.getpeercert(binary_form=True) == shown
