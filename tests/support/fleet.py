"""Several whole nodes in a test's own event loop that mesh with real TLS, each with a certificate of its own name."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hub import eventually
from tests.support.node import Running, configurations, running
from tests.support.processes import Pki

SUFFIX = ".mesh.test"


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Keep ports that only somebody who asks for them by number gets: a node that is not up yet, or down again."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the node's own listening sockets have
            sock.bind(("127.0.0.1", 0))
            ports.append(int(sock.getsockname()[1]))
        yield ports


def mesh_settings(pki: Pki, name: str, peer_port: int, peers: Iterable[int]) -> dict[str, Any]:
    """Return what makes a node one of the test's mesh; all dial ``localhost``, which every certificate has."""
    cert_file, key_file = pki.issue(name, f"{name}{SUFFIX}", "localhost")
    return {
        "hubTlsCertFile": str(cert_file),
        "hubTlsKeyFile": str(key_file),
        "peerListenAddress": f"127.0.0.1:{peer_port}",
        "peers": [f"wss://localhost:{other}/mesh" for other in peers],
        "peerAuthentication": {"trustedDomainSuffixes": [SUFFIX]},
        "peerCAFile": str(pki.ca_file),
    }


@contextlib.asynccontextmanager
async def fleet(pki: Pki, directory: Path, count: int, **settings: Any) -> AsyncIterator[list[Running]]:
    """Run ``count`` nodes that all dial each other, once every pair has a link."""
    config = configurations(pki, directory)
    async with contextlib.AsyncExitStack() as stack:
        ports = stack.enter_context(reserved_ports(count))
        nodes = []
        for index, own in enumerate(ports):
            others = [other for other in ports if other != own]
            made = mesh_settings(pki, f"node-{index}", own, others)
            nodes.append(await stack.enter_async_context(running(pki, config(**made, **settings))))
        for node in nodes:
            await eventually(lambda node=node: serving(node) == count - 1, "every pair of nodes has a link")  # type: ignore[misc]
        yield nodes


def serving(node: Running) -> int:
    """Return how many links of a node are in use: those that are no second ones."""
    return sum(not peer.retired for peer in node.node.mesh.peers)


async def knows(node: Running, *routes: str) -> None:
    """Wait until a node has heard of exactly these routes of its peers."""
    await eventually(lambda: set(node.node.mesh.routes) == set(routes), f"peers announce {routes}")
