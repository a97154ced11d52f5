"""Counting what strangers cause: what one client address, and all together, may hold, and how often a log line.

Strategy: plain counters with bounds, asked before something is admitted. What counts as one source is
``sockets.source_key``.
"""

from __future__ import annotations

from typing import Final

UNBOUNDED: Final = -1
STRANGERS_LINES_MAX: Final = 20  # in each interval: enough to see what is wrong, a few GB a year at the worst
STRANGERS_LINES_INTERVAL_S: Final = 10.0
REFUSALS_INTERVAL_S: Final = 60.0
REFUSAL_SOURCES_MAX: Final = 4096  # ours: half a MiB
RATED_SOURCES_MAX: Final = 16_384  # ours: 2 MiB


class SourceCounter:
    """How many are held, by source; a bound of UNBOUNDED admits all."""

    __slots__ = ("_by_source", "_per_source", "_total", "held")

    def __init__(self, total: int, per_source: int) -> None:
        """Take the two bounds."""
        self._total = total
        self._per_source = per_source
        self._by_source: dict[str, int] = {}
        self.held = 0

    def admit(self, source: str) -> bool:
        """Count one more of ``source`` and return True, or return False where a bound is reached."""
        mine = self._by_source.get(source, 0)
        if self._total != UNBOUNDED and self.held >= self._total:
            return False
        if self._per_source != UNBOUNDED and mine >= self._per_source:
            return False
        self._by_source[source] = mine + 1
        self.held += 1
        return True

    def held_by(self, source: str) -> int:
        """Return how many of ``source`` are held."""
        return self._by_source.get(source, 0)

    def release(self, source: str) -> None:
        """Give one of ``source`` back."""
        left = self._by_source[source] - 1
        if left:
            self._by_source[source] = left
        else:
            del self._by_source[source]
        self.held -= 1


class RefusalCounter:
    """Who was refused too often of late; such a source is turned away for a while.

    What is remembered is bounded: of too many sources the one that was refused longest ago is forgotten.
    """

    __slots__ = ("_by_source", "_limit")

    def __init__(self, limit: int) -> None:
        """Take how many refusals a source may have within REFUSALS_INTERVAL_S; UNBOUNDED turns nobody away."""
        self._limit = limit
        self._by_source: dict[str, tuple[float, int]] = {}

    def admit(self, source: str, now: float) -> bool:
        """Tell whether a source may try, at ``now`` in seconds of a clock that only rises."""
        since, count = self._by_source.get(source, (now, 0))
        if count and now - since >= REFUSALS_INTERVAL_S:
            del self._by_source[source]
            return True
        return self._limit == UNBOUNDED or count < self._limit

    def note(self, source: str, now: float) -> bool:
        """Count a refusal; tell whether it was the one too many, from which on the source is turned away."""
        if self._limit == UNBOUNDED:
            return False
        since, count = self._by_source.pop(source, (now, 0))
        if now - since >= REFUSALS_INTERVAL_S:
            since, count = now, 0
        is_last = count + 1 == self._limit
        if len(self._by_source) >= REFUSAL_SOURCES_MAX:
            del self._by_source[next(iter(self._by_source))]
        self._by_source[source] = (now if is_last else since, count + 1)  # a whole interval from the last one on
        return is_last

    def forgive(self, source: str) -> None:
        """Forget the refusals of a source that was let in: it may be many backends behind one address."""
        self._by_source.pop(source, None)


class RateLimit:
    """How often something may happen in a second: by one source, and by all together. Bursts of a second's worth pass.

    What is remembered is bounded: of too many sources the one that was seen longest ago is forgotten, which leaves the
    bound of all.
    """

    __slots__ = ("_all", "_by_source", "_per_source_s", "_total_s")

    def __init__(self, total_s: float, per_source_s: float) -> None:
        """Take both rates, in times a second."""
        self._total_s = total_s
        self._per_source_s = per_source_s
        self._all = (float("-inf"), 0.0)  # since when, and how much is left of it
        self._by_source: dict[str, tuple[float, float]] = {}

    def admit(self, source: str, now: float) -> bool:
        """Count once more of ``source`` and return True, or return False, at ``now`` of a clock that only rises."""
        mine = _refilled(self._by_source.pop(source, (float("-inf"), 0.0)), self._per_source_s, now)
        everybody = _refilled(self._all, self._total_s, now)
        admitted = mine >= 1 and everybody >= 1
        if len(self._by_source) >= RATED_SOURCES_MAX:
            del self._by_source[next(iter(self._by_source))]
        self._by_source[source] = (now, mine - admitted)
        self._all = (now, everybody - admitted)
        return admitted


def _refilled(bucket: tuple[float, float], rate_s: float, now: float) -> float:
    since, left = bucket
    return min(left + (now - since) * rate_s, rate_s)


class LineBudget:
    """How many log lines strangers may cause: the first few of each interval; the metrics count the rest."""

    __slots__ = ("_left", "_since")

    def __init__(self) -> None:
        """Start with a full budget."""
        self._since = float("-inf")
        self._left = 0

    def admit(self, now: float) -> bool:
        """Tell whether one more line fits, at ``now`` in seconds of a clock that only rises."""
        if now - self._since >= STRANGERS_LINES_INTERVAL_S:
            self._since = now
            self._left = STRANGERS_LINES_MAX
        self._left -= 1
        return self._left >= 0
