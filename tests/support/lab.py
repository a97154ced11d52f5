"""The lab of ``lab/docker-compose.yml`` as a test sees it: programs in its containers, and the engine around them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cli.compose import LAB_FILE
from tests.support.docker import ROOT, docker
from tests.support.processes import wait_for

COMPOSE_FILE = ROOT / LAB_FILE
PROJECT = "nexus-lab"
NODES = {"us": "10.231.1.10", "eu": "10.231.2.10"}
HOMES = {"app.lab.test": "web-us-1", "shop.lab.test": "web-eu", "www.pages.lab.test": "web-us-1"}
"""A server of each name; ``app`` has another one with the same certificate."""

_METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
_METRICS_IF_READY = f"import urllib.request as u; u.urlopen('http://127.0.0.1:9464/readyz'); {_METRICS}"


@dataclass(frozen=True)
class Lab:
    """A lab that is up."""

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run a command of compose; return what it printed."""
        return docker("compose", "--file", str(COMPOSE_FILE), *arguments, timeout_s=timeout_s).stdout

    def container(self, service: str) -> str:
        """Return the name of the container of a service."""
        return f"{PROJECT}-{service}-1"

    def run(
        self, service: str, *command: str, data: bytes | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program in a container, whatever becomes of it."""
        return subprocess.run(
            ["docker", "exec", "--interactive", self.container(service), *command],
            capture_output=True,
            timeout=timeout_s,
            check=False,
            input=data or b"",
        )

    def output(self, service: str, *command: str, data: bytes | None = None, timeout_s: float = 60) -> str:
        """Run a program in a container; fail the test unless it does well; return what it printed."""
        done = self.run(service, *command, data=data, timeout_s=timeout_s)
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, f"{service}: {' '.join(command)}: exit code {done.returncode}: {said}"
        return done.stdout.decode(errors="replace")

    def curl(self, region: str, *options: str) -> str:
        """Ask with curl, in a region, as its people do: DNS, roots and all."""
        return self.output(
            f"tester-{region}", "curl", "--silent", "--show-error", "--fail", "--max-time", "30", *options
        )

    def fails(self, region: str, *options: str) -> str:
        """Ask with curl, expecting nothing good; return what it complained of."""
        done = self.run(f"tester-{region}", "curl", "--silent", "--show-error", "--fail", "--max-time", "20", *options)
        assert done.returncode != 0, f"curl {options} was answered: {done.stdout!r}"
        return done.stderr.decode(errors="replace")

    def dig(self, region: str, *arguments: str) -> list[str]:
        """Return the answers of a look-up, sorted."""
        said = self.output(f"tester-{region}", "dig", "+short", "+time=3", "+tries=2", *arguments)
        return sorted(said.split())

    def status(self, region: str) -> Mapping[str, object]:
        """Return how the node of a region is; empty while it does not answer."""
        done = self.run(f"node-{region}", "nexus", "status", "--json")
        document: Mapping[str, object] = json.loads(done.stdout) if done.stdout else {}
        return document

    def figures(self, region: str) -> list[Sample]:
        """Return all metrics of a node."""
        return _samples(self.output(f"node-{region}", "python3", "-c", _METRICS))

    def figure(self, region: str, name: str, **labels: str) -> float:
        """Return one metric of a node, the sum of all samples that have these labels."""
        found = (sample for sample in self.figures(region) if sample.name == name)
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())

    def logs(self, *services: str) -> str:
        """Return what services said, all of them by default."""
        if not services:
            return self.compose("logs", "--no-color")
        said = (docker("logs", self.container(service)) for service in services)
        return "".join(done.stdout + done.stderr for done in said)

    def wait_meshed(self) -> None:
        """Wait until both nodes are ready and know each other's backends."""
        for region in NODES:
            wait_for(partial(self._is_meshed, region), f"node-{region} is meshed", 60)

    def _is_meshed(self, region: str) -> bool:
        """Tell whether a node is ready, and has its own backends' routes and the other's (see lab/clients)."""
        asked = self.run(f"node-{region}", "python3", "-c", _METRICS_IF_READY)
        if asked.returncode != 0:
            return False
        routes, other = {"us": (5, 3), "eu": (3, 5)}[region]
        found = {sample.name: sample.value for sample in _samples(asked.stdout.decode())}
        return (found["nexus_mesh_links"], found["nexus_routes"], found["nexus_mesh_routes"]) == (1, routes, other)


def _samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
