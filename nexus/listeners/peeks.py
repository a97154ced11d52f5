"""Which connections are being peeked at, and who must give way when there are too many.

Strategy: a silent connection costs an attacker nothing, so a hard cap alone would let 256 of them lock everybody out
for as long as a silent client may wait. Past the cap the connection that has been peeked at longest gives way, first
among those of the same source, provided that it had ``GRACE_S`` to speak; a burst of ordinary clients, who speak at
once, is admitted beyond the cap, up to ``BURST_FACTOR`` times it. Both orders are insertion orders of dicts.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from nexus.limits import UNBOUNDED

T = TypeVar("T", bound=Hashable)


class _Entry(NamedTuple):
    source: str
    since: float


GRACE_S: Final = 1.0  # ours: a client that connects to speak has spoken by then
BURST_FACTOR: Final = 16  # ours: 256 slots admit 4,096 connections that are younger than GRACE_S


class Peeks(Generic[T]):
    """The connections under way, oldest first; ``T`` is compared by identity or hash."""

    __slots__ = ("_all", "_by_source", "_per_source", "_total")

    def __init__(self, total: int, per_source: int) -> None:
        """Take the two caps; UNBOUNDED means none."""
        self._total = total
        self._per_source = per_source
        self._all: dict[T, _Entry] = {}
        self._by_source: dict[str, dict[T, _Entry]] = {}

    def __len__(self) -> int:
        """Return how many connections are being peeked at."""
        return len(self._all)

    def admit(self, peek: T, source: str, now: float) -> tuple[bool, T | None]:
        """Admit one more, if at all; the second value is the connection that must be closed for it."""
        evicted: T | None = None
        for held, cap in ((self._by_source.get(source, {}), self._per_source), (self._all, self._total)):
            if cap == UNBOUNDED or len(held) < cap:
                continue
            oldest, entry = next(iter(held.items()))
            if now - entry.since >= GRACE_S:
                evicted = oldest
                break
            if len(held) >= cap * BURST_FACTOR:
                return False, None
        if evicted is not None:
            self.leave(evicted)
        self._all[peek] = _Entry(source, now)
        self._by_source.setdefault(source, {})[peek] = self._all[peek]
        return True, evicted

    def leave(self, peek: T) -> None:
        """Forget a connection that was decided or is gone; idempotent."""
        entry = self._all.pop(peek, None)
        if entry is None:
            return
        mine = self._by_source[entry.source]
        del mine[peek]
        if not mine:
            del self._by_source[entry.source]

    def oldest_first(self) -> tuple[T, ...]:
        """Return a snapshot."""
        return tuple(self._all)
