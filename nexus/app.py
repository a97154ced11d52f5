"""The composition root: the only place that constructs hub, listeners and admin endpoint, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus import __version__
from nexus.addresses import parse_network
from nexus.admin.metrics import NodeStats, node_registry
from nexus.admin.server import AdminServer, Readiness
from nexus.auth.authenticator import Authenticator
from nexus.auth.key_url import KeyUrl
from nexus.auth.keyring import Keyring
from nexus.auth.remote import RemoteVerifier
from nexus.bandwidth.limiter import Limiter
from nexus.config.admission import key_sources_of, policy_of
from nexus.config.model import NodeConfig
from nexus.document.addresses import parse_host_port
from nexus.eventloop import on_stop_signal, run
from nexus.hub.registry import Registry
from nexus.hub.server import HubLimits, HubServer
from nexus.hub.status import StatusClient
from nexus.hub.targets import OutboundPolicy
from nexus.limits import UNBOUNDED
from nexus.link.connection import CLOSE_TIMEOUT_S
from nexus.link.endpoint import reset_undelivered, undelivered_bytes
from nexus.link.quiet import wait_until_quiet
from nexus.listeners.tcp import PeekBudget, TcpListeners
from nexus.listeners.udp import UdpListeners, UdpSettings
from nexus.sockets import format_address, listen, listen_udp
from nexus.tls.certificates import CertificateFiles
from nexus.tls.contexts import ReloadingCertificate, WebContext, hub_client_context
from nexus.web import WebClient

_log = logging.getLogger("nexus.node")

CERTIFICATE_WATCH_S: Final = 10.0
KEY_WATCH_S: Final = 10.0
# A tenth of the idle timeout, within these: a stream ends between 1.0 and 1.1 times the timeout.
_SWEEP_SHARE: Final = 0.1
_SWEEP_MIN_S: Final = 0.2
_SWEEP_MAX_S: Final = 5.0
# Ports whose protocols let the server speak first: FTP, SSH, Telnet, SMTP, POP3, NNTP, IMAP, submission, MySQL, Sieve,
# VNC (IANA service names), and 2222 and 2525, where SSH and SMTP stand when their own ports are taken.
SERVER_FIRST_PORTS: Final = frozenset({21, 22, 23, 25, 110, 119, 143, 587, 2222, 2525, 3306, 4190, 5900})


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Where a running node listens, as ``host:port``; ``admin`` is empty where it is off."""

    hub: str
    relay: tuple[str, ...]
    admin: str
    udp: tuple[str, ...] = ()


OnReady = Callable[[NodeAddresses], None]


class Node:
    """One node: construct, ``run``, ``stop``."""

    def __init__(self, config: NodeConfig) -> None:
        """Read certificates, keys and the revocation list; nothing listens yet.

        Raises:
            TlsFileError: the hub's certificate or key, or ``authorizerCAFile``, cannot be used.
            ConfigError: a file of keys or the revocation list cannot be used.
        """
        self._config = config
        self._certificate = ReloadingCertificate(
            CertificateFiles(Path(config.hub_tls_cert_file), Path(config.hub_tls_key_file))
        )
        ca_file = Path(config.authorizer_ca_file) if config.authorizer_ca_file else None
        self._web = WebClient(WebContext(lambda: self._certificate.certificate, ca_file))
        self._auth = _authenticator(config, self._web)
        self._bandwidth = Limiter(config.total_bandwidth_mbps) if config.total_bandwidth_mbps else None
        self.registry = Registry(self._bandwidth, config.udp_flow_idle_timeout_default_s)
        self._listeners = TcpListeners(self.registry, _peek_budget(config))
        self._udp = UdpListeners(self.registry, _udp_settings(config))
        roots = hub_client_context(ca_file) if ca_file is not None else None
        self._status = StatusClient(roots, map(parse_network, config.status_private_networks))
        self._hub = HubServer(
            self.registry,
            lambda: self._certificate.context,
            self._auth.verify,
            policy_of(config),
            HubLimits(
                refusals_per_source=config.max_refusals_per_source,
                unauthenticated=config.max_unauthenticated_sessions,
                unauthenticated_per_source=config.max_unauthenticated_sessions_per_source,
                sessions_per_subject=config.max_sessions_per_subject,
            ),
            ask_status=self._status.ask,
            outbound=_outbound(config),
        )
        self._started_at = time.time()
        self._ready = False
        self._stop: asyncio.Event = asyncio.Event()

    async def run(self, on_ready: OnReady | None = None) -> None:
        """Serve until ``stop``, then end in order within the grace period.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        async with contextlib.AsyncExitStack() as stack:
            hub_socket, relay_sockets, udp_sockets = self._bind(stack)
            stack.callback(self._listeners.close)
            stack.callback(self._udp.close)
            stack.push_async_callback(self._status.aclose)
            stack.push_async_callback(self._web.aclose)
            admin = await stack.enter_async_context(self._admin())
            for sock in relay_sockets:
                await self._listeners.listen(sock)
            self._udp.listen(udp_sockets)
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._certificate.watch(CERTIFICATE_WATCH_S)),
                    tasks.create_task(self._sweep()),
                    tasks.create_task(self._udp.sweep()),
                    tasks.create_task(self._auth.watch(KEY_WATCH_S, self._hub.close_revoked)),
                ]
                if self._auth.key_url is not None:
                    background.append(tasks.create_task(self._auth.key_url.run()))
                hub = tasks.create_task(self._hub.serve(hub_socket))
                self._ready = True
                if on_ready is not None:
                    relay, udp = (
                        tuple(format_address(sock.getsockname()) for sock in sockets)
                        for sockets in (relay_sockets, udp_sockets)
                    )
                    on_ready(NodeAddresses(format_address(hub_socket.getsockname()), relay, admin, udp))
                await self._stop.wait()
                await self._end()
                for task in (hub, *background):
                    task.cancel()

    def stop(self) -> None:
        """End ``run`` in order; idempotent."""
        if not self._stop.is_set():
            _log.info("stopping")
            self._stop.set()

    def reload(self) -> None:
        """Look at the files of certificate and keys now rather than at the next turn; a bad one is logged, not used."""
        self._certificate.look()
        self._auth.look(self._hub.close_revoked)

    # -- Start ------------------------------------------------------------------------------------------------------

    def _bind(
        self, stack: contextlib.ExitStack | contextlib.AsyncExitStack
    ) -> tuple[socket.socket, list[socket.socket], list[socket.socket]]:
        host, port = parse_host_port(self._config.backend_listen_address, socket.getservbyname)
        hub = stack.enter_context(contextlib.closing(listen(host, port, "backendListenAddress")))
        relay = [
            stack.enter_context(contextlib.closing(listen(address, number, "relayPorts")))
            for address in self._config.relay_bind_addresses or ("",)
            for number in self._config.relay_ports
        ]
        udp = [
            stack.enter_context(contextlib.closing(sock))
            for address in self._config.relay_bind_addresses or ("",)
            for number in self._config.udp_relay_ports
            for sock in listen_udp(address, number, "udpRelayPorts")
        ]
        return hub, relay, udp

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[str]:
        if not self._config.admin_listen_address:
            yield ""
            return
        server = AdminServer(node_registry(self.stats), self.readiness)
        async with server.serve(self._config.admin_listen_address) as address:
            yield str(address)

    # -- While running ----------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        timeout_s = self._config.idle_timeout_s
        shortest_s = min(filter(None, (timeout_s, self._config.outbound_idle_timeout_s)), default=0)
        interval_s = min(max(shortest_s * _SWEEP_SHARE, _SWEEP_MIN_S), _SWEEP_MAX_S) if shortest_s else _SWEEP_MAX_S
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            for backend in tuple(self.registry.sessions):
                backend.sweep(loop.time(), timeout_s)

    def readiness(self) -> Readiness:
        """Tell whether this node should be given traffic."""
        reasons = []
        if not self._ready:
            reasons.append("starting")
        if self._stop.is_set():
            reasons.append("stopping")
        if self._certificate.expires_at <= time.time():
            reasons.append("the hub's certificate has expired")
        reasons.extend(self._auth.unready())
        return Readiness(not reasons, tuple(reasons))

    def stats(self) -> NodeStats:
        """Return the figures of now: gauges are read from the things themselves."""
        totals = self.registry.totals
        cap = self._bandwidth.scheduler if self._bandwidth is not None else None
        sessions = [backend.session for backend in self.registry.sessions]
        return NodeStats(
            version=__version__,
            start_time_seconds=self._started_at,
            sessions=len(sessions),
            unauthenticated=self._hub.unauthenticated,
            streams=sum(len(session.streams) + len(session.flows) for session in sessions),
            udp_flows=self._udp.flows,
            peeking=len(self._listeners.peeks),
            paused_streams=sum(stream.is_waiting for session in sessions for stream in session.streams.values()),
            buffered_bytes=sum(session.buffered_bytes() for session in sessions) + undelivered_bytes(),
            routes=len(self.registry.table),
            hub_certificate_expiry_seconds=self._certificate.expires_at,
            bandwidth_limit_bytes_per_second=cap.bytes_per_second if cap else None,
            bandwidth_waiting_bytes=cap.waiting_bytes() if cap else None,
            bandwidth_waiting_backends=cap.waiting_shares if cap else None,
            bandwidth_charged_bytes_total=cap.charged_bytes if cap else 0,
            sessions_total=totals.sessions,
            streams_total=totals.streams,
            bytes_to_backends_total=totals.bytes_to_backends + sum(session.bytes_sent for session in sessions),
            bytes_to_clients_total=totals.bytes_to_clients + sum(session.bytes_received for session in sessions),
            client_connections_total=dict(self._listeners.stats.connections),
            rejected_total=dict(self._listeners.stats.rejected),
            session_ends_total=dict(totals.session_ends),
            auth_failures_total=dict(totals.auth_failures),
            verifier_answers_total=dict(self._auth.verifier.answers) if self._auth.verifier else {},
            key_set_fetches_total=dict(self._auth.key_url.fetches) if self._auth.key_url else {},
            key_set_fetched_seconds=self._auth.key_url.fetched_at if self._auth.key_url else None,
            streams_reset_total=dict(totals.stream_resets),
            datagrams_to_backends_total=self._udp.stats.to_backends,
            datagrams_to_clients_total=self._udp.stats.to_clients,
            datagrams_dropped_total=dict(self._udp.stats.dropped),
            udp_flow_ends_total=dict(self._udp.stats.flow_ends),
            reauthentications_total=dict(totals.reauthentications),
            ignored_texts_total=totals.ignored_texts,
            session_faults_total=totals.session_faults + sum(session.faults for session in sessions),
            outbound_connections=sum(backend.outbound.held for backend in self.registry.sessions),
            outbound_total=totals.outbound,
            outbound_refusals_total=dict(totals.outbound_refusals),
        )

    # -- End --------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Take nothing new, let what moves go on for the grace period, then say goodbye to the backends."""
        self._listeners.close()
        self._udp.close()
        self.registry.closed = True
        await wait_until_quiet(self.registry.streams, self._config.shutdown_grace_s)
        links = [backend.session.link for backend in self.registry.sessions]
        for link in links:
            link.close(reason="the node stops")
        if links:
            await asyncio.wait([link.lost for link in links], timeout=2 * CLOSE_TIMEOUT_S)


def run_node(config: NodeConfig, on_ready: OnReady | None = None) -> None:
    """Run a node in this process until SIGINT or SIGTERM; SIGHUP looks at the files of certificate and keys at once.

    Raises:
        ConfigError, TlsFileError: the configuration cannot be served.
    """

    async def main() -> None:
        node = Node(config)
        on_stop_signal(node.stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.reload)
        await node.run(on_ready)
        reset_undelivered()

    run(main)


def _authenticator(config: NodeConfig, web: WebClient) -> Authenticator:
    url, key_url = config.remote_verifier_url, config.backends_jwksurl
    return Authenticator(
        Keyring(key_sources_of(config)),
        verifier=RemoteVerifier(url, web) if url else None,
        falls_back=config.remote_verifier_fallback,
        key_url=KeyUrl(key_url, web) if key_url else None,
        require_expiry=config.require_token_expiry,
    )


def _udp_settings(config: NodeConfig) -> UdpSettings:
    return UdpSettings(
        flows_max=config.udp_max_flows,
        datagram_max_bytes=config.udp_max_datagram_bytes,
        flows_per_source=config.max_connections_per_source or UNBOUNDED,
    )


def _outbound(config: NodeConfig) -> OutboundPolicy:
    return OutboundPolicy(
        allowed=config.allow_outbound,
        ports=frozenset(config.allowed_outbound_ports),
        connections=config.max_outbound_conns_per_backend,
        dial_timeout_s=config.outbound_dial_timeout_s,
        idle_timeout_s=config.outbound_idle_timeout_s,
        private_networks=tuple(parse_network(text) for text in config.outbound_private_networks),
    )


def _peek_budget(config: NodeConfig) -> PeekBudget:
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
