"""One direction of a stream under the cap: what it accepted and may not send yet, in order.

Strategy: a lane is open while its far side takes bytes. An open, empty lane passes bytes straight on where the cap
allows; otherwise they wait here, and while the lane is open it is a member of its backend's share. A turn sends one
piece, cut where the turn's limit ends. Nothing is ever refused: who fills a lane is slowed down by its owner, which is
told of every piece that leaves.

Costs are those of the wire: each data message its payload and ``DATA_HEADER_BYTES``. Towards the backend each piece
becomes a message of its own, towards the client all pieces of a message are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nexus.bandwidth.scheduler import Member, Share
from nexus.protocol.constants import DATA_HEADER_BYTES, PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer


def cost_of(size: int) -> int:
    """Return the cost of ``size`` bytes in as few messages as they fit."""
    return size + DATA_HEADER_BYTES * -(-size // PAYLOAD_MAX_BYTES)


class Lane:
    """The queue of one direction; ``sent`` is called behind each piece that waited and left.

    ``pieces_are_messages`` says that the far side makes a message of each piece.
    """

    __slots__ = (
        "_begun",
        "_deliver",
        "_items",
        "_member",
        "_open",
        "_pieces_are_messages",
        "_sent",
        "_share",
        "waiting",
    )

    def __init__(
        self,
        share: Share,
        deliver: Callable[[Buffer], None],
        sent: Callable[[], None],
        *,
        pieces_are_messages: bool,
    ) -> None:
        """Start open and empty."""
        self._share = share
        self._member = Member(share, self)
        self._deliver = deliver
        self._sent = sent
        self._pieces_are_messages = pieces_are_messages
        self._items: deque[memoryview] = deque()
        self._begun = False  # a part of the first item has left
        self._open = True
        self.waiting = 0

    @property
    def messages(self) -> int:
        """How many accepted items have not left in full."""
        return len(self._items)

    @property
    def is_held_up(self) -> bool:
        """Whether bytes wait for the cap, and for nothing else."""
        return self._member.waits

    def offer(self, payload: Buffer, now: float) -> bool:
        """Accept bytes; return whether they left at once."""
        # Where something waits here already, it waits in the ring, and ``take`` lets nothing pass.
        if self._open and self._share.take(cost_of(len(payload)), now):
            self._deliver(payload)
            return True
        self._items.append(memoryview(payload))
        self.waiting += len(payload)
        if self._open:
            self._member.join()
        return False

    def set_open(self, is_open: bool) -> None:
        """Note whether the far side takes bytes; idempotent."""
        self._open = is_open
        if not is_open:
            self._member.leave()
        elif self._items:
            self._member.join()

    def clear(self) -> None:
        """Drop what waits."""
        self._items.clear()
        self.waiting = 0
        self._begun = False
        self._member.leave()

    # -- Source -----------------------------------------------------------------------------------------------------

    def serve(self, limit: int) -> int:
        """Send one piece."""
        item = self._items[0]
        header = DATA_HEADER_BYTES if self._pieces_are_messages or not self._begun else 0
        piece = item[: min(limit - header, PAYLOAD_MAX_BYTES)]
        if len(piece) < len(item):
            self._items[0] = item[len(piece) :]
            self._begun = True
        else:
            self._items.popleft()
            self._begun = False
        self.waiting -= len(piece)
        if not self._items:
            self._member.leave()
        self._deliver(piece)
        self._sent()
        return len(piece) + header

    def waiting_bytes(self) -> int:
        """Return how many bytes wait."""
        return self.waiting
