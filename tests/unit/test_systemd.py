"""What the service manager is told, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.systemd import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A manager's socket, and its name in the environment."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        name = f"nexus-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
        sock.bind(f"\0{name}" if request.param == "abstract" else name)
        sock.settimeout(10)
        yield f"@{name}" if request.param == "abstract" else name, sock


def test_each_change_is_told(listening: tuple[str, socket.socket]) -> None:
    """In the words of sd_notify(3)."""
    address, sock = listening
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    manager.ready("2 backends")
    assert sock.recv(1000) == b"READY=1\nSTATUS=2 backends"
    manager.reloading()
    assert sock.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    manager.stopping(12.5)
    assert sock.recv(1000) == b"STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=12500000"


async def test_a_watchdog_is_fed_twice_as_often_as_it_asks(listening: tuple[str, socket.socket]) -> None:
    """From the event loop, with the status of then."""
    address, sock = listening
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    manager = ServiceManager(environ)
    assert manager.watchdog_s == 0.02
    states = iter(["one", "two", "three"])
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(manager.keep_alive(lambda: next(states, "more")))
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        async with asyncio.timeout(10):
            assert [await loop.sock_recv(sock, 100) for _ in range(3)] == [
                b"WATCHDOG=1\nSTATUS=one",
                b"WATCHDOG=1\nSTATUS=two",
                b"WATCHDOG=1\nSTATUS=three",
            ]
        feeding.cancel()


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "-5"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}],
    ids=["none", "no number", "negative", "of another process"],
)
async def test_where_nobody_watches_nothing_is_fed(environ: dict[str, str]) -> None:
    """It returns at once."""
    manager = ServiceManager(environ)
    assert manager.watchdog_s == 0
    await manager.keep_alive(lambda: pytest.fail("asked"))


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "vsock:2:1", "@" + "x" * 200])
def test_a_manager_that_does_not_listen_stops_nothing(address: str) -> None:
    """Nor an address of a kind that is not known."""
    ServiceManager({"NOTIFY_SOCKET": address}).ready("fine")
