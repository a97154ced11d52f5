"""Telling the service manager how the node is: ready, reloading, stopping, alive.

Strategy: a datagram to the socket that the environment names, and nothing where it names none. The kept libraries are
either not kept any more or want a compiler and systemd's headers, for what is one ``sendto``. A watchdog is fed from
the event loop, so a loop that hangs is noticed and the service started anew.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

_US = 1_000_000


class ServiceManager:
    """Whoever started this process, if it wants to hear."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` of the environment; raises nothing."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)

    def ready(self, status: str) -> None:
        """Say that the node serves; ``status`` is a line for people."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that files are looked at; ``ready`` ends it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within_s: float) -> None:
        """Say that the node ends, and how long that may take."""
        self._say("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={int(within_s * _US)}")

    def alive(self, status: str) -> None:
        """Feed the watchdog."""
        self._say("WATCHDOG=1", f"STATUS={status}")

    async def keep_alive(self, status: Callable[[], str]) -> None:
        """Feed the watchdog, at half of its patience, until cancelled; returns at once where there is none."""
        while self.watchdog_s:
            self.alive(status())
            await asyncio.sleep(self.watchdog_s / 2)

    def _say(self, *lines: str) -> None:
        """Send, or do without: no service fails because its manager does not listen."""
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog's patience in seconds, 0 where it watches nobody, or somebody else."""
    try:
        if int(environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return 0.0
        return max(int(environ.get("WATCHDOG_USEC", "0")), 0) / _US
    except ValueError:
        return 0.0
