"""Who may send how much, and when, under the node's cap.

Strategy: one token bucket for the node and two rings, both served by deficit round robin. The outer ring holds the
*shares* (one a backend) in which somebody waits, the inner ring of each the *members* (one direction of a stream, or of
all UDP flows) that have something to send and could send it. Who has nothing or cannot send is in no ring and costs the
others nothing, so the whole cap is always there for those who want it. Members that do not wait at all are not even
known here: while nobody waits and the bucket holds enough, ``Share.take`` is one comparison and one subtraction.

The round robin is the variant "surplus": a turn goes on while its deficit is positive, so its last piece may overdraw
it, which the next turns pay back. Pieces need not be known beforehand (a datagram is indivisible, a TCP payload is cut
where the quantum ends), and bytes are shared equally whatever the pieces are. Who runs dry in the middle of a turn may
go on with it when there is something again, in the same round or, up to one quantum, in the next one it takes part in:
so small reads are no disadvantage, and to leave and come back brings nothing.

``Scheduler.round`` gives each share one turn and returns, even where the bucket would allow more. A member holds at
most one read of its socket, so a backend with one stream is out of the ring until the event loop has looked at that
socket again; a backend with many streams would take everything meanwhile. The shell lets the loop turn in between.

The clock is the argument ``now``, in seconds. Sources: M. Shreedhar, G. Varghese, "Efficient Fair Queuing using
Deficit Round Robin" (SIGCOMM 1995); for the surplus variant H. Adiseshu, G. Parulkar, G. Varghese, "A Reliable and
Scalable Striping Protocol" (SIGCOMM 1996); spec backend-protocol 14 and W25.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar

from nexus.protocol.constants import DATA_HEADER_BYTES, MESSAGE_MAX_BYTES

BYTES_PER_MEGABIT: Final = 125_000  # totalBandwidthMbps counts 10^6 bits
# What nobody used for so long may still be used. Over any 5 s it adds 1 % to the cap (the promise is 2 %), and a timer
# may be late by nearly as much without a loss.
BURST_S: Final = 0.050
# One turn. 500 pieces a second are nothing for the event loop, and 32 busy backends come round in 64 ms.
QUANTUM_S: Final = 0.002
# The longest datagram unless the operator allows longer ones, so that none overdraws a turn; and the 17 bytes of header
# of each piece weigh less than 1 %. At 1 Mbit/s it takes 17 ms.
QUANTUM_MIN_BYTES: Final = 2_048 + DATA_HEADER_BYTES

Item = TypeVar("Item", bound="Waiter")


class Source(Protocol):
    """Whoever sends for a member; calls never raise."""

    def serve(self, limit: int) -> int:
        """Send a piece of at most ``limit`` bytes, more only where it cannot be cut; return what it costs.

        ``Member.leave`` says that nothing is left, or that nothing can be sent at present. 0 says so too.
        """

    def waiting_bytes(self) -> int:
        """Return how many bytes wait for their turn."""


class Waiter(Protocol):
    """What a ring notes of those in it."""

    deficit: int
    round: int


class Ring(Generic[Item]):
    """Those who wait, each to have one turn in a round.

    Who joins in the middle of a round has a turn in the next. So it makes no difference whether somebody stays in the
    ring between two turns or comes back each time, as a stream does that must be read first.
    """

    __slots__ = ("_later", "due", "round")

    def __init__(self) -> None:
        """Start empty."""
        self.round = 1
        self.due: OrderedDict[Item, None] = OrderedDict()
        self._later: OrderedDict[Item, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self.due) + len(self._later)

    def __contains__(self, item: object) -> bool:
        """Tell whether somebody waits."""
        return item in self.due or item in self._later

    def __iter__(self) -> Iterator[Item]:
        """Iterate over those who wait."""
        return chain(self.due, self._later)

    def join(self, item: Item) -> None:
        """Let somebody wait who does not: before all others where its turn in this round is not over."""
        if item.deficit > 0 and item.round == self.round:
            self.due[item] = None
            self.due.move_to_end(item, last=False)
        else:
            self._later[item] = None

    def leave(self, item: Item) -> None:
        """Take somebody out who waits."""
        if item in self.due:
            del self.due[item]
        else:
            del self._later[item]

    def begin(self) -> None:
        """Begin a round with everybody."""
        self.round += 1
        self.due.update(self._later)
        self._later.clear()

    def open_turn(self, quantum: int) -> Item:
        """Return whose turn it is, with a quantum to spend besides what the last turn left or owes."""
        item = next(iter(self.due))
        if item.round != self.round:
            item.round = self.round
            item.deficit = min(item.deficit, quantum) + quantum
        return item

    def close_turn(self, item: Item) -> None:
        """Note that a turn is over, of somebody who may have left meanwhile."""
        if item in self.due:
            del self.due[item]
            self._later[item] = None


class Member:
    """A source's place in the ring of its share, for as long as the source exists."""

    __slots__ = ("_share", "deficit", "round", "source")

    def __init__(self, share: Share, source: Source) -> None:
        """Stay outside the ring until ``join``."""
        self._share = share
        self.source = source
        self.deficit = 0
        self.round = 0

    @property
    def waits(self) -> bool:
        """Whether it waits for a turn."""
        return self in self._share.members

    def join(self) -> None:
        """Wait for a turn; idempotent."""
        self._share.admit(self)

    def leave(self) -> None:
        """Give up waiting; idempotent."""
        self._share.dismiss(self)


class Share:
    """One backend's part of the cap; it is worth as much as every other share in which somebody waits."""

    __slots__ = ("_scheduler", "deficit", "members", "round")

    def __init__(self, scheduler: Scheduler) -> None:
        """Use ``Scheduler.share``."""
        self._scheduler = scheduler
        self.members: Ring[Member] = Ring()
        self.deficit = 0
        self.round = 0

    def take(self, cost: int, now: float) -> bool:
        """Pay for ``cost`` bytes that are to be sent at once; False means that they must wait as a member."""
        return self._scheduler.take(cost, now)

    def admit(self, member: Member) -> None:
        """Let a member wait; idempotent."""
        if member not in self.members:
            self.members.join(member)
            if len(self.members) == 1:
                self._scheduler.admit(self)

    def dismiss(self, member: Member) -> None:
        """Take a member out; idempotent."""
        if member in self.members:
            self.members.leave(member)
            if not self.members:
                self._scheduler.dismiss(self)

    def turn(self, quantum: int) -> None:
        """Serve members round robin until this share's turn is spent or nobody waits."""
        members = self.members
        while self.deficit > 0 and members:
            if not members.due:
                members.begin()
            member = members.open_turn(quantum)
            if member.deficit > 0:
                self._serve(member, quantum)
            if member.deficit <= 0:
                members.close_turn(member)

    def _serve(self, member: Member, limit: int) -> None:
        # Paid beforehand, here and by the scheduler: what is sent may let this member leave and join again.
        self.deficit -= limit
        member.deficit -= limit
        spent = self._scheduler.serve(member.source, limit)
        self.deficit += limit - spent
        member.deficit += limit - spent
        if not spent:
            self.dismiss(member)


class Scheduler:
    """The cap: a token bucket and the ring of shares."""

    __slots__ = (
        "_filled_at",
        "_on_waiting",
        "_round_over",
        "_shares",
        "_tokens",
        "burst",
        "bytes_per_second",
        "charged_bytes",
        "quantum",
    )

    def __init__(self, bytes_per_second: int, on_waiting: Callable[[], None]) -> None:
        """Allow so many bytes a second; ``on_waiting`` is called when somebody has to wait and nobody did before."""
        self.bytes_per_second = bytes_per_second
        self.quantum = min(max(int(bytes_per_second * QUANTUM_S), QUANTUM_MIN_BYTES), MESSAGE_MAX_BYTES)
        self.burst = bytes_per_second * BURST_S
        self.charged_bytes = 0
        self._tokens = 0.0
        self._filled_at = -math.inf  # full at the first look
        self._shares: Ring[Share] = Ring()
        self._round_over = True
        self._on_waiting = on_waiting

    def share(self) -> Share:
        """Return a new backend's share; it ends with its last member, nobody need be told."""
        return Share(self)

    def take(self, cost: int, now: float) -> bool:
        """Pay for ``cost`` bytes where nobody waits and the bucket holds them."""
        if self._shares:
            return False
        if cost > self._tokens:
            self._fill(now)
            if cost > self._tokens:
                return False
        self._tokens -= cost
        self.charged_bytes += cost
        return True

    def round(self, now: float) -> None:
        """Give each share that waits one turn, or go on with such a round, as far as the bucket allows.

        Then ask ``next_at``.
        """
        self._fill(now)
        shares = self._shares
        if self._round_over or not shares.due:
            shares.begin()
        while shares.due and self._tokens >= self.quantum:
            share = shares.open_turn(self.quantum)
            share.turn(self.quantum)
            shares.close_turn(share)
        self._round_over = not shares.due

    def next_at(self, now: float) -> float | None:
        """Return when ``round`` has something to do, ``now`` if it has already, None while nobody waits."""
        if not self._shares:
            return None
        self._fill(now)
        return now + max(0.0, (self.quantum - self._tokens) / self.bytes_per_second)

    def waiting_bytes(self) -> int:
        """Return how many bytes wait for their turn."""
        return sum(member.source.waiting_bytes() for share in self._shares for member in share.members)

    @property
    def waiting_shares(self) -> int:
        """How many shares somebody waits in."""
        return len(self._shares)

    # -- For shares -------------------------------------------------------------------------------------------------

    def admit(self, share: Share) -> None:
        """Let a share wait."""
        self._shares.join(share)
        if len(self._shares) == 1:
            self._on_waiting()

    def dismiss(self, share: Share) -> None:
        """Take a share out."""
        self._shares.leave(share)

    def serve(self, source: Source, limit: int) -> int:
        """Let a source send, and charge what it cost."""
        self._tokens -= limit
        spent = source.serve(limit)
        self._tokens += limit - spent
        self.charged_bytes += spent
        return spent

    def _fill(self, now: float) -> None:
        self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.bytes_per_second)
        self._filled_at = now
