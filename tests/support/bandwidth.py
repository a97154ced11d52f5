"""A node under a cap on a clock of its own: streams, flows and timers as the scheduler meets them, without sockets.

Everything happens in steps of an event loop: a turn takes ``turn_s``, a timer fires in whole milliseconds and as late
as ``late`` says, a socket is read one turn after it was asked to, and what is sent is noted with its time.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, count

from nexus.bandwidth.datagrams import DatagramQueues
from nexus.bandwidth.lane import Lane
from nexus.bandwidth.scheduler import BYTES_PER_MEGABIT, Scheduler, Share
from nexus.protocol.constants import CREDITS_INITIAL, DATA_HEADER_BYTES, PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer

WINDOW_S = 5.0  # the promise is made for any window of so many seconds
SOCKET_BYTES = 1 << 20  # what a kernel keeps of a fast upload before it pushes back
SEGMENT_BYTES = 1_448


@dataclass
class Sent:
    """What left, in order: times and costs."""

    times: list[float] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Everything that left."""
        return sum(self.costs)

    def note(self, now: float, cost: int) -> None:
        """Add one piece."""
        self.times.append(now)
        self.costs.append(cost)

    def windows(self, until: float, size_s: float = WINDOW_S) -> tuple[int, int]:
        """Return the least and the most that left in any ``size_s`` between 0 and ``until``."""
        sums = [0, *accumulate(self.costs)]

        def within(start: float, end: float) -> int:
            return sums[bisect_right(self.times, end)] - sums[bisect_right(self.times, start)]

        # A window that starts with a piece holds the most; one that starts right behind it and ends right before
        # another holds the least.
        starts = [at for at in self.times if at + size_s <= until] or [0.0]
        most = max(within(math.nextafter(at, -1), at + size_s) for at in starts)
        least = min(within(at, math.nextafter(at + size_s, -1)) for at in starts)
        return least, most


class World:
    """One node; ``late`` returns by how much the next timer is late."""

    def __init__(self, megabits: int, late: Callable[[], float] = lambda: 0.0, turn_s: float = 50e-6) -> None:
        self.now = 0.0
        self.turn_s = turn_s
        self.sent = Sent()
        self.scheduler = Scheduler(megabits * BYTES_PER_MEGABIT, self._arm)
        self.rate = self.scheduler.bytes_per_second
        self._late = late
        self._armed = False
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call later."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), call))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self.now = until

    def backend(self) -> Backend:
        """Return a new backend."""
        return Backend(self)

    def _arm(self) -> None:
        """As ``nexus.bandwidth.limiter`` does."""
        at = self.scheduler.next_at(self.now)
        if self._armed or at is None:
            return
        self._armed = True
        wait_s = math.ceil((at - self.now) * 1000) / 1000 + self._late() if at > self.now else 2 * self.turn_s
        self.after(wait_s, self._serve)

    def _serve(self) -> None:
        self.scheduler.round(self.now)
        self._armed = False
        self._arm()


class Backend:
    """One backend with what its clients and itself want to send."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.share: Share = world.scheduler.share()
        self.datagrams = DatagramQueues(self.share)
        self.sent = Sent()

    def note(self, cost: int) -> None:
        """Account a piece that left."""
        self.sent.note(self.world.now, cost)
        self.world.sent.note(self.world.now, cost)

    def upload(self, bytes_per_second: float = math.inf) -> Upload:
        """Start a client that sends so much, or as much as it may."""
        return Upload(self, bytes_per_second)

    def download(self, size: int = PAYLOAD_MAX_BYTES, *, round_trip_s: float = 0.02) -> Download:
        """Start a backend's answer in messages of ``size``, a window of them at once."""
        return Download(self, size, round_trip_s)


class Upload:
    """A client that sends: what arrived in the kernel is read a turn after the last read has left."""

    def __init__(self, backend: Backend, bytes_per_second: float) -> None:
        self._backend = backend
        self._rate = bytes_per_second
        self._arrived = 0.0
        self._looked_at = backend.world.now
        self.sent = Sent()
        self.lane = Lane(backend.share, self._deliver, self._left, pieces_are_messages=True)
        self._look_again()

    def _deliver(self, payload: Buffer) -> None:
        cost = len(payload) + DATA_HEADER_BYTES
        self.sent.note(self._backend.world.now, cost)
        self._backend.note(cost)

    def _look_again(self) -> None:
        segment_s = max(0.0, SEGMENT_BYTES - self._arrived) / self._rate
        self._backend.world.after(max(self._backend.world.turn_s, segment_s), self._read)

    def _read(self) -> None:
        now = self._backend.world.now
        self._arrived = min(SOCKET_BYTES, self._arrived + self._rate * (now - self._looked_at))
        self._looked_at = now
        size = min(PAYLOAD_MAX_BYTES, int(self._arrived))
        self._arrived -= size
        if self.lane.offer(bytes(size), now):
            self._look_again()

    def _left(self) -> None:
        if not self.lane.messages:
            self._look_again()


class Download:
    """A backend that sends: each message that left brings another after a round trip, a window's worth at most."""

    def __init__(self, backend: Backend, size: int, round_trip_s: float) -> None:
        self._backend = backend
        self._message = bytes(size)
        self._round_trip_s = round_trip_s
        self._kept = 0
        self._at = 0
        self.sent = Sent()
        self.lane = Lane(backend.share, self._deliver, self._left, pieces_are_messages=False)
        for _ in range(CREDITS_INITIAL):
            backend.world.after(round_trip_s, self._receive)

    def _deliver(self, payload: Buffer) -> None:
        cost = len(payload) + (0 if self._at else DATA_HEADER_BYTES)
        self._at = (self._at + len(payload)) % len(self._message)
        self.sent.note(self._backend.world.now, cost)
        self._backend.note(cost)

    def _receive(self) -> None:
        world = self._backend.world
        if self.lane.offer(self._message, world.now):
            world.after(self._round_trip_s, self._receive)
        self._kept = self.lane.messages

    def _left(self) -> None:
        if self.lane.messages < self._kept:
            self._backend.world.after(self._round_trip_s, self._receive)
        self._kept = self.lane.messages
