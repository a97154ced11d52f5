"""Keeps one session with one hub: dial, authenticate, serve, and come back after an end, at a measured pace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from backend_client.backoff import STABLE_SESSION_S, Backoff, FailureKind
from backend_client.connection import Connection, StreamInfo
from backend_client.events import Event, EventHandler, EventKind, Stats
from backend_client.mapping import Target
from backend_client.reauth import Reauthentication
from backend_client.session import ClientSession, Forwarder
from backend_client.tokens import CachingProvider, Stage, TokenProvider, TokenRequest
from nexus.auth.claims import UdpRoute
from nexus.errors import ConfigError, NexusError, OutboundError, Problem, RejectedError, TokenProviderError
from nexus.link.connection import WEBSOCKET_LOG, Link, LinkEnd
from nexus.link.inbox import Inbox
from nexus.link.stream import Stream
from nexus.masking import mask_url
from nexus.protocol.constants import (
    CHALLENGE_TIMEOUT_S,
    CLIENT_DEAD_AFTER_S,
    CLIENT_PING_INTERVAL_S,
    CLOSE_POLICY,
    HANDSHAKE_MESSAGE_MAX_BYTES,
)
from nexus.protocol.handshake import parse_challenge
from nexus.proxies import WS, WSS
from nexus.proxy_dial import open_way
from nexus.tls.contexts import hub_client_context
from nexus.tls.links import connect

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
    udp_routes: tuple[UdpRoute, ...] = ()
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()

    def request(self, stage: Stage, nonce: str) -> TokenRequest:
        """Return the request for one token."""
        return TokenRequest(
            stage=stage,
            nonce=nonce,
            backend_name=self.name,
            hostnames=self.hostnames,
            tcp_ports=self.tcp_ports,
            udp_routes=self.udp_routes,
            weight=self.weight,
            outbound_allowed=self.outbound_allowed,
            allowed_outbound_ports=self.allowed_outbound_ports,
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

        ``context`` verifies the hub, by default against the system's roots. A user and password in the URL are sent to
        the hub; ``self.hub`` is the URL as it may be shown. Raises ConfigError when the URL is none.
        """
        self.hub = mask_url(hub)
        self._uri = _parse_hub(hub)
        self._identity = identity
        self._tokens = tokens
        self._forwarder = forwarder
        self._context = (context or hub_client_context()) if self._uri.secure else None
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
                try:
                    while not self._stop.done():
                        delay_s = await self._one_session(tasks)
                        await asyncio.wait([self._stop], timeout=delay_s)
                finally:
                    self._cut()
                raise _Stopped  # noqa: TRY301 — ends what handlers may still be doing
        except* _Stopped:
            self._tell(EventKind.STOPPED)

    def stop(self) -> None:
        """Drain and end, in bounded time; ``run`` returns then. Idempotent."""
        if not self._stop.done():
            self._stop.set_result(None)
            self._tell(EventKind.DRAINING)

    async def wait_connected(self) -> None:
        """Return as soon as the hub has accepted a session; that may be never, so give it a limit of your own."""
        await self._connected.wait()

    @property
    def is_connected(self) -> bool:
        """Whether there is an accepted session that takes new streams."""
        return self._connected.is_set() and not self._stop.done()

    async def open_outbound(self, host: str, port: int) -> Connection:
        """Have the hub dial ``host:port`` and return the connection, which the caller closes.

        The hub resolves the name. Token and hub must allow it: ``Identity.outbound_allowed``, ``allowOutbound``.

        Raises:
            OutboundError: there is no session, the hub refused or did not answer in time.
        """
        stream = await self.open_stream(Target(host, port))
        connection = Connection(stream, StreamInfo(self.hub, host, port, "", "tcp", is_tls=False))
        stream.attach(connection.endpoint())
        return connection

    async def open_stream(self, target: Target) -> Stream:
        """As ``open_outbound``; return the stream without an endpoint, which the caller attaches."""
        if self._session is None or not self.is_connected:
            raise OutboundError("there is no session with the hub")
        return await self._session.outbound.open(target)

    @property
    def stats(self) -> Stats:
        """Return the figures of now."""
        session = self._session.session if self._session is not None else None
        now = asyncio.get_running_loop().time()
        return Stats(
            connected=self._connected.is_set(),
            streams=len(session.streams) + len(session.flows) if session else 0,
            streams_total=self._forwarder.streams_total,
            dial_failures=self._forwarder.dial_failures,
            bytes_from_hub=self._bytes[0] + (session.bytes_received if session else 0),
            bytes_to_hub=self._bytes[1] + (session.bytes_sent if session else 0),
            sessions_total=self._sessions,
            failures=self._failures,
            connected_for_s=now - self._connected_at if self._connected.is_set() else 0.0,
            last_error=self._last_error,
            datagrams_dropped=self._forwarder.flows.stats.dropped.total(),
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
            if lived_s >= STABLE_SESSION_S:
                self._backoff.reset()  # earlier refusals were over: this is the first of a new row
            return self._failed(_rejection(end))
        delay_s = 0.0 if self._stop.done() else self._backoff.after_session(lived_s, self._rng)
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
        # TimeoutError and SSLError are OSErrors; a host name that IDNA refuses is a UnicodeError.
        except (OSError, NexusError, UnicodeError) as error:
            return error

    async def _connect(self, tasks: asyncio.TaskGroup) -> ClientSession:
        """Return an accepted session.

        The first token is fetched before dialling, since the hub's clock runs from the upgrade on.
        """
        first = await self._token("handshake", "")
        inbox = Inbox()
        link = await self._dial(inbox)
        try:
            link.send_text(first)
            async with _limit(CHALLENGE_TIMEOUT_S, "no challenge from the hub"):
                challenge = parse_challenge(await inbox.next_text())
            link.owner = _Deaf()
            link.release()  # a token may take long: pings are answered meanwhile
            link.send_text(await self._token("attest", challenge.nonce))
            link.start_session()
            reauthentication = Reauthentication(tasks, partial(self._token, "reauth"), self._tell)
            client = ClientSession(link, self.hub, challenge.features, self._forwarder, tasks, reauthentication)
            client.stream_changed = self._stream_changed
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
                raise _rejection(end)
            raise ConnectionError(f"the hub ended the session before it was up: {end}")
        if not client.accepted.done():
            raise TimeoutError(f"the hub did not accept the session within {ACCEPT_TIMEOUT_S:g} s")
        # Not before: a hub reads nothing, hence answers no ping, while it judges the token.
        link.keep_alive(CLIENT_PING_INTERVAL_S, CLIENT_DEAD_AFTER_S)
        self._sessions += 1
        self._session = client
        self._connected_at = asyncio.get_running_loop().time()
        self._connected.set()
        self._tell(EventKind.CONNECTED)

    async def _dial(self, inbox: Inbox) -> Link:
        uri = self._uri
        protocol = ClientProtocol(uri, max_size=HANDSHAKE_MESSAGE_MAX_BYTES, logger=WEBSOCKET_LOG)
        link = Link(protocol, inbox, path=uri.path)
        inbox.guard(link)
        async with _limit(DIAL_HUB_TIMEOUT_S, "no connection to the hub"):
            sock = await open_way(uri.host, uri.port, WSS if uri.secure else WS, DIAL_HUB_TIMEOUT_S)
            await connect(link, sock, self._context, uri.host)
            try:
                await link.opened
            except BaseException:
                link.abort("the upgrade did not succeed")
                raise
        return link

    # -- Small parts ------------------------------------------------------------------------------------------------

    async def _token(self, stage: Stage, nonce: str) -> str:
        try:
            return (await self._tokens.token(self._identity.request(stage, nonce))).strip()
        except TokenProviderError:
            raise
        except Exception as error:
            # The provider may not be ours: its failure is one attempt's. Its words may hold a secret, its name cannot.
            raise TokenProviderError(f"the token provider failed: {type(error).__name__}") from error

    async def _check_health(self, client: ClientSession) -> None:
        loop = asyncio.get_running_loop()
        while not client.session.ended:
            client.check_health(loop.time(), self._health.inactivity_s, self._health.pong_s)
            await asyncio.wait([client.session.link.lost], timeout=min(_HEALTH_SCAN_S, self._health.pong_s))

    def _cut(self) -> None:
        """Leave no session behind where ``run`` was cancelled."""
        if self._session is not None:
            self._session.session.link.abort("the client was cancelled")
            self._leave_session()

    def _leave_session(self) -> None:
        self._connected.clear()
        if self._session is not None:
            self._bytes[0] += self._session.session.bytes_received
            self._bytes[1] += self._session.session.bytes_sent
            self._session = None

    def _failed(self, error: BaseException) -> float:
        self._failures += 1
        self._last_error = _words(error)
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
        if self._on_event is None:
            return
        try:
            self._on_event(Event(kind, self.hub, detail, retry_s))
        except Exception:  # noqa: BLE001 — the handler is not ours: its failure must not cost the session
            _log.exception("the event handler failed on %r", kind.value)


class _Deaf:
    """The owner of a link between challenge and stage-1 token, when a hub has nothing to say: keeps nothing."""

    def message_received(self, message: bytes) -> None:
        """Nothing is expected."""

    def text_received(self, text: str) -> None:
        """Nothing is expected."""

    def pong_received(self, payload: bytes) -> None:
        """A sign of life without meaning here."""

    def writable_changed(self) -> None:
        """Nothing is queued."""

    def link_lost(self, end: LinkEnd) -> None:
        """Whoever waits for ``link.lost`` sees it."""


@contextlib.asynccontextmanager
async def _limit(limit_s: float, what: str) -> AsyncIterator[None]:
    """Limit the body's time; the TimeoutError says what did not come."""
    try:
        async with asyncio.timeout(limit_s) as clock:
            yield
    except TimeoutError:
        if clock.expired():
            raise TimeoutError(f"{what} within {limit_s:g} s") from None
        raise


def _parse_hub(url: str) -> WebSocketURI:
    try:
        return parse_uri(url)
    except (InvalidURI, ValueError) as error:  # a ValueError's text repeats parts of the URL
        why = error.msg if isinstance(error, InvalidURI) else "its host or port cannot be read"
        what = f"this is not the URL of a hub: {why}"
        raise ConfigError(Problem("hub", 0, "", what, "write wss://host:port/connect")) from None


def _rejection(end: LinkEnd) -> RejectedError:
    return RejectedError(end.reason or "the hub closed with code 1008")


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _failure_kind(error: BaseException) -> FailureKind:
    if not isinstance(error, RejectedError):
        return FailureKind.TRANSIENT
    return FailureKind.of_http_status(error.http_status) if error.http_status else FailureKind.REJECTED


def _words(error: BaseException) -> str:
    """Return what to tell a person; a hub's certificate that is not trusted has two usual mends."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the hub's certificate is refused: {error.verify_message}; dial the hub by a name in its certificate, "
            "and name a private CA (caFile, --ca-file)"
        )
    return str(error) or type(error).__name__


class _Stopped(Exception):  # noqa: N818 — leaves the task group, is no error
    """``run`` is over."""
