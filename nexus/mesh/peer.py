"""One link to another node: the role of its session, and what is known of that node.

A peer is an original until it announces our features. Towards an original every message is as the original writes it,
silence is borne longer (its reader may wait for one of its users), and a stream whose grants it does not know is slowed
down by pauses.

Source: spec node-and-mesh 7.4, 8, 9; weak points W2, W8, W19.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from nexus.errors import RemoteProtocolError
from nexus.link.connection import Link, LinkEnd
from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.session import EventHandlers, Session
from nexus.link.stream import Stream
from nexus.protocol.constants import (
    ANNOUNCE_MAX_BYTES,
    FEATURE_TUNNELS,
    MESH_FEATURES,
    NIL_STREAM_ID,
    TUNNEL_MESSAGE_MAX_BYTES,
)
from nexus.protocol.messages import new_stream_id
from nexus.protocol.reasons import Reason
from nexus.protocol.tunnels import (
    ORIGINAL_TUNNEL_WIRE,
    TUNNEL_WIRE,
    Announce,
    TunnelRequest,
    parse_text,
    serialize_request,
)
from nexus.transport import OpenRequest

_log = logging.getLogger("nexus.mesh")

PING_INTERVAL_S: Final = 2.0  # ours; the original's is 54 s, and it answers at once unless its reader waits
DEAD_AFTER_S: Final = 10.0  # ours
ORIGINAL_DEAD_AFTER_S: Final = 120.0  # spec node-and-mesh 18.11: twice its ping interval and more
# A client's FIN that cannot be told to an original, as on the hub: the tunnel stays for the answer.
UNTOLD_FIN_LINGER_S: Final = 30.0
# An original origin sends without limit until our first grant reaches it: 16 MiB is a gigabit over 130 ms.
BURST_MAX_MESSAGES: Final = 512
# Behind this much an announcement would only wait, and be old when it arrives.
ANNOUNCE_WAITING_MAX_BYTES: Final = 1024 * 1024


class PeerOwner(Protocol):
    """The mesh, as a peer sees it; calls never block and never raise."""

    def announced(self, peer: Peer, announce: Announce) -> None:
        """The peer said what it serves; its ``node_id`` and session are up to date."""

    def requested(self, peer: Peer, request: TunnelRequest) -> None:
        """The peer wants a tunnel."""

    def peer_ended(self, peer: Peer, end: LinkEnd) -> None:
        """The link is gone; every tunnel was ended before."""

    def stream_reset(self, reason: str) -> None:
        """A tunnel broke."""


class Peer:
    """The node at the other end of one link. Construct it before the link's upgrade, so that nothing is missed."""

    def __init__(self, link: Link, owner: PeerOwner, label: str, *, dialled: bool) -> None:
        """Become the owner of ``link``; ``label`` names it in log lines and metrics."""
        self.label = label
        self.dialled = dialled
        self.names: tuple[str, ...] = ()  # of its certificate
        self.node_id = NIL_STREAM_ID
        self.announced_keys: frozenset[str] = frozenset()
        self.challenges: tuple[str, ...] = ()  # key authorizations that the CA may ask for
        self.retired = False  # another link to the same node is in use
        self.is_self = False
        self.grants = False  # it is known to answer a request with credits
        self.served: set[Stream] = set()  # those that this node is the destination of
        self.events: EventHandlers = {}
        self.session = Session(link, self, (), ORIGINAL_TUNNEL_WIRE)
        self.session.peer = label
        self._owner = owner
        self._version = 0
        self._untold_fins: set[Stream] = set()
        link.owner = self.session

    def start(self) -> None:
        """Bound messages and watch for silence, once the link is open."""
        link = self.session.link
        link.start_session()
        link.limit_messages(TUNNEL_MESSAGE_MAX_BYTES, ANNOUNCE_MAX_BYTES)
        self._keep_alive()

    # -- What is known ----------------------------------------------------------------------------------------------

    @property
    def is_ours(self) -> bool:
        """Whether the node speaks our extensions."""
        return FEATURE_TUNNELS in self.session.features

    @property
    def round_trip_s(self) -> float | None:
        """The shortest round-trip time of late."""
        return self.session.link.round_trip_s

    @property
    def is_silent(self) -> bool:
        """Whether a ping went unanswered for a whole interval, or the link is going down."""
        link = self.session.link
        return link.is_closing() or link.silent_s > 0

    @property
    def tunnels(self) -> int:
        """How many tunnels there are, of both ends and transports."""
        return len(self.session.streams) + len(self.session.flows)

    def request_stream(self, stream: Stream, request: OpenRequest, key: str) -> None:
        """Ask for a stream to the route ``key``; it is in the session's table already."""
        session = self.session
        session.link.send_text(_request(stream.id, request, key, "tcp"))
        session.send_control(session.wire.credits(stream.id, stream.receive_window.size))

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | None:
        """Return a flow that was asked for; None where the link is full or going down."""
        session = self.session
        if not session.has_room():
            return None
        flow = Flow(session, new_stream_id(), owner, client)
        session.flows[flow.id] = flow
        session.link.send_text(_request(flow.id, request, f"udp:{request.local_port}", "udp"))
        return flow

    def announce(self, text: str) -> bool:
        """Send an announcement, unless much waits already."""
        link = self.session.link
        if link.waiting_bytes() > ANNOUNCE_WAITING_MAX_BYTES:
            return False
        link.send_text(text)
        return True

    def sweep(self, now: float, idle_timeout_s: float) -> None:
        """End tunnels that were idle too long (0: never), or whose client's FIN led to no answer."""
        for stream in tuple(self.session.streams.values()):
            idle_s = stream.idle_s(now)
            if idle_timeout_s and idle_s >= idle_timeout_s:
                stream.close(Reason.TIMEOUT)
            elif stream in self._untold_fins and idle_s >= UNTOLD_FIN_LINGER_S:
                stream.end_cleanly()

    def forget(self, stream: Stream) -> None:
        """Note that a tunnel is over, or goes through another peer."""
        self._untold_fins.discard(stream)
        self.served.discard(stream)

    # -- Role -------------------------------------------------------------------------------------------------------

    def text_received(self, text: str) -> None:
        """Take an announcement or a request; what is neither, or broken, costs itself only."""
        try:
            said = parse_text(text)
        except RemoteProtocolError as error:
            self.session.note_fault(f"sent a text message that was dropped: {error}")
            return
        if isinstance(said, Announce):
            self._announced(said)
        elif said is not None:
            self._owner.requested(self, said)

    def unknown_stream(self, stream_id: bytes) -> None:
        """Data that crossed our close on the way, or that an original sends for a tunnel of a former link: dropped."""

    def ended_sending(self, stream: Stream) -> None:
        """A FIN for a node without half-close: a client may only have ended its request; a backend ended its answer."""
        if stream not in self.served:
            self._untold_fins.add(stream)
        else:
            stream.end_cleanly()

    def overflowed(self, stream: Stream) -> None:
        """Bear the first burst of an original, pause one that knows no credits; break the tunnel of who goes on.

        Only for a node that neither grants nor heeds a pause, at the end where it cannot be paused, the link is held:
        every download longer than the buffer would break else.
        """
        if not stream.send_window.limited and stream.grants:
            stream.use_pauses()
        if stream.receive_window.held <= stream.receive_window.size + BURST_MAX_MESSAGES:
            return
        if stream not in self.served and not stream.send_window.limited:
            self.session.hold_for(stream)
        else:
            self.session.note_fault("overran the credits of a tunnel: reset")
            stream.close(Reason.BUFFER_FULL)

    def paused(self, stream_id: bytes) -> None:
        """A destination asked for a pause; it ends it itself."""

    def pong_received(self, payload: bytes) -> None:
        """A sign of life; the link has noted it."""

    def stream_ended(self, stream: Stream, reason: str) -> None:
        """Count what broke."""
        self.forget(stream)
        self._owner.stream_reset(reason)

    def session_ended(self, end: LinkEnd) -> None:
        """Leave the mesh."""
        self._owner.peer_ended(self, end)

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _announced(self, announce: Announce) -> None:
        if announce.version <= self._version:
            return
        self._version = announce.version
        was_ours = self.is_ours
        self.session.features = frozenset(announce.features) & frozenset(MESH_FEATURES)
        if self.is_ours is not was_ours:
            self.session.wire = TUNNEL_WIRE if self.is_ours else ORIGINAL_TUNNEL_WIRE
            self._keep_alive()
        self.node_id = announce.node_id
        self.challenges = announce.challenges
        self._owner.announced(self, announce)

    def _keep_alive(self) -> None:
        self.session.link.keep_alive(PING_INTERVAL_S, DEAD_AFTER_S if self.is_ours else ORIGINAL_DEAD_AFTER_S)


def _request(tunnel_id: bytes, request: OpenRequest, key: str, transport: str) -> str:
    return serialize_request(
        TunnelRequest(tunnel_id, key, request.client, request.local_port, transport, request.is_tls)
    )
