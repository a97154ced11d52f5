"""Which connections of strangers have a place, and who must give way when there are too many.

Strategy: a silent connection costs an attacker nothing, so a hard cap alone would let 256 of them lock everybody out
for as long as a silent one may wait. Past a cap the connection that has waited longest gives way, first among those of
the same source, provided that it had ``GRACE_S`` to speak; a burst of ordinary ones, who speak at once, is admitted
beyond the cap, up to a factor of it (``Bursts``). Who has spoken may be kept: then it still counts, but gives way to
nobody. A source is one address or the /64 of one; who owns a /48 has 65,536 of those, so all of it together is bounded
as well, at ``WIDE_FACTOR`` times one source. All orders are insertion orders of dicts.

Source: docs/decisions/0004, 0014.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from nexus.limits import UNBOUNDED

T = TypeVar("T", bound=Hashable)

GRACE_S: Final = 1.0  # ours: who connects to speak has spoken by then
WIDE_FACTOR: Final = 4  # ours: half of the places, with the defaults of 256 and 32


class Bursts(NamedTuple):
    """How many times its cap all together, and one source, may have while they are younger than GRACE_S."""

    total: int
    source: int


@dataclass(slots=True)
class _Group(Generic[T]):
    """The places of one source, or of all: since when who may give way has waited, oldest first, and the others."""

    waiting: dict[T, float] = field(default_factory=dict)
    kept: int = 0

    def __len__(self) -> int:
        return len(self.waiting) + self.kept


class Places(Generic[T]):
    """The connections that have a place; ``T`` is compared by identity or hash."""

    __slots__ = ("_bursts", "_by_source", "_holders", "_per_source", "_total")

    def __init__(self, total: int, per_source: int, bursts: Bursts) -> None:
        """Take the caps; UNBOUNDED means none."""
        self._total = (total, bursts.total)
        wide = per_source if per_source == UNBOUNDED else per_source * WIDE_FACTOR
        self._per_source = ((per_source, bursts.source), (wide, bursts.source))
        self._holders: dict[T, tuple[str, ...]] = {}
        self._by_source: dict[str, _Group[T]] = {"": _Group()}  # "": all

    def __len__(self) -> int:
        """Return how many places are taken."""
        return len(self._holders)

    def admit(self, holder: T, sources: tuple[str, ...], now: float) -> tuple[bool, T | None]:
        """Give one more a place, if at all; the second value is who lost its own and must be closed.

        ``sources`` are what ``sockets.source_keys`` returns; ``now`` is in seconds of a clock that only rises.
        """
        evicted: T | None = None
        for source, (cap, burst) in (*zip(sources, self._per_source, strict=False), ("", self._total)):
            group = self._by_source.get(source)
            if group is None or cap == UNBOUNDED or len(group) < cap:
                continue
            oldest = next(iter(group.waiting), None)
            if oldest is not None and now - group.waiting[oldest] >= GRACE_S:
                evicted = oldest
                break
            if len(group) >= cap * burst:
                return False, None
        if evicted is not None:
            self.leave(evicted)
        self._holders[holder] = sources
        for source in (*sources, ""):
            self._by_source.setdefault(source, _Group()).waiting[holder] = now
        return True, evicted

    def keep(self, holder: T) -> None:
        """Let who has spoken give way to nobody from now on; idempotent, and nothing to who has no place."""
        for group in self._groups(holder):
            if group.waiting.pop(holder, None) is not None:
                group.kept += 1

    def expose(self, holder: T, now: float) -> None:
        """Let who was kept give way again, as if it had come just now; nothing to all others."""
        for group in self._groups(holder):
            if holder not in group.waiting:
                group.kept -= 1
                group.waiting[holder] = now

    def leave(self, holder: T) -> None:
        """Free the place of who was decided or is gone; idempotent."""
        for group in self._groups(holder):
            if group.waiting.pop(holder, None) is None:
                group.kept -= 1
        for source in self._holders.pop(holder, ()):
            if not self._by_source[source]:
                del self._by_source[source]

    def oldest_first(self) -> tuple[T, ...]:
        """Return a snapshot."""
        return tuple(self._holders)

    def _groups(self, holder: T) -> tuple[_Group[T], ...]:
        sources = self._holders.get(holder)
        return () if sources is None else tuple(self._by_source[source] for source in (*sources, ""))
