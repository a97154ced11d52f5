"""The origin's end of tunnels: this node has the client, a peer has the backend.

A tunnel is a stream with an ``Attempt``: until the destination answers, what was sent is kept, and a refusal, silence
or the end of the link sends it through the next peer that announces the route. A peer that always answers may be silent
for ``ANSWER_TIMEOUT_S``; one that was never seen to answer may be an old node that does not, so the tunnel leaves it
only for another peer. What a client said in the clear is not said twice when a link breaks: the first peer may have
delivered it.

Source: spec node-and-mesh 9.1, 9.5; weak points W7, W8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Final
from weakref import WeakValueDictionary

from nexus.bandwidth.limiter import BackendGate, Limiter
from nexus.hostnames import normalize
from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Attempt, Stream
from nexus.mesh.choice import choose
from nexus.mesh.peer import Peer
from nexus.mesh.routes import PeerRoutes
from nexus.protocol.messages import new_stream_id
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow
from nexus.routing.decide import CLAIMABLE, Reject, RejectReason
from nexus.transport import OpenRequest

ANSWER_TIMEOUT_S: Final = 3.0  # ours: an original answers at once; behind a full link its answer may take a while


class Origin:
    """Opens tunnels through peers and moves those that get no answer."""

    def __init__(self, routes: PeerRoutes[Peer], bandwidth: Limiter | None = None) -> None:
        """Choose among the peers in ``routes``; with a cap, the tunnels of a route have a share of it, as a backend."""
        self._routes = routes
        self._bandwidth = bandwidth
        self._gates: WeakValueDictionary[str, BackendGate] = WeakValueDictionary()
        self._unanswered: dict[Stream, _Tunnel] = {}
        self.opened = 0
        self.moved: Counter[str] = Counter()

    def open_stream(self, request: OpenRequest) -> Stream | Reject:
        """Return a stream through a peer, already requested there, or why there is none; never blocks."""
        host = normalize(request.host) if request.host else ""
        if not host and request.nameless not in CLAIMABLE:
            return Reject(request.nameless)
        tunnel = _Tunnel(self, request, host)
        peer = tunnel.next_peer()
        if peer is None:
            return Reject(RejectReason.NO_BACKEND, host) if host else Reject(request.nameless)
        stream = Stream(peer.session, new_stream_id(), SendWindow(paced=True))
        stream.attempt = Attempt(tunnel.failed)
        stream.gate = self._gate(host or f"tcp:{request.local_port}")
        peer.session.streams[stream.id] = stream
        tunnel.request_at(peer, stream)
        self.opened += 1
        return stream

    def claims_port(self, port: int) -> bool:
        """Tell whether a peer serves this TCP port."""
        return bool(self._routes.of_port("tcp", port)[1])

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Return a flow through a peer, already requested there, or why there is none."""
        tried: set[Peer] = set()
        while (peer := self.pick("", "udp", request.local_port, tried)) is not None:
            flow = peer.open_flow(request, owner, client)
            if flow is not None:
                self.opened += 1
                return flow
            tried.add(peer)
        return Reject(RejectReason.OVERLOADED if tried else RejectReason.NO_BACKEND)

    def sweep(self, now: float) -> None:
        """Move tunnels whose peer did not answer in time."""
        for stream, tunnel in tuple(self._unanswered.items()):
            if stream.attempt is None or stream.ended:
                del self._unanswered[stream]
                tunnel.peer.grants = tunnel.peer.grants or stream.send_window.limited
            elif now >= tunnel.deadline:
                tunnel.no_answer(stream)

    def pick(self, host: str, transport: str, port: int, tried: Container[Peer]) -> Peer | None:
        """Return the peer for a route whose turn it is."""
        if transport == "udp":
            key, peers = self._routes.of_port("udp", port)
        else:
            key, peers = self._routes.of_host(host) if host else self._routes.of_port("tcp", port)
        usable = [peer for peer in peers if not peer.session.link.is_closing()]
        return choose(usable, self._routes.turn(key), tried) if usable else None

    def _gate(self, key: str) -> BackendGate | None:
        """Return the gate of a route's tunnels, which lasts as long as one of them."""
        gate = self._gates.get(key)
        if gate is None and self._bandwidth is not None:
            gate = self._gates[key] = self._bandwidth.gate()
        return gate

    def waits(self, stream: Stream, tunnel: _Tunnel) -> None:
        """Note a tunnel that was just requested."""
        self._unanswered[stream] = tunnel


class _Tunnel:
    """Where one tunnel has been tried."""

    def __init__(self, origin: Origin, request: OpenRequest, host: str) -> None:
        self.deadline = 0.0
        self.peer: Peer  # from ``request_at`` on
        self._origin = origin
        self._request = request
        self._host = host
        self._tried: set[Peer] = set()

    def next_peer(self) -> Peer | None:
        return self._origin.pick(self._host, "tcp", self._request.local_port, self._tried)

    def request_at(self, peer: Peer, stream: Stream) -> None:
        """Ask a peer for the stream, which is in its session's table already."""
        self.peer = peer
        self._tried.add(peer)
        self.deadline = peer.session.link.now() + ANSWER_TIMEOUT_S
        peer.request_stream(stream, self._request, self._host or f"tcp:{self._request.local_port}")
        self._origin.waits(stream, self)

    def failed(self, stream: Stream, reason: str) -> bool:
        """Go on through another peer; False: there is none, or what was sent may not be sent again."""
        attempt = stream.attempt
        may_repeat = self._request.is_tls or not (attempt and attempt.kept)
        peer = self.next_peer() if may_repeat or reason != Reason.SESSION_ENDED else None
        if peer is None:
            self._origin.moved["failed"] += 1
            return False
        self._origin.moved["moved"] += 1
        self.peer.forget(stream)
        stream.move(peer.session, new_stream_id(), lambda moved: self.request_at(peer, moved))
        return True

    def no_answer(self, stream: Stream) -> None:
        """Give up a peer that should have answered; stay with one that may not be able to where it is the only one."""
        peer = self.peer
        answers = peer.is_ours or peer.grants
        if not answers and self.next_peer() is None:
            stream.answered()
            return
        session, tunnel_id = stream.session, stream.id
        if self.failed(stream, Reason.TIMEOUT):
            session.send_control(session.wire.disconnect(tunnel_id, Reason.TIMEOUT))
        else:
            stream.close(Reason.TIMEOUT)
