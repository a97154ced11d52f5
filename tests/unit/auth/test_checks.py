"""Tests of nexus.auth.checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.checks import Check, Finding, Outcome, enforce, examine
from nexus.errors import AuthError, TokenUnverified


def _check(name: str, *needs: str) -> Check[set[str]]:
    def run(trial: set[str]) -> str:
        if name in trial:
            raise AuthError(f"{name} is wrong")
        return f"{name} is right"

    return Check(name, run, needs)


ROW = (_check("a"), _check("b", "a"), _check("c", "b"), _check("d"))


def test_every_check_is_told_of() -> None:
    """What needs a check that did not pass is skipped, also at second hand; the rest goes on."""
    assert examine(ROW, {"a", "d"}) == [
        Finding("a", Outcome.FAIL, "a is wrong"),
        Finding("b", Outcome.SKIP, "cannot be told without: a"),
        Finding("c", Outcome.SKIP, "cannot be told without: b"),
        Finding("d", Outcome.FAIL, "d is wrong"),
    ]
    assert [finding.detail for finding in examine(ROW, set())] == [f"{name} is right" for name in "abcd"]


def test_enforcing_stops_at_the_first_refusal() -> None:
    """Its words are those of the refusal."""
    with pytest.raises(AuthError, match=r"^b is wrong$"):
        enforce(ROW, {"b", "d"})
    enforce(ROW, set())


def test_what_could_not_be_verified_is_told_with_its_detail() -> None:
    """The command is for the node's operator, who may know."""

    def run(trial: set[str]) -> str:
        raise TokenUnverified("the verifier is down")

    (finding,) = examine((Check("x", run),), set())
    assert (finding.outcome, finding.detail) == (
        Outcome.FAIL,
        "the token could not be verified, try later (the verifier is down)",
    )


@given(st.sets(st.sampled_from("abcd")))
def test_both_agree(wrong: set[str]) -> None:
    """Examination has no failure exactly where enforcement does not refuse."""
    try:
        enforce(ROW, wrong)
        refused = False
    except AuthError:
        refused = True
    assert refused == any(finding.outcome is Outcome.FAIL for finding in examine(ROW, wrong))
