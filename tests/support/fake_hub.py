"""A hub for tests of the backend client: it says what a test wants it to say, also what no hub should.

It is a ``websockets`` server without TLS, so the client dials ``ws://``. Like a real hub it answers no ping that came
behind the second token until it has accepted the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from nexus.protocol.messages import Control, parse_control
from tests.support.hub import WAIT_S

NONCE = "n0nce-of-the-fake-hub"
NIL = bytes(16)


class _Connection(ServerConnection):
    """Holds pongs back until ``answers_pings``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answers_pings = True
        self.held_pongs: list[Frame] = []
        self._send_frame = self.protocol.send_frame
        self.protocol.send_frame = self._filter  # type: ignore[method-assign]

    def _filter(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG and not self.answers_pings:
            self.held_pongs.append(frame)
        else:
            self._send_frame(frame)


@dataclass
class HubSession:
    """One connection of a backend client, as the hub sees it."""

    websocket: _Connection
    path: str
    tokens: list[str] = field(default_factory=list)
    controls: asyncio.Queue[Control] = field(default_factory=asyncio.Queue)
    data: asyncio.Queue[tuple[bytes, bytes]] = field(default_factory=asyncio.Queue)

    # -- Handshake --------------------------------------------------------------------------------------------------

    async def token(self) -> str:
        """Return the next token."""
        async with asyncio.timeout(WAIT_S):
            text = await self.websocket.recv()
        assert isinstance(text, str)
        self.tokens.append(text)
        return text

    async def challenge(self, **fields: object) -> None:
        """Take the first token and answer with a challenge; keys may be added or replaced."""
        await self.token()
        self.websocket.answers_pings = False
        await self.websocket.send(json.dumps({"type": "handshake_challenge", "nonce": NONCE, **fields}))

    async def handshake(self, *features: str) -> None:
        """Run the whole handshake and accept the session."""
        await self.challenge(**({"features": list(features)} if features else {}))
        await self.token()
        await self.accept()

    async def accept(self) -> None:
        """Answer the pings that were held back."""
        self.websocket.answers_pings = True
        for frame in self.websocket.held_pongs:
            await self.websocket.pong(frame.data)
        self.websocket.held_pongs.clear()

    # -- Session ----------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Sort what arrives until the end."""
        with contextlib.suppress(ConnectionClosed):
            async for message in self.websocket:
                if isinstance(message, str):
                    self.tokens.append(message)
                elif message[0] == 2:
                    self.controls.put_nowait(parse_control(message[1:]))
                else:
                    self.data.put_nowait((message[1:17], message[17:]))

    async def send(self, event: str, stream_id: bytes = NIL, **fields: object) -> None:
        """Send a control message."""
        document = {"event": event, "client_id": str(uuid.UUID(bytes=stream_id)), **fields}
        await self.websocket.send(b"\x02" + json.dumps(document).encode())

    async def connect(self, stream_id: bytes, port: int = 443, **fields: object) -> None:
        """Announce a stream; keys may be added or replaced, by None taken away."""
        usual = {
            "conn_port": port,
            "client_ip": "203.0.113.9:51234",
            "transport": "tcp",
            "hostname": "app.example.com",
            "is_tls": True,
            "credits": 64,
        }
        document = {key: value for key, value in {**usual, **fields}.items() if value is not None}
        await self.send("connect", stream_id, **document)

    async def send_data(self, stream_id: bytes, payload: bytes) -> None:
        """Send one data message."""
        await self.websocket.send(b"\x01" + stream_id + payload)

    async def control(self, event: str) -> Control:
        """Return the next control message of an event; drop others before it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                control = await self.controls.get()
                if control.event == event:
                    return control

    def take_controls(self, event: str) -> list[Control]:
        """Return the control messages of an event that are here; drop the others."""
        here = [self.controls.get_nowait() for _ in range(self.controls.qsize())]
        return [control for control in here if control.event == event]

    async def receive(self, stream_id: bytes, size: int) -> bytes:
        """Return this many bytes of a stream; nothing of another may come in between."""
        data = bytearray()
        async with asyncio.timeout(WAIT_S):
            while len(data) < size:
                came_for, payload = await self.data.get()
                assert came_for == stream_id
                data += payload
        return bytes(data)

    async def settle(self) -> None:
        """Wait until the client has taken everything sent so far, and its answers are here."""
        async with asyncio.timeout(WAIT_S):
            await (await self.websocket.ping())

    async def closed(self) -> tuple[int, str]:
        """Wait for the end and return the client's close code (1006 without one) and reason."""
        async with asyncio.timeout(WAIT_S):
            await self.websocket.wait_closed()
        received = self.websocket.protocol.close_rcvd
        return (received.code, received.reason) if received else (1006, "")


Script = Callable[[HubSession], Awaitable[None]]


@dataclass
class FakeHub:
    """A running hub; ``script`` is what it does with the next connections."""

    port: int
    script: Script
    server: Server
    sessions: asyncio.Queue[HubSession] = field(default_factory=asyncio.Queue)
    connections: int = 0

    @property
    def url(self) -> str:
        """What backends dial."""
        return f"ws://127.0.0.1:{self.port}/connect"

    async def session(self) -> HubSession:
        """Return the next session that ran its script to the end."""
        async with asyncio.timeout(WAIT_S):
            return await self.sessions.get()


async def accept_all(session: HubSession) -> None:
    """Be a hub like the original: no features."""
    await session.handshake()


@contextlib.asynccontextmanager
async def fake_hub(
    script: Script = accept_all, *, status: HTTPStatus | None = None, port: int = 0
) -> AsyncIterator[FakeHub]:
    """Run a hub on loopback; with ``status`` it answers every upgrade with it."""

    async def handle(websocket: ServerConnection) -> None:
        assert isinstance(websocket, _Connection)
        assert websocket.request is not None
        hub.connections += 1
        session = HubSession(websocket, websocket.request.path)
        with contextlib.suppress(ConnectionClosed):
            await hub.script(session)
            hub.sessions.put_nowait(session)
            await session.listen()

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        del request
        hub.connections += status is not None
        return connection.respond(status, "no\n") if status is not None else None

    async with serve(
        handle,
        "127.0.0.1",
        port,
        create_connection=_Connection,
        process_request=answer,
        compression=None,
        ping_interval=None,
        close_timeout=0.2,
        max_size=None,
        max_queue=None,
    ) as server:
        hub = FakeHub(server.sockets[0].getsockname()[1], script, server)
        yield hub
