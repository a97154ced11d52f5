"""When a session is asked for a fresh token, and how long that may be put off.

Strategy: two functions from a session's grant and a random number to a time. A session is asked one interval after it
began or was last asked, plus up to a fifth, so that the sessions of a hub that restarted do not stay in step. While
the authorizer says that it is down, nobody could get a token: the question is put off in steps of the interval, as long
as the grant's maintenance cap is not used up. Then the session is asked all the same; it is never ended for that.

A round starts with nothing used up and needs no memory of the one before it: a round ends with a fresh token, which
resets the account, or with the session.

Source: spec backend-protocol 4.
"""

from __future__ import annotations

from typing import Final

from nexus.auth.grants import Grant

JITTER: Final = 0.2
"""Share of itself by which a time is lengthened at the most (the original's +0 to 20 %)."""


def challenge_delay_s(grant: Grant, draw: float) -> float:
    """Return the time to the next question; ``draw`` is random in [0, 1)."""
    return _jittered(grant.reauth_interval_s, draw)


def deferral_s(grant: Grant, used_s: float, draw: float) -> float:
    """Return how long a question is put off after ``used_s`` were used up already; 0 when it must be asked now.

    The last step is what remains, so that all steps together are the cap exactly.
    """
    remaining = grant.maintenance_grace_cap_s - used_s
    if remaining <= 0:
        return 0.0
    return min(_jittered(min(grant.reauth_interval_s, remaining), draw), remaining)


def _jittered(time_s: float, draw: float) -> float:
    return time_s * (1 + JITTER * draw)
