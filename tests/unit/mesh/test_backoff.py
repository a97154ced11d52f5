"""The waits between attempts: growth, chance, bounds, and what starts them anew."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nexus.mesh.backoff import (
    REDIAL_CAP_S,
    REDIAL_FIRST_S,
    STABLE_LINK_S,
    WAIT_MIN_S,
    RedialDelay,
    RetryDelay,
)


class Highest:
    """A source that always answers with the upper end."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the upper end."""
        return max(a, b)


class Lowest:
    """A source that always answers with the lower end."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the lower end."""
        return min(a, b)


def test_the_numbers_are_those_of_the_design() -> None:
    """Every number is pinned, so that a change is a decision."""
    assert (WAIT_MIN_S, REDIAL_FIRST_S, REDIAL_CAP_S, STABLE_LINK_S) == (0.1, 1.0, 4.0, 10.0)


def test_waits_double_up_to_the_cap() -> None:
    """Even after thousands of failures."""
    delay = RedialDelay()
    assert [delay.after(0, Highest()) for _ in range(5)] == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert {delay.after(0, Highest()) for _ in range(3000)} == {REDIAL_CAP_S}


def test_no_wait_is_nothing() -> None:
    """However the dice fall; a shorter cap is kept all the same."""
    delay = RedialDelay()
    assert {delay.after(0, Lowest()) for _ in range(50)} == {WAIT_MIN_S}
    assert RetryDelay(0.01, 0.02).after_failure(Highest()) == 0.01


def test_a_link_that_lived_starts_anew() -> None:
    """The wait after it is short again, and so is the next."""
    delay = RedialDelay()
    for _ in range(10):
        delay.after(0, Highest())
    assert [delay.after(lived_s, Highest()) for lived_s in (STABLE_LINK_S, 0, 0)] == [1.0, 2.0, 4.0]


def test_links_that_are_accepted_and_closed_at_once_are_slowed_down() -> None:
    """They count as failures (W15)."""
    delay = RedialDelay()
    assert [delay.after(STABLE_LINK_S / 2, Highest()) for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]


@given(lives=st.lists(st.floats(min_value=0, max_value=1e9), max_size=40), seed=st.integers())
def test_every_wait_is_bounded(lives: list[float], seed: int) -> None:
    """Whatever happens, in whatever order."""
    delay, rng = RedialDelay(), random.Random(seed)
    assert all(WAIT_MIN_S <= delay.after(lived_s, rng) <= REDIAL_CAP_S for lived_s in lives)


def test_a_fleet_spreads_over_the_whole_wait() -> None:
    """A thousand nodes that lost a link at once come back over a second, not in one heap."""
    rng = random.Random(1)
    assert {int(RedialDelay().after(60.0, rng) * 10) for _ in range(1000)} == set(range(1, 10))
