"""nexus.hub.targets: which requests of a backend are dialled, and what is answered to the others."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.addresses import parse_network
from nexus.auth.grants import Grant
from nexus.hub.targets import (
    ADDRESSES_MAX,
    NO_OUTBOUND,
    OutboundPolicy,
    Target,
    check_request,
    failure_of,
    parse_target,
    pick_addresses,
)
from nexus.limits import UNBOUNDED
from nexus.protocol.constants import NIL_STREAM_ID, OUTBOUND_TARGET_MAX_BYTES
from nexus.protocol.messages import Control
from nexus.protocol.reasons import OutboundRefusal

ID = b"\x07" * 16
POLICY = OutboundPolicy(allowed=True, ports=frozenset({25, 443}), connections=2)
GRANT = Grant(outbound_allowed=True, outbound_ports=frozenset({443, 8443}))


def asked(target: str, stream_id: bytes = ID) -> Control:
    """Return a request."""
    return Control("outbound_connect", stream_id, target_addr=target)


def check(
    request: Control,
    policy: OutboundPolicy = POLICY,
    grant: Grant = GRANT,
    *,
    held: int = 0,
    id_in_use: bool = False,
) -> Target | OutboundRefusal:
    """Check a request in which everything else is right."""
    return check_request(request, policy, grant, held=held, id_in_use=id_in_use)


def test_what_both_allow_is_dialled() -> None:
    """The answer is where to."""
    assert check(asked("mail.example.net:443")) == Target("mail.example.net", 443)
    assert check(asked("[2001:db8::1]:443"), held=1) == Target("2001:db8::1", 443)


def test_the_first_mistake_in_the_order_of_the_protocol_is_the_answer() -> None:
    """Spec backend-protocol 12: mended one by one, from all of them at once to none."""
    bad = asked("no-port", NIL_STREAM_ID)
    none = Grant()
    assert check(bad, NO_OUTBOUND, none, held=2) is OutboundRefusal.HUB
    assert check(bad, POLICY, none, held=2) is OutboundRefusal.TOKEN
    assert check(bad, held=2) is OutboundRefusal.TARGET
    assert check(asked("a:80", NIL_STREAM_ID), held=2) is OutboundRefusal.HUB_PORT
    assert check(asked("a:25", NIL_STREAM_ID), held=2) is OutboundRefusal.TOKEN_PORT
    assert check(asked("a:443", NIL_STREAM_ID), held=2) is OutboundRefusal.LIMIT
    assert check(asked("a:443", NIL_STREAM_ID)) is OutboundRefusal.ID
    assert check(asked("a:443"), id_in_use=True) is OutboundRefusal.ID
    assert check(asked("a:443")) == Target("a", 443)


def test_an_empty_list_of_ports_allows_all() -> None:
    """On either side (spec backend-protocol 3.2, 22)."""
    anywhere, anything = replace(POLICY, ports=frozenset()), replace(GRANT, outbound_ports=frozenset())
    assert check(asked("a:1"), anywhere, anything) == Target("a", 1)
    assert check(asked("a:1"), anywhere) is OutboundRefusal.TOKEN_PORT
    assert check(asked("a:1"), POLICY, anything) is OutboundRefusal.HUB_PORT


@pytest.mark.parametrize(("connections", "held", "fits"), [(2, 1, True), (2, 2, False), (0, 0, False)])
def test_the_limit_counts_what_is_under_way(connections: int, held: int, fits: bool) -> None:
    """W27: the number that is held includes dials, so the limit cannot be passed meanwhile."""
    found = check(asked("a:443"), replace(POLICY, connections=connections), held=held)
    assert found == (Target("a", 443) if fits else OutboundRefusal.LIMIT)


def test_no_limit_is_none() -> None:
    """-1 in the configuration."""
    assert check(asked("a:443"), replace(POLICY, connections=UNBOUNDED), held=10**6) == Target("a", 443)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.net",
        "example.net:",
        ":443",
        "[]:443",
        "example.net:0",
        "example.net:65536",
        "example.net:-1",
        "example.net:+25",
        "example.net:2_5",
        "example.net:https",
        "example.net:٤٤٣",
        "example.net:443:443",
        "::1:443",
        "[::1]",
        "[::1:443",
        "::1]:443",
        "exa[mple]:443",
        "exa\nmple.net:443",
        "exa\x00mple.net:443",
        "example.net:443\x7f",
        "http://example.net:443",
        f"{'a' * OUTBOUND_TARGET_MAX_BYTES}:1",
        f"{'ä' * 129}:80",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    """Neither dialled nor guessed at."""
    assert parse_target(text) is None


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.net:1", "example.net", 1),
        ("example.net.:65535", "example.net.", 65535),
        ("192.0.2.1:443", "192.0.2.1", 443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        (f"{'a' * (OUTBOUND_TARGET_MAX_BYTES - 2)}:1", "a" * (OUTBOUND_TARGET_MAX_BYTES - 2), 1),
    ],
)
def test_a_target_is_split(text: str, host: str, port: int) -> None:
    """The longest is 260 bytes."""
    assert parse_target(text) == Target(host, port)


@given(st.one_of(st.text(), st.from_regex(r"\[?[0-9a-z.:%\[\]]*\]?:[0-9]{0,6}", fullmatch=True)))
def test_any_text_is_a_target_or_none(text: str) -> None:
    """Nothing raises, and a target has a host without control characters and a port that exists."""
    text = text.encode("utf-8", "replace").decode()  # as the protocol's parser leaves it
    target = parse_target(text)
    if target is not None:
        assert target.host
        assert 1 <= target.port <= 65535
        assert len(text.encode()) <= OUTBOUND_TARGET_MAX_BYTES
        assert not {chr(code) for code in (*range(32), 127)} & set(text)
        assert text.removeprefix("[").startswith(target.host)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (TimeoutError(), OutboundRefusal.TIMEOUT),
        (OSError(errno.ETIMEDOUT, "x"), OutboundRefusal.TIMEOUT),
        (OSError(errno.ECONNREFUSED, "x"), OutboundRefusal.REFUSED),
        (OSError(errno.ENETUNREACH, "x"), OutboundRefusal.UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, "x"), OutboundRefusal.UNREACHABLE),
        (OSError("Multiple exceptions: 10.9.8.7, ..."), OutboundRefusal.UNREACHABLE),
        (OSError(errno.EMFILE, "x"), OutboundRefusal.FAILED),
        (socket.gaierror(socket.EAI_FAIL, "x"), OutboundRefusal.FAILED),
    ],
)
def test_failures_are_told_in_a_few_words(error: OSError, refusal: OutboundRefusal) -> None:
    """No detail of the hub's network."""
    assert failure_of(error) is refusal


@pytest.mark.parametrize(
    ("found", "dialled"),
    [
        ([], []),
        (["127.0.0.1", "::1", "192.168.7.7"], []),
        (["1.1.1.1", "127.0.0.1", "2606::1", "10.1.0.1"], ["1.1.1.1", "2606::1", "10.1.0.1"]),
        (["2606::1", "2606::2", "1.1.1.1"], ["2606::1", "1.1.1.1", "2606::2"]),
        ([f"2606::{n}" for n in range(9)] + ["1.1.1.1"], ["2606::0", "1.1.1.1", "2606::1", "2606::2"]),
        (["127.0.0.1"] * ADDRESSES_MAX + ["1.1.1.1"], ["1.1.1.1"]),
    ],
)
def test_of_the_addresses_of_a_name_few_are_dialled(found: list[str], dialled: list[str]) -> None:
    """Public or allowed ones, a family that leads nowhere not in the way of the other, and no private one counted."""
    infos = [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in found
    ]
    picked = pick_addresses(infos, (parse_network("10.1.0.0/16"),))
    assert [info[4][0] for info in picked] == dialled
    assert len(picked) <= ADDRESSES_MAX
