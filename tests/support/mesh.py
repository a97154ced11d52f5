"""Nodes that mesh in memory: hubs with fake backends, and fake links between them that carry what is sent in order."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from nexus.auth.grants import Grant
from nexus.bandwidth.limiter import Limiter
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.link.connection import Link
from nexus.link.splice import Between
from nexus.link.stream import Stream
from nexus.mesh.mesh import Mesh, MeshSettings
from nexus.mesh.peer import Peer
from nexus.mesh.routes import PortPolicy
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.protocol.messages import credit_message, simple_message
from nexus.routing.decide import RejectReason
from nexus.transport import LocalFirst, OpenRequest
from tests.support.sessions import LOST, FakeEndpoint, FakeLink, Sent

HOST = "app.example.com"
PORTS = PortPolicy(frozenset(range(1, 65_536)))
HELLO = b"\x16\x03\x01 client hello"
CLIENT = "192.0.2.7:50000"


class MeshLink(FakeLink):
    """A link whose text travels on its wire, in order with the rest."""

    data_kind = b"\x11"

    def __init__(self) -> None:
        super().__init__()
        self.silent_s = 0.0
        self.alive: list[tuple[float, float]] = []
        self.started = False

    def send_text(self, text: str) -> None:
        super().send_text(text)
        self._put("text", text.encode())

    def start_session(self) -> None:
        self.started = True

    def limit_messages(self, limit: int, text_limit: int = 0) -> None:
        self.limits = [limit, text_limit]

    def keep_alive(self, interval_s: float, dead_after_s: float) -> None:
        self.alive.append((interval_s, dead_after_s))


class FakeBackend:
    """A backend that serves some hostnames and ports, seen from the hub: what it got, and what it says."""

    def __init__(self, registry: Registry, *hostnames: str, **ports: Any) -> None:
        self.link = FakeLink()
        grant = Grant(hostnames=hostnames, subject="backend", **ports)
        tasks = asyncio.TaskGroup()
        self.session = BackendSession(cast(Link, self.link), grant, registry, "192.0.2.1:5", tasks).session
        self.link.flows = self.session.flows

    def stream_id(self) -> bytes:
        """Return the id of the stream or flow that was announced last."""
        return self.link.controls("connect")[-1].stream_id

    def received(self) -> bytes:
        """Return everything that reached the backend."""
        return b"".join(self.link.data())

    def send(self, data: bytes) -> None:
        """Send data on the last stream."""
        self.session.message_received(b"\x01" + self.stream_id() + data)

    def say(self, event: str, reason: str = "") -> None:
        """Send an event of the last stream."""
        self.session.message_received(simple_message(event, self.stream_id(), reason))

    def grant(self, count: int = CREDITS_INITIAL) -> None:
        """Grant credits for the last stream."""
        self.session.message_received(credit_message(self.stream_id(), count))

    def leave(self) -> None:
        """End the link."""
        self.link.closing, self.link.writable = True, False
        self.session.link_lost(LOST)


class MemoryNode:
    """A node without sockets."""

    def __init__(self, bandwidth: Limiter | None = None) -> None:
        self.registry = Registry(bandwidth)
        self.mesh = Mesh(self.registry, self.registry.table.routes, bandwidth)
        self.mesh.settings = MeshSettings(PORTS, PORTS)
        self.registry.routes_changed = self.mesh.changed
        self.dialer = LocalFirst(self.registry, self.mesh)
        self.clients: list[Between] = []

    def backend(self, *hostnames: str, **ports: Any) -> FakeBackend:
        """Let a backend serve some routes, and tell all peers."""
        backend = FakeBackend(self.registry, *(hostnames or (() if ports else (HOST,))), **ports)
        self.mesh._announcer.tell_now()
        return backend

    def open(self, host: str | None = HOST, *, is_tls: bool = True, port: int = 443) -> FakeEndpoint:
        """Open a stream as a listener does, and return the client's end."""
        request = OpenRequest(host, is_tls, port, CLIENT, RejectReason.UNRECOGNISED)
        stream = self.dialer.open_stream(request)
        assert isinstance(stream, Stream), stream
        endpoint = FakeEndpoint(stream)
        if stream.gate is None:
            stream.attach(endpoint)
        else:  # as ``splice`` does
            between = stream.gate.between(stream)
            between.socket = endpoint
            stream.attach(between)
            self.clients.append(between)
        return endpoint


class Cable:
    """One link between two nodes; ``one`` dialled."""

    def __init__(self, one: MemoryNode, other: MemoryNode, names: tuple[str, ...] = ("node",)) -> None:
        self.links = (MeshLink(), MeshLink())
        self.peers = tuple(
            Peer(cast(Link, link), node.mesh, label, dialled=label == "dialled")
            for node, link, label in zip((one, other), self.links, ("dialled", "accepted"), strict=True)
        )
        for node, link, peer in zip((one, other), self.links, self.peers, strict=True):
            link.flows = peer.session.flows
            peer.names = names
            node.mesh.join(peer)

    def deliver(self) -> int:
        """Carry everything that was sent; return how much that was."""
        carried = 0
        for link, peer in ((self.links[0], self.peers[1]), (self.links[1], self.peers[0])):
            while link.wire:
                carried += 1
                _take(peer, link.wire.popleft())
        return carried

    def lose(self) -> None:
        """End the link at both ends."""
        for link, peer in zip(self.links, self.peers, strict=True):
            link.closing, link.writable = True, False
            peer.session.link_lost(LOST)


def _take(peer: Peer, sent: Sent) -> None:
    if sent.kind == "message":
        peer.session.message_received(sent.payload)
    elif sent.kind == "text":
        peer.session.text_received(sent.payload.decode())
    elif sent.kind == "ping":
        cast(FakeLink, peer.session.link)._put("pong", sent.payload)
    else:
        peer.session.pong_received(sent.payload)


def settle(*cables: Cable) -> None:
    """Carry what is sent until nothing is any more."""
    while sum(cable.deliver() for cable in cables):
        pass


class Pair:
    """An origin, a destination with a backend, and the link between them."""

    def __init__(self) -> None:
        self.origin, self.destination = MemoryNode(), MemoryNode()
        self.cable = Cable(self.origin, self.destination)
        self.backend = self.destination.backend()
        settle(self.cable)

    def open(self, data: bytes = HELLO, **how: object) -> FakeEndpoint:
        """Let a client come, say something, and be served."""
        client = self.origin.open(**how)  # type: ignore[arg-type]
        client.stream.send(data)
        settle(self.cable)
        self.backend.grant()
        settle(self.cable)
        return client


class Triangle:
    """An origin and two destinations with a backend each."""

    def __init__(self) -> None:
        self.origin, self.first, self.second = MemoryNode(), MemoryNode(), MemoryNode()
        self.cables = (Cable(self.origin, self.first), Cable(self.origin, self.second, ("second",)))
        self.backends = (self.first.backend(), self.second.backend())
        settle(*self.cables)

    def serving(self) -> FakeBackend:
        """Return the backend that has the only stream."""
        (backend,) = [one for one in self.backends if one.session.streams]
        return backend
