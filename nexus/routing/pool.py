"""The members that share one route key, and whose turn it is.

Strategy: the weighted round robin of the original, step by step, so that a mixed fleet spreads load alike. Members
stand in a ring; a level (``cw`` in the spec) sinks by the greatest common divisor of all weights each time the ring
begins anew, and springs back to the largest weight when it reaches zero. A member is picked when its weight reaches
the level. Over one full cycle every member is thus picked ``weight / gcd`` times, the heavy ones interleaved.

Two things are ours. When a heavy member leaves, the level may stand far above every weight that is left, and the
plain algorithm would walk the ring once for each step down: with a claimed weight of 2^62, for ever. We take those
empty rounds in one subtraction, which picks the same member. And ``select`` takes members to leave out, so that a
connection whose backend could not be reached is offered to another one; such a second choice is the next in the ring
and does not move the turn, because it says nothing about how load should be shared.

Source: spec backend-protocol 13.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from math import gcd
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[M]):
    member: M
    weight: int


class Pool(Generic[M]):
    """A ring of weighted members; every member is in it at most once.

    Not thread-safe. Members are compared with ``==``. ``select`` costs at most two walks around the ring, whatever
    the weights.
    """

    __slots__ = ("_entries", "_gcd", "_index", "_level", "_max")

    def __init__(self) -> None:
        """Start empty."""
        self._entries: list[_Entry[M]] = []
        self._index = -1
        self._level = 0
        self._gcd = 0
        self._max = 0

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._entries)

    def join(self, member: M, weight: int = 1) -> None:
        """Append ``member``; one that is in the pool already only changes its weight.

        Raises ValueError for a weight below 1.
        """
        if weight < 1:
            raise ValueError(f"weight must be at least 1, not {weight}")
        position = self._position(member)
        if position is None:
            self._entries.append(_Entry(member, weight))
        else:
            self._entries[position] = _Entry(member, weight)
        self._weigh()

    def leave(self, member: M) -> None:
        """Remove ``member``, the last one taking its place in the ring; one that is not in the pool is ignored."""
        position = self._position(member)
        if position is None:
            return
        last = self._entries.pop()
        if position < len(self._entries):
            self._entries[position] = last
        self._weigh()

    def select(self, exclude: Container[M] = ()) -> M | None:
        """Return the member whose turn it is, or None when the pool holds none outside ``exclude``.

        Each call takes one turn. If the turn falls on an excluded member, the next one in the ring stands in.
        """
        if not self._entries:
            return None
        position = self._turn()
        member = self._entries[position].member
        if member not in exclude:
            return member
        return next((other for other in self._ring_from(position) if other not in exclude), None)

    def members(self) -> tuple[M, ...]:
        """Return all members in ring order, without taking a turn."""
        return tuple(entry.member for entry in self._entries)

    def _position(self, member: M) -> int | None:
        return next((i for i, entry in enumerate(self._entries) if entry.member == member), None)

    def _weigh(self) -> None:
        weights = [entry.weight for entry in self._entries]
        self._gcd = gcd(*weights)
        self._max = max(weights, default=0)

    def _ring_from(self, position: int) -> list[M]:
        ring = self._entries[position:] + self._entries[:position]
        return [entry.member for entry in ring]

    def _turn(self) -> int:
        """Advance to the next member at or above the level and return its position."""
        if len(self._entries) == 1:  # spec: a pool of one does not move its state
            return 0
        while True:
            self._index = (self._index + 1) % len(self._entries)
            if self._index == 0:
                self._sink()
            if self._entries[self._index].weight >= self._level:
                return self._index

    def _sink(self) -> None:
        self._level -= self._gcd
        if self._level <= 0:
            self._level = self._max
        elif self._level > self._max:
            # Rounds in which nobody reaches the level pick nobody: take them all at once (ceiling division).
            self._level -= -((self._max - self._level) // self._gcd) * self._gcd
