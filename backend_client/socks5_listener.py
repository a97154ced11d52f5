"""A SOCKS5 listener: its clients' connections are opened by the hub and then are streams like any other.

Until the hub has answered a connection is a ``SocksConnection``: it is bounded in time and bytes, and its listener in
their number, where who has not asked for a target yet gives way (``Places``). Then a ``SocketEndpoint`` takes the
transport over. A client that leaves while the hub dials takes its request back. A wrong login keeps its place for
REFUSED_LOGIN_S, which bounds how many can be tried.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from backend_client.client import BackendClient
from backend_client.mapping import Target
from backend_client.socks5 import Login, Negotiation, Reply, reply, reply_to
from nexus.document.addresses import is_loopback
from nexus.errors import OutboundError
from nexus.limits import LineBudget
from nexus.link.endpoint import SocketEndpoint, finish
from nexus.link.stream import Stream
from nexus.places import Bursts, Places
from nexus.protocol.reasons import Reason
from nexus.sockets import accept, format_address, source_keys

_log = logging.getLogger("nexus.client")

NEGOTIATION_TIMEOUT_S: Final = 10.0  # original
# Connections that are no streams yet, refused ones that have not closed included: ours, two and a half times what one
# session of the original may hold.
PENDING_MAX: Final = 256
PENDING_PER_SOURCE_MAX: Final = 64  # ours, not on loopback: a quarter, and more than a browser opens at once
REFUSED_LOGIN_S: Final = 1.0  # ours: with the bounds above, 64 passwords in a second from one source, 256 in all
# What a client may send behind its request before it is answered (a TLS hello, say); then it is not read any more.
EARLY_MAX_BYTES: Final = 64 * 1024


class Socks5Listener:
    """One listener; ``run`` serves until ``stop``. Streams that were opened outlive it."""

    def __init__(self, sock: socket.socket, clients: Sequence[BackendClient], login: Login | None) -> None:
        """Take over a listening socket; each connection goes through the first of ``clients`` that has a session.

        To be made inside a running event loop.
        """
        self.login = login
        self.pending: Places[SocksConnection] = Places(PENDING_MAX, PENDING_PER_SOURCE_MAX, Bursts(1, 1))
        self.turned_away = 0
        self.refused_logins = 0
        self.tasks: asyncio.TaskGroup
        self._sock = sock
        self._clients = clients
        self._stop = asyncio.Event()
        self._refusal_lines = LineBudget()
        self._login_lines = LineBudget()

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return format_address(self._sock.getsockname())

    async def run(self) -> None:
        """Serve until ``stop``; then who has no stream yet is told of a failure."""
        try:
            _log.info("SOCKS5 at %s", self.address)
            async with asyncio.TaskGroup() as self.tasks:
                accepting = self.tasks.create_task(self._accept())
                await self._stop.wait()
                accepting.cancel()
                for connection in self.pending.oldest_first():
                    connection.give_up()
        finally:
            self._sock.close()

    def stop(self) -> None:
        """Accept nothing more. Idempotent."""
        self._stop.set()

    async def open(self, target: Target) -> Stream:
        """Have a hub dial ``target``.

        Raises:
            OutboundError: there is no session, or the hub opened no connection.
        """
        try:
            return await self._connected_client().open_stream(target)
        except OutboundError as error:
            now = asyncio.get_running_loop().time()
            level = logging.WARNING if self._refusal_lines.admit(now) else logging.DEBUG
            _log.log(level, "no connection to %r: %s", str(target), error)
            raise

    def admit(self, connection: SocksConnection, address: str) -> bool:
        """Give a client a place, if need be that of the one that has been silent longest."""
        sources = source_keys(address)
        if is_loopback(address) or is_loopback(sources[0]):  # programs of this machine share one address
            sources = ()
        admitted, evicted = self.pending.admit(connection, sources, asyncio.get_running_loop().time())
        if evicted is not None:
            evicted.cut()
        if evicted is not None or not admitted:
            self.turned_away += 1
            _log.debug("turned a SOCKS client away: %d are not served yet", len(self.pending))
        return admitted

    def note_refused_login(self, address: str) -> None:
        """Count and tell of a wrong name or password, neither of which is repeated."""
        self.refused_logins += 1
        level = logging.WARNING if self._login_lines.admit(asyncio.get_running_loop().time()) else logging.DEBUG
        what = "refused a SOCKS5 login from %s: wrong name or password (%d refused at %s since the start)"
        _log.log(level, what, address.removeprefix("::ffff:"), self.refused_logins, self.address)

    def _connected_client(self) -> BackendClient:
        for client in self._clients:
            if client.is_connected:
                return client
        raise OutboundError("there is no session with a hub")

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, address = await accept(self._sock)
            try:
                await loop.connect_accepted_socket(partial(SocksConnection, self, address), sock)
            except OSError:  # it broke between the two
                sock.close()


class SocksConnection(asyncio.Protocol):
    """One client of the listener until the hub has answered."""

    def __init__(self, listener: Socks5Listener, address: str) -> None:
        """Negotiate for one of ``listener``'s clients, at ``address`` without its port."""
        self._listener = listener
        self._address = address
        self._negotiation = Negotiation(listener.login)
        self._early = bytearray()
        self._opening: asyncio.Task[None] | None = None
        self._closing = False

    # -- asyncio callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, if there is a place."""
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.call_later(NEGOTIATION_TIMEOUT_S, self._close)
        if not self._listener.admit(self, self._address):
            self.cut()

    def data_received(self, data: bytes) -> None:
        """Negotiate; keep what comes behind the request."""
        if self._opening is not None:
            self._keep(data)
            return
        negotiation = self._negotiation
        answer = negotiation.receive(data)
        if answer:
            self._transport.write(answer)
        if negotiation.login_refused:
            self._refuse_login()
        elif negotiation.failed:
            self._close()
        elif negotiation.target is not None:
            self._clock.cancel()
            self._listener.pending.keep(self)
            self._keep(negotiation.rest)
            self._opening = self._listener.tasks.create_task(self._open(negotiation.target))

    def eof_received(self) -> bool:
        """A client that ends before it was answered is gone."""
        self._close(eof_received=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take its request back."""
        del exc
        self._forget()

    # -- Outcomes ---------------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """Tell a client that waits for an answer of a failure, and close; nothing where that has begun."""
        if self._opening is not None and not self._closing:
            self._transport.write(reply(Reply.FAILURE))
        self._close()

    def cut(self) -> None:
        """Close without another word: somebody else has the place."""
        self._stop_waiting()
        self._transport.abort()

    def _refuse_login(self) -> None:
        """Close in a while. Nothing is read meanwhile: a client that leaves at once would free its place at once."""
        self._listener.note_refused_login(self._address)
        self._transport.pause_reading()
        self._clock.cancel()
        self._clock = self._loop.call_later(REFUSED_LOGIN_S, self._close)

    async def _open(self, target: Target) -> None:
        """Wait for the hub, then answer; nothing escapes but cancellation."""
        code = Reply.FAILURE
        try:
            self._splice(await self._listener.open(target))
        except OutboundError as error:
            if error.by_hub:
                code = reply_to(str(error))
        except Exception:  # noqa: BLE001 — a bug of ours must not end the listener
            _log.exception("unexpected failure of a SOCKS connection")
        else:
            return
        self._transport.write(reply(code))
        self._close()

    def _splice(self, stream: Stream) -> None:
        transport = self._transport
        if transport.is_closing():
            stream.close(Reason.LOCAL_ERROR)
            return
        self._forget()
        transport.write(reply(Reply.SUCCEEDED))
        endpoint = SocketEndpoint(stream, transport)
        transport.set_protocol(endpoint)
        transport.resume_reading()
        stream.attach(endpoint)
        stream.send(bytes(self._early))

    def _keep(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > EARLY_MAX_BYTES:
            self._transport.pause_reading()

    def _close(self, *, eof_received: bool = False) -> None:
        """Let what was answered get there; until the client has closed, too, it counts as pending. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._stop_waiting()
        self._listener.pending.expose(self, self._loop.time())
        finish(self._transport, eof_received=eof_received, on_closed=self._forget)

    def _forget(self) -> None:
        self._stop_waiting()
        self._listener.pending.leave(self)

    def _stop_waiting(self) -> None:
        self._clock.cancel()
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
