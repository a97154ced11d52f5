"""How both sides stop: let what still moves go on, for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from nexus.link.endpoint import undelivered_bytes
from nexus.link.stream import Stream

IDLE_S: Final = 1.0  # ours: a stream on which nothing moved for so long is not waited for
POLL_S: Final = 0.1  # ours: that nothing moves is no event, so it is looked for


async def wait_until_quiet(
    streams: Callable[[], Iterable[Stream]], timeout_s: float, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Return once no stream moves and nothing finished is undelivered, once ``is_over()``, or after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not is_over() and loop.time() < deadline and _moves(streams(), loop.time()):  # noqa: ASYNC110 — see POLL_S
        await asyncio.sleep(POLL_S)


def _moves(streams: Iterable[Stream], now: float) -> bool:
    # All are asked, not only the first busy one: each answer also notes what moved.
    idle = [stream.idle_s(now) for stream in streams]
    return bool(undelivered_bytes()) or min(idle, default=IDLE_S) < IDLE_S
