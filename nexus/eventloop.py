"""The event loop that everything runs on, and running on it until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from nexus.memory import keep_memory_low

# The young generation is collected after so many new containers instead of 700: a relay makes few cycles.
_GC_THRESHOLD: Final = 50_000
# A connection takes a descriptor, and the usual soft limit of 1,024 only protects programs that use select(2). Go
# raises it, too; 2^20 is Linux's own default for the most that anybody may have.
_DESCRIPTORS_MAX: Final = 1 << 20


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop, or asyncio's where uvloop does not exist."""
    try:
        import uvloop  # noqa: PLC0415 — optional on some platforms
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run ``main`` to its end on a new event loop, with collector and limits set for a process that serves."""
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])
        keep_memory_low(runner.get_loop())
        runner.get_loop().set_exception_handler(handle_exception)
        runner.run(main())


def handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught, but for a stranger who goes away in the middle of a handshake.

    aiofastnet 1.2 reports that with the class ConnectionResetError in place of an error, which ``logging`` cannot
    print; asyncio says nothing of it, and whoever awaits the handshake is told.
    """
    if context.get("exception") is not ConnectionResetError:
        loop.default_exception_handler(context)


def _raise_descriptor_limit() -> None:
    try:
        import resource  # noqa: PLC0415 — optional on some platforms
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own; then the soft one stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int:
    """Return how many descriptors this process may have, as far as a limit is known."""
    try:
        import resource  # noqa: PLC0415 — optional on some platforms
    except ImportError:
        return _DESCRIPTORS_MAX
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call ``stop`` at SIGINT and SIGTERM; call inside the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
