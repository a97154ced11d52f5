"""The node's configuration as one immutable value.

Strategy: ``NodeConfig`` holds every key with its default resolved, so that no reader of it knows a default. Its
attributes are the keys in snake case (``keys.attribute_name``); times are whole seconds and end in ``_s``. A 0 that
remains means "none" or "unlimited", -1 (``keys.UNBOUNDED``) means "no limit", as the table in ``keys`` says of each.
Addresses stay as written; ``addresses.parse_host_port`` splits them where a socket is opened. ``repr`` never shows a
secret, because reprs end up in logs and tracebacks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from nexus.config.keys import NODE_KEYS, attribute_name
from nexus.masking import MASK, shown

_SECRET_ATTRIBUTES = frozenset(attribute_name(spec.key) for spec in NODE_KEYS if spec.secret)


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """Which nodes may connect to this one."""

    trusted_domain_suffixes: tuple[str, ...]
    suffix_matching: str


@dataclass(frozen=True, slots=True)
class PeekTimeouts:
    """How long a client may take to show its first bytes; ``absolute_max_s`` caps the other two."""

    first_byte_s: int
    idle_extension_s: int
    absolute_max_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Every key of the configuration file, checked and with its default resolved."""

    backend_listen_address: str
    peer_listen_address: str
    relay_ports: tuple[int, ...]
    udp_relay_ports: tuple[int, ...]
    idle_timeout_s: int
    backends_jwt_secret: str
    remote_verifier_url: str
    maintenance_grace_default_s: int
    peers: tuple[str, ...]
    peer_authentication: PeerAuthentication
    hub_tls_cert_file: str
    hub_tls_key_file: str
    hub_public_hostname: str
    acme_cache_dir: str
    total_bandwidth_mbps: int
    allowed_tcp_port_claims: tuple[int, ...]
    allowed_udp_port_claims: tuple[int, ...]
    registration_url: str
    region: str
    udp_max_flows: int
    udp_max_datagram_bytes: int
    udp_flow_idle_timeout_default_s: int
    udp_flow_idle_timeout_min_s: int
    udp_flow_idle_timeout_max_s: int
    stun_port: int
    allow_outbound: bool
    allowed_outbound_ports: tuple[int, ...]
    max_outbound_conns_per_backend: int
    outbound_dial_timeout_s: int
    outbound_idle_timeout_s: int
    peek_timeouts: PeekTimeouts
    max_concurrent_peeks: int
    admin_listen_address: str
    relay_bind_addresses: tuple[str, ...]
    outbound_private_networks: tuple[str, ...]
    unrouted_close: str
    max_concurrent_peeks_per_source: int
    max_connections_per_source: int
    server_first_ports: tuple[int, ...]
    port_claim_wait_s: int
    max_unauthenticated_sessions: int
    max_unauthenticated_sessions_per_source: int
    shutdown_grace_s: int
    require_token_expiry: bool
    max_sessions_per_subject: int
    log_level: str
    log_format: str
    status_private_networks: tuple[str, ...]
    backends_jwt_secret_file: str
    additional_jwt_secret_files: tuple[str, ...]
    backends_jwks_file: str
    backends_jwksurl: str
    remote_verifier_fallback: bool
    authorizer_ca_file: str
    peer_ca_file: str
    revocation_file: str
    acme_directory_url: str
    acme_email: str
    acme_ca_file: str
    acme_eab_key_id: str
    acme_eab_key_file: str
    acme_key_type: str
    acme_profile: str
    acme_challenges: tuple[str, ...]
    acme_http_port: int
    acme_tls_port: int
    max_refusals_per_source: int
    workers: int

    def __repr__(self) -> str:
        """Show every attribute, secrets masked, passwords in URLs among them."""
        attributes = (f"{spec.name}={_masked(spec.name, getattr(self, spec.name))!r}" for spec in fields(self))
        return f"NodeConfig({', '.join(attributes)})"


def _masked(name: str, value: object) -> object:
    return MASK if name in _SECRET_ATTRIBUTES and value else shown(value)
