"""nexus.link.hold: signs of life while a link is held, and only then."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from nexus.link.hold import SIGN_OF_LIFE_S, Hold
from nexus.protocol.constants import CLIENT_DEAD_AFTER_S


class Case:
    """A hold on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.beats: list[float] = []
        self.lives = True
        self.due: tuple[float, Callable[[], None]] | None = None
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
            assert self.due is None
            self.due = (self.now + delay, callback)
            return real(3600, callback)

        monkeypatch.setattr(loop, "call_later", call_later)
        monkeypatch.setattr(loop, "time", lambda: self.now)
        self.hold = Hold(self._beat)

    def _beat(self) -> bool:
        self.beats.append(self.now)
        return self.lives

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.due is not None and self.due[0] <= end:
            (self.now, call), self.due = self.due, None
            call()
        self.now = end


async def test_a_sign_is_given_three_times_within_the_deadline_of_an_original_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For as long as the hold lasts."""
    case = Case(monkeypatch)
    case.hold.begin()
    case.wait(10 * CLIENT_DEAD_AFTER_S)
    assert case.beats[:3] == [SIGN_OF_LIFE_S, 2 * SIGN_OF_LIFE_S, 3 * SIGN_OF_LIFE_S]
    assert case.beats[2] < CLIENT_DEAD_AFTER_S
    assert len(case.beats) == 10 * CLIENT_DEAD_AFTER_S // SIGN_OF_LIFE_S


async def test_the_signs_end_behind_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is given for the last piece of it; then there is no timer."""
    case = Case(monkeypatch)
    case.hold.begin()
    case.wait(2 * SIGN_OF_LIFE_S + 1)
    case.hold.end()
    case.wait(100)
    assert len(case.beats) == 3
    assert case.due is None


async def test_short_holds_give_signs_as_a_long_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a cap a link is let go for a few messages now and then: the pings are still far behind those."""
    case = Case(monkeypatch)
    for _ in range(30):
        case.hold.begin()
        case.wait(0.9)
        case.hold.end()
        case.wait(0.1)
    assert len(case.beats) == 30 // SIGN_OF_LIFE_S


async def test_the_signs_end_with_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that is closing or gone."""
    case = Case(monkeypatch)
    case.hold.begin()
    case.lives = False
    case.wait(100)
    assert len(case.beats) == 1
    case.hold.begin()
    case.hold.stop()
    case.hold.stop()


async def test_the_last_moment_of_a_hold_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus infinity where there was none."""
    case = Case(monkeypatch)
    assert case.hold.until(1.0) == -math.inf
    case.hold.begin()
    case.wait(2)
    assert case.hold.until(1.0) == 1.0
    case.hold.end()
    case.wait(2)
    assert case.hold.until(9.0) == 2.0
