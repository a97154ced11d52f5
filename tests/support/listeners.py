"""Listeners on a loopback port with a dialer that a test controls, and clients that connect to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Stream
from nexus.listeners.tcp import PeekBudget, TcpListeners
from nexus.routing.decide import Reject, RejectReason
from nexus.sockets import listen
from nexus.transport import OpenRequest
from tests.support.hub import WAIT_S, eventually
from tests.support.sessions import LOST, Side


class Dialer:
    """Opens streams of a session with a fake link, or refuses."""

    def __init__(self) -> None:
        self.side = Side()
        self.requests: list[OpenRequest] = []
        self.refusal: RejectReason | None = None
        self.claimed: set[int] = set()
        self.idle_s = 30.0

    def open_stream(self, request: OpenRequest) -> Stream | Reject:
        """Note what is asked for."""
        self.requests.append(request)
        if request.host is None and request.local_port not in self.claimed:
            return Reject(request.nameless)
        if self.refusal is not None:
            return Reject(self.refusal, request.host or "")
        return self.side.dialling(len(self.requests))

    def claims_port(self, port: int) -> bool:
        """Tell whether a test claimed a port."""
        return port in self.claimed

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Note what is asked for, and open a flow."""
        self.requests.append(request)
        if self.refusal is not None:
            return Reject(self.refusal)
        flow = Flow(self.side.session, len(self.requests).to_bytes(2, "little") * 8, owner, client)
        self.side.session.flows[flow.id] = flow
        return flow

    def flow_idle_s(self, port: int) -> float:
        """Return what a test set."""
        del port
        return self.idle_s

    def received(self) -> bytes:
        """Everything that clients sent into streams."""
        return b"".join(self.side.link.data())


@dataclass
class Client:
    """A client's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> bytes | None:
        """Return what arrives until the end, None for one that is broken."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.read()
        except ConnectionError:
            return None


@dataclass
class Setup:
    """Listeners on one port."""

    dialer: Dialer
    listeners: TcpListeners
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self, data: bytes = b"", host: str = "127.0.0.1") -> Client:
        """Connect and send something."""
        client = Client(*await asyncio.open_connection(host, self.port))
        self.clients.append(client)
        if data:
            client.writer.write(data)
        return client

    @property
    def rejected(self) -> dict[str, int]:
        """Refused clients by reason."""
        return dict(self.listeners.stats.rejected)

    async def stream(self) -> Stream:
        """Wait for a stream and return it."""
        await eventually(lambda: self.dialer.side.session.streams, "a stream is open")
        return next(iter(self.dialer.side.session.streams.values()))


@contextlib.asynccontextmanager
async def listening(host: str = "127.0.0.1", *, server_first: bool = False, **budget: Any) -> AsyncIterator[Setup]:
    """Listen on loopback, perhaps where the server speaks first; at the end nothing of any client is left."""
    dialer = Dialer()
    with contextlib.closing(listen(host, 0, "relayPorts")) as sock:
        if server_first:
            budget["server_first"] = frozenset({sock.getsockname()[1]})
        listeners = TcpListeners(dialer, replace(PeekBudget(), **budget))
        await listeners.listen(sock)
        setup = Setup(dialer, listeners, sock.getsockname()[1])
        try:
            yield setup
        finally:
            for client in setup.clients:
                client.writer.transport.abort()
            listeners.close()
            dialer.side.session.link_lost(LOST)
            await eventually(lambda: not listeners.connections.held, "every connection is given back")
            assert len(listeners.peeks) == len(listeners.refused) == 0
