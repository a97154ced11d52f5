"""nexus.hub.terms: when a session is asked, and how long that may be put off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.grants import Grant
from nexus.hub.terms import JITTER, challenge_delay_s, deferral_s

YEAR_S = 365 * 24 * 3600
DRAWS = st.floats(0, 1, exclude_max=True)
SECONDS = st.integers(0, YEAR_S)


@pytest.mark.parametrize(("draw", "expected"), [(0.0, 300.0), (0.5, 330.0)])
def test_a_session_is_asked_after_the_interval_and_up_to_a_fifth_more(draw: float, expected: float) -> None:
    """Sessions that began together do not stay together."""
    assert challenge_delay_s(Grant(reauth_interval_s=300), draw) == pytest.approx(expected)


@given(SECONDS, DRAWS)
def test_the_delay_is_bounded(interval_s: int, draw: float) -> None:
    """Whatever a token asks for."""
    assert interval_s <= challenge_delay_s(Grant(reauth_interval_s=interval_s), draw) <= interval_s * (1 + JITTER)


@pytest.mark.parametrize(
    ("cap_s", "used_s", "draw", "expected"),
    [
        (0, 0, 0.0, 0),  # never put off
        (1800, 0, 0.0, 300),
        (1800, 0, 0.5, 330),
        (1800, 1600, 0.0, 200),  # no more than remains
        (1800, 1490, 0.9, 310),  # nor with its jitter
        (1800, 1800, 0.0, 0),
        (1800, 1801, 0.0, 0),  # the cap was lowered
        (100, 0, 0.9, 100),
    ],
)
def test_a_question_is_put_off_in_steps_within_the_cap(cap_s: int, used_s: float, draw: float, expected: float) -> None:
    """The steps of spec backend-protocol 4."""
    grant = Grant(reauth_interval_s=300, maintenance_grace_cap_s=cap_s)
    assert deferral_s(grant, used_s, draw) == pytest.approx(expected)


@given(st.integers(1, YEAR_S), st.integers(0, 10**4), st.lists(DRAWS, min_size=1))
def test_all_steps_together_are_the_cap(interval_s: int, cap_s: int, draws: list[float]) -> None:
    """An authorizer that stays down delays the question by the cap, not by more and not by less."""
    grant = Grant(reauth_interval_s=max(interval_s, cap_s // 50), maintenance_grace_cap_s=cap_s)
    used_s, round_number = 0.0, 0
    while step := deferral_s(grant, used_s, draws[round_number % len(draws)]):
        used_s += step
        round_number += 1
    assert used_s == pytest.approx(cap_s)
