"""The destination's end of tunnels: a peer has the client, a backend of this node serves it.

A request is served by this node's own backends or refused; it is never passed on, so a tunnel has one hop. A TCP tunnel
is two streams joined, the peer's and the backend's; a UDP tunnel is two flows. A peer reaches the tunnels of its own
link only, by the ids that it chose.

Source: spec node-and-mesh 9.2, 9.5, 9.6; weak points W2, W7, W19.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from nexus.addresses import split_address
from nexus.hostnames import normalize
from nexus.link.flow import Drop, Flow
from nexus.link.flow_table import FlowTable
from nexus.link.joint import join
from nexus.link.stream import Stream
from nexus.mesh.peer import Peer
from nexus.mesh.routes import port_of
from nexus.protocol.constants import NIL_STREAM_ID
from nexus.protocol.framing import Buffer
from nexus.protocol.reasons import Reason
from nexus.protocol.tunnels import TunnelRequest
from nexus.protocol.window import SendWindow
from nexus.routing.decide import Reject
from nexus.transport import Dialer, OpenRequest

TUNNELS_MAX: Final = 65_536  # ours, of one link: more than a busy node has streams, and what it costs is bounded
FLOWS_MAX: Final = 200_000  # original: udpMaxFlows
SWEEP_FLOWS: Final = 1000  # as in ``listeners.udp``: so many ends at once, then the links are let catch up
_NOBODY: Final = "invalid."  # RFC 6761 6.4: a name that nobody has


class Destination:
    """Serves the requests of all peers."""

    def __init__(self, local: Dialer) -> None:
        """Open streams and flows through ``local`` only."""
        self._local = local
        self._flows: FlowTable[tuple[Peer, bytes], _TunnelFlow] = FlowTable(FLOWS_MAX)
        self.served = 0
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # datagrams
        self.closed = False

    @property
    def flows(self) -> int:
        """How many UDP tunnels there are."""
        return len(self._flows)

    def limit_flows(self, flows_max: int) -> None:
        """Have at most so many UDP tunnels at a time; call before there is one."""
        self._flows = FlowTable(flows_max)

    def serve(self, peer: Peer, request: TunnelRequest, now: float) -> None:
        """Open what a peer asked for, or refuse it, at once."""
        tunnel_id, session = request.tunnel_id, peer.session
        if tunnel_id == NIL_STREAM_ID or session.knows(tunnel_id):
            peer.session.note_fault("asked for a tunnel under an id that is nil or in use: ignored")
            self.refused["id"] += 1
        elif self.closed or peer.tunnels >= TUNNELS_MAX:
            self._refuse(peer, tunnel_id, Reason.SHUTDOWN if self.closed else Reason.BUFFER_FULL)
        elif request.route_key.startswith("udp:"):
            self._serve_flow(peer, request, now)
        else:
            self._serve_stream(peer, request)

    def sweep(self, now: float) -> None:
        """End UDP tunnels that were idle for longer than the origin should have let them be."""
        for _ in range(SWEEP_FLOWS):
            flow = self._flows.expired(now, 0)
            if flow is None or now - flow.last_seen < 2 * self._local.flow_idle_s(flow.port):
                return
            flow.close(Reason.TIMEOUT)

    # -- TCP --------------------------------------------------------------------------------------------------------

    def _serve_stream(self, peer: Peer, request: TunnelRequest) -> None:
        session = peer.session
        opened = self._local.open_stream(_open_request(request))
        if not isinstance(opened, Stream):
            self._refuse(peer, request.tunnel_id, Reason.NO_BACKEND)
            return
        stream = Stream(session, request.tunnel_id, SendWindow(paced=True))
        session.streams[stream.id] = stream
        peer.served.add(stream)
        self.served += 1
        session.send_control(session.wire.credits(stream.id, stream.receive_window.size))
        join(stream, opened, opened.session.gate)  # it is the backend's share that pays

    # -- UDP --------------------------------------------------------------------------------------------------------

    def _serve_flow(self, peer: Peer, request: TunnelRequest, now: float) -> None:
        client, port = split_address(request.client), port_of(request.route_key)
        if client is None or port is None:
            self._refuse(peer, request.tunnel_id, Reason.NO_BACKEND)
            return
        tunnel = _TunnelFlow(self, peer, request.tunnel_id, port)
        opened = self._local.open_flow(_open_request(request), tunnel, client)
        if isinstance(opened, Reject):
            self._refuse(peer, request.tunnel_id, Reason.NO_BACKEND)
            return
        tunnel.flow = opened
        peer.session.flows[tunnel.id] = tunnel
        self.served += 1
        evicted = self._flows.add((peer, tunnel.id), tunnel, now)
        if evicted is not None:
            evicted.close(Reason.BUFFER_FULL)

    def moved(self, tunnel: _TunnelFlow) -> None:
        """Note that a datagram went through a tunnel."""
        self._flows.seen((tunnel.peer, tunnel.id), tunnel.peer.session.link.now())

    def forget(self, tunnel: _TunnelFlow) -> None:
        """Drop a UDP tunnel that is over."""
        self._flows.remove((tunnel.peer, tunnel.id), tunnel)

    def _refuse(self, peer: Peer, tunnel_id: bytes, reason: Reason) -> None:
        self.refused[reason.value] += 1
        peer.session.send_control(peer.session.wire.disconnect(tunnel_id, reason))


class _TunnelFlow:
    """A UDP tunnel: the flow in the peer's session, and the owner of the flow in the backend's."""

    __slots__ = ("_destination", "flow", "id", "last_seen", "peer", "port")

    flow: Flow

    def __init__(self, destination: Destination, peer: Peer, tunnel_id: bytes, port: int) -> None:
        self.id = tunnel_id
        self.peer = peer
        self.port = port
        self.last_seen = 0.0
        self._destination = destination

    # -- From the peer ----------------------------------------------------------------------------------------------

    def receive(self, datagram: Buffer) -> None:
        self._destination.moved(self)
        self.flow.send(datagram)

    def receive_credits(self, count: int) -> None:
        """UDP tunnels know no credits."""

    def receive_pause(self) -> None:
        """Nor pauses."""

    def receive_disconnect(self, reason: str) -> None:
        del reason
        self._end_flow(Reason.NORMAL)

    def session_lost(self) -> None:
        self._end_flow(Reason.SESSION_ENDED)

    def close(self, reason: Reason) -> None:
        self._tell_peer(reason)
        self._end_flow(reason)

    # -- From the backend -------------------------------------------------------------------------------------------

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        self._destination.moved(self)
        if not self.peer.session.send_datagram(self.id, datagram):
            self.dropped(flow, Drop.PEER_SLOW)

    def sent(self, flow: Flow) -> None:
        """The origin has counted it."""

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        del flow
        self._destination.dropped[why.value] += count

    def flow_ended(self, flow: Flow) -> None:
        del flow
        self._tell_peer(Reason.NORMAL)
        self._destination.forget(self)

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _tell_peer(self, reason: Reason) -> None:
        session = self.peer.session
        if session.flows.pop(self.id, None) is not None:
            session.send_control(session.wire.disconnect(self.id, reason))

    def _end_flow(self, reason: Reason) -> None:
        self._destination.forget(self)
        self.flow.close(reason)


def _open_request(request: TunnelRequest) -> OpenRequest:
    """Return what a listener of this node would have asked for; a client that cannot be told is shown as ``:0``."""
    shown = request.client if split_address(request.client) is not None else ":0"
    port = port_of(request.route_key)
    if port is not None:
        return OpenRequest(None, request.is_tls, port, shown)
    # A name that is blank must not be taken for none: that would ask for the claim of a port.
    return OpenRequest(normalize(request.route_key) or _NOBODY, request.is_tls, request.port, shown)
