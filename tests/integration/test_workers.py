"""A node of several processes under real clients, directly and as either end of the mesh: every byte arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import HOST
from tests.support import wire
from tests.support.dns import ZONE, nsd
from tests.support.fleet import mesh_settings
from tests.support.ports import free_ports
from tests.support.processes import Client, Nginx, Node, Pki, wait_for
from tests.support.programs import require

pytestmark = pytest.mark.programs

SIZE = 16 * 1024 * 1024
TRANSFERS = 16


@pytest.fixture
def nginx(directory: Path, pki: Pki) -> Iterator[Nginx]:
    """The service of the backends."""
    with Nginx(directory, *pki.issue("app", HOST)) as found:
        yield found


def transfer(node: Node, nginx: Nginx, address: str = "127.0.0.1") -> None:
    """Download and upload one file many times at once, each by a connection of its own."""
    sent = wire.write_random(nginx.root / "big", SIZE)
    resolve = ["--resolve", f"{HOST}:{node.tls_port}:{address}"]
    curl = [require("curl"), "-sS", "--fail", "--http1.1", "--cacert", str(node.pki.ca_file), *resolve, "--parallel"]
    into, url = node.directory / "arrived", f"https://{HOST}:{node.tls_port}"
    into.mkdir()
    downloads = [part for n in range(TRANSFERS) for part in ("-o", str(into / str(n)), f"{url}/big")]
    wire.run_program(*curl, "--parallel-immediate", *downloads)
    assert [wire.sha256_of(into / str(n)) for n in range(TRANSFERS)] == [sent] * TRANSFERS
    (nginx.root / "up").mkdir()
    (nginx.root / "up").chmod(0o777)
    uploads = [part for n in range(TRANSFERS) for part in ("-T", str(nginx.root / "big"), f"{url}/up/{n}")]
    wire.run_program(*curl, "--parallel-immediate", *uploads)
    assert [wire.sha256_of(nginx.root / "up" / str(n)) for n in range(TRANSFERS)] == [sent] * TRANSFERS
    wait_for(lambda: node.metric("nexus_streams") == 0, "every stream has ended")
    assert node.metric("nexus_buffered_bytes") == 0


@pytest.mark.parametrize("sessions", [1, 2])
def test_transfers_arrive_whole(directory: Path, pki: Pki, nginx: Nginx, sessions: int) -> None:
    """With one session half of the clients are passed on; with one at each worker none needs to be."""
    with Node(directory, pki, workers=2) as node:
        with Client(directory, node, {node.tls_port: nginx.tls_port}, HOST, sessions=sessions):
            wait_for(lambda: node.metric("nexus_sessions") == sessions, "the sessions")
            transfer(node, nginx)
            assert node.metric("nexus_streams_opened_total") == 2 * TRANSFERS
        assert node.stop() == 0
        assert "Traceback" not in node.output()


@pytest.mark.parametrize(("at_origin", "at_destination"), [(1, 2), (2, 1)])
def test_tunnels_of_a_mesh_reach_every_worker(
    directory: Path, pki: Pki, nginx: Nginx, at_origin: int, at_destination: int
) -> None:
    """The first worker has the links: it relays to the backends of others, and others pass clients on to it."""
    ports = free_ports(3)
    claimed = ports.pop()
    workers = (at_origin, at_destination)
    with nsd(directory) as server:
        nodes = []
        for index, (own, other) in enumerate((ports, ports[::-1])):
            (directory / f"{index}").mkdir()
            settings = {
                "workers": workers[index],
                "relayBindAddresses": [f"127.0.0.{index + 1}"],
                "udpRelayPorts": [claimed],
                "allowedUDPPortClaims": [claimed],
                **mesh_settings(pki, f"node-{index}", own, [other]),
            }
            nodes.append(Node(directory / f"{index}", pki, **settings))
        origin, destination = nodes
        with origin, destination:
            targets = {origin.tls_port: nginx.tls_port, claimed: server.port}
            client = Client(directory, destination, targets, HOST, sessions=2, udpRoutes=[{"port": claimed}])
            with client:
                wait_for(lambda: destination.metric("nexus_sessions") == 2, "both sessions")
                wait_for(lambda: origin.metric("nexus_mesh_routes") == 2, "the origin knows")
                transfer(origin, nginx)
                for number in range(10):
                    ask = (require("dig"), "@127.0.0.1", "-p", str(claimed), "+short", "+tries=1")
                    assert wire.run_program(*ask, f"{number}.hosts.{ZONE}") == f"192.0.2.{number}\n"
            assert (origin.stop(), destination.stop()) == (0, 0)
            assert "Traceback" not in origin.output() + destination.output()
