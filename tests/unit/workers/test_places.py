"""nexus.workers.places: who has the fewest."""

from __future__ import annotations

import pytest

from nexus.workers import places
from nexus.workers.places import Place
from tests.support.hub import eventually

HERE, THERE = "192.0.2.1", "192.0.2.2"


async def test_backends_on_their_way_count() -> None:
    """Until they have joined, and then no second time."""
    place = Place()
    place.expect(HERE)
    assert (place.load(HERE), place.load(THERE)) == ((1, 1), (0, 1))
    place.join(HERE)
    place.join(THERE)
    assert (place.load(HERE), place.load(THERE)) == ((1, 2), (1, 2))
    place.leave(HERE)
    assert (place.load(HERE), place.load(THERE)) == ((0, 1), (1, 1))


async def test_strangers_do_not_count_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never joins is forgotten."""
    monkeypatch.setattr(places, "EXPECTED_S", 0.01)
    place = Place()
    place.expect(HERE)
    await eventually(lambda: place.load(HERE) == (0, 0), "it is forgotten")
