"""Pebble, the test CA of Let's Encrypt, and its name server, as real processes on loopback."""

from __future__ import annotations

import contextlib
import json
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_ports
from tests.support.processes import Pki, Process, is_listening, wait_for
from tests.support.programs import require

ACCOUNT_ID, ACCOUNT_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass
class Zone:
    """What the CA's name server answers; management is HTTP on loopback."""

    dns_port: int
    management_port: int

    def point(self, host: str, *addresses: str) -> None:
        """Give a name these IPv4 addresses and nothing else."""
        self._post("clear-a", {"host": f"{host}."})
        self._post("add-a", {"host": f"{host}.", "addresses": list(addresses)})

    def remove(self, host: str) -> None:
        """Let the look-up of a name fail."""
        self._post("set-servfail", {"host": f"{host}."})

    def restore(self, host: str) -> None:
        """Undo ``remove``."""
        self._post("clear-servfail", {"host": f"{host}."})

    def _post(self, path: str, document: dict[str, object]) -> None:
        url = f"http://127.0.0.1:{self.management_port}/{path}"
        request = urllib.request.Request(url, json.dumps(document).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass


@contextlib.contextmanager
def zone(directory: Path) -> Iterator[Zone]:
    """Run the name server; every name is 127.0.0.1 until it is pointed elsewhere."""
    program = require("pebble-challtestsrv")
    made = Zone(*free_ports(2))
    arguments = [program, "-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    arguments += ["-dns01", f"127.0.0.1:{made.dns_port}", "-management", f"127.0.0.1:{made.management_port}"]
    with Process(arguments, directory / "zone.log"):
        wait_for(lambda: is_listening(made.management_port), "the name server listens")
        yield made


class Pebble:
    """A CA on ``url``; ``start`` again after ``stop`` forgets accounts and orders, as it keeps nothing."""

    def __init__(
        self,
        directory: Path,
        pki: Pki,
        found: Zone,
        *,
        http_port: int,
        tls_port: int = 5001,
        lifetime_s: int = 90 * 86_400,
        refused_nonces: int = 0,
        wants_account: bool = False,
    ) -> None:
        self.port, self._management = free_ports(2)
        self.directory, self.pki = directory, pki
        self._process: Process | None = None
        cert_file, key_file = pki.issue("pebble", "localhost", "127.0.0.1")
        self._config = directory / "pebble.json"
        self._config.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{self.port}",
                        "managementListenAddress": f"127.0.0.1:{self._management}",
                        "certificate": str(cert_file),
                        "privateKey": str(key_file),
                        "httpPort": http_port,
                        "tlsPort": tls_port,
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": wants_account,
                        "externalAccountMACKeys": {ACCOUNT_ID: ACCOUNT_KEY},
                        "certificateValidityPeriod": lifetime_s,
                    }
                }
            )
        )
        self._command = [require("pebble"), "-config", str(self._config), "-dnsserver", f"127.0.0.1:{found.dns_port}"]
        self._env = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": str(refused_nonces),
            "PEBBLE_AUTHZREUSE": "0",
        }

    def start(self) -> None:
        """Run, until it listens."""
        self._process = Process(self._command, self.directory / "pebble.log", self._env)
        wait_for(lambda: is_listening(self.port), "Pebble listens")
        self.root_file.write_bytes(self._root())

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    def __enter__(self) -> Pebble:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where its directory is."""
        return f"https://localhost:{self.port}/dir"

    @property
    def root_file(self) -> Path:
        """The root of what it issues, another one after each start."""
        return self.directory / "pebble-root.pem"

    @property
    def log(self) -> str:
        """What it said."""
        return (self.directory / "pebble.log").read_text(errors="replace")

    def orders(self) -> int:
        """Return how many orders were placed since it was first started."""
        return self.log.count("POST /order-plz")

    def settings(self, directory: Path, host: str, **more: object) -> dict[str, object]:
        """Return what lets a node get its certificate here; merged over one with files, it replaces them."""
        return {
            "hubTlsCertFile": "",
            "hubTlsKeyFile": "",
            "hubPublicHostname": host,
            "acmeCacheDir": str(directory / "acme"),
            "acmeDirectoryURL": self.url,
            "acmeCAFile": str(self.pki.ca_file),
            **more,
        }

    def _root(self) -> bytes:
        context = ssl.create_default_context(cafile=str(self.pki.ca_file))
        url = f"https://localhost:{self._management}/roots/0"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            found: bytes = answer.read()
        return found
