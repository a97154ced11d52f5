"""Tests of nexus.peek.http1."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus.hostnames import is_port_key, normalize
from nexus.peek import http1
from nexus.peek.http1 import (
    CONTENT_LENGTH_MAX,
    HTTP_HEAD_MAX_BYTES,
    METHOD_MAX_BYTES,
    START_JUDGED_BYTES,
    HttpRequest,
    parse_authority,
    peek_request,
)
from nexus.peek.values import Buffer, PeekStatus
from tests.support.compiled import interpreted

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: app.example.com\r\n"
ANSWER = HttpRequest("GET", "/", "app.example.com")

_token = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True).map(str.encode)
_value = st.from_regex(rb"[\t -~\x80-\xff]{0,20}", fullmatch=True)
_eol = st.sampled_from([b"\r\n", b"\n"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Valid heads for ANSWER, with opaque fields around the Host, some of them folded."""
    ours = (b"host", b"content-length", b"transfer-encoding")
    names = draw(st.lists(_token.filter(lambda name: name.lower() not in ours), max_size=5))
    fields = [name + b":" + draw(_value) for name in names]
    fields.insert(
        draw(st.integers(0, len(fields))),
        b"hOST:\t" + draw(st.sampled_from([b"", b"\r\n ", b"\n\t"])) + b"APP.example.com:80 ",
    )
    lines = [b"GET / HTTP/1.1", *fields, b""]
    return b"".join(line + draw(_eol) for line in lines)


def answers_to_drip(data: bytes, *, hinted: bool) -> list[HttpRequest | PeekStatus]:
    """Feed byte by byte until there is an answer; return each."""
    answers: list[HttpRequest | PeekStatus] = []
    for size in range(len(data) + 1):
        answers.append(peek_request(data[:size], seen=max(0, size - 1) if hinted else 0))
        if answers[-1] is not PeekStatus.NEED_MORE:
            break
    return answers


class TestRequest:
    """Which requests are read, and what they say."""

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (b"GET / HTTP/1.1", ("GET", "/")),
            (b"GET /a%20b/%C3%A9?x=%zz HTTP/1.0", ("GET", "/a b/\u00e9")),
            (b"GET /%FF HTTP/1.1", ("GET", "/\N{REPLACEMENT CHARACTER}")),
            ("GET /ü HTTP/1.1".encode(), ("GET", "/ü")),
            (b"GET //other.example/x#y HTTP/1.1", ("GET", "//other.example/x#y")),
            (b"GET /.well-known/acme-challenge/t HTTP/1.1", ("GET", "/.well-known/acme-challenge/t")),
            (b"OPTIONS * HTTP/1.1", ("OPTIONS", "*")),
            (b"M-SEARCH * HTTP/3.7", ("M-SEARCH", "*")),
            (b"CONNECT /rpc HTTP/1.1", ("CONNECT", "/rpc")),
            (b"GET urn:a:b HTTP/1.1", ("GET", "/")),
            (b"GET file:/etc HTTP/1.1", ("GET", "/etc")),
            (b"X" * METHOD_MAX_BYTES + b" / HTTP/1.1", ("X" * METHOD_MAX_BYTES, "/")),
        ],
    )
    def test_without_an_authority_in_the_target_takes_the_host_field(
        self, line: bytes, expected: tuple[str, str]
    ) -> None:
        """Any token is a method, any two digits a version; the path is decoded, the query left out."""
        for eol in (b"\r\n", b"\n"):
            data = line + eol + b"Host: app.example.com" + eol + eol
            assert peek_request(data) == HttpRequest(*expected, "app.example.com")

    @pytest.mark.parametrize(
        ("line", "path", "host"),
        [
            (b"GET http://Other.Example HTTP/1.1", "/", "other.example"),
            (b"GET http://other.example:8080?q HTTP/1.1", "/", "other.example"),
            (b"GET HTTPS://other.example./x%2Fy?q HTTP/1.1", "/x/y", "other.example."),
            (b"GET ws://[2001:DB8::1]:80/x HTTP/1.1", "/x", "2001:db8::1"),
            (b"CONNECT other.example:443 HTTP/1.1", "/", "other.example"),
            (b"CONNECT [::1]:443 HTTP/1.1", "/", "::1"),
        ],
    )
    def test_with_an_authority_in_the_target_ignores_the_host_field(self, line: bytes, path: str, host: str) -> None:
        """RFC 9112 3.2.2: the absolute form wins over Host."""
        expected = HttpRequest(line.split()[0].decode(), path, host)
        for field in (HOST, b"", b"Host:\r\n"):
            assert peek_request(line + b"\r\n" + field + b"\r\n") == expected

    @pytest.mark.parametrize(
        "head",
        [
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET / HTTP/1.0\n\n",
            b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: \t \r\nX-Host: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    )
    def test_without_any_host_is_valid(self, head: bytes) -> None:
        """HTTP/1.0, an empty Host and the preface of HTTP/2 name nobody, but are requests."""
        request = peek_request(head)
        assert isinstance(request, HttpRequest)
        assert request.host is None

    @pytest.mark.parametrize(
        "fields",
        [
            b"Host:app.example.com\r\n",
            b"HOST:   App.Example.Com\t\r\n",
            b"Host:\r\n app.example.com\r\n",
            b"Host: app.example.com\r\n \r\n\t\r\n",
            b"X: a\r\n\tHost: b\r\nHost: app.example.com:8080\r\n",
            b"X:\r\nHost: app.example.com:\r\n",
            b"X: \xff\t~\r\nHost: app.example.com\n",
            HOST + b"Content-Length: 0\r\n",
            HOST + b"Content-Length: 10\r\ncontent-length:10\r\n",
            HOST + b"Content-Length: %d\r\n" % CONTENT_LENGTH_MAX,
            HOST + b"Transfer-Encoding: Chunked\r\n",
            HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        ],
    )
    def test_with_odd_but_valid_fields_is_read(self, fields: bytes) -> None:
        """Blanks, folds, letter case and a sound framing do not matter."""
        assert peek_request(GET + fields + b"\r\n") == ANSWER

    def test_is_read_from_every_kind_of_buffer_and_with_a_body(self) -> None:
        """What follows the head does not matter."""
        data = GET + HOST + b"\r\n" + bytes(range(256)) * 1000
        for buffer in (data, bytearray(data), memoryview(data)):
            assert peek_request(buffer) == ANSWER


class TestRefusal:
    """What is no request, and how soon that is known."""

    @pytest.mark.parametrize(
        "line",
        [
            b"GET foo HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"GET / HTTP/1.10",
            b"GET / HTTP/11",
            b"GET / http/1.1",
            b"GET / ICAP/1.0",
            b"GET  / HTTP/1.1",
            b"GET / x HTTP/1.1",
            b"GET /",
            b"GET",
            b"",
            b" GET / HTTP/1.1",
            b"G(T / HTTP/1.1",
            b"GET /\x00 HTTP/1.1",
            b"GET /\t HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET / HTTP/1.1\r\r",
            b"GET /%zz HTTP/1.1",
            b"GET /%4 HTTP/1.1",
            b"GET ? HTTP/1.1",
            b"GET http:///x HTTP/1.1",
            b"GET http://u@a/ HTTP/1.1",
            b"GET http://tcp:25:80/ HTTP/1.1",
            b"GET http://[tcp:25]/ HTTP/1.1",
            b"GET http://a/%z HTTP/1.1",
            b"CONNECT a:443/x HTTP/1.1",
            b"CONNECT tcp:25:1 HTTP/1.1",
            b"INVITE sip:bob@example.com SIP/2.0",
            b"X" * (METHOD_MAX_BYTES + 1) + b" / HTTP/1.1",
            b"EHLO client.example.com",
        ],
    )
    def test_a_wrong_request_line_is_refused_by_its_lf_at_the_latest(self, line: bytes) -> None:
        """The rest of the head is not waited for; with all of it the answer is the same."""
        for eol in (b"\r\n", b"\n"):
            assert answers_to_drip(line + eol, hinted=True)[-1] is PeekStatus.NOT_THIS
            assert peek_request(line + eol + HOST) is PeekStatus.NOT_THIS
            assert peek_request(line + eol + HOST + b"\r\n") is PeekStatus.NOT_THIS

    @pytest.mark.parametrize("start", [b"\0", b"\x16", b"\r", b" ", b"\xff", b"*1\r", b"X" * (METHOD_MAX_BYTES + 1)])
    def test_another_protocol_is_refused_at_its_first_wrong_byte(self, start: bytes) -> None:
        """No LF is waited for, and nothing is refused too soon."""
        assert peek_request(start[:-1]) is PeekStatus.NEED_MORE
        assert peek_request(start) is PeekStatus.NOT_THIS

    @pytest.mark.parametrize(
        "rest", [b"\t", b"  ", b" f/", b" ?", b" **", b" /\0", b" foo ", b" / I", b" / HTTP/x", b" / HTTP/1.1 "]
    )
    def test_what_follows_a_method_is_refused_at_its_first_wrong_byte(self, rest: bytes) -> None:
        """A second blank, and a target or a version of no known form."""
        assert peek_request(b"GET" + rest[:-1]) is PeekStatus.NEED_MORE
        assert peek_request(b"GET" + rest) is PeekStatus.NOT_THIS

    @pytest.mark.parametrize(
        "field",
        [
            b"Host",
            b": a",
            b"Ho st: a",
            b"Host : a",
            b"\x80: a",
            b"X: a\0",
            b"X: \x01",
            b"X: \x7f",
            b"X: a\rb",
            b"X: a\r",
            b" X: a",
            b"\tX: a",
        ],
    )
    def test_a_wrong_header_line_is_refused_at_its_lf(self, field: bytes) -> None:
        """The empty line is not waited for."""
        data = GET + field + b"\r\n"
        answers = answers_to_drip(data, hinted=True)
        assert answers[-1] is PeekStatus.NOT_THIS
        assert set(answers[:-1]) == {PeekStatus.NEED_MORE}
        assert peek_request(data) is PeekStatus.NOT_THIS
        assert peek_request(data + HOST + b"\r\n") is PeekStatus.NOT_THIS
        later = GET + HOST + b"Y: b\r\n" + field.lstrip() + b"\r\n"
        assert field[:1] in b" \t" or peek_request(later, seen=len(GET + HOST)) is PeekStatus.NOT_THIS

    @pytest.mark.parametrize(
        "fields",
        [
            HOST + HOST,
            HOST + b"host: other.example\r\n",
            b"Host: [tcp:25]:80\r\n",
            b"Host: [udp:53]\r\n",
            b"Host: tcp:25:80\r\n",
            b"Host: a b\r\n",
            b"Host: a,b\r\n",
            b"Host: a\r\n b\r\n",
            b"Host: u@a\r\n",
            b"Host: *.example.com\r\n",
            "Host: bücher.example\r\n".encode(),
            HOST + b"Content-Length:\r\n",
            HOST + b"Content-Length: -1\r\n",
            HOST + b"Content-Length: 1, 1\r\n",
            HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n",
            HOST + b"Content-Length: %d\r\n" % (CONTENT_LENGTH_MAX + 1),
            HOST + b"Content-Length: 00000000000000000001\r\n",
            HOST + b"Content-Length: \xb2\r\n",
            HOST + b"Transfer-Encoding: gzip\r\n",
            HOST + b"Transfer-Encoding: gzip, chunked\r\n",
            HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            HOST + b"Transfer-Encoding:\r\n",
        ],
    )
    def test_a_head_that_can_be_understood_in_two_ways_is_refused(self, fields: bytes) -> None:
        """Two hosts, a host that is none, and a framing that is not sound; whatever the target says."""
        assert peek_request(GET + fields + b"\r\n") is PeekStatus.NOT_THIS
        assert peek_request(b"GET http://a/ HTTP/1.1\r\n" + fields + b"\r\n") is PeekStatus.NOT_THIS


class TestAuthority:
    """What is read from ``host:port``."""

    @pytest.mark.parametrize(
        ("authority", "host"),
        [
            (b"App.Example.com", "app.example.com"),
            (b"app.example.com.:443", "app.example.com."),
            (b"a:", "a"),
            (b"tcp:25", "tcp"),
            (b"192.0.2.1:80", "192.0.2.1"),
            (b"[2001:DB8::A]", "2001:db8::a"),
            (b"[::ffff:192.0.2.1]:80", "::ffff:192.0.2.1"),
            (b"[fe80::1%25eth0]", None),
            (b"[v1.x]", None),
            (b"[::1]x", None),
            (b"[]", None),
            (b"[1.2.3.4]", None),
            (b"::1", None),
            (b"a:100000", None),
            (b".", None),
            (b"", None),
            (b":80", None),
            (b"a%2eb", None),
        ],
    )
    def test_is_a_name_an_address_or_nothing(self, authority: bytes, host: str | None) -> None:
        """Brackets are for IPv6 addresses only; the port is dropped; a trailing dot stays."""
        assert parse_authority(authority) == host

    @given(st.binary(max_size=30) | st.from_regex(rb"\[?(tcp|udp):[0-9]{1,5}\]?(:[0-9]*)?", fullmatch=True))
    def test_is_never_a_port_key(self, authority: bytes) -> None:
        """No client reaches a port key by Host or by target."""
        host = parse_authority(authority)
        assert host is None or not is_port_key(normalize(host))


class TestBounds:
    """How much is read, and what it costs."""

    @pytest.mark.parametrize("size", [HTTP_HEAD_MAX_BYTES, HTTP_HEAD_MAX_BYTES + 1])
    def test_a_head_may_fill_the_cap_and_not_exceed_it(self, size: int) -> None:
        """The empty line lies within the cap or the head is too large."""
        bare = GET + HOST + b"X: \r\n\r\n"
        data = bare[:-4] + b"x" * (size - len(bare)) + bare[-4:]
        assert len(data) == size
        fits = size == HTTP_HEAD_MAX_BYTES
        assert peek_request(data) == (ANSWER if fits else PeekStatus.TOO_LARGE)
        assert peek_request(memoryview(data)) == (ANSWER if fits else PeekStatus.TOO_LARGE)
        assert peek_request(data[: HTTP_HEAD_MAX_BYTES - 1]) is PeekStatus.NEED_MORE

    def test_a_flood_without_an_lf_is_no_request(self) -> None:
        """So that a port claim still gets it, instead of a close for size (weak point W12)."""
        assert peek_request(b"A" * HTTP_HEAD_MAX_BYTES) is PeekStatus.NOT_THIS
        line = b"GET /" + b"a" * HTTP_HEAD_MAX_BYTES
        assert peek_request(line[: HTTP_HEAD_MAX_BYTES - 1]) is PeekStatus.NEED_MORE
        assert peek_request(line[:HTTP_HEAD_MAX_BYTES]) is PeekStatus.NOT_THIS
        assert peek_request(line + b" HTTP/1.1\r\n\r\n") is PeekStatus.NOT_THIS

    def test_an_unfinished_line_is_judged_by_its_start_only(self) -> None:
        """What comes later in it is judged with its LF."""
        start = b"GET /" + b"a" * START_JUDGED_BYTES
        assert peek_request(start + b"\0") is PeekStatus.NEED_MORE
        assert peek_request(start + b"\0\n") is PeekStatus.NOT_THIS

    @interpreted
    def test_a_dripped_head_is_judged_line_by_line_and_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counted in bytes of header lines judged, request lines and heads read, over all calls."""
        given: dict[str, list[bytes]] = {}

        def count(name: str, function: Callable[[bytes], object]) -> None:
            arguments = given[name] = []

            def counting(part: bytes) -> object:
                arguments.append(part)
                return function(part)

            monkeypatch.setattr(http1, name, counting)

        count("_are_header_lines", http1._are_header_lines)
        count("_parse_request_line", http1._parse_request_line)
        count("_parse_head", http1._parse_head)
        head = GET + HOST + b"abc: de\r\n" * 500
        data = head + b"\r\n"
        assert answers_to_drip(data, hinted=True)[-1] == ANSWER
        assert given["_parse_request_line"] == [GET[:-1]] * 2  # at its LF, and in the whole head
        assert given["_parse_head"] == [head]
        judged = sum(map(len, given["_are_header_lines"]))
        assert judged == 2 * len(head[len(GET) :])  # each line at its LF, and all in the whole head

    def test_a_head_is_searched_for_its_end_only_where_it_is_new(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counted in bytes searched over all calls of a head that is one long line."""
        searched = 0
        pattern = http1._HEAD_END

        class Counting:
            def search(self, data: Buffer, start: int, end: int) -> re.Match[bytes] | None:
                nonlocal searched
                searched += end - start
                return pattern.search(data, start, end)

        monkeypatch.setattr(http1, "_HEAD_END", Counting())
        data = GET + b"X: " + b"x" * 5000 + b"\r\n" + HOST + b"\r\n"
        assert answers_to_drip(data, hinted=True)[-1] == ANSWER
        assert searched <= 3 * len(data)


@given(heads(), st.binary(max_size=20), st.data())
def test_any_valid_head_is_read_and_any_prefix_asks_for_more(head: bytes, tail: bytes, data: st.DataObject) -> None:
    """Whatever its fields and line ends, cut anywhere, with or without the hint."""
    cut = data.draw(st.integers(0, len(head) - 1))
    assert peek_request(head[:cut]) is PeekStatus.NEED_MORE
    assert peek_request(head + tail) == ANSWER
    assert peek_request(head + tail, seen=cut) == ANSWER


@given(heads(), st.integers(0), st.integers(0, 255))
def test_a_mutation_is_answered_alike_whole_and_dripped(head: bytes, place: int, value: int) -> None:
    """One changed byte raises nothing, yields no port key, and means the same however the bytes come."""
    data = bytearray(head)
    data[place % len(data)] = value
    whole = peek_request(data)
    assert answers_to_drip(bytes(data), hinted=True)[-1] == whole
    assert answers_to_drip(bytes(data), hinted=False)[-1] == whole
    assert isinstance(whole, PeekStatus) or whole.host is None or ":" not in whole.host


@given(
    st.binary(max_size=100), st.sampled_from([b"", b"GET ", b"GET / HTTP/1.1\r\n", GET + HOST]), st.integers(-9, 200)
)
@example(b"", b"", 0)
def test_junk_and_a_wrong_hint_give_a_documented_value(junk: bytes, start: bytes, seen: int) -> None:
    """No bytes and no hint raise."""
    assert isinstance(peek_request(start + junk, seen=seen), HttpRequest | PeekStatus)
