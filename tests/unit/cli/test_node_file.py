"""What a node's file says; that it is read right is tested in tests/unit/config."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.node_file import effective_node, node_config
from nexus.errors import ConfigError
from tests.support.command_line import nexus


def test_a_file_tells_its_values_even_if_it_cannot_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts, as it does for the node; the certificate that is missing does not matter here."""
    nexus("init", str(tmp_path), "--self-signed", "--hostname", "node.example.com")
    (tmp_path / "certs" / "hub.pem").unlink()
    monkeypatch.setenv("NEXUS_ADMIN_LISTEN_ADDRESS", "127.0.0.1:1234")
    file = tmp_path / "server.yaml"
    assert node_config(file).admin_listen_address == "127.0.0.1:1234"
    assert effective_node(file)["adminListenAddress"] == "127.0.0.1:1234"


def test_a_mistake_is_told(tmp_path: Path) -> None:
    """By file and key."""
    file = tmp_path / "server.yaml"
    file.write_text("relayPorts: 443\n")
    with pytest.raises(ConfigError, match="relayPorts"):
        node_config(file)
