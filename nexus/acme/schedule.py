"""When a certificate is renewed, and when a failed attempt is made again. Times are unix seconds.

Sources: RFC 9773 section 4.2 (renewal information); RFC 8555 section 6.6 (rate limits); letsencrypt.org, "Rate Limits"
(five failed validations of a name an hour, one more every twelve minutes).
"""

from __future__ import annotations

from typing import Final

RENEW_SHARE: Final = 2 / 3  # of the lifetime: what CAs advise, and right for certificates of days as of months
RENEW_JITTER_SHARE: Final = 1 / 30  # ours, of the lifetime, earlier: nodes of one age spread over days
# A CA's suggestion counts, but not where it leaves less than this share of the lifetime to mend what fails.
RENEW_LATEST_SHARE: Final = 0.95

# Ours. A CA that was asked counts failures: four attempts an hour are within every known limit.
REFUSED_DELAYS_S: Final = (60.0, 300.0, 900.0, 1800.0, 3600.0)
UNREACHED_DELAYS_S: Final = (5.0, 15.0, 60.0, 300.0, 900.0)
DELAY_JITTER: Final = 0.25  # later by up to this share
RETRY_AFTER_MAX_S: Final = 7 * 86_400.0  # the longest window of a rate limit


def renewal_time(not_before: float, expires_at: float, random: float, suggested: float | None = None) -> float:
    """Return when to renew a certificate: when its CA suggests it, else at two thirds of its lifetime, or earlier.

    ``random`` is from [0, 1) and moves the latter by up to a thirtieth of the lifetime.
    """
    lifetime_s = expires_at - not_before
    if suggested is not None:
        return min(suggested, not_before + lifetime_s * RENEW_LATEST_SHARE)
    return not_before + lifetime_s * (RENEW_SHARE - RENEW_JITTER_SHARE * random)


def retry_delay_s(failures: int, random: float, *, reached: bool, retry_after_s: float | None = None) -> float:
    """Return how long to wait after the ``failures``-th failure in a row (from 1).

    ``reached``: the CA answered, so it counts. ``retry_after_s``: what it asked to wait, which is waited at least.
    """
    delays = REFUSED_DELAYS_S if reached else UNREACHED_DELAYS_S
    delay_s = delays[min(failures, len(delays)) - 1] * (1 + DELAY_JITTER * random)
    return max(delay_s, min(retry_after_s or 0.0, RETRY_AFTER_MAX_S))
