"""How many backends a worker has, and from where: so that each gets its share, of one source's, too."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

# A backend that came to a worker and has not joined there within this may never do so: it was a stranger.
EXPECTED_S: Final = 2.0


class Place:
    """One worker's backends by source, an IP address; those that are still on their way count."""

    def __init__(self) -> None:
        """Have none."""
        self._joined: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()

    def load(self, source: str) -> tuple[int, int]:
        """Return how many there are of a source, and how many in all: of two workers the lesser gets the next one."""
        return self._joined[source] + self._expected[source], self._joined.total() + self._expected.total()

    def expect(self, source: str) -> None:
        """Note a backend that may join soon."""
        self._expected[source] += 1
        asyncio.get_running_loop().call_later(EXPECTED_S, self._expect_less, source)

    def join(self, source: str) -> None:
        """Note a backend that has joined."""
        self._expect_less(source)
        self._joined[source] += 1

    def leave(self, source: str) -> None:
        """Note a backend that is gone."""
        self._joined -= Counter([source])

    def _expect_less(self, source: str) -> None:
        self._expected -= Counter([source])
