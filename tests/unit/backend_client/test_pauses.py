"""backend_client.pauses: a pause of the hub ends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from backend_client.pauses import PAUSE_MAX_S, Pauses


class Case:
    """Pauses on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.resumed: list[tuple[float, bytes]] = []
        self.due: list[tuple[float, Callable[[], None], asyncio.TimerHandle]] = []
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, callback: Callable[..., None], *args: object) -> asyncio.TimerHandle:
            timer = real(3600, callback, *args)
            self.due.append((self.now + delay, lambda: callback(*args), timer))
            return timer

        monkeypatch.setattr(loop, "call_later", call_later)
        self.pauses = Pauses(lambda stream_id: self.resumed.append((self.now, stream_id)))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        due, self.due = self.due, []
        for at, call, timer in due:
            if at > end:
                self.due.append((at, call, timer))
            elif not timer.cancelled():
                self.now = at
                call()
        self.now = end


async def test_a_pause_ends_after_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec backend-protocol 24.3: the hub, v0.3.6, expects that; each stream by itself."""
    case = Case(monkeypatch)
    case.pauses.begin(b"one")
    case.wait(10.0)
    case.pauses.begin(b"two")
    case.wait(100.0)
    assert case.resumed == [(30.0, b"one"), (40.0, b"two")]


async def test_a_later_pause_of_the_same_stream_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may have resumed it meanwhile; there is one timer for a stream."""
    case = Case(monkeypatch)
    for _ in range(3):
        case.pauses.begin(b"one")
        case.wait(PAUSE_MAX_S - 1)
    case.wait(100.0)
    assert [stream_id for _, stream_id in case.resumed] == [b"one"]


async def test_what_has_ended_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream, or the whole session."""
    case = Case(monkeypatch)
    for stream_id in (b"one", b"two", b"three"):
        case.pauses.begin(stream_id)
    for stream_id in (b"one", b"one", b"never paused"):
        case.pauses.forget(stream_id)
    assert len(case.pauses) == 2
    case.pauses.clear()
    case.wait(100.0)
    assert (len(case.pauses), case.resumed) == (0, [])
