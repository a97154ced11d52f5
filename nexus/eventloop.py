"""The event loop that everything runs on, and running on it until a signal."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Final

from nexus.memory import keep_memory_low

# The young generation is collected after so many new containers instead of 700: a relay makes few cycles.
_GC_THRESHOLD: Final = 50_000


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop, or asyncio's where uvloop does not exist."""
    try:
        import uvloop  # noqa: PLC0415 — optional on some platforms
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run ``main`` to its end on a new event loop, with the collector set for a process that serves."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])
        keep_memory_low(runner.get_loop())
        runner.run(main())


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call ``stop`` at SIGINT and SIGTERM; call inside the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
