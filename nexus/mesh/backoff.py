"""How long the mesh waits before it tries again what failed.

Strategy: the longest wait doubles from one failure to the next, up to a cap, and the wait is anything up to it, so that
a fleet whose common node or name server was away does not come back in one heap. The backend client's delays are
others: they know refusals and sessions that were confirmed (``backend_client.backoff``).

An original redials at once where a link was accepted and then closed (spec node-and-mesh 7.3; weak point W15). Here
only a link that lived for a while starts the delays anew.
"""

from __future__ import annotations

from typing import Final, Protocol

WAIT_MIN_S: Final = 0.1
"""Shortest wait, ours: chance must not make a loop of what fails at once."""

REDIAL_FIRST_S: Final = 1.0
"""Longest wait after the first failure or the end of a link; the original waits 5 s, or not at all."""

REDIAL_CAP_S: Final = 4.0
"""Longest wait of all, ours: a node that came back serves again within 5 s, whoever of the two dials."""

STABLE_LINK_S: Final = 10.0
"""A link that lived this long proves that the other node works; as ``backend_client.backoff.STABLE_SESSION_S``."""

_MAX_DOUBLINGS: Final = 16  # far above every cap; more would only overflow a float one day


class Rng(Protocol):
    """The one method of `random.Random` that is needed here."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between ``a`` and ``b``."""


class RetryDelay:
    """Waits between the attempts at one thing."""

    __slots__ = ("_cap_s", "_failures", "_first_s")

    def __init__(self, first_s: float, cap_s: float) -> None:
        """Wait ``first_s`` seconds at most after the first failure, ``cap_s`` after many."""
        self._first_s = first_s
        self._cap_s = cap_s
        self._failures = 0

    def after_failure(self, rng: Rng) -> float:
        """Count a failure and return the seconds to wait."""
        longest_s = min(self._cap_s, self._first_s * 2.0 ** min(self._failures, _MAX_DOUBLINGS))
        self._failures += 1
        return rng.uniform(min(WAIT_MIN_S, longest_s), longest_s)

    def reset(self) -> None:
        """Forget every failure; idempotent."""
        self._failures = 0


class RedialDelay:
    """Waits between the links to one address."""

    __slots__ = ("_delay",)

    def __init__(self) -> None:
        """Start as if nothing had ever failed."""
        self._delay = RetryDelay(REDIAL_FIRST_S, REDIAL_CAP_S)

    def after(self, lived_s: float, rng: Rng) -> float:
        """Return the seconds to wait after a link that lived ``lived_s`` seconds, 0 for a dial that failed."""
        if lived_s >= STABLE_LINK_S:
            self._delay.reset()
        return self._delay.after_failure(rng)
