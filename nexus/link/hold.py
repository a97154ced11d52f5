"""What a link that is not read owes: to the other side signs of life, to this side the time since when it was read.

Strategy: a held link answers no pings, and an original backend before v0.3.7 leaves after 10 s without a message or a
pong (spec backend-protocol 1.2). So every ``SIGN_OF_LIFE_S`` an empty pong goes out that answers no ping (RFC 6455
section 5.5.3); ours takes an empty one neither for acceptance nor for an answer. The beat does not begin anew with each
hold: where short holds follow each other, the pings are still far behind in what is read between them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

SIGN_OF_LIFE_S: Final = 3.0  # ours: three within the 10 s after which an original backend leaves


class Hold:
    """Whether a link is held at present (``on``), and until when it was."""

    __slots__ = ("_beat", "_lately", "_loop", "_released_at", "_timer", "on")

    def __init__(self, beat: Callable[[], bool]) -> None:
        """Start released; ``beat`` gives a sign of life, or returns False where the link is past it."""
        self.on = False
        self._beat = beat
        self._lately = False  # since the last beat
        self._released_at = -math.inf
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Note that nothing is read from now on."""
        self.on = self._lately = True
        if self._timer is None:
            self._timer = self._loop.call_later(SIGN_OF_LIFE_S, self._tick)

    def end(self) -> None:
        """Note that the link is read again."""
        self.on = False
        self._released_at = self._loop.time()

    def stop(self) -> None:
        """Give no more signs: the link is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def until(self, now: float) -> float:
        """Return the last moment at which the link was held, ``now`` if it is, minus infinity if it never was."""
        return now if self.on else self._released_at

    def _tick(self) -> None:
        self._timer = None
        if self._lately and self._beat():
            self._lately = self.on
            self._timer = self._loop.call_later(SIGN_OF_LIFE_S, self._tick)
