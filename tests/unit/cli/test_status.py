"""``nexus status``, against the real admin endpoint of a node in this process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nexus.admin.metrics import NodeStats, node_registry
from nexus.admin.server import AdminServer, Readiness
from tests.support.command_line import nexus

STATS = NodeStats(
    version="1.2.3",
    start_time_seconds=1_000_000_000.0,
    sessions=3,
    streams=7,
    routes=5,
    bytes_to_backends_total=1024,
    bytes_to_clients_total=2048,
    hub_certificate_expiry_seconds=4_000_000_000.0,
    rejected_total={"no_backend": 2, "timeout": 1},
)


@contextlib.contextmanager
def endpoint(path: Path, stats: NodeStats, readiness: Readiness) -> Iterator[str]:
    """Serve an admin endpoint in a thread."""
    up, over = threading.Event(), threading.Event()
    address = f"unix:{path}"

    async def main() -> None:
        async with AdminServer(node_registry(lambda: stats), lambda: readiness).serve(address):
            up.set()
            await asyncio.get_running_loop().run_in_executor(None, over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert up.wait(10)
    yield address
    over.set()
    thread.join(10)


def test_a_node_that_is_ready(tmp_path: Path) -> None:
    """In lines for people, and as JSON."""
    with endpoint(tmp_path / "admin", STATS, Readiness(True)) as address:
        outcome = nexus("status", "--admin", address)
        document = nexus("status", "--admin", address, "--json").document()
        assert nexus("status", "--admin", address, "--alive").code == 0
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[0] == "ready        yes"
    assert "version      1.2.3, up " in outcome.stdout
    assert "certificate  2096-10-02 07:06:40 UTC, " in outcome.stdout
    assert "backends     3 sessions, 5 routes" in outcome.stdout
    assert "streams      7 open, 3.0 KiB relayed since the start" in outcome.stdout
    assert "rejected     3 clients since the start" in outcome.stdout
    assert document == {
        "schema": 1,
        "admin": address,
        "ready": True,
        "reasons": [],
        "notes": [],
        "version": "1.2.3",
        "startedAt": 1_000_000_000.0,
        "certificateExpiresAt": 4_000_000_000.0,
        "sessions": 3,
        "streams": 7,
        "routes": 5,
        "links": 0,
        "peerRoutes": 0,
        "relayedBytes": 3072,
        "rejectedClients": 3,
        "registeredAt": None,
        "registrationNextAt": None,
    }
    assert "orchestrator" not in outcome.stdout


@pytest.mark.parametrize(
    ("registered", "following", "failures", "line"),
    [
        (None, None, 0, r"never registered"),
        (-30.0, 60.0, 0, r"registered 3\d s ago, next in \d\d s"),
        (-30.0, 90.0, 2, r"registered 3\d s ago, 2 failed since, next in \d\d s"),
        (None, -5.0, 1, r"never registered, 1 failed since, next in 0 s"),
    ],
)
def test_a_node_that_registers_says_whether_it_is_taken(
    tmp_path: Path, registered: float | None, following: float | None, failures: int, line: str
) -> None:
    """And why not, though it may be ready for clients all the same."""
    now = time.time()
    stats = replace(
        STATS,
        registered_seconds=registered and now + registered,
        registration_next_seconds=following and now + following,
        registration_failures=failures,
    )
    with endpoint(tmp_path / "admin", stats, Readiness(True, notes=("https://o/: not registered: ...",))) as address:
        outcome = nexus("status", "--admin", address)
        document = nexus("status", "--admin", address, "--json").document()
    assert outcome.code == 0
    assert re.search(rf"^orchestrator {line}$", outcome.stdout, re.MULTILINE), outcome.stdout
    assert outcome.stdout.splitlines()[-1] == "note         https://o/: not registered: ..."
    assert document["notes"] == ["https://o/: not registered: ..."]
    assert document["registeredAt"] == stats.registered_seconds
    assert document["registrationNextAt"] == stats.registration_next_seconds


def test_a_node_that_waits_says_why(tmp_path: Path) -> None:
    """It is alive, and not ready."""
    waiting = Readiness(False, ("the hub waits for its certificate: open port 80",))
    stats = replace(STATS, hub_certificate_expiry_seconds=None)
    with endpoint(tmp_path / "admin", stats, waiting) as address:
        outcome = nexus("status", "--admin", address)
        assert nexus("status", "--admin", address, "--alive").code == 0
        assert nexus("status", "--admin", address, "--json").document()["certificateExpiresAt"] is None
    assert outcome.code == 1
    assert "ready        no: the hub waits for its certificate: open port 80" in outcome.stdout
    assert "certificate  none yet" in outcome.stdout


def test_the_file_tells_where_to_ask(tmp_path: Path) -> None:
    """Or that nobody can."""
    file = tmp_path / "server.yaml"
    node = {"backendListenAddress": ":1", "relayPorts": [1], "backendsJWTSecret": "x", "hubPublicHostname": "a.example"}
    file.write_text(yaml.safe_dump({**node, "adminListenAddress": f"unix:{tmp_path}/admin"}))
    with endpoint(tmp_path / "admin", STATS, Readiness(True)):
        assert nexus("status", "-c", str(file)).code == 0
    file.write_text(yaml.safe_dump(node))
    silent = nexus("status", "-c", str(file))
    assert silent.code == 3
    assert "adminListenAddress: is not set, so nobody can ask the node; set it" in silent.stderr
    assert nexus("status").code == 2


@pytest.mark.parametrize("options", [[], ["--alive"]])
def test_a_node_that_does_not_run(tmp_path: Path, options: list[str]) -> None:
    """One line."""
    outcome = nexus("status", "--admin", f"unix:{tmp_path}/nobody", *options)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == f"error: unix:{tmp_path}/nobody: No such file or directory; does the node run?\n"
