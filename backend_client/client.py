"""Keeps one session with one hub: dial, authenticate, serve, and come back after an end, at a measured pace."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from dataclasses import dataclass
from typing import Any, Final

from websockets.client import ClientProtocol
from websockets.uri import WebSocketURI, parse_uri

from backend_client.backoff import Backoff, FailureKind
from backend_client.events import Event, EventHandler, EventKind, Stats
from backend_client.proxy import open_tunnel, proxy_for
from backend_client.session import ClientSession, Forwarder
from backend_client.tokens import CachingProvider, Stage, TokenProvider, TokenRequest
from nexus.errors import NexusError, RejectedError
from nexus.link.connection import WEBSOCKET_LOG, Link, LinkEnd
from nexus.link.inbox import Inbox
from nexus.link.stream import Stream
from nexus.protocol.constants import (
    CHALLENGE_TIMEOUT_S,
    CLIENT_DEAD_AFTER_S,
    CLIENT_PING_INTERVAL_S,
    CLOSE_POLICY,
    HANDSHAKE_MESSAGE_MAX_BYTES,
)
from nexus.protocol.handshake import parse_challenge

_log = logging.getLogger("nexus.client")

# The original allows 45 s for TCP, TLS and upgrade together; a hub that takes longer than this is not usable.
DIAL_HUB_TIMEOUT_S: Final = 20.0
# How long a hub may take to judge the stage-1 token (it may ask a remote verifier for 10 s) before the attempt fails.
ACCEPT_TIMEOUT_S: Final = 20.0
DRAIN_TIMEOUT_S: Final = 30.0  # original
_HEALTH_SCAN_S: Final = 5.0  # original


@dataclass(frozen=True, slots=True)
class Identity:
    """What a backend claims, as the token provider is told; see ``TokenRequest``."""

    name: str
    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    weight: int = 1

    def request(self, stage: Stage, nonce: str) -> TokenRequest:
        """Return the request for one token."""
        return TokenRequest(
            stage=stage,
            nonce=nonce,
            backend_name=self.name,
            hostnames=self.hostnames,
            tcp_ports=self.tcp_ports,
            weight=self.weight,
        )


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Whether and when the hub is asked about idle streams, in seconds (spec backend-protocol 9)."""

    enabled: bool = False
    inactivity_s: float = 60
    pong_s: float = 5


class BackendClient:
    """One backend at one hub. ``run`` keeps the session until ``stop``; ``wait_connected`` waits for the first."""

    def __init__(  # noqa: PLR0913 — the parts a program may replace, all by keyword
        self,
        hub: str,
        identity: Identity,
        tokens: TokenProvider,
        forwarder: Forwarder,
        *,
        context: ssl.SSLContext | None = None,
        on_event: EventHandler | None = None,
        health: HealthChecks | None = None,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
    ) -> None:
        """Take the hub's URL (``wss://host:port/connect``) inside a running event loop.

        ``context`` verifies the hub, by default against the system's roots.
        """
        self.hub = hub
        self._uri: WebSocketURI = parse_uri(hub)
        self._identity = identity
        self._tokens = tokens
        self._forwarder = forwarder
        self._context = context
        self._on_event = on_event
        self._health = health or HealthChecks()
        self._drain_timeout_s = drain_timeout_s
        self._backoff = Backoff()
        self._rng = random.SystemRandom()
        self._session: ClientSession | None = None
        self._stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connected = asyncio.Event()
        self._connected_at = 0.0
        self._sessions = 0
        self._failures = 0
        self._last_error = ""
        self._bytes = [0, 0]

    # -- For programs -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a session until ``stop``; failures are events, never exceptions."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._stop.done():
                    delay_s = await self._one_session(tasks)
                    await asyncio.wait([self._stop], timeout=delay_s)
                raise _Stopped  # noqa: TRY301 — ends what handlers may still be doing
        except* _Stopped:
            self._tell(EventKind.STOPPED)

    def stop(self) -> None:
        """Drain and end, in bounded time; ``run`` returns then. Idempotent."""
        if not self._stop.done():
            self._stop.set_result(None)
            self._tell(EventKind.DRAINING)

    async def wait_connected(self) -> None:
        """Return once the hub has accepted a session."""
        await self._connected.wait()

    @property
    def stats(self) -> Stats:
        """Return the figures of now."""
        session = self._session.session if self._session is not None else None
        now = asyncio.get_running_loop().time()
        return Stats(
            connected=self._connected.is_set(),
            streams=len(session.streams) if session else 0,
            streams_total=self._forwarder.streams_total,
            dial_failures=self._forwarder.dial_failures,
            bytes_from_hub=self._bytes[0] + (session.bytes_received if session else 0),
            bytes_to_hub=self._bytes[1] + (session.bytes_sent if session else 0),
            sessions_total=self._sessions,
            failures=self._failures,
            connected_for_s=now - self._connected_at if self._connected.is_set() else 0.0,
            last_error=self._last_error,
        )

    @property
    def rejections(self) -> int:
        """How often in a row the hub refused the token."""
        return self._backoff.rejections

    # -- One session ------------------------------------------------------------------------------------------------

    async def _one_session(self, tasks: asyncio.TaskGroup) -> float:
        """Connect, serve until the end, and return how long to wait before the next attempt."""
        attempt = tasks.create_task(self._attempt(tasks))
        await _first_of(attempt, self._stop)
        if not attempt.done():
            attempt.cancel()
            return 0.0
        client = attempt.result()
        if isinstance(client, Exception):
            return self._failed(client)
        end = await self._serve(client, tasks)
        lived_s = asyncio.get_running_loop().time() - self._connected_at
        self._leave_session()
        if end.code == CLOSE_POLICY:
            return self._failed(RejectedError(end.reason or "the hub closed with code 1008"))
        delay_s = self._backoff.after_session(lived_s, self._rng)
        self._tell(EventKind.DISCONNECTED, str(end), delay_s)
        return delay_s

    async def _serve(self, client: ClientSession, tasks: asyncio.TaskGroup) -> LinkEnd:
        link = client.session.link
        if self._health.enabled:
            tasks.create_task(self._check_health(client))
        await _first_of(self._stop, link.lost)
        if not link.lost.done():
            await client.drain(self._drain_timeout_s)
        return await link.lost

    async def _attempt(self, tasks: asyncio.TaskGroup) -> ClientSession | Exception:
        try:
            return await self._connect(tasks)
        except (OSError, NexusError) as error:  # TimeoutError and SSLError are OSErrors
            return error

    async def _connect(self, tasks: asyncio.TaskGroup) -> ClientSession:
        """Return an accepted session.

        The first token is fetched before dialling, since the hub's clock runs from the upgrade on.
        """
        first = await self._tokens.token(self._identity.request("handshake", ""))
        inbox = Inbox()
        link = await self._dial(inbox)
        try:
            link.send_text(first.strip())
            async with asyncio.timeout(CHALLENGE_TIMEOUT_S):
                challenge = parse_challenge(await inbox.next_text())
            link.send_text((await self._tokens.token(self._identity.request("attest", challenge.nonce))).strip())
            link.start_session()
            link.keep_alive(CLIENT_PING_INTERVAL_S, CLIENT_DEAD_AFTER_S)
            client = ClientSession(link, self.hub, challenge.features, self._forwarder, tasks)
            client.stream_changed = self._stream_changed
            link.release()
            await self._accepted(client)
        except BaseException:
            link.abort("the handshake did not succeed")
            raise
        return client

    async def _accepted(self, client: ClientSession) -> None:
        link = client.session.link
        await _first_of(client.accepted, link.lost, timeout_s=ACCEPT_TIMEOUT_S)
        if link.lost.done():
            end = link.lost.result()
            if end.code == CLOSE_POLICY:
                raise RejectedError(end.reason or "the hub closed with code 1008")
            raise ConnectionError(f"the hub ended the session before it was up: {end}")
        if not client.accepted.done():
            raise TimeoutError(f"the hub did not accept the session within {ACCEPT_TIMEOUT_S:g} s")
        self._sessions += 1
        self._session = client
        self._connected_at = asyncio.get_running_loop().time()
        self._connected.set()
        self._tell(EventKind.CONNECTED)

    async def _dial(self, inbox: Inbox) -> Link:
        uri = self._uri
        link = Link(
            ClientProtocol(uri, max_size=HANDSHAKE_MESSAGE_MAX_BYTES, logger=WEBSOCKET_LOG), inbox, path=uri.path
        )
        inbox.guard(link)
        loop = asyncio.get_running_loop()
        context = (self._context or ssl.create_default_context()) if uri.secure else None
        server_hostname = uri.host if uri.secure else None
        async with asyncio.timeout(DIAL_HUB_TIMEOUT_S):
            proxy = proxy_for(uri.host, uri.port, secure=uri.secure)
            if proxy is None:
                await loop.create_connection(
                    lambda: link, uri.host, uri.port, ssl=context, server_hostname=server_hostname
                )
            else:
                sock = await open_tunnel(proxy, uri.host, uri.port, DIAL_HUB_TIMEOUT_S)
                await loop.create_connection(lambda: link, sock=sock, ssl=context, server_hostname=server_hostname)
            try:
                await link.opened
            except BaseException:
                link.abort("the upgrade did not succeed")
                raise
        return link

    # -- Small parts ------------------------------------------------------------------------------------------------

    async def _check_health(self, client: ClientSession) -> None:
        loop = asyncio.get_running_loop()
        while not client.session.ended:
            client.check_health(loop.time(), self._health.inactivity_s, self._health.pong_s)
            await asyncio.wait([client.session.link.lost], timeout=min(_HEALTH_SCAN_S, self._health.pong_s))

    def _leave_session(self) -> None:
        self._connected.clear()
        if self._session is not None:
            self._bytes[0] += self._session.session.bytes_received
            self._bytes[1] += self._session.session.bytes_sent
            self._session = None

    def _failed(self, error: BaseException) -> float:
        self._failures += 1
        self._last_error = str(error) or type(error).__name__
        kind = _failure_kind(error)
        delay_s = self._backoff.after_failure(kind, self._rng)
        if kind is FailureKind.REJECTED:
            if isinstance(self._tokens, CachingProvider):
                self._tokens.forget()
            if self._backoff.persistent:
                _log.error("%s refused the token %d times: %s", self.hub, self._backoff.rejections, error)
        self._tell(EventKind.REJECTED if kind is FailureKind.REJECTED else EventKind.FAILED, self._last_error, delay_s)
        return delay_s

    def _stream_changed(self, stream: Stream, reason: str | None) -> None:
        del stream
        self._tell(EventKind.STREAM_OPENED if reason is None else EventKind.STREAM_CLOSED, reason or "")

    def _tell(self, kind: EventKind, detail: str = "", retry_s: float = 0.0) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, self.hub, detail, retry_s))


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _failure_kind(error: BaseException) -> FailureKind:
    if not isinstance(error, RejectedError):
        return FailureKind.TRANSIENT
    return FailureKind.of_http_status(error.http_status) if error.http_status else FailureKind.REJECTED


class _Stopped(Exception):  # noqa: N818 — leaves the task group, is no error
    """``run`` is over."""
