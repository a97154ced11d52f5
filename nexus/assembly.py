"""What of a configuration concerns which part of a node: settings, and the sockets it listens on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nexus.acme.challenges import ChallengePorts, Challenges
from nexus.acme.explain import HTTP_01, TLS_ALPN_01
from nexus.acme.manager import AcmeCertificate
from nexus.acme.settings import DIRECTORIES, AcmeSettings, ExternalAccount
from nexus.acme.store import Store
from nexus.addresses import parse_network
from nexus.auth.authenticator import Authenticator
from nexus.auth.key_url import KeyUrl
from nexus.auth.keyring import Keyring
from nexus.auth.remote import RemoteVerifier
from nexus.config.admission import key_sources_of
from nexus.config.model import NodeConfig
from nexus.document.addresses import parse_host_port
from nexus.hostnames import normalize
from nexus.hub.server import HubLimits
from nexus.hub.targets import OutboundPolicy
from nexus.limits import UNBOUNDED
from nexus.listeners.tcp import PeekBudget
from nexus.listeners.udp import UdpSettings
from nexus.mesh.mesh import Mesh, MeshSettings
from nexus.mesh.routes import PortPolicy
from nexus.registration.heartbeat import Heartbeat, Registration
from nexus.sockets import listen, listen_too, listen_udp
from nexus.tls.certificates import CertificateFiles
from nexus.tls.contexts import CertificateSource, ReloadingCertificate
from nexus.web import WebClient

# Ports whose protocols let the server speak first: FTP, SSH, Telnet, SMTP, POP3, NNTP, IMAP, submission, MySQL, Sieve,
# VNC (IANA service names), and 2222 and 2525, where SSH and SMTP stand when their own ports are taken.
SERVER_FIRST_PORTS: Final = frozenset({21, 22, 23, 25, 110, 119, 143, 587, 2222, 2525, 3306, 4190, 5900})


@dataclass(frozen=True, slots=True)
class Sockets:
    """Everything a node listens on, bound; ``hub`` but for workers that are not the first, ``peer`` for other nodes."""

    hub: socket.socket | None
    relay: tuple[socket.socket, ...]
    udp: tuple[socket.socket, ...]
    peer: socket.socket | None
    stun: tuple[socket.socket, ...]

    def close(self) -> None:
        """Close all; idempotent."""
        for sock in filter(None, (self.hub, *self.relay, *self.udp, self.peer, *self.stun)):
            sock.close()


def bind(config: NodeConfig, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> Sockets:
    """Bind all sockets of a node; ``stack`` closes them.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    shared = config.workers > 1

    def keep(sock: socket.socket) -> socket.socket:
        return stack.enter_context(contextlib.closing(sock))

    def at(address: str, key: str) -> socket.socket:
        host, port = parse_host_port(address, socket.getservbyname)
        return keep(listen(host, port, key))

    hosts = config.relay_bind_addresses or ("",)
    return Sockets(
        hub=at(config.backend_listen_address, "backendListenAddress"),
        relay=tuple(
            keep(listen(host, port, "relayPorts", shared=shared)) for host in hosts for port in config.relay_ports
        ),
        udp=tuple(
            keep(sock)
            for host in hosts
            for port in config.udp_relay_ports
            for sock in listen_udp(host, port, "udpRelayPorts")
        ),
        stun=tuple(
            keep(sock)
            for host in (hosts if config.stun_port else ())
            for sock in listen_udp(host, config.stun_port, "stunPort")
        ),
        peer=at(config.peer_listen_address, "peerListenAddress") if accepts_peers(config) else None,
    )


def bind_too(first: Sockets, stack: contextlib.ExitStack) -> Sockets:
    """Bind what another worker listens on: the public TCP ports, where ``first`` does; ``stack`` closes them."""
    relay = tuple(stack.enter_context(contextlib.closing(listen_too(sock))) for sock in first.relay)
    return Sockets(hub=None, relay=relay, udp=(), peer=None, stun=())


def accepts_peers(config: NodeConfig) -> bool:
    """Tell whether other nodes may dial this one: it has an address for them, and knows whom to trust."""
    return bool(config.peer_listen_address and config.peer_authentication.trusted_domain_suffixes)


def heartbeat(config: NodeConfig, web: WebClient, certificate: CertificateSource) -> Heartbeat | None:
    """Return what registers this node with an orchestrator, None where none is configured."""
    if not config.registration_url:
        return None
    _, port = parse_host_port(config.backend_listen_address, socket.getservbyname)
    registration = Registration(config.registration_url, port, config.region, config.stun_port)
    return Heartbeat(registration, web, lambda: certificate.certificate is not None)


def mesh_settings(config: NodeConfig, sockets: Sockets) -> MeshSettings:
    """Return what the mesh must know."""
    return MeshSettings(
        tcp=PortPolicy(_numbers(sockets.relay), frozenset(config.allowed_tcp_port_claims)),
        udp=PortPolicy(_numbers(sockets.udp), frozenset(config.allowed_udp_port_claims)),
        udp_flows_max=config.udp_max_flows,
        idle_timeout_s=config.idle_timeout_s,
    )


def _numbers(sockets: Iterable[socket.socket]) -> frozenset[int]:
    return frozenset(int(sock.getsockname()[1]) for sock in sockets)


def hub_limits(config: NodeConfig) -> HubLimits:
    """Return the bounds of the hub."""
    return HubLimits(
        refusals_per_source=config.max_refusals_per_source,
        unauthenticated=config.max_unauthenticated_sessions,
        unauthenticated_per_source=config.max_unauthenticated_sessions_per_source,
        sessions_per_subject=config.max_sessions_per_subject,
    )


def authenticator(config: NodeConfig, web: WebClient) -> Authenticator:
    """Return what judges tokens; raises ConfigError for a file of keys that cannot be used."""
    url, key_url = config.remote_verifier_url, config.backends_jwksurl
    return Authenticator(
        Keyring(key_sources_of(config)),
        verifier=RemoteVerifier(url, web) if url else None,
        falls_back=config.remote_verifier_fallback,
        key_url=KeyUrl(key_url, web) if key_url else None,
        require_expiry=config.require_token_expiry,
    )


def acme_settings(config: NodeConfig) -> AcmeSettings:
    """Return what is asked of the certificate authority; ``relayPorts`` decide where it may look."""
    ports = {HTTP_01: config.acme_http_port, TLS_ALPN_01: config.acme_tls_port}
    wanted = config.acme_challenges or tuple(name for name, port in ports.items() if port in config.relay_ports)
    account = ExternalAccount(config.acme_eab_key_id, Path(config.acme_eab_key_file))
    return AcmeSettings(
        hostname=normalize(config.hub_public_hostname),
        directory_url=DIRECTORIES.get(config.acme_directory_url, config.acme_directory_url),
        challenges=wanted or tuple(ports),
        http_port=config.acme_http_port,
        tls_port=config.acme_tls_port,
        email=config.acme_email,
        ca_file=Path(config.acme_ca_file) if config.acme_ca_file else None,
        key_type=config.acme_key_type,
        profile=config.acme_profile,
        external_account=account if config.acme_eab_key_id else None,
    )


def hub_certificate(config: NodeConfig, *, renews: bool = True) -> ReloadingCertificate | AcmeCertificate:
    """Return where the hub's certificate comes from; unless it ``renews``, another worker asks the authority for it.

    Raises:
        TlsFileError: a file of the operator's cannot be used.
        ConfigError: ``acmeCacheDir`` cannot be written to.
    """
    if not config.hub_public_hostname:
        return ReloadingCertificate(CertificateFiles(Path(config.hub_tls_cert_file), Path(config.hub_tls_key_file)))
    settings = acme_settings(config)
    ports = ChallengePorts(settings.http_port, settings.tls_port)
    return AcmeCertificate(settings, acme_store(config), Challenges(settings.hostname, ports), renews=renews)


def acme_store(config: NodeConfig) -> Store:
    """Return where account and certificates are kept; nothing is written yet."""
    return Store(Path(config.acme_cache_dir), normalize(config.hub_public_hostname))


def share_challenges(acme: AcmeCertificate, mesh: Mesh) -> None:
    """Let nodes of one name answer the certificate authority for each other."""
    challenges = acme.challenges
    mesh.challenges = challenges.known.values
    challenges.changed = mesh.challenges_changed
    challenges.shared = lambda: mesh.challenges_for(challenges.hostname)
    acme.has_peers = lambda: bool(mesh.peers)


def udp_settings(config: NodeConfig) -> UdpSettings:
    """Return the bounds of the public UDP ports."""
    return UdpSettings(
        flows_max=config.udp_max_flows,
        datagram_max_bytes=config.udp_max_datagram_bytes,
        flows_per_source=config.max_connections_per_source or UNBOUNDED,
    )


def outbound_policy(config: NodeConfig) -> OutboundPolicy:
    """Return what backends may have dialled."""
    return OutboundPolicy(
        allowed=config.allow_outbound,
        ports=frozenset(config.allowed_outbound_ports),
        connections=config.max_outbound_conns_per_backend,
        dial_timeout_s=config.outbound_dial_timeout_s,
        idle_timeout_s=config.outbound_idle_timeout_s,
        private_networks=tuple(parse_network(text) for text in config.outbound_private_networks),
    )


def peek_budget(config: NodeConfig) -> PeekBudget:
    """Return the bounds of peeking."""
    return PeekBudget(
        first_byte_s=config.peek_timeouts.first_byte_s,
        idle_extension_s=config.peek_timeouts.idle_extension_s,
        absolute_max_s=config.peek_timeouts.absolute_max_s,
        concurrent=config.max_concurrent_peeks,
        concurrent_per_source=config.max_concurrent_peeks_per_source,
        connections_per_source=config.max_connections_per_source or UNBOUNDED,
        answers=config.unrouted_close == "answer",
        claim_wait_s=config.port_claim_wait_s,
        server_first=frozenset(config.server_first_ports) or SERVER_FIRST_PORTS,
    )


def helper_config(config: NodeConfig) -> NodeConfig:
    """Return what a worker has that is not the first: backends and clients, and nothing that is one of a kind."""
    return replace(config, admin_listen_address="", peers=(), peer_listen_address="", registration_url="", stun_port=0)
