"""What a node's configuration says about who is admitted, in the terms of ``nexus.auth``.

One place for the node, for ``nexus config check`` and for ``nexus token verify``, so that all three mean the same.
"""

from __future__ import annotations

from pathlib import Path

from nexus.auth.grants import Policy
from nexus.auth.keyring import KeySources
from nexus.config.model import NodeConfig


def policy_of(config: NodeConfig) -> Policy:
    """Return what backends may claim."""
    return Policy(
        allowed_tcp_ports=frozenset(config.allowed_tcp_port_claims),
        allowed_udp_ports=frozenset(config.allowed_udp_port_claims),
        allow_outbound=config.allow_outbound,
        allowed_outbound_ports=frozenset(config.allowed_outbound_ports),
        udp_flow_idle_default_s=config.udp_flow_idle_timeout_default_s,
        udp_flow_idle_min_s=config.udp_flow_idle_timeout_min_s,
        udp_flow_idle_max_s=config.udp_flow_idle_timeout_max_s,
        maintenance_grace_default_s=config.maintenance_grace_default_s,
        require_expiry=config.require_token_expiry,
    )


def key_sources_of(config: NodeConfig) -> KeySources:
    """Return where the keys and the revocation list are; a secret in a file is followed there."""
    own_file = config.backends_jwt_secret_file
    return KeySources(
        secret="" if own_file else config.backends_jwt_secret,
        secret_files=tuple(Path(name) for name in (own_file, *config.additional_jwt_secret_files) if name),
        key_file=Path(config.backends_jwks_file) if config.backends_jwks_file else None,
        revocation_file=Path(config.revocation_file) if config.revocation_file else None,
    )
