"""The mesh: every peer, what it serves, and the tunnels through it; the second ``Dialer`` beside the hub.

Peers come and go through ``links``; this is what they meet in. Two nodes of ours that list each other open two links
and keep one, both the same: of two that one node dialled the newer, else that of the node whose id is less. The other
is retired: it gets no new tunnel, and ends when it has none. An original knows no such thing: all its links are used.

Source: spec node-and-mesh 7-9; docs/mesh.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nexus.bandwidth.limiter import Limiter
from nexus.link.connection import LinkEnd
from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Stream
from nexus.mesh.announcer import Announcer
from nexus.mesh.destination import Destination
from nexus.mesh.origin import Origin
from nexus.mesh.peer import Peer
from nexus.mesh.routes import NO_PORTS, PeerRoutes, PortPolicy, usable
from nexus.mesh.trust import is_named
from nexus.protocol.constants import CLOSE_NORMAL, CLOSE_POLICY, NIL_STREAM_ID
from nexus.protocol.messages import new_stream_id
from nexus.protocol.reasons import Reason, is_clean
from nexus.protocol.tunnels import Announce, TunnelRequest
from nexus.routing.decide import Reject
from nexus.transport import Dialer, OpenRequest

_log = logging.getLogger("nexus.mesh")

SWEEP_S: Final = 0.5  # ours: how late an unanswered tunnel may be noticed
# A tenth of the idle timeout, within these: to look at every tunnel costs time.
IDLE_SWEEP_SHARE: Final = 0.1
IDLE_SWEEP_MAX_S: Final = 5.0
# A retired link is not closed before the other side must have heard that it is one of two, too.
RETIRE_S: Final = 5.0
ROUTES_MAX: Final = 100_000  # ours, of one peer; beyond it an announcement is cut, with a log line


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What of the node's configuration concerns the mesh."""

    tcp: PortPolicy = NO_PORTS
    udp: PortPolicy = NO_PORTS
    udp_flows_max: int = 200_000
    idle_timeout_s: float = 0


@dataclass(slots=True)
class MeshTotals:
    """What links and tunnels leave behind; counters only ever rise."""

    links: int = 0
    link_ends: Counter[str] = field(default_factory=Counter)
    refused_links: Counter[str] = field(default_factory=Counter)
    announcements_received: int = 0
    resets: Counter[str] = field(default_factory=Counter)
    bytes_to_peers: int = 0
    bytes_from_peers: int = 0


class Mesh:
    """All peers of this node; construct, ``run``, and hand it links."""

    def __init__(self, local: Dialer, routes: Callable[[], Iterable[str]], bandwidth: Limiter | None = None) -> None:
        """Serve peers through ``local``, and announce the ``routes`` of this node's own backends.

        With a cap, tunnels that start here go through ``bandwidth``: a share for each route, and one for each peer's
        datagrams.
        Set ``settings`` before the first link.
        """
        self.node_id = new_stream_id()
        self.peers: set[Peer] = set()
        self.routes: PeerRoutes[Peer] = PeerRoutes()
        self.totals = MeshTotals()
        self.origin = Origin(self.routes, bandwidth)
        self.destination = Destination(local)
        self.closed = False
        self.challenges: Callable[[], Iterable[str]] = tuple  # key authorizations that a CA may ask for
        self._local_routes = routes
        self._bandwidth = bandwidth
        self._flow_idle_s = local.flow_idle_s
        self._settings = MeshSettings()
        self._retired_at: dict[Peer, float] = {}
        self._idle_sweep_at = 0.0
        self._announcer = Announcer(
            self.node_id, self._announced_routes, lambda: tuple(self.peers), self._awaited_challenges
        )

    @property
    def settings(self) -> MeshSettings:
        """What of the configuration concerns the mesh."""
        return self._settings

    @settings.setter
    def settings(self, settings: MeshSettings) -> None:
        self._settings = settings
        self.destination.limit_flows(settings.udp_flows_max)

    # -- Dialer -----------------------------------------------------------------------------------------------------

    def open_stream(self, request: OpenRequest) -> Stream | Reject:
        """Open a stream through a peer."""
        return self.origin.open_stream(request)

    def claims_port(self, port: int) -> bool:
        """Tell whether a peer serves this TCP port."""
        return self.origin.claims_port(port)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Open a flow through a peer."""
        return self.origin.open_flow(request, owner, client)

    def flow_idle_s(self, port: int) -> float:
        """Return what holds for this node's own backends: what a peer's ask for is not announced."""
        return self._flow_idle_s(port)

    # -- Links ------------------------------------------------------------------------------------------------------

    def join(self, peer: Peer) -> None:
        """Take in a peer whose link is open; one whose link is gone already is none."""
        if peer.session.ended:
            return
        if self.closed:
            peer.session.link.close(reason="the node stops")
            return
        self.peers.add(peer)
        if self._bandwidth is not None:
            peer.session.gate = self._bandwidth.gate()
        self.totals.links += 1
        peer.start()
        self._announcer.greet(peer)
        _log.info("%s: link up", peer.label)
        if peer.node_id != NIL_STREAM_ID or peer.announced_keys:  # its announcement came with the upgrade's answer
            self._settle(peer)

    @property
    def announcements_sent(self) -> int:
        """How many announcements left, to all peers together."""
        return self._announcer.announcements

    def twin_of(self, peer: Peer) -> Peer | None:
        """Return another link to the process that a peer is, which serves while the peer's own link is gone."""
        return next(iter(self._twins(peer)), None)

    def changed(self) -> None:
        """Note that this node's own routes may have changed."""
        self._announcer.changed()

    def challenges_changed(self) -> None:
        """Tell peers at once which challenges this node waits for: the CA may ask them."""
        self._announcer.tell_now()

    def challenges_for(self, hostname: str) -> Mapping[str, str]:
        """Return the challenges, by token, of peers that are this host, too, by their certificates."""
        return {
            answer.partition(".")[0]: answer
            for peer in self.peers
            if peer.challenges and is_named(peer.names, hostname)
            for answer in peer.challenges
        }

    def streams(self) -> Iterator[Stream]:
        """Iterate over a snapshot of all tunnels that this node is the origin of."""
        for peer in tuple(self.peers):
            yield from (stream for stream in tuple(peer.session.streams.values()) if stream not in peer.served)

    async def run(self) -> None:
        """Sweep tunnels, and refresh what peers know, until cancelled."""
        loop = asyncio.get_running_loop()
        self._announcer.start()
        try:
            while True:
                await asyncio.sleep(SWEEP_S)
                self._sweep(loop.time())
        finally:
            self._announcer.close()

    def retire(self) -> None:
        """Serve nothing new: peers are told that no route leads here any more. Tunnels go on."""
        self.closed = self.destination.closed = True
        self._announcer.tell_now()

    # -- Peers ------------------------------------------------------------------------------------------------------

    def announced(self, peer: Peer, announce: Announce) -> None:
        """Take over what a peer serves, unless it is this node itself or its second link."""
        if peer.node_id == self.node_id:
            peer.is_self = True
            peer.session.link.close(CLOSE_POLICY, "this is the same node")
            return
        self.totals.announcements_received += 1
        keys, refused = usable(announce.routes[:ROUTES_MAX], self._settings.tcp, self._settings.udp)
        if refused:
            peer.session.note_fault(f"announces ports that it may not serve here, ignored: {', '.join(refused[:5])}")
        if len(announce.routes) > ROUTES_MAX:
            peer.session.note_fault(f"announces {len(announce.routes)} routes; only {ROUTES_MAX} are used")
        peer.announced_keys = keys
        if peer in self.peers:
            self._settle(peer)

    def requested(self, peer: Peer, request: TunnelRequest) -> None:
        """Serve a tunnel."""
        self.destination.serve(peer, request, peer.session.link.now())

    def peer_ended(self, peer: Peer, end: LinkEnd) -> None:
        """Forget a peer, its routes first."""
        self.routes.replace(peer, frozenset())
        self._announcer.forget(peer)
        self._retired_at.pop(peer, None)
        if peer not in self.peers:
            return
        self.peers.discard(peer)
        self.totals.link_ends[end.label] += 1
        self.totals.bytes_to_peers += peer.session.bytes_sent
        self.totals.bytes_from_peers += peer.session.bytes_received
        _log.info("%s: link ended: %s", peer.label, end)
        twins = self._twins(peer)
        if twins and all(twin.retired for twin in twins):  # the kept link is gone before the retired one
            twins[0].retired = False
            self._retired_at.pop(twins[0], None)
            self._settle(twins[0])

    def stream_reset(self, reason: str) -> None:
        """Count a tunnel that broke."""
        if not is_clean(reason):
            self.totals.resets[reason if reason in Reason._value2member_map_ else Reason.UNKNOWN.value] += 1

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _announced_routes(self) -> Iterable[str]:
        return () if self.closed else self._local_routes()

    def _awaited_challenges(self) -> Iterable[str]:
        return self.challenges()

    def _twins(self, peer: Peer) -> list[Peer]:
        """Return the other links to the same process of the same fleet member."""
        if peer.node_id == NIL_STREAM_ID:
            return []
        return [
            other
            for other in self.peers
            if other is not peer and other.node_id == peer.node_id and other.names == peer.names
        ]

    def _settle(self, peer: Peer) -> None:
        """Let a peer serve what it announced, unless another link to the same node does."""
        for twin in self._twins(peer):
            if not (twin.retired or peer.retired):
                loser = twin if self._is_kept(peer, twin) else peer
                loser.retired = True
                self._retired_at[loser] = loser.session.link.now()
                self.routes.replace(loser, frozenset())
        self.routes.replace(peer, frozenset() if peer.retired else peer.announced_keys)

    def _is_kept(self, newer: Peer, older: Peer) -> bool:
        """Tell which of two links both ends keep: both ends come to the same answer."""
        if newer.dialled == older.dialled or older.session.link.is_closing():
            return True
        return newer.dialled == (self.node_id < newer.node_id)

    def _sweep(self, now: float) -> None:
        self.origin.sweep(now)
        self.destination.sweep(now)
        for peer, since in tuple(self._retired_at.items()):
            if now - since >= RETIRE_S and not peer.tunnels:
                peer.session.link.close(CLOSE_NORMAL, "another link to this node is in use")
        if now >= self._idle_sweep_at:
            timeout_s = self._settings.idle_timeout_s
            self._idle_sweep_at = now + min(timeout_s * IDLE_SWEEP_SHARE or IDLE_SWEEP_MAX_S, IDLE_SWEEP_MAX_S)
            for peer in tuple(self.peers):
                peer.sweep(now, timeout_s)
