"""Tests of nexus.config.admission."""

from __future__ import annotations

from pathlib import Path

from nexus.auth.grants import Policy
from nexus.auth.keyring import KeySources
from nexus.config.admission import key_sources_of, policy_of
from nexus.config.load import load_node_config
from nexus.config.model import NodeConfig

BASE = "{backendListenAddress: ':1', relayPorts: [1], hubTlsCertFile: a, hubTlsKeyFile: b, "


def _config(tmp_path: Path, text: str) -> NodeConfig:
    path = tmp_path / "node.yaml"
    path.write_text(BASE + text + "}")
    return load_node_config(path, environ={}).config


def test_the_policy_is_that_of_the_file(tmp_path: Path) -> None:
    """Key by key; the defaults of both are the same."""
    assert policy_of(_config(tmp_path, "backendsJWTSecret: x")) == Policy()
    text = (
        "backendsJWTSecret: x, allowedTCPPortClaims: [25], allowedUDPPortClaims: [53], allowOutbound: true, "
        "allowedOutboundPorts: [443], udpFlowIdleTimeoutDefaultSeconds: 1, udpFlowIdleTimeoutMinSeconds: 2, "
        "udpFlowIdleTimeoutMaxSeconds: 3, maintenanceGraceDefaultSeconds: 4, requireTokenExpiry: true"
    )
    ports = (frozenset({25}), frozenset({53}), True, frozenset({443}))
    assert policy_of(_config(tmp_path, text)) == Policy(*ports, 1, 2, 3, 4, require_expiry=True)


def test_a_secret_in_the_file_is_itself_the_source(tmp_path: Path) -> None:
    """Further ones are files."""
    sources = key_sources_of(_config(tmp_path, "backendsJWTSecret: x, additionalJWTSecretFiles: [f, g]"))
    assert sources == KeySources("x", (Path("f"), Path("g")))


def test_a_secret_in_a_file_of_its_own_is_followed_there(tmp_path: Path) -> None:
    """So that it can be replaced while the node runs."""
    secret = tmp_path / "secret"
    secret.write_text("y\n")
    text = f"backendsJWTSecretFile: {secret}, backendsJWKSFile: k, revocationFile: r, additionalJWTSecretFiles: [f]"
    sources = key_sources_of(_config(tmp_path, text))
    assert sources == KeySources("", (secret, Path("f")), Path("k"), Path("r"))
