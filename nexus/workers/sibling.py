"""Another worker of this node: what its backends serve, and the two ways to them.

Strategy: a client's connection is passed with its socket over the channel, so that its bytes go through one process
only. What is no socket goes through a tunnel on the link, as between nodes; so does a client whose socket cannot be
passed now.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from websockets.client import ClientProtocol
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from nexus.errors import NexusError
from nexus.link.connection import WEBSOCKET_LOG, Link, LinkEnd
from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Stream
from nexus.mesh.links import Nobody
from nexus.mesh.peer import Peer
from nexus.protocol.constants import ANNOUNCE_MAX_BYTES, KIND_TUNNEL_DATA, MESH_FEATURES, MESH_PATH
from nexus.protocol.messages import new_stream_id
from nexus.protocol.tunnels import TUNNEL_WIRE, Announce, TunnelRequest
from nexus.protocol.window import SendWindow
from nexus.transport import PASSED, IsPassed, OpenRequest
from nexus.workers import messages
from nexus.workers.channel import Channel
from nexus.workers.messages import Figures, PassedBackend, PassedClient, Serves
from nexus.workers.places import Place

_log = logging.getLogger("nexus.workers")

OPEN_TIMEOUT_S: Final = 10.0  # of a link between two processes of one machine


class SiblingOwner(Protocol):
    """All workers, as one sees them; calls never block and never raise."""

    def met(self, sibling: Sibling) -> None:
        """The link is open."""

    def told(self, sibling: Sibling, text: messages.Text) -> None:
        """The worker said something."""

    def handed(self, message: bytes, descriptors: Sequence[int]) -> None:
        """The worker passed a socket on; the descriptors are to be closed."""

    def requested(self, line: Line, request: TunnelRequest) -> None:
        """The worker wants a tunnel."""

    def lost(self, sibling: Sibling) -> None:
        """The worker is gone; every tunnel was ended before."""


class Sibling:
    """Another worker, from the moment on at which there are sockets to it."""

    def __init__(self, index: int, owner: SiblingOwner, meeting: int) -> None:
        """Know nothing of it yet; a later ``meeting`` has a greater number."""
        self.index = index
        self.meeting = meeting
        self.backends: dict[int, RemoteBackend] = {}
        self.figures = Figures(0, {})
        self.reasons: tuple[str, ...] = ("does not serve yet",)
        self.place = Place()
        self.line: Line
        self._owner = owner
        self._channel: Channel | None = None

    def joined(self, serves: Serves) -> RemoteBackend:
        """Note a backend of the worker."""
        self.place.join(serves.source)
        backend = self.backends[serves.number] = RemoteBackend(self, serves)
        return backend

    def left(self, number: int) -> RemoteBackend:
        """Forget a backend of the worker."""
        backend = self.backends.pop(number)
        self.place.leave(backend.serves.source)
        return backend

    @property
    def name(self) -> str:
        """Who this is, for a log line."""
        return f"worker {self.index}"

    async def serve(self, link_socket: socket.socket, channel_socket: socket.socket, *, dials: bool) -> None:
        """Open the link, one end of which ``dials``, and live with the worker until it is gone."""
        uri = WebSocketURI(secure=False, host="worker", port=80, path=MESH_PATH, query="", username=None, password=None)
        protocol = (
            ClientProtocol(uri, max_size=ANNOUNCE_MAX_BYTES, logger=WEBSOCKET_LOG)
            if dials
            else ServerProtocol(max_size=ANNOUNCE_MAX_BYTES, logger=WEBSOCKET_LOG)
        )
        self.line = line = Line(protocol, self, self._owner)
        link = line.session.link
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await loop.create_unix_connection(lambda: link, sock=link_socket)
                await link.opened
        except (OSError, NexusError, asyncio.CancelledError) as error:
            _log.debug("%s: no link: %s", self.name, error)  # it ended while it began; the supervisor sees to it
            link_socket.close()
            channel_socket.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        line.start()
        self._channel = Channel(channel_socket, self._owner.handed, lambda: link.abort("the worker is gone"))
        try:
            self._owner.met(self)
            await asyncio.wait([link.lost])
        finally:
            self._channel.close()
            if not link.lost.done():
                link.close()

    def tell(self, text: messages.Text) -> None:
        """Say something, behind everything said before."""
        self.line.session.link.send_text(messages.serialize(text))

    def hand(self, passed: PassedClient | PassedBackend, descriptor: int) -> bool:
        """Pass a socket on; return whether the worker has it."""
        if self._channel is None or self.line.session.link.is_closing():
            return False
        return self._channel.send(messages.serialize_passed(passed), [descriptor])

    def take_over(self, request: OpenRequest, *, own: bool) -> bool:
        """Pass on a client's connection; return whether this process is done with it."""
        connection = request.connection
        if connection is None:
            return False
        connection.transport.pause_reading()  # what is not read yet is the other's to read
        descriptor = connection.transport.get_extra_info("socket").fileno()
        passed = PassedClient(request, connection.prelude, connection.spoke, own)
        if descriptor >= 0 and self.hand(passed, descriptor):
            return True
        connection.transport.resume_reading()
        return False

    def open_stream(self, request: OpenRequest, route_key: str) -> Stream | None:
        """Return a stream through the worker, already requested there; None where it is going down."""
        session = self.line.session
        if session.ended or session.link.is_closing():
            return None
        stream = Stream(session, new_stream_id(), SendWindow(paced=True))
        session.streams[stream.id] = stream
        self.line.request_stream(stream, request, route_key)
        return stream


class RemoteBackend:
    """A backend of another worker, as the routing table knows it."""

    __slots__ = ("serves", "sibling")

    def __init__(self, sibling: Sibling, serves: Serves) -> None:
        """Take what the worker said of it."""
        self.sibling = sibling
        self.serves = serves

    @property
    def udp_routes(self) -> Mapping[int, int]:
        """The UDP ports claimed, with the idle time of their flows in seconds."""
        return self.serves.udp_routes

    def open_stream(self, request: OpenRequest, route_key: str) -> Stream | IsPassed | None:
        """Let the worker serve a client: with its socket where there is one, else through a tunnel."""
        if self.sibling.take_over(request, own=True):
            return PASSED
        return self.sibling.open_stream(request, route_key)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | None:
        """Let the worker serve a client's datagrams."""
        return self.sibling.line.open_flow(request, owner, client)


class Line(Peer):
    """The link to another worker: a peer that needs no announcement to be known."""

    def __init__(self, protocol: ClientProtocol | ServerProtocol, sibling: Sibling, owner: SiblingOwner) -> None:
        """Make a link of a fresh protocol, and own it."""
        link = Link(protocol, Nobody(), path=MESH_PATH, data_kind=KIND_TUNNEL_DATA)
        super().__init__(link, self, sibling.name, dialled=isinstance(protocol, ClientProtocol))
        self.session.features = frozenset(MESH_FEATURES)
        self.session.wire = TUNNEL_WIRE
        self._sibling = sibling
        self._siblings = owner

    def text_received(self, text: str) -> None:
        """Take what workers say to each other, and else what nodes do."""
        if text.startswith(messages.PREFIX):
            self._siblings.told(self._sibling, messages.parse(text))
        else:
            super().text_received(text)

    # -- PeerOwner --------------------------------------------------------------------------------------------------

    def announced(self, peer: Peer, announce: Announce) -> None:
        """Workers say more of a backend than nodes do, and in other words."""

    def requested(self, peer: Peer, request: TunnelRequest) -> None:
        """The worker wants a tunnel."""
        del peer
        self._siblings.requested(self, request)

    def peer_ended(self, peer: Peer, end: LinkEnd) -> None:
        """The worker is gone."""
        del peer
        _log.debug("%s: link ended: %s", self._sibling.name, end)
        self._siblings.lost(self._sibling)

    def stream_reset(self, reason: str) -> None:
        """It is counted where its backend is."""
