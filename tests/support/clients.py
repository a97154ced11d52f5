"""Backend clients for tests: impatient ones that tell what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from backend_client import backoff
from backend_client.client import BackendClient, Identity
from backend_client.events import Event, EventKind
from backend_client.mapping import PortMap
from backend_client.session import Forwarder, Handler
from backend_client.tokens import TokenRequest
from tests.support.fake_hub import HubSession, fake_hub
from tests.support.hub import HOST, WAIT_S


class Tokens:
    """A provider that counts, and gives the tokens that a fake hub does not check."""

    def __init__(self) -> None:
        self.requests: list[TokenRequest] = []
        self.error: Exception | None = None
        self.failing_nonce: str | None = None
        self.slow: asyncio.Event | None = None
        self.slow_stage = "attest"
        self.cancelled = 0

    async def token(self, request: TokenRequest) -> str:
        """Return ``<stage>-token``, with white space around it; fail or wait if told to."""
        self.requests.append(request)
        if self.slow is not None and request.stage == self.slow_stage:
            try:
                await self.slow.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None and self.failing_nonce in {None, request.nonce}:
            raise self.error
        return f" {request.stage}-token\n"

    @property
    def stages(self) -> list[str]:
        """What was asked for, in order."""
        return [request.stage for request in self.requests]


class Events:
    """What a client told."""

    def __init__(self) -> None:
        self.all: list[Event] = []
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self.all.append(event)
        self._queue.put_nowait(event)

    async def next(self, kind: EventKind) -> Event:
        """Return the next event of a kind; drop others before it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                event = await self._queue.get()
                if event.kind is kind:
                    return event

    @property
    def kinds(self) -> list[EventKind]:
        """The kinds of all events so far, in order."""
        return [event.kind for event in self.all]


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every client try again at once."""
    for name in ("RESTART_SPREAD_MIN_S", "RESTART_SPREAD_MAX_S", "TRANSIENT_BASE_S", "REJECTED_BASE_S"):
        monkeypatch.setattr(backoff, name, 0.0)


def forwarder(targets: dict[int, str] | None = None, handler: Handler | None = None, window: int = 64) -> Forwarder:
    """Return where streams go."""
    ports = PortMap.compile({port: (target, {}) for port, target in (targets or {}).items()})
    return Forwarder(ports, handler, window)


@contextlib.asynccontextmanager
async def running(
    hub: str,
    *,
    tokens: Any = None,
    events: Events | None = None,
    to: Forwarder | None = None,
    connected: bool = True,
    **options: Any,
) -> AsyncIterator[BackendClient]:
    """Run a client; ``connected`` waits for its session first; at the end it is stopped."""
    client = BackendClient(
        hub,
        Identity("backend", (HOST,), weight=2),
        tokens or Tokens(),
        to or forwarder(),
        on_event=events,
        **{"drain_timeout_s": 0, **options},
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.run())
        try:
            if connected:
                async with asyncio.timeout(WAIT_S):
                    await client.wait_connected()
            yield client
        finally:
            client.stop()


@dataclass
class Setup:
    """A client with one session at a fake hub."""

    client: BackendClient
    session: HubSession
    events: Events


@contextlib.asynccontextmanager
async def connected(to: Forwarder, *features: str, drain_timeout_s: float = 0) -> AsyncIterator[Setup]:
    """Run a client that forwards streams, at a hub with these features."""

    async def script(session: HubSession) -> None:
        await session.handshake(*features)

    events = Events()
    async with (
        fake_hub(script) as hub,
        running(hub.url, to=to, events=events, drain_timeout_s=drain_timeout_s) as client,
    ):
        yield Setup(client, await hub.session(), events)


@dataclass
class Service:
    """A local service: its connections are handed to the test."""

    port: int
    connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Where it is."""
        return f"127.0.0.1:{self.port}"

    async def accept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the next connection."""
        async with asyncio.timeout(WAIT_S):
            return await self.connections.get()


@contextlib.asynccontextmanager
async def local_service() -> AsyncIterator[Service]:
    """Run a service on loopback; its connections are gone at the end."""

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.writers.append(writer)
        service.connections.put_nowait((reader, writer))

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    service = Service(server.sockets[0].getsockname()[1])
    yield service
    server.close()
    for writer in service.writers:
        writer.transport.abort()
