"""How the mesh's cost grows with nodes and routes: measured with real nodes on loopback, calculated beyond.

Each fleet of N nodes is a full mesh of processes. It is left alone for some seconds (what links cost by themselves),
then a backend with R names connects to one node (what an announcement costs, and how long until every node knows). The
calculation takes the cost of one announcement, of writing and of reading it, from the same functions in this process.

    uv run python -m bench.mesh_growth
"""

from __future__ import annotations

import contextlib
import os
import platform
import time

from bench.usage import cpu_s
from nexus.mesh.routes import PeerRoutes, PortPolicy, usable
from nexus.protocol.constants import MESH_FEATURES
from nexus.protocol.tunnels import Announce, parse_text, serialize_announce
from tests.support.fleet import mesh_settings, reserved_ports
from tests.support.processes import Node, Pki, client_process, scratch_directory, wait_for

FLEETS = (2, 4, 8, 16)
NAMES = 1000
IDLE_S = 10.0
CALCULATED_ROUTES = (1_000, 10_000, 100_000)
CALCULATED_NODES = (16, 32, 64, 128)


def fleet(count: int) -> None:
    """Measure one fleet and print its row."""
    with scratch_directory() as directory, contextlib.ExitStack() as stack:
        pki = Pki.create(directory)
        ports = stack.enter_context(reserved_ports(count))
        nodes = []
        for index, own in enumerate(ports):
            (directory / f"{index}").mkdir()
            settings = mesh_settings(pki, f"node-{index}", own, [port for port in ports if port != own])
            nodes.append(stack.enter_context(Node(directory / f"{index}", pki, **settings)))
        wait_for(lambda: all(links(node) == count - 1 for node in nodes), "one link for each pair", timeout_s=120)
        before = cpu_s(node.popen.pid for node in nodes)
        time.sleep(IDLE_S)
        idle = (cpu_s(node.popen.pid for node in nodes) - before) / IDLE_S / count
        rss = sum(node.rss_bytes() for node in nodes) / count
        before = cpu_s(node.popen.pid for node in nodes)
        names = [f"host-{number}.example.com" for number in range(NAMES)]
        stack.enter_context(client_process(directory, nodes[0].hub_url, pki, {443: 1}, *names))
        wait_for(lambda: nodes[0].metric("nexus_routes") == NAMES, "the backend is connected")
        connected = time.monotonic()
        wait_for(lambda: all(routes(node) == NAMES for node in nodes[1:]), "every node knows", timeout_s=60)
        known = time.monotonic() - connected
        cost = cpu_s(node.popen.pid for node in nodes) - before
        print(
            f"| {count} | {count - 1} | {idle * 100:.2f} % | {rss / 2**20:.0f} MiB | {known:.2f} s | {cost:.2f} s |",
            flush=True,
        )


def links(node: Node) -> float:
    """Return how many links of a node are up."""
    return node.metric("nexus_mesh_links")


def routes(node: Node) -> float:
    """Return how many routes of peers a node knows."""
    return node.metric("nexus_mesh_routes")


def announcement(count: int) -> tuple[int, float, float]:
    """Return octets of an announcement of ``count`` names, and the seconds to write and to take it in."""
    names = tuple(f"host-{number}.example.com" for number in range(count))
    started = time.process_time()
    text = serialize_announce(Announce(1, names, bytes(range(16)), MESH_FEATURES))
    written = time.process_time()
    said = parse_text(text)
    assert isinstance(said, Announce)
    ports = PortPolicy(frozenset())
    keys, _ = usable(said.routes, ports, ports)
    table: PeerRoutes[str] = PeerRoutes()
    table.replace("peer", keys)
    return len(text), written - started, time.process_time() - written


def main() -> None:
    """Print both tables."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}\n")
    print(f"Measured; {NAMES} names from one backend:\n")
    print("| nodes | links a node | CPU of an idle node | memory a node | until all know | CPU of all for it |")
    print("|---|---|---|---|---|---|")
    for count in FLEETS:
        fleet(count)
    print("\nOne announcement, calculated for fleets (all nodes together, when one node's routes change):\n")
    heads = " | ".join(f"CPU, {nodes} nodes" for nodes in CALCULATED_NODES)
    print(f"| routes of the node | size | write | read | {heads} |")
    print("|---|---|---|---|" + "---|" * len(CALCULATED_NODES))
    for count in CALCULATED_ROUTES:
        size, write, read = announcement(count)
        totals = " | ".join(f"{write + (nodes - 1) * read:.2f} s" for nodes in CALCULATED_NODES)
        print(f"| {count} | {size / 1024:.0f} KiB | {write * 1000:.1f} ms | {read * 1000:.1f} ms | {totals} |")


if __name__ == "__main__":
    main()
