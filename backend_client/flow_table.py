"""Which UDP flows have a descriptor, and who must give way when there are too many.

Strategy: a flow costs a stranger one datagram under an address that need not be its own, and a backend client one
descriptor, as a TCP stream does. So flows may have half of what the process may have; past that the least recently used
gives way, in constant time. A flow that speaks again is announced anew by the hub.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

FLOWS_PART: Final = 2  # ours: every second descriptor is left to streams, sessions and files


class FlowTable(Generic[T]):
    """The flows of a process, least recently used first; ``T`` is compared by identity or hash."""

    __slots__ = ("_flows", "displaced", "limit")

    def __init__(self, descriptors: int) -> None:
        """Take how many descriptors the process may have."""
        self.limit = max(1, descriptors // FLOWS_PART)
        self.displaced = 0
        self._flows: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many flows there are."""
        return len(self._flows)

    def add(self, flow: T) -> T | None:
        """Take a flow in; return the one that must be closed for it, which is forgotten already."""
        gone: T | None = None
        if len(self._flows) >= self.limit:
            gone, _ = self._flows.popitem(last=False)
            self.displaced += 1
        self._flows[flow] = None
        return gone

    def used(self, flow: T) -> None:
        """Note that a datagram of a flow passed, in either direction; nothing to one that has ended."""
        if flow in self._flows:
            self._flows.move_to_end(flow)

    def remove(self, flow: T) -> None:
        """Forget a flow that has ended; idempotent."""
        self._flows.pop(flow, None)
