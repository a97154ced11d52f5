"""Two nodes on two machines (network namespaces): the cable between them is cut, and mended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.namespaces import FIRST, SECOND, Wire, wire
from tests.support.processes import (
    START_TIMEOUT_S,
    Nginx,
    Node,
    Pki,
    Process,
    client_command,
    scratch_directory,
    wait_for,
)
from tests.support.programs import require

HOST = "app.example.com"
PEER_PORT, TLS_PORT, HUB_PORT = 8444, 8443, 8440
BACK_S = 5.0  # so soon after the return new connections succeed


class Remote(Node):
    """A node in a namespace."""

    def __init__(self, directory: Path, pki: Pki, namespace: str, own: str, other: str) -> None:
        directory.mkdir()
        self.prefix = Wire.inside(namespace)
        cert_file, key_file = pki.issue(directory.name, f"{directory.name}.mesh.test", "localhost", own)
        super().__init__(
            directory,
            pki,
            backendListenAddress=f"127.0.0.1:{HUB_PORT}",
            relayPorts=[TLS_PORT],
            hubTlsCertFile=str(cert_file),
            hubTlsKeyFile=str(key_file),
            adminListenAddress=f"unix:{directory}/admin",
            peerListenAddress=f"{own}:{PEER_PORT}",
            peers=[f"wss://{other}:{PEER_PORT}/mesh"],
            peerAuthentication={"trustedDomainSuffixes": [".mesh.test"]},
            peerCAFile=str(pki.ca_file),
        )


@dataclass
class Parted:
    """curl and the origin on one machine, the destination with its backend on the other."""

    directory: Path
    pki: Pki
    cable: Wire
    origin: Remote
    destination: Remote

    def curl(self, path: str, *options: str) -> list[str]:
        """Return curl's command line on the origin's machine."""
        where = f"{HOST}:{TLS_PORT}"
        trust = ["--cacert", str(self.pki.ca_file), "--resolve", f"{where}:127.0.0.1"]
        command = [require("curl"), "--silent", "--show-error", *trust, *options, f"https://{where}{path}"]
        return [*Wire.inside(self.cable.first), *command]

    def works(self) -> bool:
        """Tell whether a new client is served."""
        command = self.curl("/small", "--max-time", "3")
        return subprocess.run(command, capture_output=True, timeout=30, check=False).stdout == b"hello mesh\n"

    def download(self, *options: str) -> subprocess.Popen[bytes]:
        """Start to load a large file, and return once some of it has come: from then on the tunnel is no attempt."""
        command = self.curl("/huge", *options, "--output", str(self.directory / "huge"), "--no-buffer")
        process = subprocess.Popen(command)
        wait_for(self.downloaded, "the download runs")
        return process

    def downloaded(self) -> int:
        """Return how many bytes of the large file have come."""
        file = self.directory / "huge"
        return file.stat().st_size if file.exists() else 0

    def knows(self) -> bool:
        """Tell whether the origin knows the destination's backend."""
        return self.origin.metric("nexus_mesh_routes") == 1


@pytest.fixture
def parted() -> Iterator[Parted]:
    """Everything up, and a client served."""
    with scratch_directory() as directory, wire() as cable:
        pki = Pki.create(directory)
        (directory / "nginx").mkdir()
        nginx = RemoteNginx(directory / "nginx", *pki.issue("app", HOST))
        nginx.namespace = cable.second
        (nginx.root / "small").write_text("hello mesh\n")
        (nginx.root / "huge").write_bytes(bytes(256 * 1024 * 1024))
        with (
            nginx,
            Remote(directory / "us", pki, cable.first, FIRST, SECOND) as origin,
            Remote(directory / "eu", pki, cable.second, SECOND, FIRST) as destination,
            _backend(directory, pki, cable, nginx.tls_port),
        ):
            made = Parted(directory, pki, cable, origin, destination)
            wait_for(made.knows, "the origin knows the route")
            wait_for(made.works, "a client is served")
            yield made


class RemoteNginx(Nginx):
    """nginx in a namespace, where nobody outside sees it listen."""

    namespace = ""

    def __enter__(self) -> RemoteNginx:
        config = self.directory / "nginx.conf"
        config.write_text(self._config())
        command = [*Wire.inside(self.namespace), require("nginx"), "-p", str(self.directory), "-c", str(config)]
        self.process = Process(command, self.directory / "nginx.log")
        return self


def _backend(directory: Path, pki: Pki, cable: Wire, target: int) -> Process:
    """Return the backend client on the destination's machine."""
    hub_url = f"wss://localhost:{HUB_PORT}/connect"
    command, log = client_command(directory, hub_url, pki, {TLS_PORT: target}, HOST)
    return Process([*Wire.inside(cable.second), *command], log)


def test_a_cut_cable_breaks_streams_and_a_mended_one_serves_again(parted: Parted) -> None:
    """Streams end visibly, the route leaves; the cable back, new clients are served within 5 s."""
    slow = parted.download("--limit-rate", "500k")
    parted.cable.cut()
    assert slow.wait(START_TIMEOUT_S + 10) != 0, "a truncated download looked whole"
    wait_for(lambda: parted.origin.metric("nexus_mesh_routes") == 0, "the route leaves")
    wait_for(lambda: parted.destination.metric("nexus_streams") == 0, "the backend's stream has ended, too")
    assert not parted.works()
    parted.cable.mend()
    mended = time.monotonic()
    wait_for(parted.works, "a new client is served")
    assert time.monotonic() - mended <= BACK_S
    wait_for(lambda: parted.origin.metric("nexus_mesh_links") == 1, "one link is kept")


def test_a_short_cut_costs_nothing(parted: Parted) -> None:
    """TCP repairs what a few seconds took: the download goes on, and is whole."""
    size = 24 * 1024 * 1024
    slow = parted.download("--range", f"0-{size - 1}", "--limit-rate", "8M")
    parted.cable.cut()
    wait_for(lambda: parted.origin.metric("nexus_mesh_links") == 1, "the link is still held to be up")
    parted.cable.mend()
    assert slow.wait(60) == 0
    assert parted.downloaded() == size
