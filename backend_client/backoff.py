"""How long the backend waits before it dials its hub again.

Strategy: a pure state machine over three counters; the caller says what happened and is told how long to wait.

- What happened is a `FailureKind`, taken from a close code or an HTTP status, never from the wording of a text.
- A session that was confirmed (the hub sent a pong or a message after the last token, which it does only once it has
  accepted it) and then ended is followed by a short random delay: a restarted hub gets its fleet back within 2 s, but
  not all of it in the same millisecond.
- A session that was never confirmed counts as a failure: the protocol has no positive answer to the last token, so
  "the token was sent" proves nothing.
- A session that was confirmed but ended within `STABLE_SESSION_S` gets the short delay once; from the second in a row
  on the delay doubles like that of a failure: a backend that falls over on every start does not hammer the hub.
- Everything else doubles up to a cap, with jitter. Nothing ever gives up for good; `Backoff.persistent` says when a
  refusal has lasted so long that a person should hear of it.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

RESTART_SPREAD_MIN_S: Final = 0.05
"""Shortest delay after a confirmed session: long enough for a closing hub to have let go of its port."""

RESTART_SPREAD_MAX_S: Final = 1.0
"""Longest delay after a confirmed session: with one second left for dialling, the backend is back within 2 s."""

STABLE_SESSION_S: Final = 10.0
"""A session that lived this long proves the hub works (the hub's own limit for each handshake step, protocol 1.2)."""

TRANSIENT_BASE_S: Final = 0.5
"""First delay after a transient failure; the original's 5 s makes every hub restart an outage of 5 s."""

TRANSIENT_CAP_S: Final = 60.0
"""Longest delay after transient failures (the original's number, protocol 17)."""

REJECTED_BASE_S: Final = 5.0
"""First delay after the hub refused the token (the original's number, protocol 17)."""

REJECTED_CAP_S: Final = 300.0
"""Longest delay after refusals: a mended hub has its backends back within five minutes."""

RATE_LIMITED_S: Final = 60.0
"""Delay after the hub asked for patience (the original's number, protocol 17)."""

JITTER: Final = 0.25
"""Share by which a delay varies to either side (the original's number, protocol 23)."""

PERSISTENT_REJECTIONS: Final = 5
"""Refusals in a row that make it worth telling a person (the original gives up for good here, protocol 17)."""

_MAX_DOUBLINGS: Final = 16  # 0.5 s * 2**16 is far above every cap; more would only overflow a float one day

_CLOSE_POLICY_VIOLATION: Final = 1008  # RFC 6455 section 7.4.1: how a hub refuses a token (protocol 3.4)
_REJECTED_STATUSES: Final = frozenset({401, 403})  # RFC 9110 sections 15.5.2, 15.5.4
_TOO_MANY_REQUESTS: Final = 429  # RFC 6585 section 4


class FailureKind(enum.Enum):
    """Why an attempt failed or a session ended."""

    TRANSIENT = "transient"
    REJECTED = "rejected"
    RATE_LIMITED = "rate_limited"

    @classmethod
    def of_close_code(cls, code: int) -> FailureKind:
        """Name the kind of a WebSocket close code; every code but 1008 is transient (RFC 6455 section 7.4.1)."""
        return cls.REJECTED if code == _CLOSE_POLICY_VIOLATION else cls.TRANSIENT

    @classmethod
    def of_http_status(cls, status: int) -> FailureKind:
        """Name the kind of an HTTP answer other than 101; every status but 401, 403 and 429 is transient."""
        if status in _REJECTED_STATUSES:
            return cls.REJECTED
        return cls.RATE_LIMITED if status == _TOO_MANY_REQUESTS else cls.TRANSIENT


class Rng(Protocol):
    """The one method of `random.Random` that is needed here."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between ``a`` and ``b``."""


class Backoff:
    """Delays between the attempts of one session; one instance per hub address, for as long as the backend runs.

    Call exactly one of `after_failure` and `after_session` after each attempt, and wait as long as it says.
    """

    __slots__ = ("_rejected", "_short_sessions", "_transient")

    def __init__(self) -> None:
        """Start as if nothing had ever failed."""
        self._transient = 0
        self._rejected = 0
        self._short_sessions = 0

    @property
    def persistent(self) -> bool:
        """Whether the hub has refused the token so often in a row that a person should hear of it.

        "In a row" means without a confirmed session in between: a transient failure says nothing about the token.
        """
        return self._rejected >= PERSISTENT_REJECTIONS

    @property
    def rejections(self) -> int:
        """Refusals since the last confirmed session."""
        return self._rejected

    def after_failure(self, kind: FailureKind, rng: Rng) -> float:
        """Count a failed attempt and return the delay in seconds before the next one.

        Also right for a session that ended before it was confirmed, with the kind of its close code.
        """
        if kind is FailureKind.RATE_LIMITED:
            return _jittered(RATE_LIMITED_S, RATE_LIMITED_S * (1 + JITTER), rng)
        if kind is FailureKind.REJECTED:
            self._rejected += 1
            return _doubled(REJECTED_BASE_S, self._rejected - 1, REJECTED_CAP_S, rng)
        self._transient += 1
        return _doubled(TRANSIENT_BASE_S, self._transient - 1, TRANSIENT_CAP_S, rng)

    def after_session(self, lived_s: float | None, rng: Rng) -> float:
        """Count a session that ended and return the delay in seconds before the next attempt.

        Args:
            lived_s: Seconds from the confirmation of the session to its end; None if it was never confirmed, which
                counts as a transient failure. (A session closed with 1008 belongs to `after_failure`.)
            rng: Source of the jitter.
        """
        if lived_s is None:
            return self.after_failure(FailureKind.TRANSIENT, rng)
        self._transient = self._rejected = 0
        if lived_s >= STABLE_SESSION_S:
            self._short_sessions = 0
            return _restart_spread(rng)
        self._short_sessions += 1
        if self._short_sessions == 1:
            return _restart_spread(rng)
        return _doubled(TRANSIENT_BASE_S, self._short_sessions - 2, TRANSIENT_CAP_S, rng)

    def reset(self) -> None:
        """Forget every failure, for instance because the network link has come back; idempotent."""
        self._transient = self._rejected = self._short_sessions = 0


def _restart_spread(rng: Rng) -> float:
    return rng.uniform(RESTART_SPREAD_MIN_S, RESTART_SPREAD_MAX_S)


def _doubled(base_s: float, doublings: int, cap_s: float, rng: Rng) -> float:
    delay_s = min(cap_s, base_s * 2.0 ** min(doublings, _MAX_DOUBLINGS))
    return _jittered(delay_s, cap_s, rng)


def _jittered(delay_s: float, cap_s: float, rng: Rng) -> float:
    """Vary a delay by `JITTER`; at the cap only downwards, lest waiting backends line up at the cap itself."""
    return rng.uniform(delay_s * (1 - JITTER), min(delay_s * (1 + JITTER), cap_s))
