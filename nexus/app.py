"""The composition root: the only place that constructs hub, listeners and admin endpoint, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from nexus import __version__
from nexus.acme.manager import AcmeCertificate
from nexus.addresses import parse_network
from nexus.admin.mesh_metrics import MeshStats
from nexus.admin.metrics import NodeStats, node_registry
from nexus.admin.server import AdminServer, Readiness
from nexus.assembly import (
    Sockets,
    accepts_peers,
    authenticator,
    bind,
    heartbeat,
    hub_certificate,
    hub_limits,
    mesh_settings,
    outbound_policy,
    peek_budget,
    share_challenges,
    udp_settings,
)
from nexus.bandwidth.limiter import Limiter
from nexus.config.admission import policy_of
from nexus.config.model import NodeConfig
from nexus.document.peers import usable_entries
from nexus.eventloop import on_stop_signal, run
from nexus.hostnames import normalize
from nexus.hub.registry import Registry
from nexus.hub.server import HubServer
from nexus.hub.status import StatusClient
from nexus.link.connection import CLOSE_TIMEOUT_S
from nexus.link.endpoint import reset_undelivered, undelivered_bytes
from nexus.link.quiet import wait_until_quiet
from nexus.listeners.stun import StunServer
from nexus.listeners.tcp import TcpListeners, nothing_of_its_own
from nexus.listeners.udp import UdpListeners
from nexus.mesh.credentials import PeerCredentials
from nexus.mesh.discovery import Discovery
from nexus.mesh.fleet import Fleet
from nexus.mesh.links import PeerServer
from nexus.mesh.mesh import Mesh
from nexus.mesh.peers_file import PeersFile
from nexus.sockets import format_address
from nexus.systemd import ServiceManager
from nexus.tls.contexts import CertificateSource, WebContext, hub_client_context
from nexus.transport import LocalFirst
from nexus.web import WebClient
from nexus.workers.siblings import FIRST, Siblings, WorkerDialer

_log = logging.getLogger("nexus.node")

CERTIFICATE_WATCH_S: Final = 10.0
KEY_WATCH_S: Final = 10.0
# A tenth of the idle timeout, within these: a stream ends between 1.0 and 1.1 times the timeout.
_SWEEP_SHARE: Final = 0.1
_SWEEP_MIN_S: Final = 0.2
_SWEEP_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Where a running node listens, as ``host:port``; what is off, or another worker's, is empty."""

    hub: str
    relay: tuple[str, ...]
    admin: str
    udp: tuple[str, ...] = ()
    peer: str = ""
    stun: tuple[str, ...] = ()


OnReady = Callable[[NodeAddresses], None]


@dataclass(frozen=True, slots=True)
class NodeState:
    """How a node is, or one process of it, which knows ``workers`` with itself; ``reasons`` say what is missing."""

    backends: int = 0
    streams: int = 0
    peers: int = 0
    workers: int = 1
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Short text for people."""
        return "; ".join((f"{self.backends} backends, {self.streams} streams, {self.peers} peers", *self.reasons))


class Node:
    """One node: construct, ``run``, ``stop``."""

    def __init__(
        self,
        config: NodeConfig,
        peers: PeersFile | None = None,
        manager: ServiceManager | None = None,
        worker: int | None = None,
    ) -> None:
        """Read certificates, keys and the revocation list; nothing listens yet.

        ``peers`` is where the list of other nodes is followed; ``manager`` is told how the node is. With ``worker``
        this is one process of several that are the node (``nexus.supervisor``): that of this number.

        Raises:
            TlsFileError: the hub's certificate or key, or ``authorizerCAFile``, cannot be used.
            ConfigError: a file of keys or the revocation list cannot be used.
        """
        self._config = config
        is_first = worker is None or worker == FIRST
        self._certificate: CertificateSource = hub_certificate(config, renews=is_first)
        self._acme = self._certificate if isinstance(self._certificate, AcmeCertificate) else None
        ca_file = Path(config.authorizer_ca_file) if config.authorizer_ca_file else None
        self._web = WebClient(WebContext(lambda: self._certificate.certificate, ca_file))
        self._auth = authenticator(config, self._web)
        self._heartbeat = heartbeat(config, self._web, self._certificate)
        self._bandwidth = Limiter(config.total_bandwidth_mbps) if config.total_bandwidth_mbps else None
        self.registry = Registry(self._bandwidth, config.udp_flow_idle_timeout_default_s)
        self.mesh = Mesh(self.registry, self.registry.table.routes, self._bandwidth)
        self.registry.routes_changed = self.mesh.changed
        own_name = normalize(config.hub_public_hostname)
        self.siblings = Siblings(worker, config.workers, self.registry, own_name) if worker is not None else None
        dialer = LocalFirst(self.registry, self.mesh)
        if self.siblings is not None and not is_first:
            dialer = WorkerDialer(self.registry, self.siblings)
        own_answers = self._acme.challenges.answer if self._acme is not None and is_first else nothing_of_its_own
        self._listeners = TcpListeners(dialer, peek_budget(config), own_answers)
        if self._acme is not None:
            share_challenges(self._acme, self.mesh)
        self._udp = UdpListeners(dialer, udp_settings(config))
        self._stun = StunServer()
        self._peers = peers
        self._credentials = PeerCredentials(config, lambda: self._certificate.certificate)
        if accepts_peers(config):
            self._credentials.check()
        roots = hub_client_context(ca_file) if ca_file is not None else None
        self._status = StatusClient(roots, map(parse_network, config.status_private_networks))
        self._hub = HubServer(
            self.registry,
            lambda: self._certificate.context,
            self._auth.verify,
            policy_of(config),
            hub_limits(config),
            ask_status=self._status.ask,
            outbound=outbound_policy(config),
        )
        if self.siblings is not None:
            self._join(self.siblings)
        self._manager = manager or ServiceManager({})
        self._started_at = time.time()
        self._ready = False
        self._stop: asyncio.Event = asyncio.Event()

    async def run(self, on_ready: OnReady | None = None, sockets: Sockets | None = None) -> None:
        """Serve until ``stop``, then end in order within the grace period; binds unless it is given ``sockets``.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        async with contextlib.AsyncExitStack() as stack:
            sockets = sockets or bind(self._config, stack)
            self.mesh.settings = mesh_settings(self._config, sockets)
            if self.siblings is not None:
                ports = [int(sock.getsockname()[1]) for sock in sockets.relay]
                self.siblings.peer_ports = lambda: filter(self.mesh.claims_port, ports)
            stack.callback(self._listeners.close)
            stack.callback(self._udp.close)
            stack.callback(self._stun.close)
            stack.push_async_callback(self._status.aclose)
            stack.push_async_callback(self._web.aclose)
            admin = await stack.enter_async_context(self._admin())
            for sock in sockets.relay:
                await self._listeners.listen(sock)
            self._udp.listen(sockets.udp)
            self._stun.listen(sockets.stun)
            async with asyncio.TaskGroup() as tasks:
                fleet = Fleet(self.mesh, self._credentials, tasks)
                discovery = Discovery(usable_entries(self._config.peers), fleet.change, self._credentials.covers)
                background = [tasks.create_task(main) for main in self._background(sockets)]
                background.append(tasks.create_task(discovery.run()))
                beats = [tasks.create_task(self._heartbeat.run())] if self._heartbeat is not None else []
                if self._peers is not None:
                    background.append(tasks.create_task(self._peers.follow(discovery)))
                self._ready = True
                self._manager.ready(self.status())
                if on_ready is not None:
                    on_ready(addresses_of(sockets, admin))
                await self._stop.wait()
                for task in beats:  # before anything else: nobody is to be sent to a node that drains
                    task.cancel()
                fleet.close()
                await self._end()
                for task in background:
                    task.cancel()

    def _background(self, sockets: Sockets) -> Iterator[Coroutine[None, None, None]]:
        """Return what runs until the node ends."""
        yield self._manager.keep_alive(self.status)
        yield self._certificate.watch(CERTIFICATE_WATCH_S)
        yield self._sweep()
        yield self._udp.sweep()
        yield self._auth.watch(KEY_WATCH_S, self._hub.close_revoked)
        yield self.mesh.run()
        yield self._hub.serve(sockets.hub)
        if self._auth.key_url is not None:
            yield self._auth.key_url.run()
        if self.siblings is not None:
            yield self.siblings.run()
        if sockets.peer is not None:
            yield PeerServer(self.mesh, self._credentials).serve(sockets.peer)

    def stop(self) -> None:
        """End ``run`` in order; idempotent."""
        if not self._stop.is_set():
            _log.info("stopping")
            self._manager.stopping(self._config.shutdown_grace_s + 2 * CLOSE_TIMEOUT_S)
            self._stop.set()

    def reload(self) -> None:
        """Look at all files that are followed now rather than at their next turn; a bad one is logged, not used."""
        self._manager.reloading()
        self._certificate.look()
        self._auth.look(self._hub.close_revoked)
        if self._peers is not None:
            self._peers.look()
        self._manager.ready(self.status())

    def _join(self, siblings: Siblings) -> None:
        """Be one of several processes."""
        siblings.connect(self._listeners, self._hub)
        siblings.figures = self.own_stats
        siblings.look = self._certificate.look
        siblings.reasons = self._reasons
        if self._acme is not None:
            self._acme.changed = siblings.certificate_changed

    # -- Start ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[str]:
        if not self._config.admin_listen_address:
            yield ""
            return
        refresh = self.siblings.ask_figures if self.siblings is not None else None
        server = AdminServer(node_registry(self.stats), self.readiness, refresh)
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
            if self.siblings is not None:
                self.siblings.sweep(loop.time(), timeout_s)

    def state(self) -> NodeState:
        """Return how this process of the node is."""
        sessions = [backend.session for backend in self.registry.sessions]
        streams = sum(len(session.streams) + len(session.flows) for session in sessions)
        reasons = self.readiness().reasons
        return NodeState(len(sessions), streams, len(self.mesh.peers), self._serving_workers(), reasons)

    def status(self) -> str:
        """Return how the node is, in a line for people."""
        return str(self.state())

    def readiness(self) -> Readiness:
        """Tell whether this node should be given traffic."""
        reasons = self._reasons()
        reasons.extend(self.siblings.unready() if self.siblings is not None else ())
        notes = [self._heartbeat.problem] if self._heartbeat is not None else []
        return Readiness(not reasons, tuple(reasons), tuple(filter(None, notes)))

    def _serving_workers(self) -> int:
        return self.siblings.serving if self.siblings is not None else 1

    def _reasons(self) -> list[str]:
        """Return why this process should not be given traffic."""
        reasons = []
        if not self._ready:
            reasons.append("starting")
        if self._stop.is_set():
            reasons.append("stopping")
        reasons.extend(self._certificate.unready())
        reasons.extend(self._auth.unready())
        return reasons

    def stats(self) -> NodeStats:
        """Return the figures of the node: those of other workers as ``Siblings.ask_figures`` last got them."""
        return self.siblings.merged(self.own_stats()) if self.siblings is not None else self.own_stats()

    def own_stats(self) -> NodeStats:
        """Return the figures of now and of this process: gauges are read from the things themselves."""
        totals = self.registry.totals
        certificate = self._certificate.certificate
        cap = self._bandwidth.scheduler if self._bandwidth is not None else None
        beat = self._heartbeat
        sessions = [backend.session for backend in self.registry.sessions]
        return NodeStats(
            version=__version__,
            start_time_seconds=self._started_at,
            workers=self._serving_workers(),
            sessions=len(sessions),
            unauthenticated=self._hub.unauthenticated,
            streams=sum(len(session.streams) + len(session.flows) for session in sessions),
            udp_flows=self._udp.flows,
            peeking=len(self._listeners.peeks),
            paused_streams=sum(stream.is_waiting for session in sessions for stream in session.streams.values()),
            buffered_bytes=sum(session.buffered_bytes() for session in sessions) + undelivered_bytes(),
            routes=len(self.registry.table),
            hub_certificate_expiry_seconds=certificate.expires_at if certificate is not None else None,
            hub_certificate_renewal_seconds=self._acme.renew_at if self._acme is not None else None,
            registered_seconds=beat.registered_at if beat is not None else None,
            registration_next_seconds=beat.next_at if beat is not None else None,
            registration_failures=beat.failures if beat is not None else None,
            registrations_total=dict(beat.outcomes) if beat is not None else {},
            acme_attempts_total=dict(self._acme.attempts) if self._acme is not None else {},
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
            stun_requests_total=dict(self._stun.requests),
            reauthentications_total=dict(totals.reauthentications),
            ignored_texts_total=totals.ignored_texts,
            session_faults_total=totals.session_faults + sum(session.faults for session in sessions),
            outbound_connections=sum(backend.outbound.held for backend in self.registry.sessions),
            outbound_total=totals.outbound,
            outbound_refusals_total=dict(totals.outbound_refusals),
            mesh=mesh_stats(self.mesh),
        )

    # -- End --------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Take nothing new, let what moves go on for the grace period, then say goodbye to backends and peers."""
        self._listeners.close()
        self._udp.close()
        self._stun.close()
        self.registry.closed = True
        self.mesh.retire()
        between = self.siblings.streams if self.siblings is not None else tuple
        await wait_until_quiet(
            lambda: chain(self.registry.streams(), self.mesh.streams(), between()), self._config.shutdown_grace_s
        )
        links = [backend.session.link for backend in self.registry.sessions]
        links += [peer.session.link for peer in self.mesh.peers]
        for link in links:
            link.close(reason="the node stops")
        if links:
            await asyncio.wait([link.lost for link in links], timeout=2 * CLOSE_TIMEOUT_S)
        if self.siblings is not None:
            await self.siblings.close()


def mesh_stats(mesh: Mesh) -> MeshStats:
    """Return the figures of a mesh as they are now."""
    peers, totals = tuple(mesh.peers), mesh.totals
    served = sum(len(peer.served) for peer in peers) + mesh.destination.flows
    timed = {peer.label: peer.round_trip_s for peer in peers if peer.dialled}
    return MeshStats(
        peers=len(peers),
        peer_routes=len(mesh.routes),
        round_trips_s={label: time_s for label, time_s in timed.items() if time_s is not None},
        tunnels={"origin": sum(peer.tunnels for peer in peers) - served, "destination": served},
        links_total=totals.links,
        link_ends_total=dict(totals.link_ends),
        links_refused_total=dict(totals.refused_links),
        announcements_total={"sent": mesh.announcements_sent, "received": totals.announcements_received},
        tunnels_total={"origin": mesh.origin.opened, "destination": mesh.destination.served},
        tunnels_refused_total=dict(mesh.destination.refused),
        tunnels_unanswered_total=dict(mesh.origin.moved),
        tunnel_resets_total=dict(totals.resets),
        bytes_total={
            "to_peers": totals.bytes_to_peers + sum(peer.session.bytes_sent for peer in peers),
            "from_peers": totals.bytes_from_peers + sum(peer.session.bytes_received for peer in peers),
        },
        datagrams_dropped_total=dict(mesh.destination.dropped),
    )


def addresses_of(sockets: Sockets, admin: str) -> NodeAddresses:
    """Return where a node listens."""

    def shown(several: Iterable[socket.socket]) -> tuple[str, ...]:
        return tuple(format_address(sock.getsockname()) for sock in several)

    return NodeAddresses(
        hub=next(iter(shown(filter(None, [sockets.hub]))), ""),
        relay=shown(sockets.relay),
        admin=admin,
        udp=shown(sockets.udp),
        peer=next(iter(shown(filter(None, [sockets.peer]))), ""),
        stun=shown(sockets.stun),
    )


def obey_signals(node: Node) -> None:
    """Stop a node at SIGINT and SIGTERM and reload it at SIGHUP; call inside the running loop."""
    on_stop_signal(node.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.reload)


def run_node(config: NodeConfig, on_ready: OnReady | None = None, peers: PeersFile | None = None) -> None:
    """Run a node in this process until SIGINT or SIGTERM; SIGHUP looks at the files of certificate and keys at once.

    Raises:
        ConfigError, TlsFileError: the configuration cannot be served.
    """

    async def main() -> None:
        node = Node(config, peers, ServiceManager(os.environ))
        obey_signals(node)
        await node.run(on_ready)
        reset_undelivered()

    run(main)
