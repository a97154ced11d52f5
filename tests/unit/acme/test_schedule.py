"""When to renew, and when to try again."""

from __future__ import annotations

import pytest

from nexus.acme.schedule import (
    REFUSED_DELAYS_S,
    RETRY_AFTER_MAX_S,
    UNREACHED_DELAYS_S,
    renewal_time,
    retry_delay_s,
)

DAY = 86_400.0


@pytest.mark.parametrize("days", [90, 45, 6, 0.01])
def test_two_thirds_of_the_lifetime_or_somewhat_earlier(days: float) -> None:
    """Short-lived certificates, too."""
    start, end = 1000.0, 1000.0 + days * DAY
    latest, earliest = renewal_time(start, end, 0.0), renewal_time(start, end, 0.999_999)
    assert latest == pytest.approx(start + days * DAY * 2 / 3)
    assert earliest == pytest.approx(latest - days * DAY / 30, rel=1e-5)


def test_the_ca_knows_better() -> None:
    """Its suggestion counts, early or late, unless it leaves no time to mend a failure."""
    start, end = 0.0, 90 * DAY
    assert renewal_time(start, end, 0.5, suggested=3 * DAY) == 3 * DAY
    assert renewal_time(start, end, 0.5, suggested=80 * DAY) == 80 * DAY
    assert renewal_time(start, end, 0.5, suggested=90 * DAY) == 90 * DAY * 0.95


def test_waits_grow_and_stay_within_a_rate_limit() -> None:
    """No hour has more than five attempts that the CA counts."""
    waits = [retry_delay_s(number, 0.0, reached=True) for number in range(1, 20)]
    assert waits[: len(REFUSED_DELAYS_S)] == list(REFUSED_DELAYS_S)
    assert set(waits[len(REFUSED_DELAYS_S) :]) == {REFUSED_DELAYS_S[-1]}
    moments = [sum(waits[:number]) for number in range(len(waits))]
    assert all(sum(start <= moment < start + 3600 for moment in moments) <= 5 for start in moments)


def test_a_ca_that_is_away_is_asked_again_sooner() -> None:
    """It counts nothing."""
    for number, expected in enumerate(UNREACHED_DELAYS_S, 1):
        assert retry_delay_s(number, 0.0, reached=False) == expected
        assert retry_delay_s(number, 1.0, reached=False) == expected * 1.25


def test_what_the_ca_asks_to_wait_is_waited_at_least() -> None:
    """But a mistaken century does not end renewals."""
    assert retry_delay_s(1, 0.0, reached=True, retry_after_s=7200) == 7200
    assert retry_delay_s(1, 0.0, reached=True, retry_after_s=1) == REFUSED_DELAYS_S[0]
    assert retry_delay_s(1, 0.0, reached=True, retry_after_s=1e9) == RETRY_AFTER_MAX_S
