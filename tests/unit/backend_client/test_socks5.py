"""backend_client.socks5: the negotiation, whole, byte by byte and with bytes behind it, and hostile."""

from __future__ import annotations

import itertools
import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_client.mapping import Target
from backend_client.socks5 import LOGIN_MAX_BYTES, Login, Negotiation, Reply, reply, reply_to
from nexus.protocol.reasons import OutboundRefusal

PROTOCOL_PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
ROW = re.compile(r"^\| `[a-z_]+` \| (.+) \| (\d) \|$", re.MULTILINE)
LOGIN = Login("alice", "s3cret")
GREETING = b"\x05\x01\x00"
GREETING_LOGIN = b"\x05\x02\x00\x02"
RIGHT = b"\x01\x05alice\x06s3cret"
TO_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
LONGEST = 2 + 255 + 3 + 2 * LOGIN_MAX_BYTES + 4 + 1 + 255 + 2


def negotiated(*messages: bytes, login: Login | None = None) -> tuple[Negotiation, bytes]:
    """Give a negotiation these reads, as long as it wants any; return it and all it answered."""
    negotiation = Negotiation(login)
    answers = b""
    for message in messages:
        if negotiation.failed or negotiation.target is not None:
            break
        answers += negotiation.receive(message)
    return negotiation, answers


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("address", "target", "text"),
    [
        (b"\x01\xc0\x00\x02\x07\x00\x50", Target("192.0.2.7", 80), "192.0.2.7:80"),
        (b"\x03\x0bexample.com\x01\xbb", Target("example.com", 443), "example.com:443"),
        (b"\x03\x01a\x00\x01", Target("a", 1), "a:1"),
        (b"\x04" + bytes(15) + b"\x01\xff\xff", Target("::1", 65535), "[::1]:65535"),
        (b"\x03\x03::1\x00\x50", Target("::1", 80), "[::1]:80"),
        (b"\x03\x09127.0.0.1\x00\x50", Target("127.0.0.1", 80), "127.0.0.1:80"),
        ("\x03\x07bücher\x00\x50".encode("latin-1").replace(b"\xfc", "ü".encode()), Target("bücher", 80), "bücher:80"),
    ],
)
def test_a_request_names_its_target(address: bytes, target: Target, text: str) -> None:
    """IPv4, IPv6 and names, none of them resolved here; what goes to the hub has brackets around IPv6."""
    request = b"\x05\x01\x00" + address
    for reads in ([GREETING, request], [GREETING + request], byte_by_byte(GREETING + request)):
        negotiation, answers = negotiated(*reads)
        assert answers == b"\x05\x00"
        assert (negotiation.target, str(negotiation.target), negotiation.rest) == (target, text, b"")
        assert not negotiation.failed


def test_a_login_is_required_where_there_is_one() -> None:
    """RFC 1929: method 2 is chosen, also where none is offered beside it, and both must be right."""
    for reads in ([GREETING_LOGIN, RIGHT, TO_NAME], byte_by_byte(GREETING_LOGIN + RIGHT + TO_NAME)):
        negotiation, answers = negotiated(*reads, login=LOGIN)
        assert answers == b"\x05\x02" + b"\x01\x00"
        assert negotiation.target == Target("example.com", 443)


@pytest.mark.parametrize(
    "said",
    [
        b"\x01\x05alice\x06s3creT",
        b"\x01\x05alicE\x06s3cret",
        b"\x01\x05alice\x07s3cret!",
        b"\x01\x05alice\x00",
        b"\x01\x00\x06s3cret",
        b"\x01\x00\x00",
        b"\x05\x01\x00\x01",
        b"\x00",
    ],
)
def test_a_wrong_login_is_refused(said: bytes) -> None:
    """Any status but 0 (RFC 1929 section 2), and nothing behind it is looked at."""
    negotiation, answers = negotiated(GREETING_LOGIN, said + TO_NAME, login=LOGIN)
    assert negotiation.login_refused is (said[:1] == b"\x01")
    assert answers == b"\x05\x02\x01\x01"
    assert (negotiation.failed, negotiation.target, negotiation.rest) == (True, None, b"")


@pytest.mark.parametrize(
    ("greeting", "login", "answer"),
    [
        (b"\x05\x01\x02", None, b"\x05\xff"),
        (b"\x05\x02\x01\x02", None, b"\x05\xff"),
        (b"\x05\x01\x00", LOGIN, b"\x05\xff"),
        (b"\x05\x00", None, b""),
        (b"\x05\x00", LOGIN, b""),
        (b"\x04\x01\x01\xbb\xc0\x00\x02\x07\x00", None, b""),
        (b"GET / HTTP/1.1\r\n", None, b""),
        (b"\x16\x03\x01", None, b""),
    ],
)
def test_a_greeting_without_a_common_method_ends_it(greeting: bytes, login: Login | None, answer: bytes) -> None:
    """FF where a method was offered, nothing to a client that offers none or speaks something else."""
    negotiation, answers = negotiated(greeting, login=login)
    assert (negotiation.failed, answers) == (True, answer)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"\x05\x02\x00\x01" + bytes(6), reply(Reply.COMMAND_NOT_SUPPORTED)),
        (b"\x05\x03\x00\x03", reply(Reply.COMMAND_NOT_SUPPORTED)),
        (b"\x05\x00\x00\x09", reply(Reply.COMMAND_NOT_SUPPORTED)),
        (b"\x05\x01\x00\x02", reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED)),
        (b"\x05\x01\x00\x00", reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED)),
        (b"\x05\x01\x00\x03\x00\x00\x50", reply(Reply.FAILURE)),
        (b"\x05\x01\x00\x03\x02\xff\xfe\x00\x50", reply(Reply.FAILURE)),
        (b"\x04\x01\x00\x50", b""),
    ],
)
def test_what_is_not_served_is_told_by_its_code(request_: bytes, answer: bytes) -> None:
    """RFC 1928 section 6: 7 for other commands, 8 for other addresses; every reply is ten bytes."""
    negotiation, answers = negotiated(GREETING, request_)
    assert answers == b"\x05\x00" + answer
    assert (negotiation.failed, negotiation.target) == (True, None)


@pytest.mark.parametrize("login", [None, LOGIN])
def test_bytes_behind_the_request_are_kept(login: Login | None) -> None:
    """A client may send everything at once and not wait for any answer."""
    parts = (GREETING, TO_NAME) if login is None else (GREETING_LOGIN, RIGHT, TO_NAME)
    negotiation, _ = negotiated(b"".join(parts) + b"\x16\x03\x01hello", login=login)
    assert negotiation.target == Target("example.com", 443)
    assert negotiation.rest == b"\x16\x03\x01hello"


def test_replies_carry_no_address() -> None:
    """0.0.0.0:0, as in the original (spec backend-protocol 12)."""
    assert reply(Reply.SUCCEEDED) == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert reply(Reply.TTL_EXPIRED)[:2] == b"\x05\x06"


def test_the_replies_to_a_hubs_reasons_are_those_of_the_protocol_page() -> None:
    """Each reason of ours has its code."""
    documented = {reason: int(code) for reason, code in ROW.findall(PROTOCOL_PAGE.read_text())}
    assert documented == {str(reason): int(reply_to(reason)) for reason in OutboundRefusal}


@pytest.mark.parametrize("reason", ["", "dial failed", "port 403 not allowed", "the target refused the connection."])
def test_any_other_reason_is_a_refused_connection(reason: str) -> None:
    """As in the original; W30: no class is guessed from a part of the text."""
    assert reply_to(reason) is Reply.REFUSED


def test_a_login_shows_no_password() -> None:
    """Not in a traceback either."""
    assert "s3cret" not in repr(LOGIN)


@given(st.lists(st.binary(max_size=300), max_size=12), st.sampled_from([None, LOGIN]))
def test_no_bytes_make_it_raise_or_hold_much(reads: list[bytes], login: Login | None) -> None:
    """A stranger's bytes end it, name a target, or are waited for; what is held is less than one message."""
    negotiation, _ = negotiated(*reads, login=login)
    if negotiation.target is None:
        assert len(negotiation.rest) <= LONGEST
    assert not (negotiation.failed and negotiation.target)


@given(
    st.one_of(st.ip_addresses(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)),
    st.integers(0, 65535),
    st.binary(max_size=20),
    st.lists(st.integers(0, 400), max_size=8),
    st.booleans(),
)
def test_however_it_is_cut_the_outcome_is_the_same(
    address: IPv4Address | IPv6Address | str, port: int, rest: bytes, cuts: list[int], has_login: bool
) -> None:
    """Reads end anywhere."""
    data = GREETING_LOGIN + (RIGHT if has_login else b"") + _request(address, port) + rest
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    negotiation = Negotiation(LOGIN if has_login else None)
    behind = b""
    for start, end in itertools.pairwise(edges):
        if negotiation.target is None:
            negotiation.receive(data[start:end])
        else:
            behind += data[start:end]
    assert negotiation.target == Target(str(address), port)
    assert negotiation.rest + behind == rest


def _request(address: IPv4Address | IPv6Address | str, port: int) -> bytes:
    if isinstance(address, str):
        name = address.encode()
        packed = bytes([3, len(name)]) + name
    else:
        packed = bytes([1 if isinstance(address, IPv4Address) else 4]) + address.packed
    return b"\x05\x01\x00" + packed + port.to_bytes(2, "big")
