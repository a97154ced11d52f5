"""Which routes every worker serves alike: there is no need to pass their clients on.

Strategy: where all workers have backends of the same weight for a route, each one's own are a fair choice, because the
kernel spreads connections evenly over the workers. Else turns are taken over the backends of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Shares:
    """What each worker's backends weigh, by route."""

    def __init__(self, workers: int) -> None:
        """Know of no backend."""
        self._workers = workers
        self._weights: dict[str, Counter[int]] = {}
        self._even: set[str] = set()

    def add(self, worker: int, keys: Iterable[str], weight: int) -> None:
        """Note that a backend of a worker serves these routes, or with a negative weight, that it does no more."""
        for key in keys:
            weights = self._weights.setdefault(key, Counter())
            weights[worker] += weight
            if not weights[worker]:
                del weights[worker]
            if not weights:
                del self._weights[key]
            if len(weights) == self._workers and len(set(weights.values())) == 1:
                self._even.add(key)
            else:
                self._even.discard(key)

    def are_even(self, key: str) -> bool:
        """Tell whether every worker has the same part of a route."""
        return key in self._even
