"""Work in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nexus.threads import in_thread, start_thread


async def test_a_result_comes_back() -> None:
    """From a daemon of the given name."""

    def work() -> tuple[str, bool]:
        thread = threading.current_thread()
        return thread.name, thread.daemon

    assert await in_thread("worker", work) == ("worker", True)


async def test_an_exception_comes_back() -> None:
    """As itself."""
    with pytest.raises(OSError, match="gone"):
        await in_thread("worker", lambda: (_ for _ in ()).throw(OSError("gone")))


async def test_whoever_gives_up_leaves_the_work_running() -> None:
    """Its result is dropped."""
    go = threading.Event()
    done = threading.Event()

    def work() -> None:
        go.wait(10)
        done.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread("worker", work)
    go.set()
    await in_thread("waiter", lambda: done.wait(10))
    assert done.is_set()


def test_a_loop_that_is_closed_is_told_nothing() -> None:
    """The process is ending: an exception in the thread would only be noise."""
    go = threading.Event()
    called: list[object] = []

    async def main() -> None:
        start_thread("worker", lambda: go.wait(10), called.append)

    asyncio.run(main())
    go.set()
    for thread in threading.enumerate():
        if thread.name == "worker":
            thread.join(10)
    assert called == []
