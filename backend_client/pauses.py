"""The hub's pauses: each ends by itself where nothing else ends it.

Hub v0.3.6 sends ``pause_stream`` and expects the stream to go on at ``resume_stream`` or after 30 s, whichever comes
first (spec backend-protocol 24.3); no other hub pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

PAUSE_MAX_S: Final = 30.0  # original, client v0.3.6


class Pauses:
    """The timers of one session, one for each stream or flow that was paused lately."""

    def __init__(self, resume: Callable[[bytes], None]) -> None:
        """Call ``resume`` with the id of what was paused for PAUSE_MAX_S, also if it was resumed or ended meanwhile."""
        self._resume = resume
        self._loop = asyncio.get_running_loop()
        self._timers: dict[bytes, asyncio.TimerHandle] = {}

    def begin(self, stream_id: bytes) -> None:
        """Note a pause; a later one of the same stream takes its place."""
        self.forget(stream_id)
        self._timers[stream_id] = self._loop.call_later(PAUSE_MAX_S, self._end, stream_id)

    def forget(self, stream_id: bytes) -> None:
        """Note that a stream is over; idempotent."""
        timer = self._timers.pop(stream_id, None)
        if timer is not None:
            timer.cancel()

    def clear(self) -> None:
        """Note that the session is over."""
        for stream_id in tuple(self._timers):
            self.forget(stream_id)

    def __len__(self) -> int:
        """Return how many timers there are."""
        return len(self._timers)

    def _end(self, stream_id: bytes) -> None:
        del self._timers[stream_id]
        self._resume(stream_id)
