"""``nexus serve``: what it hands to the node. Real nodes are in the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import serve
from nexus.app import NodeAddresses
from nexus.config.model import NodeConfig
from nexus.mesh.peers_file import PeersFile
from tests.support.command_line import nexus


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """The configurations that were served; each start is over at once."""
    configurations: list[NodeConfig] = []

    def run_node(config: NodeConfig, on_ready: object, peers: PeersFile) -> None:
        assert callable(on_ready)
        assert peers._read() == config.peers
        configurations.append(config)
        on_ready(NodeAddresses("127.0.0.1:8443", ("[::]:443", "[::]:80"), ""))

    monkeypatch.setattr(serve, "serve_node", run_node)
    return configurations


def test_addresses_are_logged_on_stderr_when_ready(tmp_path: Path, served: list[NodeConfig]) -> None:
    """stdout stays empty."""
    nexus("init", str(tmp_path), "--dev")
    outcome = nexus("serve", "-c", str(tmp_path / "server.yaml"))
    assert (outcome.code, outcome.stdout) == (0, "")
    assert "ready: backends at 127.0.0.1:8443, clients at [::]:443, [::]:80, admin off" in outcome.stderr
    assert len(served) == 1


def test_options_replace_keys_of_the_file(tmp_path: Path, served: list[NodeConfig]) -> None:
    """Level and format of the log."""
    nexus("init", str(tmp_path), "--dev")
    outcome = nexus("serve", "-c", str(tmp_path / "server.yaml"), "--log-level", "debug", "--log-format", "json")
    assert (served[0].log_level, served[0].log_format) == ("debug", "json")
    assert outcome.stderr.startswith('{"time": ')


def test_warnings_come_before_the_start(tmp_path: Path, served: list[NodeConfig]) -> None:
    """And do not stop it."""
    nexus("init", str(tmp_path), "--dev")
    with (tmp_path / "server.yaml").open("a") as file:
        file.write("idleTimeoutsSeconds: 3\n")
    assert "warning: " in nexus("serve", "-c", str(tmp_path / "server.yaml")).stderr
    assert len(served) == 1


def test_file_is_required() -> None:
    """Exit code 2; the variable does as well."""
    assert nexus("serve").code == 2
    assert nexus("serve", env={"NEXUS_SERVE_CONFIG": "/nonexistent.yaml"}).code == 3
