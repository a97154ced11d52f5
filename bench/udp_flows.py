"""Memory of UDP flows: how much a node holds for so many clients, measured in a process of its own.

Run: uv run bench/udp_flows.py [FLOWS]
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import socket
import sys
from pathlib import Path
from typing import cast

from nexus import __version__
from nexus.auth.grants import Grant
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.link.connection import Link
from nexus.listeners.udp import UdpListeners, UdpSettings

PORT = 53
FLOWS = 200_000


class _Sink:
    """A link that sends into the void."""

    messages = 0

    def is_closing(self) -> bool:
        return False

    def waiting_bytes(self) -> int:
        return 0

    def send_message(self, message: bytes) -> None:
        del message
        self.messages += 1

    def send_data(self, flow_id: bytes, payload: bytes) -> None:
        del flow_id, payload
        self.messages += 1


def rss_bytes() -> int:
    """Return the resident memory of now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def main(flows: int) -> None:
    """Open the flows as datagrams do, with sources of their own, and print what they took."""
    registry = Registry()
    link = _Sink()
    BackendSession(cast(Link, link), Grant(udp_routes={PORT: 30}), registry, "192.0.2.1:1", asyncio.TaskGroup())
    listeners = UdpListeners(registry, UdpSettings(flows_max=flows))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        listeners.listen([sock])
        port = next(iter(listeners.ports.values()))
        port.number = PORT  # what backends claim; the socket is any
        reader = port._readers[0]  # noqa: SLF001 — below the socket, so that 200,000 sources need no network
        gc.collect()
        before = rss_bytes()
        for number in range(flows):
            source = (f"198.{18 + number // 65_536 % 2}.{number // 256 % 256}.{number % 256}", 1024 + number % 60_000)
            reader._receive(b"x" * 40, source, b"", 0.0)  # noqa: SLF001
        gc.collect()
        used = rss_bytes() - before
        print(f"nexus {__version__}, Python {platform.python_version()}, {platform.platform()}")
        print(f"{listeners.flows} flows: {used / 1e6:.1f} MB resident, {used / listeners.flows:.0f} bytes a flow")
        listeners.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else FLOWS))
