"""Tests of nexus.routing.table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.hostnames import is_wildcard, wildcard_suffix
from nexus.routing.table import RouteTable

_KEYS = ("a.example.com", "b.example.com", "*.example.com", "*.com", "localhost", "tcp:25", "udp:53")
_CLAIM = st.tuples(st.integers(0, 4), st.lists(st.sampled_from(_KEYS), max_size=5), st.integers(1, 5))
_RELEASE = st.tuples(st.integers(0, 4), st.none(), st.just(0))


def _table(**claims: tuple[str, ...]) -> RouteTable[str]:
    table: RouteTable[str] = RouteTable()
    for member, keys in claims.items():
        table.claim(member, keys)
    return table


def test_an_exact_name_wins_over_a_wildcard() -> None:
    """The wildcard serves the names nobody claims."""
    table = _table(wide=("*.example.com",), exact=("a.example.com",))
    assert table.lookup_host("a.example.com") == "exact"
    assert table.lookup_host("b.example.com") == "wide"


@pytest.mark.parametrize("host", ["example.com", "a.b.example.com", "com", "localhost", "", ".example.com"])
def test_a_wildcard_covers_exactly_one_label(host: str) -> None:
    """Neither its base, nor deeper names, nor names without a label of their own are covered."""
    assert _table(wide=("*.example.com",)).lookup_host(host) is None


def test_an_emptied_exact_name_does_not_hide_the_wildcard() -> None:
    """W9, W12: when the exact member has gone, the wildcard serves the name at once."""
    table = _table(wide=("*.example.com",), exact=("a.example.com",))
    assert table.release("exact")
    assert table.lookup_host("a.example.com") == "wide"


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    """W12: the maps hold as many keys as are claimed."""
    table: RouteTable[int] = RouteTable()
    for member in range(100):
        table.claim(member, (f"h{member}.example.com", f"*.h{member}.example.com", f"tcp:{member + 1}"))
        assert len(table) == 3
        table.release(member)
    assert len(table) == 0
    assert table.routes() == ()


def test_a_port_claim_is_out_of_reach_of_names() -> None:
    """W18: SNI or Host that reads like a route key finds nothing; the port does."""
    table = _table(mail=("tcp:25",), dns=("udp:53", "udp:5353"))
    for name in ("tcp:25", "udp:53", "tcp:025", "TCP:25"):
        assert table.lookup_host(name) is None
    assert table.lookup_port("tcp", 25) == "mail"
    assert table.lookup_port("udp", 53) == "dns"
    assert table.lookup_port("tcp", 53) is None
    assert table.port_members("udp", 5353) == ("dns",)
    assert table.port_members("udp", 25) == ()
    assert table.claims_port("udp", 5353)
    assert not table.claims_port("tcp", 5353)


def test_members_of_one_name_share_it_by_weight() -> None:
    """The pool behind a name is a weighted round robin."""
    table: RouteTable[str] = RouteTable()
    table.claim("heavy", ("a.example.com",), weight=3)
    table.claim("light", ("a.example.com",))
    picks = [table.lookup_host("a.example.com") for _ in range(8)]
    assert (picks.count("heavy"), picks.count("light")) == (6, 2)


def test_a_failed_member_can_be_left_out() -> None:
    """Another member takes over, and a wildcard never takes over for an exact name."""
    table = _table(wide=("*.example.com",), one=("a.example.com", "tcp:25"), two=("a.example.com",))
    assert table.lookup_host("a.example.com", exclude={"one"}) == "two"
    assert table.lookup_host("a.example.com", exclude={"one", "two"}) is None
    assert table.lookup_port("tcp", 25, exclude={"one"}) is None
    assert table.lookup_host("b.example.com", exclude={"one"}) == "wide"


def test_a_second_claim_replaces_the_first() -> None:
    """Claims are kept per member, without blanks and duplicates."""
    table = _table(one=("a.example.com", "", "a.example.com"))
    assert table.routes() == ("a.example.com",)
    table.claim("one", ("b.example.com",), weight=2)
    assert table.lookup_host("a.example.com") is None
    assert table.routes() == ("b.example.com",)
    assert "one" in table


def test_a_weight_below_one_changes_nothing() -> None:
    """The claim before stays in force."""
    table = _table(one=("a.example.com",))
    with pytest.raises(ValueError, match="at least 1"):
        table.claim("one", ("b.example.com",), weight=0)
    assert table.lookup_host("a.example.com") == "one"


def test_releasing_twice_is_harmless() -> None:
    """The answer tells whether peers must be told."""
    table = _table(one=("a.example.com",), none=())
    assert [table.release("one"), table.release("one"), table.release("none"), table.release("x")] == [
        True, False, False, False,
    ]  # fmt: skip
    assert "one" not in table
    assert table.routes() == ()


def test_routes_are_announced_as_peers_know_them() -> None:
    """Names and port keys as claimed, wildcards as star and suffix, each once."""
    table = _table(one=("a.example.com", "*.example.com", "udp:53"), two=("*.com", "a.example.com"))
    assert sorted(table.routes()) == ["*.com", "*.example.com", "a.example.com", "udp:53"]


def test_an_invalid_wildcard_is_an_ordinary_name() -> None:
    """``*.com`` covers nothing."""
    assert _table(one=("*.com",)).lookup_host("example.com") is None


@given(st.lists(st.one_of(_CLAIM, _RELEASE), max_size=25))
def test_random_claims_answer_as_the_claims_say(steps: list[tuple[int, list[str] | None, int]]) -> None:
    """Whoever is found claims the name or its wildcard, and somebody is found whenever somebody claims it."""
    table: RouteTable[int] = RouteTable()
    claims: dict[int, set[str]] = {}
    for member, keys, weight in steps:
        if keys is None:
            table.release(member)
            claims.pop(member, None)
        else:
            table.claim(member, keys, weight)
            claims[member] = set(keys)
        for host in ("a.example.com", "c.example.com", "localhost", "tcp:25"):
            assert (table.lookup_host(host) in _expected(claims, host)) or not _expected(claims, host)
            assert (table.lookup_host(host) is None) == (not _expected(claims, host))
        assert set(table.routes()) == set().union(*claims.values())
        assert len(table) == len(table.routes())


def _expected(claims: dict[int, set[str]], host: str) -> set[int]:
    exact = {member for member, keys in claims.items() if host in keys and not host.startswith("tcp:")}
    pattern = f"*{wildcard_suffix(host)}"
    return exact or {member for member, keys in claims.items() if is_wildcard(pattern) and pattern in keys}


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("a.example.com", "a.example.com"),
        ("b.example.com", "*.example.com"),
        ("a.b.example.com", "*.b.example.com"),
        ("localhost", "localhost"),
    ],
)
def test_the_key_of_a_host_is_the_claim_that_serves_it(host: str, key: str) -> None:
    """Itself where it is claimed, else the wildcard that would cover it, claimed or not."""
    assert _table(one=("a.example.com", "*.example.com")).key_of_host(host) == key
