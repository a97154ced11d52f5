"""The files that ``nexus init`` and ``nexus demo`` write, as text.

Keys are those of the original, in its spelling; values are JSON, which is YAML too, so that a path may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What a node's file is to say; an empty certificate is left for the operator to fill in."""

    path: Path
    hub_address: str
    relay_ports: Sequence[int]
    secret_file: Path
    cert_file: str
    key_file: str
    bind_addresses: Sequence[str] = ()
    admin_address: str = ""
    mesh: MeshText | None = None
    public_hostname: str = ""
    acme_cache: str = ""


@dataclass(frozen=True, slots=True)
class MeshText:
    """What a node's file is to say of other nodes; the CA is that of their certificates."""

    listen_address: str
    suffix: str
    ca_file: str
    peers: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ClientFileText:
    """What a client's file is to say."""

    path: Path
    hub_url: str
    hostname: str
    secret_file: Path
    targets: Mapping[int, str]
    unmapped_ports: Sequence[int] = ()
    ca_file: str = ""


def node_text(node: NodeFile) -> str:
    """Return the node's configuration file."""
    return f"""\
# A Nexus Proxy node. Check: nexus config check {node.path}
# Run: nexus serve -c {node.path}
# Every key is described in docs/configuration.md and by: nexus config schema node

# Where backends connect, over TLS.
backendListenAddress: {_value(node.hub_address)}

# The public TCP ports. Ports below 1024 need CAP_NET_BIND_SERVICE, or root.
relayPorts: {_value(list(node.relay_ports))}
# IP addresses they bind to; without the key all interfaces, IPv4 and IPv6.
{_line("relayBindAddresses", list(node.bind_addresses), '["192.0.2.1"]')}

# The secret that backends sign their tokens with (nexus token --secret-file uses the same file).
backendsJWTSecretFile: {_value(str(node.secret_file))}

{_certificate_text(node)}

# Seconds without traffic after which a client is closed; 0 = never.
idleTimeoutSeconds: 300

# Status and metrics, on loopback only.
{_line("adminListenAddress", node.admin_address, '"127.0.0.1:9464"')}
{_mesh_text(node.mesh)}"""


def _certificate_text(node: NodeFile) -> str:
    if node.public_hostname:
        return f"""\
# The hub's name; its certificate comes from Let's Encrypt, by port 80 or 443 of this node, and is renewed in time.
hubPublicHostname: {_value(node.public_hostname)}
# Account and certificate: keep it.
acmeCacheDir: {_value(node.acme_cache)}
# While trying things out: certificates that nobody trusts, and generous limits.
# acmeDirectoryURL: "letsencrypt-staging"
# acmeEmail: "admin@example.com\""""
    what = (
        "# The hub's certificate chain and private key (PEM); renewed files are noticed by themselves."
        if node.cert_file
        else "# FILL IN: the hub's certificate chain and private key (PEM), for the name that backends dial."
    )
    return f"{what}\nhubTlsCertFile: {_value(node.cert_file)}\nhubTlsKeyFile: {_value(node.key_file)}"


def _mesh_text(mesh: MeshText | None) -> str:
    if mesh is None:
        return ""
    return f"""
# Other nodes: where they dial, whom to dial, and whom to take for one by the names in its certificate.
peerListenAddress: {_value(mesh.listen_address)}
peers: {_value(list(mesh.peers))}
peerAuthentication: {{"trustedDomainSuffixes": {_value([mesh.suffix])}}}
peerCAFile: {_value(mesh.ca_file)}
"""


def client_text(client: ClientFileText) -> str:
    """Return the backend client's configuration file."""
    mappings = "".join(f"      {port}: {{default: {_value(to)}}}\n" for port, to in client.targets.items())
    mappings += "".join(f'      # {port}: {{default: "127.0.0.1:8080"}}\n' for port in client.unmapped_ports)
    ca = f"    caFile: {_value(client.ca_file)}\n" if client.ca_file else ""
    return f"""\
# A Nexus Proxy backend client. Check: nexus config check {client.path}
# Run: nexus client run -c {client.path}
# Every key is described in docs/configuration.md and by: nexus config schema client

backends:
  - name: app
    # The names that are served from here; a wildcard such as *.example.com covers one label.
    hostnames: [{_value(client.hostname)}]
    nexusAddresses: [{_value(client.hub_url)}]
{ca}    attestation:
      hmacSecretFile: {_value(str(client.secret_file))}
    # By public port of the node: the local service. It ends the TLS itself and holds the certificate.
    portMappings:
{mappings}"""


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(key: str, value: object, otherwise: str) -> str:
    return f"{key}: {_value(value)}" if value else f"# {key}: {otherwise}"
