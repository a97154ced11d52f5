"""How many backends a worker has, and from where: so that each gets its share, of one source's, too."""

from __future__ import annotations

import asyncio
from typing import Final

from nexus.limits import UNBOUNDED, SourceCounter

# A backend that came to a worker and has not joined there within this may never do so: it was a stranger.
EXPECTED_S: Final = 2.0


class Place:
    """One worker's backends by source (``sockets.source_key``); those that are still on their way count."""

    def __init__(self) -> None:
        """Have none."""
        self._joined = SourceCounter(UNBOUNDED, UNBOUNDED)
        self._expected = SourceCounter(UNBOUNDED, UNBOUNDED)

    def load(self, source: str) -> tuple[int, int]:
        """Return how many there are of a source, and how many in all: of two workers the lesser gets the next one."""
        of_source = self._joined.held_by(source) + self._expected.held_by(source)
        return of_source, self._joined.held + self._expected.held

    def expect(self, source: str) -> None:
        """Note a backend that may join soon."""
        self._expected.admit(source)
        asyncio.get_running_loop().call_later(EXPECTED_S, self._expect_less, source)

    def join(self, source: str) -> None:
        """Note a backend that has joined."""
        self._expect_less(source)
        self._joined.admit(source)

    def leave(self, source: str) -> None:
        """Note a backend that is gone."""
        self._joined.release(source)

    def _expect_less(self, source: str) -> None:
        if self._expected.held_by(source):
            self._expected.release(source)
