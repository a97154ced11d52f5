"""The suite: every case on every target, interleaved, on this machine; a table, JSON, and a plot.

    uv run --group bench python -m bench.suite [--rounds 5] [--scale 1] [--only nexus ...] [--cases download ...]
                                               [--before CHECKOUT] [--into bench/reports/DATE-suite]

A round runs all targets of a case one after the other, so that what else the machine does falls on all of them alike;
figures are medians of the rounds, and ratios are of medians. Nothing here fails a build: it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import report
from bench.cases import Case, cases
from bench.targets import TARGETS, Running, Target, before, program
from bench.traffic import raise_descriptors
from bench.usage import cpu_s
from cli.version import data_path
from tests.support.processes import Process, scratch_directory, wait_for

Runs = dict[str, dict[str, list[dict[str, float]]]]
"""Every run's figures, by case and target."""


class Load(NamedTuple):
    """The service: its port and its process; the clients are this process."""

    port: int
    pid: int


@contextlib.contextmanager
def service(directory: Path) -> Iterator[Load]:
    """Run the service."""
    port_file = directory / "port"
    with Process([sys.executable, "-m", "bench.traffic", str(port_file)], directory / "service.log") as running:
        wait_for(port_file.exists, "the service listens")
        yield Load(int(port_file.read_text()), running.popen.pid)


@contextlib.contextmanager
def put_up(targets: Sequence[Target], port: int) -> Iterator[dict[str, Running]]:
    """Put all targets up before one service; they are idle while another one is measured."""
    with contextlib.ExitStack() as stack:
        running = {}
        for target in targets:
            directory = stack.enter_context(scratch_directory())
            running[target.name] = stack.enter_context(target.start(directory, port))
        yield running


def measure(chosen: Sequence[Case], targets: Sequence[Target], rounds: int, load: Load) -> Runs:
    """Run everything; a run that breaks is told, and is no figure."""
    runs: Runs = {case.name: {} for case in chosen}
    for fresh in (True, False):
        with contextlib.ExitStack() as stack:
            running = {} if fresh else stack.enter_context(put_up(targets, load.port))
            for case in (case for case in chosen if case.fresh is fresh):
                found = runs[case.name]
                for number, target in product(range(rounds), targets):
                    figures = _run(case, target, running.get(target.name), load, f"run {number + 1}")
                    if figures is not None:
                        found.setdefault(target.name, []).append(figures)
                print(report.progress(case.name, medians({case.name: found})[case.name]), file=sys.stderr, flush=True)
    return runs


def _run(case: Case, target: Target, running: Running | None, load: Load, which: str) -> dict[str, float] | None:
    """Run a case on a target that is up, or for this alone; None where the target has nothing of the kind."""
    with contextlib.ExitStack() as stack:
        if running is None:
            running = stack.enter_context(put_up([target], load.port))[target.name]
        if case.udp and running.datagrams is None:
            return None
        load_before, started = cpu_s([os.getpid(), load.pid]), time.monotonic()
        try:
            figures = dict(case.run(running))
        except (OSError, ValueError) as error:
            print(f"{case.name}: {target.name}: {which}: {error}", file=sys.stderr)
            return {"failed": 1.0, "broken": 1.0}
        used = cpu_s([os.getpid(), load.pid]) - load_before
        return {**figures, "load cores": used / (time.monotonic() - started)}


def medians(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Return the median of each figure over the runs that gave one."""
    return {
        case: {
            name: {
                key: median(figures[key] for figures in found if key in figures)
                for key in dict.fromkeys(key for figures in found for key in figures)
            }
            for name, found in targets.items()
        }
        for case, targets in runs.items()
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    said = {}
    for name, option in {"haproxy": "-v", "ssh": "-V"}.items():
        if (installed := program(name)) is not None:
            done = subprocess.run([installed, option], capture_output=True, text=True, check=False, timeout=10)
            said[name] = (done.stdout + done.stderr).splitlines()[0]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": sys.version.replace("\n", " "),
        "data path": data_path(),
        "openssl": ssl.OPENSSL_VERSION,
        **{name: version(name) for name in ("uvloop", "aiofastnet", "websockets", "cryptography")},
        **said,
    }


def main() -> None:
    """Measure what is asked for, and write what came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="length of each run")
    parser.add_argument("--only", nargs="*", help="targets by name")
    parser.add_argument("--cases", nargs="*", help="cases whose name begins so")
    parser.add_argument("--before", type=Path, help="compare with this checkout of ours")
    parser.add_argument("--into", type=Path, help="write FILE.md, FILE.json and FILE.svg")
    options = parser.parse_args()
    raise_descriptors()
    known = (*TARGETS, *(before(options.before.resolve()) if options.before else ()))
    targets = [target for target in known if not options.only or target.name.split(", before")[0] in options.only]
    for target in targets:
        if target.missing:
            print(f"left out: {target.name}: {', '.join(target.missing)} not installed", file=sys.stderr)
    targets = [target for target in targets if not target.missing]
    chosen = [case for case in cases(options.scale) if not options.cases or case.name.startswith(tuple(options.cases))]
    with scratch_directory() as directory, service(directory) as load:
        runs = measure(chosen, targets, options.rounds, load)
    document = {"about": {**machine(), "rounds": options.rounds, "scale": options.scale}, "runs": runs}
    found = medians(runs)
    text = report.as_markdown(document["about"], found)
    print(text)
    if options.into:
        options.into.with_suffix(".md").write_text(text)
        options.into.with_suffix(".json").write_text(json.dumps(document, indent=1))
        from bench import plot  # noqa: PLC0415 — matplotlib is of the group "bench", and this alone needs it

        plot.draw(found, options.into.with_suffix(".svg"))


if __name__ == "__main__":
    main()
