"""What the suite compares: ours, the references that anybody can install, and no proxy at all.

Each target is put up in front of the same service, and names its processes: the *edge* is what the public reaches, the
*far* side what the service sees. Their CPU is counted with that of their children. HAProxy runs one thread, as a node
runs one worker, unless a target says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest.mock import patch

from bench.traffic import ZONE, Address, streams_max
from tests.support.fleet import mesh_settings
from tests.support.ports import free_ports
from tests.support.processes import Node, Pki, Process, client_process, is_listening, wait_for

LOCAL: Final = "127.0.0.1"


@dataclass(frozen=True)
class Running:
    """A target that is up: where clients go, over UDP too if it has that, and the roots of its process trees."""

    address: Address
    edge: Sequence[int] = ()
    far: Sequence[int] = ()
    datagrams: Address | None = None


Start = Callable[[Path, int], contextlib.AbstractContextManager[Running]]
"""Puts a target up in a directory before a service on a port."""


@dataclass(frozen=True)
class Target:
    """A target by name."""

    name: str
    start: Start
    needs: tuple[str, ...] = field(default=())

    @property
    def missing(self) -> list[str]:
        """The programs that are not installed."""
        return [name for name in self.needs if program(name) is None]


def program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextlib.contextmanager
def _direct(directory: Path, service: int) -> Iterator[Running]:
    del directory
    yield Running((LOCAL, service), datagrams=(LOCAL, service))


# -- HAProxy ---------------------------------------------------------------------------------------------------------

_HAPROXY: Final = """
global
    maxconn {streams}
    nbthread {threads}
    log stdout format raw local0 emerg
defaults
    mode tcp
    timeout connect 10s
    timeout client 300s
    timeout server 300s
    timeout client-fin 30s
"""
_BY_NAME: Final = f"""
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend service if {{ req.ssl_sni -m end .{ZONE} }}
"""


def _haproxy(directory: Path, name: str, sections: str, threads: int = 1) -> Process:
    file = directory / f"{name}.cfg"
    file.write_text(_HAPROXY.format(streams=streams_max(), threads=threads) + sections)
    haproxy = program("haproxy")
    assert haproxy is not None
    return Process([haproxy, "-db", "-f", str(file)], directory / f"{name}.log")


@contextlib.contextmanager
def _one_hop(directory: Path, service: int, threads: int = 1) -> Iterator[Running]:
    (port,) = free_ports(1)
    sections = f"frontend edge\n    bind {LOCAL}:{port}\n{_BY_NAME}\n"
    sections += f"backend service\n    server s {LOCAL}:{service}\n"
    with _haproxy(directory, "edge", sections, threads) as edge:
        wait_for(lambda: is_listening(port), "HAProxy listens")
        yield Running((LOCAL, port), [edge.popen.pid])


@contextlib.contextmanager
def _two_hops(directory: Path, service: int) -> Iterator[Running]:
    """The second hop is TLS, as it is between a node and a backend client."""
    edge_port, far_port = free_ports(2)
    pki = Pki.create(directory)
    cert, key = pki.issue("far", "localhost")
    both = directory / "far-both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    towards = f"backend service\n    server s {LOCAL}:{far_port} ssl verify required ca-file {pki.ca_file}"
    edge_sections = f"frontend edge\n    bind {LOCAL}:{edge_port}\n{_BY_NAME}\n{towards} sni str(localhost)\n"
    far_sections = f"frontend far\n    bind {LOCAL}:{far_port} ssl crt {both}\n    default_backend service\n"
    far_sections += f"backend service\n    server s {LOCAL}:{service}\n"
    with _haproxy(directory, "far", far_sections) as far, _haproxy(directory, "edge", edge_sections) as edge:
        wait_for(lambda: is_listening(far_port) and is_listening(edge_port), "both HAProxies listen")
        yield Running((LOCAL, edge_port), [edge.popen.pid], [far.popen.pid])


# -- OpenSSH ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ssh(directory: Path, service: int) -> Iterator[Running]:
    """``ssh -R``, which many use instead: one port, no names, one TCP connection for all streams."""
    ssh_port, port = free_ports(2)
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, timeout=30)
    authorized = directory / "authorized"
    authorized.write_bytes((directory / "user.pub").read_bytes())
    config = directory / "sshd.conf"
    config.write_text(
        f"ListenAddress {LOCAL}:{ssh_port}\nHostKey {directory}/host\nAuthorizedKeysFile {authorized}\nUsePAM no\n"
        f"StrictModes no\nPidFile none\nAllowTcpForwarding yes\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = program("sshd")
    assert sshd is not None
    client = [
        "ssh",
        "-N",
        "-p",
        str(ssh_port),
        "-i",
        str(directory / "user"),
        "-R",
        f"{LOCAL}:{port}:{LOCAL}:{service}",
    ]
    for option in ("StrictHostKeyChecking=no", f"UserKnownHostsFile={directory}/known", "ExitOnForwardFailure=yes"):
        client += ["-o", option]
    with Process([sshd, "-D", "-e", "-f", str(config)], directory / "sshd.log") as edge:
        wait_for(lambda: is_listening(ssh_port), "sshd listens")
        with Process([*client, LOCAL], directory / "ssh.log") as far:
            wait_for(lambda: is_listening(port), "the forwarded port listens")
            yield Running((LOCAL, port), [edge.popen.pid], [far.popen.pid])


# -- Ours ------------------------------------------------------------------------------------------------------------


def _settings() -> tuple[dict[str, object], int]:
    """Return what a node of the suite has beside the usual: a UDP port, and no idle time."""
    (udp,) = free_ports(1)
    return {"udpRelayPorts": [udp], "allowedUDPPortClaims": [udp], "idleTimeoutSeconds": 0}, udp


@contextlib.contextmanager
def _nexus(directory: Path, service: int) -> Iterator[Running]:
    pki = Pki.create(directory)
    settings, udp = _settings()
    with Node(directory, pki, **settings) as node, _backend(directory, node, service, udp) as client:
        wait_for(lambda: node.metric("nexus_routes") == 2, "the backend is connected")
        yield Running((LOCAL, node.tls_port), [node.popen.pid], [client.popen.pid], (LOCAL, udp))


@contextlib.contextmanager
def _nexus_workers(directory: Path, service: int, sessions: int = 1) -> Iterator[Running]:
    """Two processes on the same ports; the backend has a session with one of them, or one with each."""
    pki = Pki.create(directory)
    settings, udp = _settings()
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Node(directory, pki, **settings, workers=2))
        clients = [stack.enter_context(_backend(directory, node, service, udp)) for _ in range(sessions)]
        wait_for(lambda: node.metric("nexus_sessions") == sessions, "the backend is connected")
        far = [client.popen.pid for client in clients]
        yield Running((LOCAL, node.tls_port), [node.popen.pid], far, (LOCAL, udp))


@contextlib.contextmanager
def _nexus_mesh(directory: Path, service: int) -> Iterator[Running]:
    """Clients come to one node, the backend is connected to the other; both nodes are the edge."""
    pki = Pki.create(directory)
    settings, udp = _settings()
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        nodes = []
        for index, (own, other) in enumerate((ports, ports[::-1])):
            (directory / f"node-{index}").mkdir()
            # A port counts at a peer where it listens on it itself: the second node has an address of its own for it.
            bind = {"relayBindAddresses": [f"127.0.0.{index + 1}"]}
            peering = mesh_settings(pki, f"node-{index}", own, [other])
            nodes.append(stack.enter_context(Node(directory / f"node-{index}", pki, **settings, **bind, **peering)))
        origin, destination = nodes
        client = stack.enter_context(_backend(directory, destination, service, udp, origin.tls_port))
        wait_for(lambda: origin.metric("nexus_mesh_routes") == 2, "the other node knows")
        edge = [node.popen.pid for node in nodes]
        yield Running((LOCAL, origin.tls_port), edge, [client.popen.pid], (LOCAL, udp))


def _backend(directory: Path, node: Node, service: int, udp: int, *more_ports: int) -> Process:
    ports: Mapping[int, int] = dict.fromkeys((node.tls_port, udp, *more_ports), service)
    routes = [{"port": udp}]
    return client_process(directory, node.hub_url, node.pki, ports, f"*.{ZONE}", udpRoutes=routes)


def _of(checkout: Path, start: Start) -> Start:
    """Return the same target run from another checkout of the project, in this one's environment."""

    @contextlib.contextmanager
    def start_there(directory: Path, service: int) -> Iterator[Running]:
        there = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
        with contextlib.ExitStack() as stack:
            with patch.dict(os.environ, there):
                running = stack.enter_context(start(directory, service))
            yield running

    return start_there


def before(checkout: Path) -> tuple[Target, ...]:
    """Return our own targets as another checkout has them."""
    return tuple(
        Target(f"{target.name}, before", _of(checkout, target.start))
        for target in TARGETS
        if target.start in {_nexus, _nexus_mesh}
    )


TARGETS: Final = (
    Target("direct", _direct),
    Target("haproxy", _one_hop, ("haproxy",)),
    Target("haproxy + TLS + haproxy", _two_hops, ("haproxy",)),
    Target("ssh -R", _ssh, ("sshd", "ssh", "ssh-keygen")),
    Target("nexus", _nexus),
    Target("nexus, mesh", _nexus_mesh),
    Target("haproxy, 2 threads", functools.partial(_one_hop, threads=2), ("haproxy",)),
    Target("nexus, 2 workers", _nexus_workers),
    Target("nexus, 2 workers, a session each", functools.partial(_nexus_workers, sessions=2)),
)
"""In the order of the tables."""
