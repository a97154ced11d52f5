"""A public TCP port: accept, peek within bytes and time, open a stream, splice.

A client that names no host is served by the port's claim where there is one: at once when its first bytes are neither
TLS nor HTTP, without peeking on a server-first port, else when it stayed silent for ``claim_wait_s`` or began to speak
and then took longer than any client may.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, cast

from nexus.addresses import split_address
from nexus.limits import UNBOUNDED, SourceCounter
from nexus.link.endpoint import finish, receive_view, reset
from nexus.link.splice import splice
from nexus.link.stream import Stream
from nexus.listeners.answers import answer
from nexus.listeners.handshake import LocalHandshake
from nexus.peek import Peeked, PeekStatus, peek
from nexus.places import Bursts, Places
from nexus.routing.decide import Reject, RejectReason
from nexus.sockets import BACKLOG, format_address, source_keys
from nexus.transport import PASSED, Connection, Dialer, OpenRequest

_log = logging.getLogger("nexus.listeners")

_TLS_HANDSHAKE: Final = 22  # RFC 8446 5.1: content type of a record

BURSTS: Final = Bursts(16, 16)  # ours: 256 places admit 4,096 clients that are younger than a second

_UNDECIDED: Final = {
    PeekStatus.NOT_THIS: RejectReason.UNRECOGNISED,
    PeekStatus.TOO_LARGE: RejectReason.TOO_LARGE,
}


@dataclass(frozen=True, slots=True)
class PeekBudget:
    """How long a client may take to say whom it wants, in seconds, and how many may be at it; see the config docs."""

    first_byte_s: float = 15
    idle_extension_s: float = 5
    absolute_max_s: float = 30
    concurrent: int = 256
    concurrent_per_source: int = 32
    connections_per_source: int = UNBOUNDED
    answers: bool = True
    claim_wait_s: float = 3
    server_first: frozenset[int] = frozenset()


@dataclass(slots=True)
class ListenerStats:
    """What the listeners counted; counters only ever rise."""

    connections: Counter[int] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


OwnAnswers = Callable[[int, Peeked], bytes | ssl.SSLContext | None]
"""Takes the local port, and what a client said; returns what the node itself answers: bytes, or a handshake."""


def nothing_of_its_own(port: int, peeked: Peeked) -> None:
    """Leave everything to backends."""
    del port, peeked


class TcpListeners:
    """All public TCP ports of a node: they share the budget and the counters."""

    def __init__(self, dialer: Dialer, budget: PeekBudget, own_answers: OwnAnswers = nothing_of_its_own) -> None:
        """Open streams through ``dialer``, for all that ``own_answers`` leaves to it."""
        self.dialer = dialer
        self.own_answers = own_answers
        self.budget = budget
        self.stats = ListenerStats()
        self.peeks: Places[ClientPeek] = Places(budget.concurrent, budget.concurrent_per_source, BURSTS)
        # Refused clients that have not closed yet: a stranger chooses how long that takes, so they are bounded alike.
        self.refused: Places[ClientPeek] = Places(budget.concurrent, budget.concurrent_per_source, BURSTS)
        self.connections = SourceCounter(UNBOUNDED, budget.connections_per_source)
        self.passes = False  # the dialer may know of other workers that take a connection over
        self._servers: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket) -> None:
        """Start to accept on a listening socket."""
        port = int(sock.getsockname()[1])
        server = await asyncio.get_running_loop().create_server(
            lambda: ClientPeek(self, port), sock=sock, backlog=BACKLOG
        )
        self._servers.append(server)

    async def adopt(
        self, sock: socket.socket, request: OpenRequest, prelude: bytes, spoke: str, dialer: Dialer | None = None
    ) -> None:
        """Go on with a client that another worker accepted and read ``prelude`` of; by default as with one's own.

        Raises:
            OSError: the client is gone.
        """
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: _Adopted(self, request, prelude, spoke, dialer), sock
        )

    def close(self) -> None:
        """Stop accepting; drop who has not said whom it wants. Streams go on."""
        for server in self._servers:
            server.close()
        for waiting in self.peeks.oldest_first():
            waiting.give_up(RejectReason.OVERLOADED)


class ClientPeek(asyncio.BufferedProtocol):
    """A client's connection until it is known whom it wants; then another protocol takes the transport over."""

    __slots__ = (
        "_absolute",
        "_client",
        "_dialer",
        "_listeners",
        "_port",
        "_prelude",
        "_sources",
        "_timer",
        "_transport",
        "_view",
    )

    def __init__(self, listeners: TcpListeners, port: int) -> None:
        """Peek for one of ``listeners``' ports."""
        self._listeners = listeners
        self._dialer = listeners.dialer
        self._port = port
        self._prelude = bytearray()
        self._view = receive_view()
        self._sources: tuple[str, ...] = ("",)
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or refuse it."""
        self._transport = cast(asyncio.Transport, transport)
        listeners = self._listeners
        listeners.stats.connections[self._port] += 1
        peer = transport.get_extra_info("peername")
        if not peer:  # it was reset before it was accepted
            self._refuse(RejectReason.CLIENT_GONE)
            return
        self._client = format_address(peer)  # now: a loop may not find it any more after a reset
        self._sources = source_keys(str(peer[0]))
        now = asyncio.get_running_loop().time()
        if not listeners.connections.admit(self._sources[0]):
            self._refuse(RejectReason.OVERLOADED)
            return
        if self._port in listeners.budget.server_first and listeners.dialer.claims_port(self._port):
            self._open(None, RejectReason.NO_NAME)
            return
        admitted, evicted = listeners.peeks.admit(self, self._sources, now)
        if evicted is not None:
            evicted.give_up(RejectReason.OVERLOADED)
        if not admitted:
            listeners.connections.release(self._sources[0])
            self._refuse(RejectReason.OVERLOADED)
            return
        self._absolute = now + listeners.budget.absolute_max_s
        self._wait(now, listeners.budget.first_byte_s)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Offer the shared buffer."""
        del sizehint
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Look at everything read so far."""
        before = len(self._prelude)
        self._prelude += self._view[:nbytes]
        seen = peek(self._prelude, seen=before)
        if seen is PeekStatus.NEED_MORE:
            self._wait(asyncio.get_running_loop().time(), self._listeners.budget.idle_extension_s)
        elif isinstance(seen, Peeked):
            if not self._answers(seen):
                self._open(seen.host, RejectReason.NO_NAME, spoke=seen.kind, is_tls=seen.kind == "tls")
        else:
            spoke = "tls" if self._prelude[0] == _TLS_HANDSHAKE else "http" if seen is PeekStatus.TOO_LARGE else ""
            self._open(None, _UNDECIDED[seen], spoke=spoke)

    def eof_received(self) -> bool:
        """A client that ends before it named a host is gone, but to a port's claim its end is only its end."""
        self._without_name(RejectReason.CLIENT_GONE, eof=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        del exc
        if self._leave():
            self._listeners.connections.release(self._sources[0])
            self._listeners.stats.rejected[RejectReason.CLIENT_GONE.value] += 1

    # -- Outcomes ---------------------------------------------------------------------------------------------------

    def give_up(self, reason: RejectReason) -> None:
        """Close without an answer: nothing is known of what the client speaks."""
        if self._leave():
            self._listeners.connections.release(self._sources[0])
            self._refuse(reason)

    def _open(
        self, host: str | None, nameless: RejectReason, *, spoke: str = "", is_tls: bool = False, eof: bool = False
    ) -> None:
        """Open a stream for whom is wanted; ``spoke``: what to answer a refusal in; ``eof``: nothing follows."""
        self._leave()
        connection = self._connection(spoke)
        self._serve(OpenRequest(host, is_tls, self._port, self._client, nameless, connection), spoke, eof=eof)

    def _connection(self, spoke: str) -> Connection | None:
        """Return what another worker would go on with, where there are any."""
        return Connection(self._transport, bytes(self._prelude), spoke) if self._listeners.passes else None

    def _serve(self, request: OpenRequest, spoke: str, *, eof: bool = False) -> None:
        opened = self._dialer.open_stream(request)
        if opened is PASSED:
            self._listeners.connections.release(self._sources[0])
            self._transport.abort()  # another process has the connection open
            return
        if isinstance(opened, Stream):
            self._splice(opened, eof=eof)
            return
        self._count(opened)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s on port %d: %s %s", request.client, self._port, opened.reason.value, opened.host)
        if self._listeners.budget.answers:
            self._transport.write(answer(opened.reason, is_tls=spoke == "tls", is_http=spoke == "http"))
        self._say_goodbye()

    def _answers(self, seen: Peeked) -> bool:
        """Serve a client that wants the node itself; tell whether it does."""
        own = self._listeners.own_answers(self._port, seen)
        if own is None:
            return False
        self._leave()
        if isinstance(own, bytes):
            self._transport.write(own)
            self._say_goodbye()
        elif self._hold_refused():
            LocalHandshake(own, self._transport, self._release).data_received(bytes(self._prelude))
        else:
            finish(self._transport, eof_received=False, on_closed=self._release)
            reset(self._transport)
        return True

    def _without_name(self, nameless: RejectReason, *, eof: bool = False) -> None:
        """Give a client of which nothing more is to be read to the port's claim, or give it up."""
        if self._timer is not None and self._listeners.dialer.claims_port(self._port):
            self._open(None, nameless, eof=eof)
        else:
            self.give_up(nameless)

    def _splice(self, stream: Stream, *, eof: bool) -> None:
        socket = splice(stream, self._transport, bytes(self._prelude), self._release)
        if eof:
            socket.eof_received()

    def _say_goodbye(self) -> None:
        """Give a client that was answered time to read that, unless too many have it already."""
        has_place = self._hold_refused()
        finish(self._transport, eof_received=False, on_closed=self._release)
        if not has_place:
            reset(self._transport)

    def _hold_refused(self) -> bool:
        """Take a place among the clients that only have to close, another one's if need be; tell whether there is."""
        refused = self._listeners.refused
        admitted, evicted = refused.admit(self, self._sources, asyncio.get_running_loop().time())
        if evicted is not None:
            reset(evicted._transport)  # noqa: SLF001 — one of this class
        return admitted

    def _release(self) -> None:
        self._listeners.refused.leave(self)
        self._listeners.connections.release(self._sources[0])

    def _refuse(self, reason: RejectReason) -> None:
        self._count(Reject(reason))
        if reason is RejectReason.OVERLOADED:
            reset(self._transport)  # costs nothing more, here or there
        else:
            self._transport.close()

    def _count(self, rejected: Reject) -> None:
        self._listeners.stats.rejected[rejected.reason.value] += 1

    def _leave(self) -> bool:
        """End the peek; return whether it was still under way."""
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        self._listeners.peeks.leave(self)
        return True

    def _wait(self, now: float, patience_s: float) -> None:
        """Read on for so long; on a claimed port nobody needs to say whom they want: silence is not waited out."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._prelude and self._listeners.dialer.claims_port(self._port):
            patience_s = min(patience_s, self._listeners.budget.claim_wait_s)
        when = min(now + patience_s, self._absolute)
        self._timer = asyncio.get_running_loop().call_at(when, self._time_out)

    def _time_out(self) -> None:
        self._without_name(RejectReason.TIMEOUT)


class _Adopted(ClientPeek):
    """A client that another worker accepted, and peeked at."""

    __slots__ = ("_request", "_spoke")

    def __init__(
        self, listeners: TcpListeners, request: OpenRequest, prelude: bytes, spoke: str, dialer: Dialer | None
    ) -> None:
        super().__init__(listeners, request.local_port)
        self._dialer = dialer or listeners.dialer
        self._request = request
        self._spoke = spoke
        self._prelude += prelude
        self._client = request.client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Go on where the other worker stopped."""
        self._transport = cast(asyncio.Transport, transport)
        self._sources = source_keys((split_address(self._client) or ("", 0))[0])
        if not self._listeners.connections.admit(self._sources[0]):
            self._refuse(RejectReason.OVERLOADED)
            return
        seen = peek(self._prelude) if self._dialer is self._listeners.dialer else None
        if isinstance(seen, Peeked) and self._answers(seen):
            return
        self._serve(replace(self._request, connection=self._connection(self._spoke)), self._spoke)
