"""The delays between attempts: bounds, growth, jitter, and what resets them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_client.backoff import (
    JITTER,
    PERSISTENT_REJECTIONS,
    RATE_LIMITED_S,
    REJECTED_BASE_S,
    REJECTED_CAP_S,
    RESTART_SPREAD_MAX_S,
    RESTART_SPREAD_MIN_S,
    STABLE_SESSION_S,
    TRANSIENT_BASE_S,
    TRANSIENT_CAP_S,
    Backoff,
    FailureKind,
    Rng,
)

LADDERS = [
    (FailureKind.TRANSIENT, TRANSIENT_BASE_S, TRANSIENT_CAP_S),
    (FailureKind.REJECTED, REJECTED_BASE_S, REJECTED_CAP_S),
]
KINDS = st.sampled_from(FailureKind)
LIVES = st.none() | st.floats(min_value=0, max_value=1e9)
OUTCOMES = st.lists(KINDS | LIVES, max_size=40)


class Lowest:
    """A source that always answers with the lower end."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the lower end."""
        return min(a, b)


class Highest:
    """A source that always answers with the upper end."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the upper end."""
        return max(a, b)


class Middle:
    """A source that always answers with the middle."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the middle."""
        return (a + b) / 2


def play(backoff: Backoff, outcome: FailureKind | float | None, rng: Rng) -> float:
    """Report one outcome, an attempt that failed or a session that ended, and return the delay."""
    if isinstance(outcome, FailureKind):
        return backoff.after_failure(outcome, rng)
    return backoff.after_session(outcome, rng)


def test_the_numbers_are_those_of_the_design() -> None:
    """Every documented number is pinned, so that a change is a decision."""
    assert (RESTART_SPREAD_MIN_S, RESTART_SPREAD_MAX_S, STABLE_SESSION_S) == (0.05, 1.0, 10.0)
    assert (TRANSIENT_BASE_S, TRANSIENT_CAP_S, REJECTED_BASE_S, REJECTED_CAP_S) == (0.5, 60.0, 5.0, 300.0)
    assert (RATE_LIMITED_S, JITTER, PERSISTENT_REJECTIONS) == (60.0, 0.25, 5)


@pytest.mark.parametrize(("kind", "base_s", "cap_s"), LADDERS)
def test_failures_double_up_to_the_cap(kind: FailureKind, base_s: float, cap_s: float) -> None:
    """The nominal delay doubles with each failure and stops at the cap, even after thousands of failures."""
    backoff = Backoff()
    delays = [backoff.after_failure(kind, Highest()) for _ in range(3000)]
    nominal = [min(cap_s, base_s * 2.0**k) for k in range(20)]
    assert delays[:20] == [min(cap_s, value * (1 + JITTER)) for value in nominal]
    assert all(earlier <= later for earlier, later in pairwise(delays))
    assert delays[-1] == cap_s


@pytest.mark.parametrize(("kind", "base_s", "cap_s"), LADDERS)
def test_jitter_reaches_a_quarter_below_the_nominal_delay(kind: FailureKind, base_s: float, cap_s: float) -> None:
    """The shortest delay of each step is three quarters of the nominal one, at the cap too."""
    backoff = Backoff()
    delays = [backoff.after_failure(kind, Lowest()) for _ in range(20)]
    assert delays == [min(cap_s, base_s * 2.0**k) * (1 - JITTER) for k in range(20)]


def test_a_rate_limit_waits_a_minute_give_or_take_a_quarter() -> None:
    """Being told to be patient neither grows nor counts as a failure of another kind."""
    backoff = Backoff()
    for _ in range(10):
        assert backoff.after_failure(FailureKind.RATE_LIMITED, Lowest()) == RATE_LIMITED_S * (1 - JITTER)
        assert backoff.after_failure(FailureKind.RATE_LIMITED, Highest()) == RATE_LIMITED_S * (1 + JITTER)
    assert not backoff.persistent
    assert backoff.after_failure(FailureKind.TRANSIENT, Middle()) == TRANSIENT_BASE_S


@given(outcomes=OUTCOMES, seed=st.integers())
def test_every_delay_is_positive_and_bounded(outcomes: list[FailureKind | float | None], seed: int) -> None:
    """Whatever happens, in whatever order, no delay is zero and none exceeds the cap of its kind."""
    backoff, rng = Backoff(), random.Random(seed)
    for outcome in outcomes:
        delay_s = play(backoff, outcome, rng)
        assert delay_s >= RESTART_SPREAD_MIN_S
        if outcome is FailureKind.REJECTED:
            assert delay_s <= REJECTED_CAP_S
        elif outcome is FailureKind.RATE_LIMITED:
            assert delay_s <= RATE_LIMITED_S * (1 + JITTER)
        else:
            assert delay_s <= TRANSIENT_CAP_S


@given(outcomes=OUTCOMES, seed=st.integers(), lived_s=st.floats(min_value=STABLE_SESSION_S, max_value=1e9))
def test_a_stable_session_leaves_no_trace_of_earlier_failures(
    outcomes: list[FailureKind | float | None], seed: int, lived_s: float
) -> None:
    """After a session that lived, a backend is back within the spread and its ladders start from the bottom."""
    backoff, rng = Backoff(), random.Random(seed)
    for outcome in outcomes:
        play(backoff, outcome, rng)
    assert RESTART_SPREAD_MIN_S <= backoff.after_session(lived_s, rng) <= RESTART_SPREAD_MAX_S
    assert not backoff.persistent
    assert backoff.after_session(0.0, Highest()) == RESTART_SPREAD_MAX_S
    assert backoff.after_failure(FailureKind.TRANSIENT, Middle()) == TRANSIENT_BASE_S
    assert backoff.after_failure(FailureKind.REJECTED, Middle()) == REJECTED_BASE_S


@given(outcomes=OUTCOMES, seed=st.integers())
def test_reset_equals_a_new_state(outcomes: list[FailureKind | float | None], seed: int) -> None:
    """Reset forgets everything, once or twice, and the next delays are those of a new instance."""
    used = Backoff()
    for outcome in outcomes:
        play(used, outcome, random.Random(seed))
    used.reset()
    used.reset()
    new = Backoff()
    for outcome in (0.0, 0.0, None, FailureKind.REJECTED, FailureKind.TRANSIENT):
        assert play(used, outcome, random.Random(seed)) == play(new, outcome, random.Random(seed))


def test_a_fleet_spreads_over_a_second_after_a_hub_restarts() -> None:
    """A thousand sessions that end at once come back spread over the whole second, not in one heap."""
    rng = random.Random(1)
    delays = [Backoff().after_session(3600.0, rng) for _ in range(1000)]
    tenths = {int(delay_s * 10) for delay_s in delays}
    assert tenths == set(range(10))


def test_sessions_that_fall_over_at_once_are_slowed_down() -> None:
    """One short session costs the short delay only; a row of them doubles like failures."""
    backoff = Backoff()
    delays = [backoff.after_session(0.1, Middle()) for _ in range(4)]
    spread_s = (RESTART_SPREAD_MIN_S + RESTART_SPREAD_MAX_S) / 2
    assert delays == [spread_s, TRANSIENT_BASE_S, TRANSIENT_BASE_S * 2, TRANSIENT_BASE_S * 4]


def test_an_outage_before_a_short_session_does_not_lengthen_the_wait_after_it() -> None:
    """A confirmed session, however short, ends the ladder of the failures before it."""
    backoff = Backoff()
    for _ in range(20):
        backoff.after_failure(FailureKind.TRANSIENT, Middle())
    assert backoff.after_session(1.0, Highest()) == RESTART_SPREAD_MAX_S
    assert backoff.after_failure(FailureKind.TRANSIENT, Middle()) == TRANSIENT_BASE_S


def test_a_session_that_was_never_confirmed_counts_as_a_failure() -> None:
    """An end before any sign of acceptance climbs the transient ladder."""
    backoff = Backoff()
    delays = [backoff.after_session(None, Middle()) for _ in range(3)]
    assert delays == [TRANSIENT_BASE_S, TRANSIENT_BASE_S * 2, TRANSIENT_BASE_S * 4]


def test_persistent_is_reported_from_the_fifth_refusal_until_a_session_is_confirmed() -> None:
    """Transient failures in between neither count nor excuse; only an accepted token does."""
    backoff = Backoff()
    for count in range(1, 9):
        backoff.after_failure(FailureKind.REJECTED, Middle())
        backoff.after_failure(FailureKind.TRANSIENT, Middle())
        backoff.after_session(None, Middle())
        assert backoff.rejections == count
        assert backoff.persistent is (count >= PERSISTENT_REJECTIONS)
    backoff.after_session(0.5, Middle())
    assert not backoff.persistent
    assert backoff.rejections == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1008, FailureKind.REJECTED),
        (1000, FailureKind.TRANSIENT),
        (1006, FailureKind.TRANSIENT),
        (1009, FailureKind.TRANSIENT),
        (1013, FailureKind.TRANSIENT),
        (401, FailureKind.TRANSIENT),
    ],
)
def test_only_close_code_1008_is_a_refusal(code: int, kind: FailureKind) -> None:
    """The close code decides, and a number that looks like an HTTP status does not."""
    assert FailureKind.of_close_code(code) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FailureKind.REJECTED),
        (403, FailureKind.REJECTED),
        (429, FailureKind.RATE_LIMITED),
        (400, FailureKind.TRANSIENT),
        (404, FailureKind.TRANSIENT),
        (407, FailureKind.TRANSIENT),
        (503, FailureKind.TRANSIENT),
    ],
)
def test_the_http_status_decides_the_kind(status: int, kind: FailureKind) -> None:
    """Refused, rate limited, or worth trying again."""
    assert FailureKind.of_http_status(status) is kind
