"""The sockets of the mesh: accepts links of other nodes and dials the configured ones, for as long as the node runs.

Both ends know who the other is before a WebSocket comes to be: an accepted node by its certificate (refused with HTTP
403 and the reason, so that its operator reads it there), a dialled one by its server certificate. A link that ends is
dialled again after a growing, random delay, one that was given up for a twin once that twin is gone.

Source: spec node-and-mesh 7; weak points W8, W15, W20.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from websockets.client import ClientProtocol
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from nexus.document.peers import PeerAddress
from nexus.errors import NexusError
from nexus.limits import LineBudget
from nexus.link.connection import CLOSE_TIMEOUT_S, WEBSOCKET_LOG, Link, LinkEnd
from nexus.mesh.backoff import RedialDelay
from nexus.mesh.mesh import Mesh
from nexus.mesh.peer import Peer
from nexus.mesh.trust import PeerIdentity
from nexus.places import Bursts, Places
from nexus.protocol.constants import ANNOUNCE_MAX_BYTES, CLOSE_NORMAL, KIND_TUNNEL_DATA, MESH_PATH, UPGRADE_TIMEOUT_S
from nexus.proxies import WS, WSS
from nexus.proxy_dial import open_way
from nexus.sockets import accept, keep_alive, source_keys
from nexus.tls.links import accept_tls, connect
from nexus.tls.verdict import words_of

_log = logging.getLogger("nexus.mesh")

DIAL_TIMEOUT_S: Final = 15.0  # original: TLS and HTTP upgrade of a link
# Ours: connections of the peer listener that have not shown who they are; a fleet that starts all at once is smaller.
PENDING_MAX: Final = 128
PENDING_PER_SOURCE: Final = 32
BURSTS: Final = Bursts(total=4, source=1)  # as the hub's
SELF_RETRY_S: Final = 300.0  # an address that leads to this node itself may lead to another one later


class Credentials(Protocol):
    """Certificates and trust, both as they are now."""

    def server_context(self) -> ssl.SSLContext:
        """Return the context that accepts nodes and asks for their certificate."""

    def client_context(self) -> ssl.SSLContext:
        """Return the context that dials nodes and shows this one's certificate."""

    def identity(self, transport: asyncio.BaseTransport) -> PeerIdentity:
        """Return who is at the other end of a connection whose TLS handshake is over."""

    def judge(self, transport: asyncio.BaseTransport) -> tuple[PeerIdentity, str]:
        """Return who dialled, its TLS handshake over, and why it may not be a peer, "" where it may."""


class PeerServer:
    """The listener for other nodes."""

    def __init__(self, mesh: Mesh, credentials: Credentials) -> None:
        """Hand what is accepted to ``mesh``."""
        self._mesh = mesh
        self._credentials = credentials
        self._places: Places[_Gate] = Places(PENDING_MAX, PENDING_PER_SOURCE, BURSTS)
        self._lines = LineBudget()

    async def serve(self, sock: socket.socket) -> None:
        """Accept on a listening socket until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection, address = await accept(sock)
                self._take_in(_Gate(connection, address, self._judge), tasks)

    def _take_in(self, gate: _Gate, tasks: asyncio.TaskGroup) -> None:
        """Serve a connection if it gets a place; who loses its own for that is cut off."""
        admitted, evicted = self._places.admit(gate, source_keys(gate.address), asyncio.get_running_loop().time())
        if evicted is not None:
            evicted.task.cancel()
        if admitted:
            gate.task = tasks.create_task(self._serve_one(gate))
        else:
            gate.connection.close()
        if evicted is not None or not admitted:
            self._mesh.totals.refused_links["limit"] += 1

    async def _serve_one(self, gate: _Gate) -> None:
        """Run one connection to its end; nothing that a stranger does may escape."""
        try:
            try:
                await self._upgrade(gate)
            finally:
                self._places.leave(gate)
            if gate.peer is not None:
                self._mesh.join(gate.peer)
                await asyncio.wait([gate.link.lost])
        except (OSError, NexusError) as error:  # TimeoutError and SSLError are OSErrors
            if not gate.refusal:
                silent = f"nothing came within {UPGRADE_TIMEOUT_S:g} s"
                gone = "it went away during the handshake; its own log says why"
                self._note("upgrade", gate, words_of(error) or (silent if isinstance(error, TimeoutError) else gone))
        except Exception:  # noqa: BLE001 — a bug of ours must not end the listener
            _log.exception("unexpected failure while serving a node from %s", gate.address)
        finally:
            _cut(gate.connection, gate.link)

    async def _upgrade(self, gate: _Gate) -> None:
        context = self._credentials.server_context()
        try:
            async with asyncio.timeout(UPGRADE_TIMEOUT_S):
                await accept_tls(gate.link, gate.connection, context, UPGRADE_TIMEOUT_S)
                await gate.link.opened
        except NexusError:  # it was answered, in HTTP: let the answer get there
            await asyncio.wait([gate.link.lost], timeout=CLOSE_TIMEOUT_S)
            raise

    def _judge(self, gate: _Gate, transport: asyncio.Transport) -> str:
        """Make a peer of who may be one; return why not, else."""
        identity, refusal = self._credentials.judge(transport)
        if refusal:
            self._note("trust", gate, refusal)
        else:
            gate.peer = Peer(gate.link, self._mesh, f"{identity} at {gate.address}", dialled=False)
            gate.peer.names = identity.hosts
        return refusal

    def _note(self, reason: str, gate: _Gate, why: str) -> None:
        self._mesh.totals.refused_links[reason] += 1
        level = logging.WARNING if self._lines.admit(gate.link.now()) else logging.DEBUG
        _log.log(level, "refused a link from %s: %s", gate.address, why)


class Dialler:
    """Keeps a link to one configured address."""

    def __init__(self, mesh: Mesh, credentials: Credentials, address: PeerAddress) -> None:
        """Hand what is dialled to ``mesh``."""
        self._mesh = mesh
        self._credentials = credentials
        self._address = address
        self._delay = RedialDelay()
        self._failure = ""
        self._retired = False
        self._linked = False

    async def run(self) -> None:
        """Dial, and dial again, until ``retire``; cancelled, it closes the link in order."""
        rng = random.Random()  # noqa: S311 — spreads redials, guards nothing
        while not self._retired:
            started = asyncio.get_running_loop().time()
            peer = await self._dial()
            if peer is not None:
                self._failure = ""
                await self._stay(peer)
            lived_s = asyncio.get_running_loop().time() - started if peer is not None else 0.0
            delay_s = SELF_RETRY_S if peer is not None and peer.is_self else self._delay.after(lived_s, rng)
            await asyncio.sleep(0 if self._retired else delay_s)

    def retire(self) -> bool:
        """Dial no more; return whether there is a link, which stays while it lasts."""
        self._retired = True
        return self._linked

    async def _stay(self, peer: Peer) -> None:
        """Wait until there is no link to the peer any more, this one or the one that was kept instead."""
        link = peer.session.link
        self._linked = True
        try:
            await asyncio.wait([link.lost])
            while not self._retired and (twin := self._mesh.twin_of(peer)) is not None:
                await asyncio.wait([twin.session.link.lost])
        except asyncio.CancelledError:
            link.close(CLOSE_NORMAL, "not a peer any more")
            raise
        finally:
            self._linked = False

    async def _dial(self) -> Peer | None:
        address = self._address
        uri = WebSocketURI(address.is_secure, address.server_name, address.port, address.path, "", None, None)
        protocol = ClientProtocol(uri, max_size=ANNOUNCE_MAX_BYTES, logger=WEBSOCKET_LOG)
        link = Link(protocol, Nobody(), path=address.path, data_kind=KIND_TUNNEL_DATA)
        peer = Peer(link, self._mesh, str(address), dialled=True)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._connect(link)
                await link.opened
        except (OSError, NexusError, UnicodeError) as error:
            self._note(words_of(error) or f"no answer within {DIAL_TIMEOUT_S:g} s")
            _cut(None, link)
            return None
        except BaseException:
            _cut(None, link)
            raise
        if address.is_secure:
            peer.names = self._credentials.identity(link.transport).hosts
        self._mesh.join(peer)
        return peer

    async def _connect(self, link: Link) -> None:
        address = self._address
        context = self._credentials.client_context() if address.is_secure else None  # before anybody is bothered
        sock = await open_way(address.host, address.port, WSS if address.is_secure else WS, DIAL_TIMEOUT_S)
        keep_alive(sock)
        await connect(link, sock, context, address.server_name)

    def _note(self, failure: str) -> None:
        """Log a failure that is another than the last one; the rest at DEBUG."""
        level = logging.DEBUG if failure == self._failure else logging.WARNING
        self._failure = failure
        _log.log(level, "%s: no link: %s", self._address, failure)


class Nobody:
    """The owner of a link that has no peer yet: nothing can come before the upgrade is over."""

    def message_received(self, message: bytes) -> None:
        """Nothing is expected."""

    def text_received(self, text: str) -> None:
        """Nothing is expected."""

    def pong_received(self, payload: bytes) -> None:
        """Nothing is expected."""

    def writable_changed(self) -> None:
        """Nothing is queued."""

    def link_lost(self, end: LinkEnd) -> None:
        """Whoever waits for ``link.lost`` sees it."""


class _Gate(Nobody):
    """A connection to the peer listener; ``judge`` is asked between TLS handshake and upgrade."""

    task: asyncio.Task[None]  # once it has a place

    def __init__(
        self, connection: socket.socket, address: str, judge: Callable[[_Gate, asyncio.Transport], str]
    ) -> None:
        self.connection = connection
        self.address = address
        self.peer: Peer | None = None
        self.refusal = ""
        self._judge = judge
        protocol = ServerProtocol(max_size=ANNOUNCE_MAX_BYTES, logger=WEBSOCKET_LOG)
        self.link = Link(protocol, self, path=MESH_PATH, data_kind=KIND_TUNNEL_DATA, admit=self._admit)

    def _admit(self, transport: asyncio.Transport) -> str:
        self.refusal = self._judge(self, transport)
        return self.refusal


def _cut(connection: socket.socket | None, link: Link) -> None:
    """Leave nothing open, however the serving of a connection ended."""
    if hasattr(link, "transport"):
        if not link.lost.done():
            link.abort("the node stops")
    elif connection is not None:
        connection.close()
