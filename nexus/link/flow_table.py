"""UDP flows: found by a key (at a public port the client's address), bounded in number, ended when idle.

Strategy: one ordered dict from key to flow, the least recently seen first. A datagram in either direction moves
its flow to the end, so the one to evict and those to expire always stand at the front, and no timer exists per flow.
The idle time is one for the whole table, which is what keeps that order also the order of expiry.

Source: spec backend-protocol 10; weak point W26 (there only the client's datagrams counted).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class HasLastSeen(Protocol):
    """What the table writes: the time of the last datagram, in seconds of a clock that only rises."""

    last_seen: float


K = TypeVar("K", bound=Hashable)
F = TypeVar("F", bound=HasLastSeen)


class FlowTable(Generic[K, F]):
    """Flows by key; at most ``flows_max`` of them."""

    __slots__ = ("_flows", "_flows_max")

    def __init__(self, flows_max: int) -> None:
        """Start empty; ``flows_max`` is at least 1."""
        self._flows: OrderedDict[K, F] = OrderedDict()
        self._flows_max = flows_max

    def __len__(self) -> int:
        """Return how many flows there are."""
        return len(self._flows)

    def __iter__(self) -> Iterator[F]:
        """Iterate over a snapshot, least recently seen first."""
        return iter(tuple(self._flows.values()))

    def seen(self, key: K, now: float) -> F | None:
        """Return the flow of a key that moved right now, or None."""
        flow = self._flows.get(key)
        if flow is not None:
            flow.last_seen = now
            self._flows.move_to_end(key)
        return flow

    def add(self, key: K, flow: F, now: float) -> F | None:
        """Add the flow of a key that has none; return the flow that was evicted for it, if the table was full."""
        evicted = self._flows.popitem(last=False)[1] if len(self._flows) >= self._flows_max else None
        flow.last_seen = now
        self._flows[key] = flow
        return evicted

    def remove(self, key: K, flow: F) -> None:
        """Forget a flow; one that is not in the table (any more) is ignored."""
        if self._flows.get(key) is flow:
            del self._flows[key]

    def expired(self, now: float, idle_s: float) -> F | None:
        """Return the flow that has been idle longest if that is ``idle_s`` or more, else None; it stays."""
        flow = next(iter(self._flows.values()), None)
        return flow if flow is not None and now - flow.last_seen >= idle_s else None
