"""``nexus client run``: what it hands to the client. Real clients are in the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import client
from tests.support.command_line import nexus


def test_clients_are_made_inside_the_loop_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command passes on how to make them."""
    made: list[object] = []
    monkeypatch.setattr(client, "run_clients", made.append)
    nexus("init", str(tmp_path), "--dev")
    outcome = nexus("client", "run", "-c", str(tmp_path / "client.yaml"))
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")
    assert callable(made[0])


def test_warnings_come_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr."""
    monkeypatch.setattr(client, "run_clients", lambda _make: None)
    nexus("init", str(tmp_path), "--dev")
    with (tmp_path / "client.yaml").open("a") as file:
        file.write("    tcpPorts: [22]\n")
    assert "warning: " in nexus("client", "run", "-c", str(tmp_path / "client.yaml")).stderr


def test_log_level_is_one_of_four(tmp_path: Path) -> None:
    """Exit code 2 otherwise, also from the environment."""
    file = str(tmp_path / "client.yaml")
    assert nexus("client", "run", "-c", file, "--log-level", "loud").code == 2
    assert nexus("client", "run", "-c", file, env={"NEXUS_LOG_LEVEL": "loud"}).code == 2
