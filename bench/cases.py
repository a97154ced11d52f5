"""What the suite measures of a target, one run at a time; every figure has a name that says its unit.

A run counts failures beside its figures: bytes are counted at both ends, and a stream that does not complete is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Final

from bench import traffic, usage
from bench.targets import Running
from bench.traffic import MIB

Figures = Mapping[str, float]

_US: Final = 1e6
_WARM_UP_BYTES: Final = 4 * MIB
_SETTLE_S: Final = 0.3


@dataclass(frozen=True)
class Case:
    """One measurement by name; ``fresh``: of targets that have done nothing before, whose heap has no room yet."""

    name: str
    run: Callable[[Running], Figures]
    udp: bool = False
    fresh: bool = False


def _cpu_s(roots: Sequence[int]) -> float:
    return usage.cpu_s(usage.trees(roots))


def _memory_bytes(roots: Sequence[int]) -> int:
    return usage.memory_bytes(usage.trees(roots))


def _metered(running: Running, action: Callable[[], float], unit: str, per: float) -> dict[str, float]:
    """Run ``action``, which returns an amount; return the CPU of both sides for ``per`` of it, in ``unit``."""
    before = _cpu_s(running.edge), _cpu_s(running.far)
    amount = action()
    time.sleep(_SETTLE_S / 3)  # what is left to do behind the last byte belongs to it
    edge, far = _cpu_s(running.edge) - before[0], _cpu_s(running.far) - before[1]
    if not amount:
        return {}
    return {f"edge {unit}": edge / amount * per, f"far {unit}": far / amount * per}


def bulk(direction: str, streams: int, total: int, running: Running) -> Figures:
    """``total`` bytes over some streams at once."""
    move = partial(getattr(traffic, direction), running.address)
    move(_WARM_UP_BYTES)
    figures: dict[str, float] = {}

    def action() -> float:
        seconds, failed = traffic.together(partial(move, total // streams), streams)
        figures.update({"MiB/s": total / MIB / seconds, "failed": failed})
        return total / (1024 * MIB)

    return {**_metered(running, action, "CPU s/GiB", 1), **figures}


def round_trips(streams: int, seconds: float, running: Running, *, loaded: bool = False) -> Figures:
    """Messages of 64 bytes, there and back; under load two bulk streams, one each way, go beside."""

    found: list[float] = []

    def action() -> float:
        found.extend(traffic.round_trips(running.address, streams, seconds))
        return len(found)

    if not loaded:
        used = _metered(running, action, "CPU us/trip", _US)
    else:
        size = 64 * MIB
        with (
            traffic.in_background(partial(traffic.download, running.address, size)),
            traffic.in_background(partial(traffic.upload, running.address, size)),
        ):
            time.sleep(_SETTLE_S)
            action()
        used = {}
    cuts = quantiles(found, n=1000)
    percentiles = {"p50 us": cuts[499] * _US, "p99 us": cuts[989] * _US, "p99.9 us": cuts[998] * _US}
    return {**percentiles, "trips/s": len(found) / seconds, **used}


def connections(at_once: int, seconds: float, running: Running) -> Figures:
    """New connections, each with a hello, one byte back and the end."""
    traffic.connections(running.address, at_once, 0.2)
    figures: dict[str, float] = {}

    def action() -> float:
        made, failed = traffic.connections(running.address, at_once, seconds)
        figures.update({"connections/s": made / seconds, "failed": failed})
        return made

    return {**_metered(running, action, "CPU us/connection", _US), **figures}


def idle(count: int, running: Running) -> Figures:
    """Memory of streams that say nothing, and whether they all still live."""
    time.sleep(usage.AT_REST_S)
    before = _memory_bytes(running.edge), _memory_bytes(running.far)
    with traffic.idle(running.address, count) as socks:
        time.sleep(_SETTLE_S)
        edge, far = _memory_bytes(running.edge) - before[0], _memory_bytes(running.far) - before[1]
        alive = 0
        for sock in socks:
            sock.sendall(b"still there?")
            alive += sock.recv(64) == b"still there?"
    return {"edge KB/stream": edge / count / 1024, "far KB/stream": far / count / 1024, "failed": count - alive}


def small_writes(size: int, seconds: float, running: Running) -> Figures:
    """One stream of messages of one size, as fast as they are taken."""
    figures: dict[str, float] = {}

    def action() -> float:
        started = time.monotonic()
        sent = traffic.small_writes(running.address, size, seconds)
        taken_s = time.monotonic() - started
        figures["MiB/s"] = sent * size / MIB / taken_s
        return sent

    return {**_metered(running, action, "CPU us/write", _US), **figures}


def datagrams(flows: int, seconds: float, running: Running) -> Figures:
    """One datagram of 64 bytes under way on each flow, there and back."""
    assert running.datagrams is not None
    address = running.datagrams
    figures: dict[str, float] = {}

    def action() -> float:
        returned, lost = traffic.datagrams(address, flows, seconds)
        figures.update({"trips/s": returned / seconds, "failed": lost})
        return returned

    return {**_metered(running, action, "CPU us/trip", _US), **figures}


def cases(scale: float) -> tuple[Case, ...]:
    """Return all cases; ``scale`` shortens or lengthens each run (1: a few seconds)."""
    size, seconds = int(512 * scale) * MIB, 3.0 * scale
    return (
        *(
            Case(f"{direction}, {streams} streams", partial(bulk, direction, streams, size))
            for direction in ("download", "upload")
            for streams in (1, 4, 16, 64)
        ),
        *(Case(f"round trips, {streams} streams", partial(round_trips, streams, seconds)) for streams in (1, 64)),
        Case("round trips, 1 stream, bulk beside", partial(round_trips, 1, seconds, loaded=True)),
        *(Case(f"connections, {n} at once", partial(connections, n, seconds)) for n in (1, 16, 64, 256)),
        *(
            Case(f"idle, {count} streams", partial(idle, count), fresh=True)
            for count in (1_000, min(10_000, traffic.streams_max()))
        ),
        *(Case(f"writes of {size} B", partial(small_writes, size, seconds / 2)) for size in (64, 256, 1_400)),
        *(Case(f"datagrams, {flows} flows", partial(datagrams, flows, seconds), udp=True) for flows in (1, 64, 1_000)),
    )
