"""How well a node keeps, reaches and divides ``totalBandwidthMbps``: bulk transfers through real processes on loopback.

    uv run python bench/fairness.py [--seconds 12] [--repeat 3] [--caps 20 200] [--backends 2 8 32] > report.md

Three processes: the node (``nexus serve``), all backends (``nexus client run``, a session each), and this one, which
plays the public clients and the services and counts what arrives at either. Every backend moves as much as it may, in
both directions. A run has a warm-up of 2 s and then ``--seconds``; its figures are payload bytes as received, so they
lie a little below what the node charges (17 bytes a message). Nothing here fails a build: it prints.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import ssl
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a clone, installed or not

from bench.usage import cpu_s
from nexus.eventloop import new_event_loop
from tests.support.hub import eventually
from tests.support.loopback import Reader, Writer, connection, head, serve
from tests.support.processes import NEXUS, SECRET, Node, Pki, Process, scratch_directory

WARM_UP_S = 2.0
SAMPLE_S = 0.05
WINDOW_S = 5.0  # the promise is made for any window of so many seconds
BLOCK = bytes(65_536)
MANY_STREAMS = 16
START_TIMEOUT_S = 60.0
HEAD = """# Fairness under a cap, {date}

{machine}. {how}. {note}

Rates are parts of the cap: mean of the run, worst 5 s, and what the node charged itself. Least and most are a backend's
part of the mean part. CPU is the node's, in cores; load is the machine's before the run.

| Mbit/s | backends | uploads + downloads | run | mean | worst 5 s | charged | least | most | Jain | CPU | load |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Case:
    """One set-up: ``streams`` uploads and as many downloads for each backend."""

    megabits: int
    streams: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the row says."""
        uneven = len(set(self.streams)) > 1
        each = f"1st {self.streams[0]} + {self.streams[0]}, others 1 + 1" if uneven else "1 + 1 each"
        return f"{self.megabits} | {len(self.streams)} | {each}"


@dataclass(frozen=True)
class Figures:
    """One run: shares of the cap, and how the backends compare."""

    mean: float
    worst_window: float
    charged: float
    parts: tuple[int, ...]
    cpu: float
    load: float


class Counter:
    """The public clients and the services, and what arrived at them, by backend."""

    def __init__(self, port: int, backends: int) -> None:
        self.port = port
        self.arrived = [0] * backends
        self.serving = 0

    async def download(self, backend: int) -> None:
        async with connection(self.port) as (reader, writer):
            writer.write(head("GET", "/", f"{backend}.example.com"))
            await self._count(reader, backend)

    async def upload(self, backend: int) -> None:
        async with connection(self.port) as (_, writer):
            writer.write(head("PUT", "/", f"{backend}.example.com"))
            await _send(writer)

    async def service(self, reader: Reader, writer: Writer) -> None:
        self.serving += 1
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            if request.startswith("GET"):
                await _send(writer)
            await self._count(reader, int(request.partition("Host: ")[2].partition(".")[0]))
        finally:
            self.serving -= 1

    async def rest(self) -> None:
        """Wait until no service runs any more."""
        await eventually(lambda: not self.serving, "the services have ended")

    async def _count(self, reader: Reader, backend: int) -> None:
        while chunk := await reader.read(len(BLOCK)):
            self.arrived[backend] += len(chunk)


async def _send(writer: Writer) -> None:
    while True:
        writer.write(BLOCK)
        await writer.drain()


def start_backends(directory: Path, node: Node, target: int, count: int) -> Process:
    """Start one process with a session for each backend."""
    backends = [
        {
            "name": f"backend-{number}",
            "hostnames": [f"{number}.example.com"],
            "nexusAddresses": [node.hub_url],
            "caFile": str(node.pki.ca_file),
            "attestation": {"hmacSecret": SECRET},
            "portMappings": {node.http_port: {"default": f"127.0.0.1:{target}"}},
        }
        for number in range(count)
    ]
    file = directory / "backends.yaml"
    file.write_text(yaml.safe_dump({"backends": backends}))
    return Process([*NEXUS, "client", "run", "-c", str(file)], directory / "backends.log")


def worst_window(samples: list[tuple[float, int]]) -> float:
    """Return the highest rate over any two samples that are WINDOW_S apart, in bytes a second."""
    worst, end = 0.0, 0
    for start, before in samples:
        while end < len(samples) and samples[end][0] - start < WINDOW_S:
            end += 1
        if end == len(samples):
            break
        worst = max(worst, (samples[end][1] - before) / (samples[end][0] - start))
    return worst


async def measure(case: Case, node: Node, counter: Counter, seconds: float) -> Figures:
    """Watch for ``seconds``."""
    await asyncio.sleep(WARM_UP_S)
    load = os.getloadavg()[0]
    limit = case.megabits * 125_000
    before, cpu, charged = (
        list(counter.arrived),
        cpu_s([node.popen.pid]),
        node.metric("nexus_bandwidth_charged_bytes_total"),
    )
    start = time.monotonic()
    samples = [(start, sum(before))]
    while samples[-1][0] < start + seconds:
        await asyncio.sleep(SAMPLE_S)
        samples.append((time.monotonic(), sum(counter.arrived)))
    took = samples[-1][0] - start
    parts = tuple(after - earlier for after, earlier in zip(counter.arrived, before, strict=True))
    return Figures(
        mean=sum(parts) / took / limit,
        worst_window=worst_window(samples) / limit,
        charged=(node.metric("nexus_bandwidth_charged_bytes_total") - charged) / took / limit,
        parts=parts,
        cpu=(cpu_s([node.popen.pid]) - cpu) / took,
        load=load,
    )


async def run(case: Case, seconds: float) -> Figures:
    """Start everything, measure, end everything."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        node = stack.enter_context(Node(directory, Pki.create(directory), totalBandwidthMbps=case.megabits))
        counter = Counter(node.http_port, len(case.streams))
        target = await stack.enter_async_context(serve(counter.service))
        stack.push_async_callback(counter.rest)
        stack.enter_context(start_backends(directory, node, target, len(case.streams)))
        await eventually(
            lambda: node.metric("nexus_sessions") == len(case.streams), "every backend is connected", START_TIMEOUT_S
        )
        async with asyncio.TaskGroup() as tasks:
            clients = [
                tasks.create_task(work(number))
                for number, streams in enumerate(case.streams)
                for work in (counter.upload, counter.download)
                for _ in range(streams)
            ]
            await eventually(lambda: min(counter.arrived) > 0, "every backend has begun", START_TIMEOUT_S)
            figures = await measure(case, node, counter, seconds)
            for client in clients:
                client.cancel()
        return figures


def jain(parts: Iterable[int]) -> float:
    """Return Jain's fairness index: 1 where all parts are equal, 1/n where one has everything."""
    values = list(parts)
    return sum(values) ** 2 / len(values) / sum(value * value for value in values)


def row(case: Case, number: int, figures: Figures) -> str:
    """Return one line of the table."""
    mean = sum(figures.parts) / len(figures.parts)
    cells = [
        case.name,
        str(number),
        f"{figures.mean:.4f}",
        f"{figures.worst_window:.4f}",
        f"{figures.charged:.4f}",
        f"{min(figures.parts) / mean:.3f}",
        f"{max(figures.parts) / mean:.3f}",
        f"{jain(figures.parts):.5f}",
        f"{figures.cpu:.2f}",
        f"{figures.load:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Describe what this runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("nexus-proxy", "websockets", "uvloop"))
    return (
        f"{os.cpu_count()} x {models[0] if models else platform.machine()}, {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}; {packages}"
    )


def cases(caps: list[int], counts: list[int]) -> list[Case]:
    """Return equal backends in every number, and for each cap one backend with many streams among others with few."""
    even = [Case(cap, (1,) * count) for cap in caps for count in counts]
    return even + [Case(cap, (MANY_STREAMS, 1, 1, 1)) for cap in caps]


def main() -> None:
    """Run every case, print as soon as there is something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="measured time of a run, more than 5")
    parser.add_argument("--repeat", type=int, default=3, help="how often the whole series is run, interleaved")
    parser.add_argument("--caps", type=int, nargs="+", default=[20, 200], help="Mbit/s")
    parser.add_argument("--backends", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--note", default="", help="what else a reader must know, such as other load")
    options = parser.parse_args()
    how = f"`bench/fairness.py --seconds {options.seconds:g} --repeat {options.repeat}`"
    print(HEAD.format(date=time.strftime("%Y-%m-%d"), machine=machine(), how=how, note=options.note), flush=True)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        for number in range(1, options.repeat + 1):
            for case in cases(options.caps, options.backends):
                print(row(case, number, runner.run(run(case, options.seconds))), flush=True)


if __name__ == "__main__":
    main()
