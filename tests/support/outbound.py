"""A backend session that may have the hub dial, on real loopback sockets behind a fake link."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

from nexus.addresses import parse_network
from nexus.auth.grants import Grant
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.hub.targets import OutboundPolicy
from nexus.link.connection import Link
from nexus.link.stream import Stream
from nexus.protocol.constants import FEATURE_HALF_CLOSE
from nexus.protocol.messages import Control, serialize_control
from nexus.resolver import Lookup, Resolver, look_up
from tests.support.hub import HOST, WAIT_S, eventually
from tests.support.sessions import LOST, FakeLink

LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))
POLICY = OutboundPolicy(allowed=True, private_networks=LOOPBACK)


def stream_id(number: int) -> bytes:
    """Return an id that a backend chose."""
    return bytes([number]) * 16


@dataclass
class Setup:
    """A backend session on a fake link, and a server to dial."""

    backend: BackendSession
    link: FakeLink
    registry: Registry
    server: socket.socket
    peers: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.server.getsockname()[1])

    @property
    def held(self) -> int:
        """How many slots are taken."""
        return self.backend.outbound.held

    def receive(self, event: str, number: int, **fields: object) -> None:
        """Let a control message arrive."""
        message = serialize_control(Control(event, stream_id(number), **fields))  # type: ignore[arg-type]
        self.backend.session.message_received(message)

    def ask(self, number: int, target: str = "") -> None:
        """Let a request arrive."""
        self.receive("outbound_connect", number, target_addr=target or f"127.0.0.1:{self.port}")

    def answers(self) -> list[Control]:
        """The answers so far."""
        return self.link.controls("outbound_result")

    async def answer(self, count: int = 1) -> Control:
        """Wait for so many answers and return the last one."""
        await eventually(lambda: len(self.answers()) >= count, f"{count} answers")
        return self.answers()[-1]

    async def accept(self) -> socket.socket:
        """Return the server's end of the next connection."""
        async with asyncio.timeout(WAIT_S):
            peer, _ = await asyncio.get_running_loop().sock_accept(self.server)
        peer.setblocking(False)
        self.peers.append(peer)
        return peer

    async def opened(self, number: int = 1) -> tuple[Stream, socket.socket]:
        """Open a connection and return its stream and the server's end."""
        self.ask(number)
        peer = await self.accept()
        await eventually(lambda: stream_id(number) in self.backend.session.streams, "the stream")
        return self.backend.session.streams[stream_id(number)], peer

    def nobody_came(self) -> bool:
        """Tell whether no connection reached the server."""
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return True
        return False


@contextlib.asynccontextmanager
async def setup(
    policy: OutboundPolicy = POLICY, *, half_close: bool = True, lookup: Lookup = look_up
) -> AsyncIterator[Setup]:
    """Run a session that may dial; at the end no task and no socket is left."""
    link, registry = FakeLink(), Registry()
    registry.resolver = Resolver(lookup)
    grant = Grant(hostnames=(HOST,), outbound_allowed=True)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        backend = BackendSession(cast(Link, link), grant, registry, "192.0.2.1:5", tasks, outbound=policy)
        backend.session.features = frozenset({FEATURE_HALF_CLOSE} if half_close else ())
        it = Setup(backend, link, registry, server)
        try:
            yield it
        finally:
            link.closing = True
            backend.session.link_lost(LOST)
            for peer in it.peers:
                peer.close()
            server.close()
            await eventually(lambda: not it.held, "every slot is free")


async def receive(sock: socket.socket, size: int = 1 << 16) -> bytes:
    """Return what comes next."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.get_running_loop().sock_recv(sock, size)
