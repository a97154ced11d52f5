"""Accepts backends: TLS, upgrade and handshake, each bounded in bytes, time and count, then a session."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from websockets.server import ServerProtocol

from nexus.auth.claims import Claims
from nexus.auth.grants import Grant, Policy, check_stage0, check_stage1
from nexus.auth.revocation import Revocations
from nexus.errors import AuthError, NexusError, RemoteProtocolError, TokenUnverified
from nexus.hub.backend import BackendSession
from nexus.hub.reauth import AskStatus, Reauthenticator
from nexus.hub.registry import Registry
from nexus.hub.targets import NO_OUTBOUND, OutboundPolicy
from nexus.limits import UNBOUNDED, LineBudget, RefusalCounter
from nexus.link.connection import CLOSE_TIMEOUT_S, WEBSOCKET_LOG, Link
from nexus.link.inbox import Inbox
from nexus.places import Bursts, Places
from nexus.protocol.constants import (
    CLOSE_POLICY,
    CONNECT_PATH,
    HANDSHAKE_MESSAGE_MAX_BYTES,
    HUB_DEAD_AFTER_S,
    HUB_PING_INTERVAL_S,
    STAGE0_TIMEOUT_S,
    STAGE1_TIMEOUT_S,
    UPGRADE_TIMEOUT_S,
)
from nexus.protocol.handshake import HubHandshake, new_nonce
from nexus.sockets import accept, format_address, source_keys
from nexus.tls.links import accept_tls

_log = logging.getLogger("nexus.hub")

# Ours: 256 places admit 1,024 connections that are younger than a second, for backends that all come back at once. More
# would cost much memory (TLS takes up to 130 KiB each). One source gets no more for being quick, or few could fill it.
BURSTS: Final = Bursts(4, 1)

VerifyToken = Callable[[str, float], Awaitable[Claims]]
"""Returns the claims of a token at a unix time, or raises AuthError; may ask somebody else and so take its time."""


class SubjectFull(AuthError):  # noqa: N818 — a state of this node, no fault of the token
    """The token's subject holds all the sessions it may hold; one of them may be a dead one that is not found yet."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Bounds of everything before authentication, and of sessions by one subject (0: none)."""

    unauthenticated: int = 256
    unauthenticated_per_source: int = 32
    refusals_per_source: int = UNBOUNDED
    sessions_per_subject: int = 0
    upgrade_timeout_s: float = UPGRADE_TIMEOUT_S
    stage0_timeout_s: float = STAGE0_TIMEOUT_S
    stage1_timeout_s: float = STAGE1_TIMEOUT_S


class _Arrival:
    """One connection, compared by identity; ``sources`` are those it counts for, ``task`` serves it."""

    __slots__ = ("connection", "inbox", "link", "sources", "task")

    def __init__(self, connection: socket.socket, sources: tuple[str, ...]) -> None:
        self.connection = connection
        self.sources = sources
        self.inbox = Inbox()
        protocol = ServerProtocol(max_size=HANDSHAKE_MESSAGE_MAX_BYTES, logger=WEBSOCKET_LOG)
        self.link = Link(protocol, self.inbox, path=CONNECT_PATH)
        self.inbox.guard(self.link)
        self.task: asyncio.Task[None]

    @property
    def source(self) -> str:
        """The narrowest of them."""
        return self.sources[0]


class HubServer:
    """The listener for backends."""

    def __init__(
        self,
        registry: Registry,
        context: Callable[[], ssl.SSLContext],
        verify: VerifyToken,
        policy: Policy,
        limits: HubLimits,
        *,
        ask_status: AskStatus,
        outbound: OutboundPolicy = NO_OUTBOUND,
    ) -> None:
        """Check tokens by ``verify`` and claims by ``policy``; ``context`` is asked at each connection."""
        self._outbound = outbound
        self._registry = registry
        self._context = context
        self._verify = verify
        self._policy = policy
        self._limits = limits
        self._reauthenticator = Reauthenticator(verify, policy, ask_status, registry.totals)
        self._places: Places[_Arrival] = Places(limits.unauthenticated, limits.unauthenticated_per_source, BURSTS)
        self._revocations = Revocations()  # none but those of which it was told: tokens are verified by the others
        self._refusals = RefusalCounter(limits.refusals_per_source)
        self._refusal_lines = LineBudget()
        self._tasks: asyncio.TaskGroup | None = None
        # Of several workers: takes a connection, and its address, that another one is to serve; else returns False.
        self.passes_on: Callable[[socket.socket, str], bool] = lambda _connection, _address: False

    @property
    def unauthenticated(self) -> int:
        """How many connections have not finished the handshake."""
        return len(self._places)

    async def serve(self, sock: socket.socket | None) -> None:
        """Accept on a listening socket until cancelled; without one serve only what ``take_in`` is handed."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                if sock is None:
                    await asyncio.get_running_loop().create_future()  # until cancelled
                    return
                while True:
                    connection, address = await accept(sock)
                    if not self.passes_on(connection, address):
                        self.take_in(connection, address)
            finally:
                self._tasks = None

    def take_in(self, connection: socket.socket, address: str) -> None:
        """Serve an accepted connection, if it may be and the hub serves at all."""
        sources = source_keys(address)
        if self._tasks is None:
            connection.close()
        elif self._refusals.admit(sources[0], asyncio.get_running_loop().time()):
            self._admit_one(_Arrival(connection, sources), self._tasks)
        else:
            self._registry.totals.auth_failures["turned_away"] += 1
            connection.close()

    def _admit_one(self, arrival: _Arrival, tasks: asyncio.TaskGroup) -> None:
        """Give a connection a place; who loses its own for that is cut off."""
        admitted, evicted = self._places.admit(arrival, arrival.sources, asyncio.get_running_loop().time())
        if evicted is not None:
            evicted.task.cancel()
        if admitted:
            arrival.task = tasks.create_task(self._serve_one(arrival, tasks))
        else:
            arrival.connection.close()
        if evicted is not None or not admitted:
            self._registry.totals.auth_failures["limit"] += 1

    async def _serve_one(self, arrival: _Arrival, tasks: asyncio.TaskGroup) -> None:
        """Run one connection to its end; nothing that a stranger does may escape."""
        try:
            try:
                backend = await self._admit(arrival, tasks)
            finally:
                self._places.leave(arrival)
            if backend is not None and backend.grant.reauth_interval_s:
                await self._reauthenticator.watch(backend)
            await asyncio.wait([arrival.link.lost])
        except (OSError, NexusError) as error:  # TimeoutError and SSLError are OSErrors
            _log.debug("a connection from %s came to nothing: %s", arrival.source, error)
        except Exception:  # noqa: BLE001 — a bug of ours must not end the hub
            _log.exception("unexpected failure while serving a backend from %s", arrival.source)
        finally:
            _cut(arrival.connection, arrival.link)

    async def _admit(self, arrival: _Arrival, tasks: asyncio.TaskGroup) -> BackendSession | None:
        """Take a connection up to its session and return that, or refuse it."""
        link, source = arrival.link, arrival.source
        address = format_address(arrival.connection.getpeername())
        await self._upgrade(arrival.connection, link)
        try:
            grant = await self._authenticate(arrival)
        except (NexusError, TimeoutError) as error:
            self._places.expose(arrival, link.now())
            self._note_refusal(error, address, source, link.now())
            link.close(CLOSE_POLICY, str(error))
            await asyncio.wait([link.lost], timeout=2 * CLOSE_TIMEOUT_S)
            return None
        self._refusals.forgive(source)
        backend = BackendSession(link, grant, self._registry, address, tasks, outbound=self._outbound)
        link.start_session()
        link.keep_alive(HUB_PING_INTERVAL_S, HUB_DEAD_AFTER_S)
        _log.info("session of %s: weight %d, routes %s", backend.name, grant.weight, ", ".join(grant.route_keys))
        link.release()
        return backend

    def _note_refusal(self, error: Exception, address: str, source: str, now: float) -> None:
        """Log it, and turn the source away for a while if its tokens were refused too often."""
        level = logging.WARNING if self._refusal_lines.admit(now) else logging.DEBUG
        _log.log(level, "refused a backend from %s: %s", address, error)
        is_its_fault = isinstance(error, AuthError) and not isinstance(error, TokenUnverified | SubjectFull)
        if is_its_fault and self._refusals.note(source, now):
            _log.log(level, "%s was refused too often: turned away for a minute (maxRefusalsPerSource)", source)

    async def _upgrade(self, connection: socket.socket, link: Link) -> None:
        timeout_s = self._limits.upgrade_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await accept_tls(link, connection, self._context(), timeout_s)
                await link.opened
        except (OSError, NexusError) as error:
            self._registry.totals.auth_failures["upgrade"] += 1
            if isinstance(error, RemoteProtocolError):  # it was answered, in HTTP: let the answer get there
                await asyncio.wait([link.lost], timeout=CLOSE_TIMEOUT_S)
            raise

    async def _authenticate(self, arrival: _Arrival) -> Grant:
        """Run the two stages; every failure is counted under its stage."""
        link = arrival.link
        handshake = HubHandshake(new_nonce())
        stage = "stage0"
        try:
            grant = check_stage0(
                await self._token(arrival, handshake, self._limits.stage0_timeout_s), self._policy, time.time()
            )
            challenge = handshake.accept()
            link.send_text(challenge or "")
            stage = "stage1"
            claims = await self._token(arrival, handshake, self._limits.stage1_timeout_s)
            grant = check_stage1(claims, grant, handshake.challenge.nonce, self._policy)
            for (
                identity
            ) in grant.tokens:  # the first was judged a while ago; nothing is awaited from here to the session
                self._revocations.check(identity, time.time())
            self._check_subject(grant)
            handshake.accept()
            if link.lost.done():  # nobody would tell the session of its end any more
                raise RemoteProtocolError("the connection ended during the handshake")
        except (NexusError, TimeoutError):
            self._registry.totals.auth_failures[stage] += 1
            raise
        return grant

    async def _token(self, arrival: _Arrival, handshake: HubHandshake, timeout_s: float) -> Claims:
        try:
            async with asyncio.timeout(timeout_s):
                text = await arrival.inbox.next_text()
        except TimeoutError:
            raise TimeoutError(f"no token within {timeout_s:g} s") from None
        self._places.keep(arrival)
        token = handshake.receive_text(text)
        return await self._verify(token, time.time())

    def close_revoked(self, revocations: Revocations) -> None:
        """End the sessions that stand on a token which is revoked now, and let no handshake on such a one succeed."""
        self._revocations = revocations
        for backend in tuple(self._registry.sessions):
            if reason := revocations.reason(backend.grant.tokens, time.time()):
                _log.warning("ending the session of %s: %s", backend.name, reason)
                backend.session.link.close(CLOSE_POLICY, "revoked")

    def _check_subject(self, grant: Grant) -> None:
        limit = self._limits.sessions_per_subject
        if limit and self._registry.sessions_of(grant.subject) >= limit:
            raise SubjectFull(f"the token's subject already holds {limit} sessions (maxSessionsPerSubject)")


def _cut(connection: socket.socket, link: Link) -> None:
    """Leave nothing open, however the serving of a connection ended."""
    if hasattr(link, "transport"):
        if not link.lost.done():
            link.abort("the hub stops")
    else:
        connection.close()
