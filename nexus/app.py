"""The composition root: the only place that constructs hub, listeners and admin endpoint, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus import __version__
from nexus.admin.metrics import NodeStats, node_registry
from nexus.admin.server import AdminServer, Readiness
from nexus.auth.grants import Policy
from nexus.auth.tokens import verify_token
from nexus.bandwidth.limiter import Limiter
from nexus.config.model import NodeConfig
from nexus.document.addresses import parse_host_port
from nexus.eventloop import on_stop_signal, run
from nexus.hub.registry import Registry
from nexus.hub.server import HubLimits, HubServer
from nexus.limits import UNBOUNDED
from nexus.link.connection import CLOSE_TIMEOUT_S
from nexus.link.endpoint import reset_undelivered, undelivered_bytes
from nexus.link.quiet import wait_until_quiet
from nexus.listeners.tcp import PeekBudget, TcpListeners
from nexus.sockets import format_address, listen
from nexus.tls.certificates import CertificateFiles
from nexus.tls.contexts import ReloadingCertificate

_log = logging.getLogger("nexus.node")

CERTIFICATE_WATCH_S: Final = 10.0
# A tenth of the idle timeout, within these: a stream ends between 1.0 and 1.1 times the timeout.
_SWEEP_SHARE: Final = 0.1
_SWEEP_MIN_S: Final = 0.2
_SWEEP_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Where a running node listens, as ``host:port``; ``admin`` is empty where it is off."""

    hub: str
    relay: tuple[str, ...]
    admin: str


OnReady = Callable[[NodeAddresses], None]


class Node:
    """One node: construct, ``run``, ``stop``."""

    def __init__(self, config: NodeConfig) -> None:
        """Read certificates; nothing listens yet.

        Raises:
            TlsFileError: the hub's certificate or key cannot be used.
        """
        self._config = config
        self._certificate = ReloadingCertificate(
            CertificateFiles(Path(config.hub_tls_cert_file), Path(config.hub_tls_key_file))
        )
        self._bandwidth = Limiter(config.total_bandwidth_mbps) if config.total_bandwidth_mbps else None
        self.registry = Registry(self._bandwidth)
        self._listeners = TcpListeners(self.registry, _peek_budget(config))
        self._hub = HubServer(
            self.registry,
            lambda: self._certificate.context,
            self._verify,
            _policy(config),
            HubLimits(
                unauthenticated=config.max_unauthenticated_sessions,
                unauthenticated_per_source=config.max_unauthenticated_sessions_per_source,
                sessions_per_subject=config.max_sessions_per_subject,
            ),
        )
        self._secrets = (config.backends_jwt_secret.encode(),)
        self._started_at = time.time()
        self._ready = False
        self._stop: asyncio.Event = asyncio.Event()

    async def run(self, on_ready: OnReady | None = None) -> None:
        """Serve until ``stop``, then end in order within the grace period.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        async with contextlib.AsyncExitStack() as stack:
            hub_socket, relay_sockets = self._bind(stack)
            stack.callback(self._listeners.close)
            admin = await stack.enter_async_context(self._admin())
            for sock in relay_sockets:
                await self._listeners.listen(sock)
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._certificate.watch(CERTIFICATE_WATCH_S)),
                    tasks.create_task(self._sweep()),
                ]
                hub = tasks.create_task(self._hub.serve(hub_socket))
                self._ready = True
                if on_ready is not None:
                    relay = tuple(format_address(sock.getsockname()) for sock in relay_sockets)
                    on_ready(NodeAddresses(format_address(hub_socket.getsockname()), relay, admin))
                await self._stop.wait()
                await self._end()
                for task in (hub, *background):
                    task.cancel()

    def stop(self) -> None:
        """End ``run`` in order; idempotent."""
        if not self._stop.is_set():
            _log.info("stopping")
            self._stop.set()

    def reload_certificate(self) -> None:
        """Look at the certificate's files now rather than at the next turn; a bad pair is logged and not used."""
        self._certificate.look()

    # -- Start ------------------------------------------------------------------------------------------------------

    async def _verify(self, token: str, now: float) -> Mapping[str, object]:
        return verify_token(token, self._secrets, now, require_expiry=self._config.require_token_expiry)

    def _bind(
        self, stack: contextlib.ExitStack | contextlib.AsyncExitStack
    ) -> tuple[socket.socket, list[socket.socket]]:
        host, port = parse_host_port(self._config.backend_listen_address, socket.getservbyname)
        hub = stack.enter_context(contextlib.closing(listen(host, port, "backendListenAddress")))
        relay = [
            stack.enter_context(contextlib.closing(listen(address, number, "relayPorts")))
            for address in self._config.relay_bind_addresses or ("",)
            for number in self._config.relay_ports
        ]
        return hub, relay

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
        interval_s = min(max(timeout_s * _SWEEP_SHARE, _SWEEP_MIN_S), _SWEEP_MAX_S) if timeout_s else _SWEEP_MAX_S
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
            streams=sum(len(session.streams) for session in sessions),
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
            streams_reset_total=dict(totals.stream_resets),
        )

    # -- End --------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Take nothing new, let what moves go on for the grace period, then say goodbye to the backends."""
        self._listeners.close()
        await wait_until_quiet(self.registry.streams, self._config.shutdown_grace_s)
        links = [backend.session.link for backend in self.registry.sessions]
        for link in links:
            link.close(reason="the node stops")
        if links:
            await asyncio.wait([link.lost for link in links], timeout=2 * CLOSE_TIMEOUT_S)


def run_node(config: NodeConfig, on_ready: OnReady | None = None) -> None:
    """Run a node in this process until SIGINT or SIGTERM; SIGHUP looks at the certificate files at once.

    Raises:
        ConfigError, TlsFileError: the configuration cannot be served.
    """

    async def main() -> None:
        node = Node(config)
        on_stop_signal(node.stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.reload_certificate)
        await node.run(on_ready)
        reset_undelivered()

    run(main)


def _policy(config: NodeConfig) -> Policy:
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


def _peek_budget(config: NodeConfig) -> PeekBudget:
    return PeekBudget(
        first_byte_s=config.peek_timeouts.first_byte_s,
        idle_extension_s=config.peek_timeouts.idle_extension_s,
        absolute_max_s=config.peek_timeouts.absolute_max_s,
        concurrent=config.max_concurrent_peeks,
        concurrent_per_source=config.max_concurrent_peeks_per_source,
        connections_per_source=config.max_connections_per_source or UNBOUNDED,
        answers=config.unrouted_close == "answer",
    )
