"""A hub in a test's own event loop, and raw backends that speak to it through the ``websockets`` library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nexus.auth.claims import Claims, parse_claims
from nexus.auth.grants import Policy
from nexus.auth.mint import Stage, TokenSpec, build_claims, mint_token
from nexus.auth.tokens import verify_token
from nexus.hub.backend import BackendSession
from nexus.hub.reauth import AskStatus
from nexus.hub.registry import Registry
from nexus.hub.server import HubLimits, HubServer, VerifyToken
from nexus.hub.targets import NO_OUTBOUND, OutboundPolicy
from nexus.protocol.messages import Control, parse_control
from nexus.sockets import listen
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import hub_client_context, hub_server_context
from tests.support.processes import SECRET, Pki

WAIT_S = 20.0  # only a failure takes so long
POLL_S = 0.002
NAME = "backend-7"
HOST = "app.example.com"


async def verify(token: str, now: float) -> Claims:
    """Check a token as a node with SECRET does."""
    return parse_claims(verify_token(token, (SECRET.encode(),), now))


def token(stage: Stage = "handshake", nonce: str = "", secret: str = SECRET, **terms: Any) -> str:
    """Return a token of a backend that claims HOST, unless ``terms`` say otherwise."""
    spec = TokenSpec(**{"subject": NAME, "hostnames": (HOST,), **terms})
    return mint_token(build_claims(stage, nonce, spec, time.time()), secret.encode())


async def is_up(uri: str) -> str:
    """Be an authorizer that is always up."""
    del uri
    return ""


async def eventually(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Let the event loop turn until ``condition()`` is true; fail with ``what`` after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        await asyncio.sleep(POLL_S)


@dataclass
class Backend:
    """One raw WebSocket to the hub."""

    websocket: ClientConnection
    texts: list[str] = field(default_factory=list)

    async def challenge(self, stage0: str | None = None) -> str:
        """Send the first token and return the nonce of the hub's answer."""
        await self.websocket.send(token() if stage0 is None else stage0)
        text = await self.receive()
        assert isinstance(text, str)
        self.texts.append(text)
        nonce = json.loads(text)["nonce"]
        assert isinstance(nonce, str)
        return nonce

    async def log_in(self, **terms: Any) -> Backend:
        """Run the whole handshake and return once the hub has accepted it."""
        nonce = await self.challenge(token(**terms))
        await self.websocket.send(token("attest", nonce, **terms))
        await self.pong()
        return self

    async def pong(self) -> None:
        """Ping and wait for the pong: everything sent before has been taken."""
        async with asyncio.timeout(WAIT_S):
            await (await self.websocket.ping())

    async def receive(self) -> str | bytes:
        """Return the next message."""
        async with asyncio.timeout(WAIT_S):
            return await self.websocket.recv()

    async def control(self) -> Control:
        """Return the next message, which must be a control message."""
        message = await self.receive()
        assert isinstance(message, bytes)
        assert message[0] == 2
        return parse_control(message[1:])

    async def send(self, event: str, **fields: object) -> None:
        """Send a control message."""
        await self.websocket.send(b"\x02" + json.dumps({"event": event, **fields}).encode())

    async def closed(self) -> tuple[int, str]:
        """Wait for the end and return the hub's close code (1006 without one) and reason; drop what comes before."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.websocket.recv()
            await self.websocket.wait_closed()
        received = self.websocket.protocol.close_rcvd
        return (received.code, received.reason) if received else (1006, "")


@dataclass
class Hub:
    """A running hub."""

    registry: Registry
    server: HubServer
    port: int
    context: ssl.SSLContext
    serving: asyncio.Task[None]
    _stack: contextlib.AsyncExitStack

    async def dial(self) -> Backend:
        """Open a WebSocket; it is closed with the hub."""
        url = f"wss://localhost:{self.port}/connect"
        websocket = await self._stack.enter_async_context(
            connect(url, ssl=self.context, compression=None, ping_interval=None, max_size=32_785, proxy=None)
        )
        return Backend(websocket)

    async def backend(self, **terms: Any) -> Backend:
        """Return a backend that is logged in."""
        return await (await self.dial()).log_in(**terms)

    async def connection(self, *, tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection on which nothing was sent; it is closed with the hub."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.context if tls else None,
            server_hostname="localhost" if tls else None,
        )
        self._stack.push_async_callback(_close, writer)
        return reader, writer

    def session(self) -> BackendSession:
        """Return the one session there is."""
        (session,) = self.registry.sessions
        return session


@contextlib.asynccontextmanager
async def running_hub(
    pki: Pki,
    *,
    limits: HubLimits | None = None,
    policy: Policy | None = None,
    check: VerifyToken = verify,
    ask_status: AskStatus = is_up,
    outbound: OutboundPolicy = NO_OUTBOUND,
) -> AsyncIterator[Hub]:
    """Run a hub on loopback; at the end every connection is gone."""
    files = CertificateFiles(*pki.issue("hub", "localhost"))
    context = hub_server_context(read_certificate(files))
    registry = Registry()
    server = HubServer(
        registry,
        lambda: context,
        check,
        policy or Policy(),
        limits or HubLimits(),
        ask_status=ask_status,
        outbound=outbound,
    )
    with contextlib.closing(listen("127.0.0.1", 0, "backendListenAddress")) as sock:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sock))
            trust = hub_client_context(pki.ca_file)
            try:
                async with contextlib.AsyncExitStack() as connections:
                    yield Hub(registry, server, sock.getsockname()[1], trust, serving, connections)
            finally:
                serving.cancel()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
