"""Tests of counting by source."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus import limits
from nexus.limits import (
    RATED_SOURCES_MAX,
    REFUSALS_INTERVAL_S,
    STRANGERS_LINES_INTERVAL_S,
    STRANGERS_LINES_MAX,
    UNBOUNDED,
    LineBudget,
    RateLimit,
    RefusalCounter,
    SourceCounter,
)


def test_both_bounds_hold() -> None:
    """Each source up to its own, all together up to theirs."""
    counter = SourceCounter(3, 2)
    assert [counter.admit(source) for source in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    assert counter.held == 3
    counter.release("a")
    assert [counter.admit(source) for source in ("c", "b")] == [True, False]


def test_unbounded_admits_everybody() -> None:
    """Either bound by itself, or both."""
    everything = SourceCounter(UNBOUNDED, UNBOUNDED)
    assert all(everything.admit("a") for _ in range(1000))
    each = SourceCounter(UNBOUNDED, 1)
    assert [each.admit("a"), each.admit("a"), each.admit("b")] == [True, False, True]
    total = SourceCounter(2, UNBOUNDED)
    assert [total.admit("a") for _ in range(3)] == [True, True, False]


def test_zero_admits_nobody() -> None:
    """A bound of zero is a bound."""
    assert not SourceCounter(0, 5).admit("a")
    assert not SourceCounter(5, 0).admit("a")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
@settings(max_examples=60, deadline=None)
def test_what_is_given_back_leaves_nothing_behind(steps: list[tuple[bool, str]]) -> None:
    """The counts are those of a plain list, and no source is kept without a reason."""
    counter, held = SourceCounter(4, 2), list[str]()
    for enters, source in steps:
        if enters:
            fits = len(held) < 4 and held.count(source) < 2
            assert counter.admit(source) is fits
            held += [source] if fits else []
        elif source in held:
            counter.release(source)
            held.remove(source)
        assert counter.held == len(held)
        assert set(counter._by_source) == set(held)


def test_strangers_cause_few_log_lines_in_each_interval() -> None:
    """The first ones are told, whatever the clock says; so are those of the next interval."""
    budget = LineBudget()
    assert sum(budget.admit(5.0) for _ in range(1000)) == STRANGERS_LINES_MAX
    assert not budget.admit(5.0 + STRANGERS_LINES_INTERVAL_S / 2)
    assert sum(budget.admit(5.0 + STRANGERS_LINES_INTERVAL_S) for _ in range(1000)) == STRANGERS_LINES_MAX


def test_a_source_that_is_refused_too_often_is_turned_away_for_a_while() -> None:
    """W28: counted from the refusal that was one too many; others are not concerned."""
    refusals = RefusalCounter(3)
    assert [refusals.note("a", now) for now in (0, 30, 59)] == [False, False, True]
    assert not refusals.admit("a", 59)
    assert refusals.admit("b", 59)
    assert not refusals.admit("a", 59 + REFUSALS_INTERVAL_S - 1)
    assert refusals.admit("a", 59 + REFUSALS_INTERVAL_S)
    assert not refusals.note("a", 120)


def test_refusals_that_are_far_apart_do_not_add_up() -> None:
    """A minute begins with the first of them."""
    refusals = RefusalCounter(2)
    assert not [now for now in (0, 60, 120, 180) if refusals.note("a", now)]
    assert refusals.admit("a", 180)
    assert refusals.note("a", 239)


def test_whoever_is_let_in_is_forgiven() -> None:
    """Many backends may share one address."""
    refusals = RefusalCounter(2)
    refusals.note("a", 0)
    refusals.forgive("a")
    refusals.forgive("b")
    assert not refusals.note("a", 1)


def test_without_a_limit_nobody_is_turned_away() -> None:
    """Nor remembered."""
    refusals = RefusalCounter(UNBOUNDED)
    assert not any(refusals.note("a", 0) for _ in range(100))
    assert refusals.admit("a", 0)
    assert not refusals._by_source


def test_the_memory_of_refusals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was refused longest ago is forgotten first."""
    monkeypatch.setattr(limits, "REFUSAL_SOURCES_MAX", 2)
    refusals = RefusalCounter(1)
    for source in ("a", "b", "a", "c"):
        refusals.note(source, 0)
    assert [refusals.admit(source, 1) for source in "abc"] == [False, True, False]


def test_a_rate_lets_a_burst_of_a_second_pass_and_then_a_trickle() -> None:
    """For one source."""
    rate = RateLimit(1000, 10)
    assert [rate.admit("a", 5.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not rate.admit("a", 5.05)
    assert [rate.admit("a", 5.2) for _ in range(3)] == [True, True, False]
    assert sum(rate.admit("a", 100.0) for _ in range(50)) == 10


def test_a_rate_bounds_all_sources_together() -> None:
    """However many there are; who was refused for it has lost nothing of its own."""
    rate = RateLimit(10, 5)
    assert sum(rate.admit(f"source-{number}", 5.0) for number in range(100)) == 10
    assert sum(rate.admit("new", 6.0) for _ in range(10)) == 5


def test_a_rate_remembers_a_bounded_number_of_sources() -> None:
    """The one that was seen longest ago is forgotten."""
    rate = RateLimit(10**9, 1)
    assert rate.admit("first", 0.0)
    for number in range(RATED_SOURCES_MAX):
        rate.admit(f"source-{number}", 0.0)
    assert len(rate._by_source) == RATED_SOURCES_MAX
    assert rate.admit("first", 0.0)
