"""nexus.eventloop: which loop, how it is set up, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from nexus import eventloop
from nexus.eventloop import handle_exception, new_event_loop, on_stop_signal, run
from nexus.tls.contexts import hub_server_context
from nexus.tls.links import accept_tls
from tests.support.peer_certificates import Authority, store
from tests.support.peer_links import CopiedEnd


@pytest.fixture(autouse=True)
def _collector_is_restored() -> Iterator[None]:
    """``run`` sets the collector for the whole process."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


async def test_who_goes_away_in_a_handshake_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Strangers do so all the time; other failures that nobody caught are logged as ever."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(handle_exception)
    context = hub_server_context(store(tmp_path, "hub", Authority.root().issue()))
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(ConnectionError):
        await accept_tls(CopiedEnd(), ours, context, 10)
    assert not caplog.records
    loop.call_exception_handler({"message": "something broke", "exception": ConnectionResetError("really")})
    assert "something broke" in caplog.text


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


def test_running_raises_the_soft_limit_of_descriptors() -> None:
    """A node would otherwise serve a thousand clients and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen: list[int] = []

    async def main() -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        run(main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert seen == [before[1] if before[1] != resource.RLIM_INFINITY else eventloop._DESCRIPTORS_MAX]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 4096), [(4096, 4096)]),
        ((1024, resource.RLIM_INFINITY), [(1 << 20, resource.RLIM_INFINITY)]),
        ((1024, 1 << 30), [(1 << 20, 1 << 30)]),
        ((1 << 21, 1 << 30), []),
        ((4096, 4096), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_the_soft_limit_is_never_lowered(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    """Nor raised to where a child that closes them one by one would take for ever; a refusal changes nothing."""
    asked: list[tuple[int, int]] = []

    def refuse(_: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted)
        raise ValueError("no")

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    eventloop._raise_descriptor_limit()
    assert asked == expected


def test_a_platform_without_such_limits_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to raise."""
    monkeypatch.setitem(sys.modules, "resource", None)
    eventloop._raise_descriptor_limit()
    assert eventloop.descriptor_limit() == 1 << 20


@pytest.mark.parametrize(("soft", "expected"), [(1024, 1024), (resource.RLIM_INFINITY, 1 << 20)])
def test_the_limit_of_descriptors_is_the_soft_one(monkeypatch: pytest.MonkeyPatch, soft: int, expected: int) -> None:
    """Without one it is as many as anybody could use."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert eventloop.descriptor_limit() == expected


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
