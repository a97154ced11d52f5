"""nexus.eventloop: which loop, how it is set up, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import uvloop

from nexus import eventloop
from nexus.eventloop import new_event_loop, on_stop_signal, run


@pytest.fixture(autouse=True)
def _collector_is_restored() -> Iterator[None]:
    """``run`` sets the collector for the whole process."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_uvloop_is_used_where_it_exists() -> None:
    """As on every platform of the tests."""
    with contextlib.closing(new_event_loop()) as loop:
        assert isinstance(loop, uvloop.Loop)


def test_asyncio_is_used_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without uvloop is served, too."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with contextlib.closing(new_event_loop()) as loop:
        assert not isinstance(loop, uvloop.Loop)


def test_running_sets_the_collector_and_returns_at_the_end() -> None:
    """The young generation is collected rarely, and what is there at the start never looked at."""
    seen: list[object] = []

    async def main() -> None:
        seen.extend((asyncio.get_running_loop(), gc.get_threshold()[0], gc.get_freeze_count()))

    run(main)
    loop, threshold, frozen = seen
    assert isinstance(loop, uvloop.Loop)
    assert threshold == eventloop._GC_THRESHOLD
    assert isinstance(frozen, int)
    assert frozen > 0


def test_what_main_raises_is_raised() -> None:
    """Nothing is swallowed on the way."""

    async def main() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        run(main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_calls_stop(number: signal.Signals) -> None:
    """Inside the loop, so that it may set an event."""

    async def main() -> None:
        stopped = asyncio.Event()
        on_stop_signal(stopped.set)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(10):
            await stopped.wait()

    run(main)
