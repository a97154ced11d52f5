"""Datagrams under the cap: sent at once, kept for their turn, or refused.

Strategy: what has to wait of a backend's datagrams in one direction is together one member of its share, worth as much
as one direction of one stream: whoever opens flows by the thousand starves no stream. Inside, a flow that has to wait
gets a queue of its own, for as long as something waits in it, and the queues take turns as members do (deficit round
robin, in bytes). So one flow that floods fills its own queue and loses its own datagrams. A datagram is indivisible:
where it is longer than a turn, the turns after pay for it.

The bounds are in bytes as they are charged, a flow's and a direction's; so empty datagrams are bounded, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from nexus.bandwidth.scheduler import QUANTUM_MIN_BYTES, Member, Ring, Share
from nexus.protocol.constants import DATA_HEADER_BYTES
from nexus.protocol.framing import Buffer

# About ten full datagrams: enough for the answers to one burst; older ones are better lost (RFC 8085 section 3.1.2
# leaves the loss to the application).
FLOW_MAX_BYTES: Final = 16 * 1024
# 32 flows with full queues; both directions of a backend together keep at most 1 MiB.
DIRECTION_MAX_BYTES: Final = 512 * 1024

Send = Callable[[Buffer], None]


class DatagramQueues:
    """The waiting datagrams of one direction of one backend, by flow; a ``Source``."""

    def __init__(self, share: Share) -> None:
        """Queue for ``share``."""
        self._share = share
        self._member = Member(share, self)
        self._flows: dict[Hashable, _Flow] = {}
        self._turns: Ring[_Flow] = Ring()
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
        if self.waiting + cost > DIRECTION_MAX_BYTES or (queue is not None and queue.waiting + cost > FLOW_MAX_BYTES):
            return False
        if queue is None:
            queue = self._flows[flow] = _Flow(flow)
            self._turns.join(queue)
        queue.items.append((datagram, send))
        queue.waiting += cost
        self.waiting += cost
        self._member.join()
        return True

    def forget(self, flow: Hashable) -> int:
        """Drop what waits for a flow that ended, and return how many datagrams; idempotent."""
        queue = self._flows.get(flow)
        if queue is None:
            return 0
        self.waiting -= queue.waiting
        self._end(queue)
        return len(queue.items)

    def __len__(self) -> int:
        """Return how many flows have something waiting."""
        return len(self._flows)

    # -- Source -----------------------------------------------------------------------------------------------------

    def serve(self, limit: int) -> int:
        """Send one datagram, whole, of the flow whose turn it is."""
        del limit
        flow = self._open_turn()
        datagram, send = flow.items.popleft()
        cost = len(datagram) + DATA_HEADER_BYTES
        flow.deficit -= cost
        flow.waiting -= cost
        self.waiting -= cost
        if not flow.items:
            self._end(flow)
        elif flow.deficit <= 0:
            self._turns.close_turn(flow)
        send(datagram)
        return cost

    def waiting_bytes(self) -> int:
        """Return how many bytes wait, as they are charged."""
        return self.waiting

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _open_turn(self) -> _Flow:
        turns = self._turns
        while True:
            if not turns.due:
                turns.begin()
            flow = turns.open_turn(QUANTUM_MIN_BYTES)
            if flow.deficit > 0:
                return flow
            turns.close_turn(flow)

    def _end(self, flow: _Flow) -> None:
        del self._flows[flow.key]
        self._turns.leave(flow)
        if not self._flows:
            self._member.leave()


class _Flow:
    """The queue of one flow, never empty between two calls; a ``Waiter``."""

    __slots__ = ("deficit", "items", "key", "round", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.items: deque[tuple[Buffer, Send]] = deque()
        self.waiting = 0
        self.deficit = 0
        self.round = 0
