"""Tests of nexus.auth.revocation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth import revocation
from nexus.auth.jws import ISSUED_AHEAD_MAX_S
from nexus.auth.revocation import Revocations, TokenIdentity, parse_moment, parse_revocations
from nexus.errors import AuthError, ConfigError

LIST = """\
# people who left
sub shop          # and why
sub "a \\"name\\" # with spaces"\tbefore 2026-11-25T10:00:00Z

  jti 4711
kid 2025-key before 2026-11-25T12:00:00.5+02:00\r
sub x#y
"""
MOMENT = 1_795_600_800  # 2026-11-25T10:00:00Z
NOW = MOMENT + 1000


def test_every_form_of_an_entry_is_read() -> None:
    """Words, quoted texts, comments, moments with any offset, blank lines, any line ends."""
    assert parse_revocations(LIST, "list").entries == {
        ("sub", "shop"): float("inf"),
        ("sub", 'a "name" # with spaces'): MOMENT,
        ("jti", "4711"): float("inf"),
        ("kid", "2025-key"): MOMENT + 0.5,
        ("sub", "x#y"): float("inf"),
    }


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (TokenIdentity(), ""),
        (TokenIdentity("shop"), "its sub is revoked"),
        (TokenIdentity("Shop"), ""),
        (TokenIdentity("other", "4711"), "its jti is revoked"),
        (TokenIdentity("4711", "shop"), ""),
        (TokenIdentity(key_id="2025-key"), "its kid is revoked for tokens as old"),
        (TokenIdentity(key_id="2025-key", issued_at=MOMENT), "its kid is revoked for tokens as old"),
        (TokenIdentity(key_id="2025-key", issued_at=MOMENT + 1), ""),
        (TokenIdentity(key_id="2025-key", issued_at=NOW + ISSUED_AHEAD_MAX_S), ""),
        (
            TokenIdentity(key_id="2025-key", issued_at=NOW + ISSUED_AHEAD_MAX_S + 1),
            "its kid is revoked for tokens as old",
        ),
        (TokenIdentity("shop", issued_at=2**62), "its sub is revoked"),
    ],
)
def test_a_token_is_revoked_by_any_of_its_names(token: TokenIdentity, reason: str) -> None:
    """One without a date is older than any moment, and so is one whose date cannot be true."""
    revocations = parse_revocations(LIST, "list")
    assert revocations.reason([TokenIdentity("innocent"), token], NOW) == reason
    if reason:
        with pytest.raises(AuthError, match=f"^invalid token: {reason}$"):
            revocations.check(token, NOW)
    else:
        assert revocations.check(token, NOW) == "in none of 5 entries"


@pytest.mark.parametrize(
    ("newer", "narrowed"),
    [
        ("sub a\njti b before 2026-01-01T00:00:00Z", 0),
        ("sub a\njti b\nkid c", 0),
        ("sub a before 2026-01-01T00:00:00Z\njti b", 1),
        ("sub a\njti b before 2025-01-01T00:00:00Z", 1),
        ("sub A\njti b", 1),
        ("", 2),
    ],
)
def test_a_list_that_revokes_less_is_told_from_one_that_revokes_more(newer: str, narrowed: int) -> None:
    """Entry by entry."""
    older = parse_revocations("sub a\njti b before 2026-01-01T00:00:00Z", "list")
    assert older.narrowed(parse_revocations(newer, "list")) == narrowed


def test_an_empty_list_revokes_nothing() -> None:
    """Nor does none at all."""
    assert parse_revocations("# nothing\n", "list") == Revocations()
    assert Revocations().reason([TokenIdentity("", "", "")], NOW) == ""


def test_of_two_entries_the_wider_counts() -> None:
    """In any order."""
    lines = ["sub a before 2026-01-01T00:00:00Z", "sub a", "sub a before 2027-01-01T00:00:00Z"]
    for turned in (lines, lines[::-1]):
        assert parse_revocations("\n".join(turned), "list").entries == {("sub", "a"): float("inf")}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("user shop", "begins with none of sub, jti, kid"),
        ("SUB shop", "begins with none"),
        ("sub", "names nothing after sub"),
        ("sub # shop", "names nothing after sub"),
        ("sub two words", "quotes around a value with spaces"),
        ("sub a since 2026-01-01T00:00:00Z", "before and one moment"),
        ("sub a before", "before and one moment"),
        ("sub a before 2026-01-01T00:00:00Z please", "before and one moment"),
        ("sub a before tuesday", "what follows before is no date and time of RFC 3339"),
        ("sub a before 2026-01-01", "RFC 3339"),
        ("sub a before 2026-02-30T00:00:00Z", "RFC 3339"),
        ("sub a before 2026-01-01T00:00:00", "RFC 3339"),
        ('sub ""', "no JSON string, or an empty one"),
        ('sub "a', "no JSON string"),
        ('sub "a\\x"', "no JSON string"),
        ('sub "a"b', "no JSON string"),
    ],
)
def test_a_line_that_says_nothing_plainly_is_a_mistake(line: str, what: str) -> None:
    """It names the file and the line; a guess might revoke less than was meant."""
    with pytest.raises(ConfigError) as caught:
        parse_revocations(f"# first\n{line}\nsub fine\n", "/etc/revoked")
    (problem,) = caught.value.problems
    assert (problem.source, problem.line) == ("/etc/revoked", 2)
    assert what in problem.what
    assert problem.mend


def test_all_mistakes_are_reported_together_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a list of any length is read within a bound."""
    with pytest.raises(ConfigError) as caught:
        parse_revocations("x\nsub a\ny", "list")
    assert [problem.line for problem in caught.value.problems] == [1, 3]
    with pytest.raises(ConfigError) as caught:
        parse_revocations("x\n" * 1000, "list")
    assert len(caught.value.problems) == revocation.PROBLEMS_MAX
    monkeypatch.setattr(revocation, "ENTRIES_MAX", 3)
    with pytest.raises(ConfigError, match="list:4: holds more than 3 entries; revoke by kid"):
        parse_revocations("".join(f"jti {number}\n" for number in range(9)), "list")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01t00:00:01z", 1),
        ("1970-01-01T01:00:01.25+01:00", 1.25),
        ("1969-12-31T23:00:00-01:00", 0),
    ],
)
def test_moments(text: str, moment: float) -> None:
    """As RFC 3339 writes them."""
    assert parse_moment(text) == moment


@given(st.text(max_size=80))
def test_hostile_text_raises_config_errors_alone(text: str) -> None:
    """Whatever it is."""
    try:
        parse_revocations(text, "list")
    except ConfigError as error:
        assert error.problems  # noqa: PT017 — both outcomes are right


@given(st.sampled_from(["sub", "jti", "kid"]), st.text(min_size=1), st.none() | st.integers(0, 2**33))
def test_every_value_can_be_named(kind: str, value: str, issued_at: int | None) -> None:
    """In quotes, as JSON writes it."""
    revocations = parse_revocations(f"{kind} {json.dumps(value)}", "list")
    names = {"sub": "subject", "jti": "token_id", "kid": "key_id"}
    assert revocations.reason([TokenIdentity(**{names[kind]: value}, issued_at=issued_at)], NOW)
