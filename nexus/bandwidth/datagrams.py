"""Datagrams under the cap: sent at once, kept for their turn, or refused.

Strategy: a flow that has to wait gets a queue of its own, a member of its backend's share; it exists only while
something waits in it. So flows share what their backend gets as streams do, and one that floods fills its own queue
and loses its own datagrams. A datagram is indivisible: where it is longer than a turn, the turns after pay for it.

The bounds are in bytes as they are charged, a flow's and a backend's; so empty datagrams are bounded, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from nexus.bandwidth.scheduler import Member, Share
from nexus.protocol.constants import DATA_HEADER_BYTES
from nexus.protocol.framing import Buffer

# About ten full datagrams: enough for the answers to one burst; older ones are better lost (RFC 8085 section 3.1.2
# leaves the loss to the application).
FLOW_MAX_BYTES: Final = 16 * 1024
# 64 flows with full queues.
SHARE_MAX_BYTES: Final = 1024 * 1024

Send = Callable[[Buffer], None]


class DatagramQueues:
    """The waiting datagrams of one backend, by flow; a key is one direction of a flow."""

    def __init__(self, share: Share) -> None:
        """Queue for ``share``."""
        self._share = share
        self._flows: dict[Hashable, _Flow] = {}
        self.waiting = 0

    def offer(self, flow: Hashable, datagram: Buffer, send: Send, now: float) -> bool:
        """Send a datagram of a flow by ``send``, at once or in its turn; False means that it is dropped.

        The order within a flow is kept. The caller counts what was dropped, and changes nothing in what is kept.
        """
        queue = self._flows.get(flow)
        cost = len(datagram) + DATA_HEADER_BYTES
        if queue is None and self._share.take(cost, now):
            send(datagram)
            return True
        if self.waiting + cost > SHARE_MAX_BYTES or (queue is not None and queue.waiting + cost > FLOW_MAX_BYTES):
            return False
        if queue is None:
            queue = self._flows[flow] = _Flow(self, self._share, flow)
        queue.add(datagram, send)
        return True

    def forget(self, flow: Hashable) -> None:
        """Drop what waits for a flow that ended; idempotent."""
        queue = self._flows.get(flow)
        if queue is not None:
            queue.drop()

    def remove(self, flow: Hashable) -> None:
        """For the flow's queue: it is empty."""
        del self._flows[flow]

    def __len__(self) -> int:
        """Return how many flows have something waiting."""
        return len(self._flows)


class _Flow:
    """The queue of one flow, never empty between two calls."""

    __slots__ = ("_items", "_key", "_member", "_owner", "waiting")

    def __init__(self, owner: DatagramQueues, share: Share, key: Hashable) -> None:
        self._owner = owner
        self._key = key
        self._member = Member(share, self)
        self._items: deque[tuple[Buffer, Send]] = deque()
        self.waiting = 0

    def add(self, datagram: Buffer, send: Send) -> None:
        self._items.append((datagram, send))
        self._account(len(datagram) + DATA_HEADER_BYTES)
        self._member.join()

    def drop(self) -> None:
        self._items.clear()
        self._account(-self.waiting)
        self._end()

    def serve(self, limit: int) -> int:
        """Send one datagram, whole."""
        del limit
        datagram, send = self._items.popleft()
        cost = len(datagram) + DATA_HEADER_BYTES
        self._account(-cost)
        if not self._items:
            self._end()
        send(datagram)
        return cost

    def waiting_bytes(self) -> int:
        return self.waiting

    def _account(self, cost: int) -> None:
        self.waiting += cost
        self._owner.waiting += cost

    def _end(self) -> None:
        self._member.leave()
        self._owner.remove(self._key)
