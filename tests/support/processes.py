"""Nodes, backend clients and nginx as real processes on loopback, with certificates of a CA made for the test run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from nexus.admin.probe import probe
from nexus.tls.localca import PemPair, create_ca, issue
from tests.support.ports import free_ports
from tests.support.programs import require

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
_ESTABLISHED = "01"  # of Linux's /proc/net/tcp
SECRET = "integration-secret-of-32-bytes!!"
NEXUS = [sys.executable, "-c", "from cli.main import main; main()"]
_METRIC = re.compile(r"^(?P<name>[a-z_]+)(?P<labels>\{[^}]*\})? (?P<value>\S+)$")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll until ``condition()`` is true; fail the test with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def is_listening(port: int) -> bool:
    """Tell whether something accepts on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def established(port: int) -> int:
    """Return how many connections of a loopback port its own program still holds open in both directions."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == f"0100007F:{port:04X}" and row[3] == _ESTABLISHED for row in rows)


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass
class Pki:
    """A CA and what it issued, as files in one directory."""

    directory: Path
    ca: PemPair

    @classmethod
    def create(cls, directory: Path) -> Pki:
        """Make a CA."""
        pki = cls(directory, create_ca("Nexus test CA", time.time()))
        (directory / "ca.pem").write_bytes(pki.ca.cert_pem)
        return pki

    @property
    def ca_file(self) -> Path:
        """The CA's certificate."""
        return self.directory / "ca.pem"

    def issue(self, name: str, *names: str) -> tuple[Path, Path]:
        """Issue a certificate for ``names`` into ``<name>.pem`` and ``<name>.key``; issuing again replaces it."""
        pair = issue(self.ca, names, time.time(), 30)
        cert_file, key_file = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        cert_file.write_bytes(pair.cert_pem)
        key_file.touch(mode=0o600)
        key_file.write_bytes(pair.key_pem)
        return cert_file, key_file


class Process:
    """A program under test; its output goes to a file that a failing test shows."""

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            sys.stderr.write(f"--- {self.log} ---\n{self.output()[-8000:]}\n")
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(STOP_TIMEOUT_S)

    def output(self) -> str:
        """Return everything the program printed."""
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send a signal and return the exit status."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout_s)

    def kill(self) -> None:
        """End the program without any chance to say goodbye."""
        self.stop(signal.SIGKILL)

    def rss_bytes(self) -> int:
        """Return the resident memory of now."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


class Node(Process):
    """``nexus serve`` with a configuration file of its own; ``prefix`` is a command that runs it."""

    prefix: tuple[str, ...] = ()

    def __init__(self, directory: Path, pki: Pki, **settings: object) -> None:
        self.hub_port, self.tls_port, self.http_port, self.admin_port = free_ports(4)
        cert_file, key_file = pki.issue("hub", "localhost", "127.0.0.1")
        self.config = {
            "backendListenAddress": f"127.0.0.1:{self.hub_port}",
            "relayPorts": [self.tls_port, self.http_port],
            "relayBindAddresses": ["127.0.0.1"],
            "idleTimeoutSeconds": 60,
            "backendsJWTSecret": SECRET,
            "hubTlsCertFile": str(cert_file),
            "hubTlsKeyFile": str(key_file),
            "adminListenAddress": f"127.0.0.1:{self.admin_port}",
            **settings,
        }
        self.admin = str(self.config["adminListenAddress"])
        self.directory = directory
        self.pki = pki
        self.file = directory / "server.yaml"
        self.file.write_text(yaml.safe_dump(self.config))
        self._start()

    def _start(self) -> None:
        super().__init__([*self.prefix, *NEXUS, "serve", "-c", str(self.file)], self.directory / "node.log")
        wait_for(self.is_ready, "the node is ready")

    def restart(self) -> None:
        """Start again on the same ports, after ``stop`` or ``kill``."""
        self._start()

    @property
    def hub_url(self) -> str:
        """What backends dial."""
        return f"wss://localhost:{self.hub_port}/connect"

    def is_ready(self) -> bool:
        """Ask /readyz; fail at once when the process has ended."""
        if self.popen.poll() is not None:
            raise AssertionError(f"the node ended with status {self.popen.returncode}:\n{self.output()[-4000:]}")
        with contextlib.suppress(OSError):
            return probe(self.admin, "/readyz").status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Return every sample by ``name`` or ``name{labels}``."""
        body = probe(self.admin, "/metrics").body
        found = (_METRIC.match(line) for line in body.splitlines())
        return {m["name"] + (m["labels"] or ""): float(m["value"]) for m in found if m}

    def metric(self, name: str) -> float:
        """Return one sample, 0 while it has none."""
        return self.metrics().get(name, 0.0)

    def rejected(self) -> float:
        """Return how many clients were closed without a stream, for any reason."""
        name = "nexus_client_connections_rejected_total"
        return sum(value for sample, value in self.metrics().items() if sample.startswith(name))


def client_command(
    directory: Path, hub_url: str, pki: Pki, targets: Mapping[int, int], *hostnames: str, **settings: object
) -> tuple[list[str], Path]:
    """Write the file of one backend; return the command that runs it, and where its output may go."""
    name = f"client-{len(list(directory.glob('client-*.yaml')))}"
    backend = {
        "name": name,
        "hostnames": list(hostnames),
        "nexusAddresses": [hub_url],
        "caFile": str(pki.ca_file),
        "attestation": {"hmacSecret": SECRET},
        "portMappings": {port: {"default": f"127.0.0.1:{target}"} for port, target in targets.items()},
        **settings,
    }
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"backends": [backend]}))
    return [*NEXUS, "client", "run", "-c", str(file)], directory / f"{name}.log"


def client_process(
    directory: Path, hub_url: str, pki: Pki, targets: Mapping[int, int], *hostnames: str, **settings: object
) -> Process:
    """Start ``nexus client run`` for one backend; it need not be connected yet."""
    return Process(*client_command(directory, hub_url, pki, targets, *hostnames, **settings))


class Client(Process):
    """``nexus client run`` for one backend; ``targets`` maps relay ports of the node to local ports."""

    def __init__(
        self, directory: Path, node: Node, targets: Mapping[int, int], *hostnames: str, **settings: object
    ) -> None:
        before = node.metric("nexus_sessions_opened_total")
        started = client_process(directory, node.hub_url, node.pki, targets, *hostnames, **settings)
        self.popen, self.log = started.popen, started.log
        self.name = self.log.stem
        wait_for(lambda: node.metric("nexus_sessions_opened_total") > before, "the hub has the client's session")


@dataclass
class Nginx:
    """nginx with a certificate of its own: files below ``root``, PUT into it, TLS with HTTP/2, and plain HTTP."""

    directory: Path
    cert_file: Path
    key_file: Path
    locations: str = ""
    tls_port: int = 0
    http_port: int = 0
    root: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.directory / "www"
        self.root.mkdir()
        self.root.chmod(0o777)
        self.tls_port, self.http_port = free_ports(2)

    def __enter__(self) -> Self:
        program = require("nginx")
        config = self.directory / "nginx.conf"
        config.write_text(self._config())
        self.process = Process([program, "-p", str(self.directory), "-c", str(config)], self.directory / "nginx.log")
        wait_for(lambda: is_listening(self.tls_port) and is_listening(self.http_port), "nginx listens")
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.popen.terminate()
        self.process.popen.wait(STOP_TIMEOUT_S)

    def _config(self) -> str:
        return f"""
daemon off; pid {self.directory}/nginx.pid; error_log stderr notice; worker_processes 1; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 0; client_body_temp_path {self.directory}/body; default_type text/plain;
  types {{ text/html html; text/javascript js; }}
  proxy_temp_path {self.directory}/proxy; fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u;
  scgi_temp_path {self.directory}/s; keepalive_requests 100000; large_client_header_buffers 8 64k;
  server {{
    listen 127.0.0.1:{self.tls_port} ssl http2; listen 127.0.0.1:{self.http_port};
    ssl_certificate {self.cert_file}; ssl_certificate_key {self.key_file}; ssl_protocols TLSv1.2 TLSv1.3;
    root {self.root};
    location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
    {self.locations}
  }}
}}
"""


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Give a directory with a short path (nginx and Unix sockets have limits)."""
    directory = Path(tempfile.mkdtemp(prefix="nx"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
