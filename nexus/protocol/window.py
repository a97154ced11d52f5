"""Credits: who may send how many data messages on one stream.

Strategy: one ``SendWindow`` and one ``ReceiveWindow`` a stream and side. The unit is one data message of any size. A
side that was never granted credits does not know whether its peer is an older program without credits or only has not
answered yet; it may have ``UNCREDITED_MAX`` messages under way that no pong has confirmed (a pong proves that the
peer's reader has taken everything sent before the ping). The first grant counts what such a sender sent before it: it
may all still wait in the peer's queue, which is as long as the grant. ``pause_stream`` stops the sender whatever its
credits, any ``resume_stream`` lets it go on.
"""

from __future__ import annotations

from typing import Final

from nexus.protocol.constants import CREDITS_BATCH, CREDITS_MAX, UNCREDITED_MAX

# Ours: a window that took so many round trips to leave stands in queues, which others wait behind. Half of it would
# still fill the path four times over. What took longer than the time is of a sender that has little to send.
SHRINK_ROUND_TRIPS: Final = 8
SHRINK_WITHIN_S: Final = 1.0
# With 16 messages a lone upload lost a fifth of its speed: its sender waits for every grant.
SHRINK_MIN: Final = 32


class SendWindow:
    """How many messages this side may still send.

    ``limited`` turns true with the first grant. ``paced`` is set where an unlimited sender must wait for pongs.
    """

    __slots__ = ("_confirmed", "available", "limited", "paced", "paused")

    def __init__(self, granted: int = 0, *, paced: bool) -> None:
        """Start with ``granted`` credits; 0 or less means that the other side does not (yet) speak of credits."""
        self.limited = granted > 0
        self.paced = paced
        self.paused = False
        self._confirmed = 0
        self.available = min(granted, CREDITS_MAX) if self.limited else UNCREDITED_MAX

    def can_send(self) -> bool:
        """Tell whether one more message may be sent now."""
        return not self.paused and (self.available > 0 or not (self.limited or self.paced))

    def take(self) -> None:
        """Account one message; call only after ``can_send``."""
        if self.limited or self.paced:
            self.available -= 1

    def grant(self, count: int) -> None:
        """Add a grant; the first one turns pacing into counting, less what a paced sender sent before.

        It always leaves room for UNCREDITED_MAX messages (or for all it grants), so that a peer that counts from its
        first grant on cannot deadlock with this side.
        """
        if count <= 0:
            return
        count = min(count, CREDITS_MAX)
        if self.limited:
            self.available = min(self.available + count, CREDITS_MAX)
            return
        sent = self._confirmed + UNCREDITED_MAX - self.available
        self.available = max(count - sent, min(count, UNCREDITED_MAX))
        self.limited = True

    def confirm(self) -> bool:
        """Note a pong; return whether it makes room for a sender that was out of it."""
        if self.limited or not self.paced:
            return False
        had_room = self.available > 0
        self._confirmed += UNCREDITED_MAX - self.available
        self.available = UNCREDITED_MAX
        return not had_room


class ReceiveWindow:
    """How many messages the other side may still send, and when to grant more.

    ``held`` counts messages taken from the wire for which no new credit was granted yet. The window starts at ``size``
    and grows with the need: a sender that uses it up within a round trip is held back by it, and not by its own pace.
    One that takes many round trips to leave shrinks again: what it adds is not speed but a queue. ``first`` is the part
    of its size that it started with, ``excess`` the part that is still to be taken off.
    """

    __slots__ = ("_left", "_since", "_turned", "_turned_at", "batch", "excess", "first", "held", "size")

    def __init__(self, size: int) -> None:
        """Start with ``size`` messages granted; a grant follows for every ``CREDITS_BATCH`` messages that left."""
        self.first = size
        self.size = size
        self.batch = min(CREDITS_BATCH, size)
        self.held = 0
        self.excess = 0
        self._left = 0
        self._since = 0.0
        self._turned = 0
        self._turned_at = 0.0

    def receive(self) -> None:
        """Account one message from the wire."""
        self.held += 1

    def release(self, kept: int = 0) -> int:
        """Return the grant that is due now that all but ``kept`` messages have left, 0 while it is below a batch."""
        count = self.held - kept
        if count < self.batch:
            return 0
        self.held = kept
        return count

    def is_short(self, released: int, now: float, round_trip_s: float) -> bool:
        """Note that ``released`` messages left; tell whether a whole window left within two round trips.

        Two, because the counting starts anywhere between the grants of one round trip.
        """
        if now - self._since > 2 * round_trip_s:
            self._since = now
            self._left = 0
        self._left += released
        return self._left >= self.size

    def is_long(self, released: int, now: float, round_trip_s: float) -> bool:
        """Note that ``released`` messages left; tell whether a whole window has left, and took many round trips."""
        self._turned += released
        if self._turned < self.size:
            return False
        took_s = now - self._turned_at
        self._turned = 0
        self._turned_at = now
        return SHRINK_ROUND_TRIPS * round_trip_s < took_s < SHRINK_WITHIN_S

    def shrink(self, count: int) -> tuple[int, int]:
        """Take ``count`` messages of the excess off; the caller grants nothing for so many that have left.

        Returns how many of them had been grown, and how many are of the first ones.
        """
        grown = min(count, self.size - self.first)
        self.excess -= count
        self.size -= count
        self.first -= count - grown
        return grown, count - grown

    def grow(self, count: int) -> None:
        """Enlarge the window; the caller grants ``count`` besides, and measures anew."""
        self.size += count
        self.excess = 0
        self._left = 0
