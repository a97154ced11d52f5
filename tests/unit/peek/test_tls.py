"""Tests of nexus.peek.tls."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus.peek import tls
from nexus.peek.tls import (
    CLIENT_HELLO_MAX_BYTES,
    EAGER_RECORDS,
    HANDSHAKE_MAX_BYTES,
    RECORDS_MAX,
    SESSION_ID_MAX_BYTES,
    ClientHello,
    peek_client_hello,
)
from nexus.peek.values import Buffer, PeekStatus
from tests.support import client_hello as build
from tests.support.client_hello import (
    FRAGMENT_MAX_BYTES,
    GREASE,
    RECORD_HEADER_BYTES,
    VECTORS,
    alpn,
    client_hello,
    extension,
    handshake,
    hello_of,
    in_records,
    message_in,
    name_entry,
    record,
    server_name,
    sni,
    vector,
)
from tests.support.compiled import interpreted

NAME = "app.example.com"
SNI = sni(NAME.encode())
RECORDED = sorted(VECTORS.glob("*.bin"))
# Maximum segment sizes: IPv4's minimum, IPv6's minimum, PPPoE, Ethernet with time stamps, Ethernet, jumbo frames.
SEGMENT_BYTES = [536, 1220, 1440, 1448, 1460, 8960]
PSK = extension(41, b"\0")

_extensions = st.lists(st.tuples(st.integers(1, 0xFFFF), st.binary(max_size=40)), unique_by=lambda pair: pair[0])


@st.composite
def hellos(draw: st.DrawFn) -> bytes:
    """Valid hello messages for NAME with opaque extensions around, in any order."""
    others = [extension(kind, body) for kind, body in draw(_extensions) if kind not in (16, 41)]
    return client_hello(*draw(st.permutations([SNI, alpn(b"h2"), *others])))


def expected_of(path: Path) -> ClientHello:
    """What a recorded hello says, by the name of its file."""
    offers = () if path.stem.startswith(("openssl", "java")) else ("h2", "http/1.1")
    return ClientHello(None if path.stem.endswith("nosni") else NAME, offers)


def test_hellos_are_recorded() -> None:
    """The vectors are there: the tests below do not pass for want of them."""
    assert {"chromium", "curl", "firefox", "go", "java", "node", "openssl", "python3.13"} <= {p.stem for p in RECORDED}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
class TestRecorded:
    """Every recorded hello, as it came and cut in other ways."""

    def test_is_read_whole(self, path: Path) -> None:
        """All kinds of buffer give the same answer."""
        data = path.read_bytes()
        for buffer in (data, bytearray(data), memoryview(data)):
            assert peek_client_hello(buffer) == expected_of(path)

    def test_is_read_at_its_last_byte_and_not_before(self, path: Path) -> None:
        """Byte by byte, every prefix asks for more."""
        data = path.read_bytes()
        assert {peek_client_hello(data[:size]) for size in range(len(data))} == {PeekStatus.NEED_MORE}

    @pytest.mark.parametrize("segment", SEGMENT_BYTES)
    def test_is_read_from_tcp_segments(self, path: Path, segment: int) -> None:
        """Segment by segment, the answer comes with the last one."""
        data = path.read_bytes()
        ends = [*range(segment, len(data), segment), len(data)]
        answers = [peek_client_hello(data[:end]) for end in ends]
        assert answers == [PeekStatus.NEED_MORE] * (len(ends) - 1) + [expected_of(path)]

    @pytest.mark.parametrize("sizes", [(1,), (1, 1, 1, 1), (3, 2), (64,) * 40, (100, 1, 100), (1,) * (RECORDS_MAX - 1)])
    def test_is_read_from_several_records(self, path: Path, sizes: tuple[int, ...]) -> None:
        """Framing does not matter, not even where it cuts the message's own header."""
        data = in_records(message_in(path.read_bytes()), *sizes)
        assert peek_client_hello(data) == expected_of(path)
        assert {peek_client_hello(data[:size]) for size in range(len(data))} == {PeekStatus.NEED_MORE}

    def test_is_read_with_bytes_after_it(self, path: Path) -> None:
        """Early data, a compatibility ChangeCipherSpec or garbage after the hello do not matter."""
        data = path.read_bytes()
        for tail in (record(b"\1", kind=20), record(bytes(900), kind=23), b"\xff" * 100_000, data):
            assert peek_client_hello(data + tail) == expected_of(path)

    def test_is_understood_as_openssl_does(self, path: Path) -> None:
        """OpenSSL's server sees the same name, in the hello as it came and in small records."""
        data = path.read_bytes()
        for framed in (data, in_records(message_in(data), 7, 300, 1)):
            hello = peek_client_hello(framed)
            assert isinstance(hello, ClientHello)
            assert build.names_seen_by_openssl(framed) == [hello.server_name]

    @given(place=st.integers(0), value=st.integers(0, 255))
    def test_never_raises_when_one_byte_is_changed(self, path: Path, place: int, value: int) -> None:
        """A mutation gives a documented value."""
        data = bytearray(path.read_bytes())
        data[place % len(data)] = value
        assert isinstance(peek_client_hello(data), ClientHello | PeekStatus)


class TestName:
    """What becomes of the server name."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (b"App.EXAMPLE.com", NAME),
            (b"localhost", "localhost"),
            (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
            (b"tcp:25", None),
            (b"udp:53", None),
            (b"tcp\xef\xbc\x9a25", None),
            (b"a/b", None),
            (b"a\0.example.com", None),
            ("bücher.example".encode(), None),
            (b"*.example.com", None),
            (b".example.com", None),
            (b"192.0.2.1", None),
            (b"1", None),
            (b"2001:db8::1", None),
            (b"[::1]", None),
            (b"a" * 300, None),
        ],
    )
    def test_is_a_dns_name_or_none(self, name: bytes, expected: str | None) -> None:
        """What is no DNS name names nobody; in particular no client reaches a port key by SNI."""
        assert peek_client_hello(hello_of(sni(name))) == ClientHello(expected)

    def test_is_none_without_the_extension(self) -> None:
        """Neither a hello without SNI nor one without any extensions is wrong."""
        assert peek_client_hello(hello_of(alpn(b"h2"))) == ClientHello(None, ("h2",))
        assert peek_client_hello(hello_of()) == ClientHello(None)
        assert peek_client_hello(in_records(client_hello(tail=b""))) == ClientHello(None)

    def test_may_stand_beside_entries_of_unknown_types(self) -> None:
        """Only host names are read from the list."""
        both = server_name(name_entry(b"x", kind=7), name_entry(NAME.encode()), name_entry(b"\xff", kind=7))
        assert peek_client_hello(hello_of(both)) == ClientHello(NAME)
        assert peek_client_hello(hello_of(server_name(name_entry(b"x", kind=7)))) == ClientHello(None)

    @given(st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,12}(\.[a-z]{2,8}){1,3}", fullmatch=True), st.booleans())
    def test_is_the_one_openssl_sends_and_sees(self, name: str, offers: bool) -> None:
        """Hellos made and read by OpenSSL carry the name we read."""
        data = build.hello_by_openssl(name, ["h2"] if offers else [])
        assert peek_client_hello(data) == ClientHello(name, ("h2",) if offers else ())
        assert build.names_seen_by_openssl(data) == [name]


class TestShape:
    """What is a hello and what is not."""

    @pytest.mark.parametrize(
        "extensions",
        [
            (extension(GREASE), SNI, extension(0x2A2A, b"\0")),
            (SNI, build.key_share()),
            (SNI, extension(0xFE0D, b"\0" + bytes(300))),
            (SNI, extension(41, b"\0" * 50)),
            (build.padding(16_000), SNI),
            (SNI, extension(10, b"odd")),
        ],
        ids=["grease", "post-quantum", "ech-outer", "psk-last", "large", "malformed-but-unused"],
    )
    def test_extensions_that_are_not_read_do_not_matter(self, extensions: tuple[bytes, ...]) -> None:
        """GREASE, post-quantum key shares, ECH and resumption do not hide the (outer) name."""
        assert peek_client_hello(hello_of(*extensions)) == ClientHello(NAME)

    def test_protocols_are_kept_in_order_and_byte_for_byte(self) -> None:
        """ALPN identifiers are bytes, GREASE among them; Latin-1 keeps each."""
        offered = alpn(b"\x8a\x8a", b"h2", b"acme-tls/1")
        assert peek_client_hello(hello_of(SNI, offered)) == ClientHello(NAME, ("\x8a\x8a", "h2", "acme-tls/1"))

    @pytest.mark.parametrize(
        "message",
        [
            client_hello(sni(NAME.encode() + b".")),
            client_hello(sni(b"")),
            client_hello(server_name()),
            client_hello(extension(0)),
            client_hello(server_name(name_entry(b"a"), name_entry(b"b"))),
            client_hello(server_name(name_entry(b"a"), name_entry(b"", kind=7))),
            client_hello(extension(0, vector(name_entry(b"a"), 2) + b"\0")),
            client_hello(extension(0, vector(name_entry(b"a")[:-1], 2))),
            client_hello(extension(0, vector(name_entry(b"a") + b"\0", 2))),
            client_hello(SNI, SNI),
            client_hello(SNI, extension(GREASE), extension(GREASE)),
            client_hello(PSK, SNI),
            client_hello(SNI, PSK, PSK),
            client_hello(SNI, alpn()),
            client_hello(SNI, alpn(b"h2", b"")),
            client_hello(SNI, extension(16, b"\0\x03\x05h2")),
            client_hello(SNI, extension(16, vector(b"\x02h2", 2) + b"\0")),
            client_hello(session_id=bytes(SESSION_ID_MAX_BYTES + 1)),
            client_hello(cipher_suites=b""),
            client_hello(cipher_suites=b"\x13\x01\x13"),
            client_hello(compressions=b""),
            client_hello(tail=vector(SNI, 2) + b"\0"),
            client_hello(tail=vector(SNI + b"\0", 2)),
            client_hello(tail=vector(SNI + b"\0\1\0", 2)),
            client_hello(tail=b"\0"),
            client_hello(tail=b"\0\x09" + SNI),
            handshake(client_hello(SNI)[4:40]),
            handshake(b""),
            handshake(client_hello(SNI)[4:], kind=2),
        ],
    )
    def test_a_malformed_hello_is_none(self, message: bytes) -> None:
        """Each vector fills its place, no extension comes twice, the pre-shared key comes last."""
        assert peek_client_hello(in_records(message)) is PeekStatus.NOT_THIS
        assert peek_client_hello(in_records(message, 1, 2, 3, 4, 5)) is PeekStatus.NOT_THIS

    @pytest.mark.parametrize(
        "data",
        [
            b"\x15",
            b"\x17",
            b"\x80",
            b"G",
            b"\0",
            b"\x16\x10",
            b"\x16\x7f",
            b"\x16\x03\x01\x41",
            b"\x16\x03\x01\x40\x01",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\0\x05\x02",
            b"\x16\x03\x01\0\x05\x01\x01\0\x01",
            b"\x16\x03\x01\0\x05\x01\x02",
            b"\x16\x03\x01\0\x01\x01\x15",
            b"\x16\x03\x01\0\x01\x01\x16\x03\x01\0\0",
            b"\x16\x03\x01\0\x05\x01\0\x70\0\0\x17",
        ],
    )
    def test_what_breaks_the_framing_is_refused_at_its_first_wrong_byte(self, data: bytes) -> None:
        """Neither more bytes nor time are spent on what can no longer be a hello."""
        assert peek_client_hello(data) is PeekStatus.NOT_THIS
        assert peek_client_hello(data[:-1]) is PeekStatus.NEED_MORE

    def test_record_versions_below_the_limit_are_taken(self) -> None:
        """The version in the record header is history, up to a point."""
        for version in (0x0000, 0x0300, 0x0304, 0x0FFF):
            assert peek_client_hello(record(client_hello(SNI), version=version)) == ClientHello(NAME)
        assert peek_client_hello(record(client_hello(SNI), version=0x1000)) is PeekStatus.NOT_THIS

    def test_a_record_between_the_hellos_records_is_refused(self) -> None:
        """RFC 8446 5.1 forbids other types between the fragments of one message."""
        message = client_hello(SNI)
        assert peek_client_hello(record(message[:9]) + record(b"\1\0", 21) + record(message[9:])) is PeekStatus.NOT_THIS

    def test_a_second_message_in_the_hellos_record_does_not_matter(self) -> None:
        """The hello is read when its last byte is there, whatever else its record holds or promises."""
        data = record(client_hello(SNI) + bytes(50))
        assert peek_client_hello(data) == ClientHello(NAME)
        assert peek_client_hello(data[:-50]) == ClientHello(NAME)
        assert peek_client_hello(data[:-51]) is PeekStatus.NEED_MORE


class TestBounds:
    """How much is read, and what it costs."""

    def fitting(self, size: int) -> bytes:
        """Return a hello of ``size`` bytes on the wire, in the fewest records."""
        bare = len(client_hello(SNI, build.padding(0)))
        records = -(-size // (FRAGMENT_MAX_BYTES + RECORD_HEADER_BYTES))
        data = hello_of(SNI, build.padding(size - bare - records * RECORD_HEADER_BYTES))
        assert len(data) == size
        return data

    def test_a_hello_of_the_largest_size_is_read(self) -> None:
        """It may fill the cap to its last byte, and be followed by more."""
        data = self.fitting(CLIENT_HELLO_MAX_BYTES)
        assert peek_client_hello(data) == ClientHello(NAME)
        assert peek_client_hello(data + b"more") == ClientHello(NAME)
        assert peek_client_hello(data[:-1]) is PeekStatus.NEED_MORE

    def test_a_larger_hello_is_refused_when_its_length_is_known(self) -> None:
        """The first nine bytes are enough; those before ask for more."""
        data = self.fitting(CLIENT_HELLO_MAX_BYTES + 1)
        assert peek_client_hello(data) is PeekStatus.TOO_LARGE
        assert peek_client_hello(data[:9]) is PeekStatus.TOO_LARGE
        assert peek_client_hello(data[:8]) is PeekStatus.NEED_MORE

    def test_a_hello_that_framing_makes_too_large_is_refused_at_the_cap(self) -> None:
        """Its length would fit, but not with that many record headers."""
        message = client_hello(SNI, build.padding(CLIENT_HELLO_MAX_BYTES - 200))
        data = in_records(message, *[100] * 200)
        assert peek_client_hello(data[: CLIENT_HELLO_MAX_BYTES - 1]) is PeekStatus.NEED_MORE
        assert peek_client_hello(data[:CLIENT_HELLO_MAX_BYTES]) is PeekStatus.TOO_LARGE
        assert peek_client_hello(data) is PeekStatus.TOO_LARGE

    @pytest.mark.parametrize(
        ("length", "status"),
        [(HANDSHAKE_MAX_BYTES, PeekStatus.TOO_LARGE), (HANDSHAKE_MAX_BYTES + 1, PeekStatus.NOT_THIS)],
    )
    def test_no_handshake_message_is_longer_than_its_own_limit(self, length: int, status: PeekStatus) -> None:
        """Up to it a hello is too large for us; beyond, it is none."""
        assert peek_client_hello(record(b"\x01" + length.to_bytes(3, "big"))) is status

    def test_a_hello_spans_a_limited_number_of_records(self) -> None:
        """The last one allowed may end it; if it does not, that is the end."""
        message = client_hello(SNI, build.padding(RECORDS_MAX))
        sizes = [1] * (RECORDS_MAX - 1)
        assert peek_client_hello(in_records(message, *sizes)) == ClientHello(NAME)
        data = in_records(message, *sizes, len(message) - RECORDS_MAX)
        assert peek_client_hello(data) is PeekStatus.TOO_LARGE

    @interpreted
    def test_a_dripped_hello_costs_what_the_docstring_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One-byte records first, a long one last: counted in record headers read over all calls."""
        read = 0
        unpack_from = struct.Struct(">BHH").unpack_from

        class Counting:
            size = RECORD_HEADER_BYTES

            def unpack_from(self, data: Buffer, position: int) -> tuple[int, ...]:
                nonlocal read
                read += 1
                return unpack_from(data, position)

        monkeypatch.setattr(tls, "_RECORD_HEADER", Counting())
        tiny = RECORDS_MAX - 3
        message = client_hello(SNI, build.padding(CLIENT_HELLO_MAX_BYTES - 6 * RECORDS_MAX))
        data = in_records(message, *[1] * tiny)
        assert [peek_client_hello(data[:size]) for size in range(len(data))].count(PeekStatus.NEED_MORE) == len(data)
        assert peek_client_hello(data) == ClientHello(NAME)
        assert len(data) > CLIENT_HELLO_MAX_BYTES * 3 // 4
        most = (4 + EAGER_RECORDS) * CLIENT_HELLO_MAX_BYTES + RECORD_HEADER_BYTES * RECORDS_MAX**2 // 2
        assert most // 2 < read <= most


@given(hellos(), st.lists(st.integers(1, 200), max_size=20), st.binary(max_size=20), st.data())
def test_any_valid_hello_is_read_and_any_prefix_asks_for_more(
    message: bytes, sizes: list[int], tail: bytes, data: st.DataObject
) -> None:
    """Whatever its extensions, its framing, and what follows."""
    framed = in_records(message, *sizes)
    assert peek_client_hello(framed + tail) == ClientHello(NAME, ("h2",))
    assert peek_client_hello(framed[: data.draw(st.integers(0, len(framed) - 1))]) is PeekStatus.NEED_MORE


@given(hellos(), st.integers(0), st.integers(0, 255))
def test_no_mutation_raises_or_yields_a_port_key(message: bytes, place: int, value: int) -> None:
    """One changed byte gives a documented value, and never a name with a colon."""
    data = bytearray(in_records(message))
    data[place % len(data)] = value
    answer = peek_client_hello(data)
    assert isinstance(answer, PeekStatus) or answer.server_name is None or ":" not in answer.server_name


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x16\x03\x01\0\x60", b"\x16\x03\x01\0\x60\x01\0\0\x5c"]))
@example(b"", b"")
def test_junk_gives_a_documented_value(junk: bytes, start: bytes) -> None:
    """No bytes raise."""
    assert isinstance(peek_client_hello(start + junk), ClientHello | PeekStatus)
