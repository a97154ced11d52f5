"""Tests of waiting for streams that still move, without sockets."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from nexus.link import quiet
from nexus.link.stream import Stream
from tests.support.sessions import SessionPair


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and call a stream idle soon."""
    monkeypatch.setattr(quiet, "IDLE_S", 0.01)
    monkeypatch.setattr(quiet, "POLL_S", 0.001)


class Looks:
    """A pair's streams at the hub; something moves on each of them before the first ``busy`` looks."""

    def __init__(self, busy: int) -> None:
        self.count = 0
        self._busy = busy
        self._pair = SessionPair()
        for _ in range(2):
            self._pair.open()

    def __call__(self) -> Iterable[Stream]:
        self.count += 1
        streams = tuple(self._pair.hub.session.streams.values())
        for stream in streams:
            stream.active = self.count <= self._busy
        return streams


async def test_streams_that_move_are_waited_for() -> None:
    """Until nothing moves on any of them any more."""
    looks = Looks(busy=5)
    await quiet.wait_until_quiet(looks, timeout_s=3600)
    assert looks.count > 5


async def test_nothing_is_waited_for_where_there_are_no_streams() -> None:
    """One look tells."""
    await quiet.wait_until_quiet(tuple, timeout_s=3600)


async def test_the_time_is_bounded() -> None:
    """However much moves."""
    looks = Looks(busy=10**9)
    await quiet.wait_until_quiet(looks, timeout_s=0.02)
    assert looks.count


async def test_an_end_is_not_waited_beyond() -> None:
    """A session that is over has nothing left to wait for."""
    looks = Looks(busy=10**9)
    await quiet.wait_until_quiet(looks, timeout_s=3600, is_over=lambda: looks.count == 3)
    assert looks.count == 3


async def test_bytes_of_finished_connections_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their streams are gone already."""
    left = [2, 1, 0]
    monkeypatch.setattr(quiet, "undelivered_bytes", lambda: left.pop(0))
    await quiet.wait_until_quiet(tuple, timeout_s=3600)
    assert not left
