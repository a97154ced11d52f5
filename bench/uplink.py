"""What a small exchange waits for beside bulk, where the backend's uplink is slow: as in a home.

    uv run python -m bench.uplink [--rate 10mbit] [--seconds 10] [--before CHECKOUT]

Backend client and service are in a network namespace whose cable to the node's carries no more than ``--rate`` towards
the node, with a queue of 50 ms (tc-tbf(8)); needs root and iproute2. Messages of 64 bytes go there and back through the
node, alone and beside one download from the same backend.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles

from bench import traffic
from bench.suite import machine
from bench.traffic import ZONE
from tests.support.namespaces import SECOND, Wire, wire
from tests.support.processes import Node, Pki, Process, client_command, scratch_directory, wait_for

BULK_BYTES = 2 * traffic.MIB


def measure(port: int, seconds: float) -> None:
    """Print what clients of a node see, alone and beside a download; run in the node's namespace."""
    address = ("127.0.0.1", port)
    for what, beside in (("alone", False), ("beside a download", True)):
        with contextlib.ExitStack() as stack:
            if beside:
                stack.enter_context(traffic.in_background(lambda: traffic.download(address, BULK_BYTES)))
                time.sleep(2)  # until what can queue up has done so
            trips = traffic.round_trips(address, 1, seconds)
        cuts = quantiles(trips, n=100)
        print(f"| {what} | {cuts[49] * 1e3:.1f} | {cuts[94] * 1e3:.1f} | {max(trips) * 1e3:.1f} | {len(trips)} |")


def slow_down(made: Wire, rate: str) -> None:
    """Let the first namespace send no faster than ``rate``."""
    limit = ["rate", rate, "burst", "16kb", "latency", "50ms"]
    subprocess.run(["tc", "-n", made.first, "qdisc", "add", "dev", "wire", "root", "tbf", *limit], check=True)


class There(Node):
    """A node in the second namespace, with its hub on that end of the cable."""

    def __init__(self, directory: Path, pki: Pki, prefix: tuple[str, ...]) -> None:
        self.prefix = prefix
        cert, key = pki.issue("there", SECOND)
        self.url = f"wss://{SECOND}:8443/connect"
        super().__init__(
            directory,
            pki,
            hubTlsCertFile=str(cert),
            hubTlsKeyFile=str(key),
            backendListenAddress=f"{SECOND}:8443",
            adminListenAddress=f"unix:{directory}/admin",
        )


def compare(name: str, rate: str, seconds: float, checkout: Path) -> None:
    """Put everything up from a checkout, and measure."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(wire())
        slow_down(made, rate)
        directory = stack.enter_context(scratch_directory())
        pki = Pki.create(directory)
        env = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={checkout}"]
        here, there = (Wire.inside(space) for space in (made.first, made.second))
        port_file = directory / "port"
        service = [*here, sys.executable, "-m", "bench.traffic", str(port_file)]
        stack.enter_context(Process(service, directory / "service.log"))
        wait_for(port_file.exists, "the service listens")
        node = stack.enter_context(There(directory, pki, (*there, *env)))
        targets = {node.tls_port: int(port_file.read_text())}
        command, log = client_command(directory, node.url, pki, targets, f"*.{ZONE}")
        stack.enter_context(Process([*here, *env, *command], log))
        wait_for(lambda: node.metric("nexus_routes"), "the backend is connected")
        inside = [
            *there,
            sys.executable,
            "-m",
            "bench.uplink",
            "--inside",
            str(node.tls_port),
            "--seconds",
            str(seconds),
        ]
        print(f"\n## {name}\n\n| | p50 ms | p95 ms | longest ms | trips |\n|---|---|---|---|---|", flush=True)
        subprocess.run(inside, check=True, timeout=120)


def main() -> None:
    """Print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", default="10mbit")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--before", type=Path, help="compare with this checkout of ours")
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measure(options.inside, options.seconds)
        return
    about = machine()
    print(f"# {about.pop('date')}: a slow uplink\n\nBy `uv run python -m bench.uplink --rate {options.rate}`.\n")
    print("\n".join(f"- {key}: {value}" for key, value in about.items()))
    checkouts = {"nexus": Path.cwd()}
    if options.before:
        checkouts["nexus, before"] = options.before.resolve()
    for name, checkout in checkouts.items():
        compare(name, options.rate, options.seconds, checkout)


if __name__ == "__main__":
    main()
