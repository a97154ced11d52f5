"""Ports for programs that must be told theirs before they run."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from typing import Final

# Below what Linux gives to sockets that ask for any port (ip_local_port_range, 32768 and up): a port that is handed out
# here cannot become the local end of somebody's connection before its program listens. Each process of a test run has a
# part of its own.
_FIRST, _WORKERS, _PER_WORKER = 12_000, 8, 2_500
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS


def _own_ports() -> Iterator[int]:
    start = _FIRST + _WORKER * _PER_WORKER
    skipped = random.randrange(_PER_WORKER)
    return itertools.cycle((*range(start + skipped, start + _PER_WORKER), *range(start, start + skipped)))


_candidates = _own_ports()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing uses, over TCP or UDP, and that nobody else in this run is given soon."""
    tried = itertools.islice(_candidates, _PER_WORKER)
    found = list(itertools.islice(filter(_is_free, tried), count))
    assert len(found) == count, "no port is free"
    return found


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers of a connection does not matter
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
