"""How a node's cost grows with what it has: streams that idle, and backends.

    uv run python -m bench.growth [--seconds 4] [--rounds 3] > bench/reports/DATE-growth.md

A row is a node with so many backends, all sessions of one client process, each with a name of its own, and so many idle
streams of the first. The same work is done beside them: new connections, whose names take turns, and round trips on 64
more streams. A cost that depends on what else is there shows from row to row; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import yaml

from bench import traffic
from bench.suite import machine, service
from bench.traffic import ZONE
from bench.usage import AT_REST_S, cpu_s, memory_bytes
from tests.support.processes import Node, Pki, Process, client_command, scratch_directory, wait_for

ROWS: Final = ((1, 100), (1, 1_000), (1, 10_000), (10, 0), (100, 0), (1_000, 0))
"""Backends, and idle streams of the first."""
IDLE_S: Final = 5.0
START_S: Final = 300.0
TRIP_STREAMS: Final = 64
AT_ONCE: Final = 16
HEAD: Final = """| backends | idle streams | node, KB each | client, KB each | idle: node, % of a core | \
connection: node us | client us | round trip: node us | client us |
|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Pair:
    """A node and the client of all its backends."""

    node: Node
    client: Process

    @property
    def address(self) -> traffic.Address:
        """Where the public goes."""
        return "127.0.0.1", self.node.tls_port

    @property
    def pids(self) -> tuple[int, int]:
        """The processes, node first."""
        return self.node.popen.pid, self.client.popen.pid

    def memory(self) -> tuple[int, int]:
        """What either takes, in bytes."""
        node, client = self.pids
        return memory_bytes([node]), memory_bytes([client])

    def metered(self, action: Callable[[], int]) -> tuple[float, float]:
        """Return the CPU microseconds of either for each of what ``action`` counts."""
        before = [cpu_s([pid]) for pid in self.pids]
        count = action()
        node, client = ((cpu_s([pid]) - used) / count * 1e6 for pid, used in zip(self.pids, before, strict=True))
        return node, client


@contextlib.contextmanager
def pair(backends: int, port: int) -> Iterator[Pair]:
    """Run a node and so many backends, once all are connected."""
    with scratch_directory() as directory:
        pki = Pki.create(directory)
        with Node(directory, pki, idleTimeoutSeconds=0) as node:
            command, log = client_command(directory, node.hub_url, pki, {node.tls_port: port}, f"*.b0.{ZONE}")
            file = Path(command[-1])
            (first,) = yaml.safe_load(file.read_text())["backends"]
            all_of_them = [
                {**first, "name": f"b{number}", "hostnames": [f"*.b{number}.{ZONE}"]} for number in range(backends)
            ]
            file.write_text(yaml.safe_dump({"backends": all_of_them}))
            with Process(command, log) as client:
                wait_for(lambda: node.metric("nexus_routes") == backends, "all backends are connected", START_S)
                yield Pair(node, client)


def row(backends: int, streams: int, port: int, seconds: float) -> list[float]:
    """Measure one row, once."""
    alone = (0, 0)
    if not streams:
        with pair(1, port) as small:
            time.sleep(AT_REST_S)
            alone = small.memory()
    with pair(backends, port) as running, contextlib.ExitStack() as stack:
        if streams:
            time.sleep(AT_REST_S)
            alone = running.memory()
            stack.enter_context(traffic.idle(running.address, streams, "idle.b0"))
        each = streams or backends - 1
        time.sleep(AT_REST_S)
        memory = [(now - then) / each / 1024 for now, then in zip(running.memory(), alone, strict=True)]
        before = cpu_s(running.pids[:1])
        time.sleep(IDLE_S)
        idle = (cpu_s(running.pids[:1]) - before) / IDLE_S * 100
        labels = [f"once.b{number}" for number in range(backends)]
        made = running.metered(lambda: traffic.connections(running.address, AT_ONCE, seconds, labels)[0])
        trips = running.metered(
            lambda: len(traffic.round_trips(running.address, TRIP_STREAMS, seconds, label="echo.b0"))
        )
    return [*memory, idle, *made, *trips]


def main() -> None:
    """Print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    traffic.raise_descriptors()
    about = machine()
    print(f"# {about.pop('date')}: growth\n\nBy `uv run python -m bench.growth`, medians of {options.rounds} rounds.\n")
    print("\n".join(f"- {key}: {value}" for key, value in about.items()), end=f"\n\n{HEAD}\n")
    rows = [(backends, min(streams, traffic.streams_max())) for backends, streams in ROWS]
    with scratch_directory() as directory, service(directory) as (port, _):
        found: dict[tuple[int, int], list[list[float]]] = {key: [] for key in rows}
        for _ in range(options.rounds):
            for backends, streams in rows:
                found[backends, streams].append(row(backends, streams, port, options.seconds))
                print(f"{backends} backends, {streams} streams: {found[backends, streams][-1]}", file=sys.stderr)
    for (backends, streams), runs in found.items():
        figures = [f"{median(values):.3g}" for values in zip(*runs, strict=True)]
        print(f"| {backends:,} | {streams:,} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
