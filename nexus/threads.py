"""Work that waits, in threads that nobody has to wait for: a node that stops does not wait for a server's answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start_thread(name: str, work: Callable[[], T], ended: Callable[[T | Exception], None]) -> None:
    """Do ``work`` in a daemon thread; ``ended`` is called with its result, or its exception, in this event loop.

    It is not called where the event loop is closed before that. Raises RuntimeError: the system gives no more threads.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            result: T | Exception = work()
        except Exception as error:  # noqa: BLE001 — the caller's to raise
            result = error
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended, result)

    threading.Thread(target=run, name=name, daemon=True).start()


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises; cancelled, this leaves it running."""
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def ended(value: T | Exception) -> None:
        if result.done():
            return
        if isinstance(value, Exception):
            result.set_exception(value)
        else:
            result.set_result(value)

    start_thread(name, work, ended)
    return await result
