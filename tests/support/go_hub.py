"""A hub of the original with one public port: v0.3.14, or the credit-less one of v0.2.3's day; see ``go_wire``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import uuid
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from tests.support.go_wire import (
    BATCH,
    GRANT,
    HEADER_BYTES,
    HUB_QUEUE,
    HUB_READ_BYTES,
    MESSAGE_MAX_BYTES,
    control,
    running,
    unbuffered,
)
from tests.support.loopback import HOST, Reader, Writer, close


class _HubStream:
    """One public client at a GoHub."""

    def __init__(self, stream_id: bytes, writer: Writer) -> None:
        self.id = stream_id
        self.writer = writer
        self.credits: int | None = None  # unlimited until the backend grants
        self.paused = False
        self.changed = asyncio.Condition()
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(HUB_QUEUE)


class GoHub:
    """A hub of the original with one public port; ``knows_credits`` False is the one of v0.2.3's day."""

    def __init__(self, context: ssl.SSLContext, *, knows_credits: bool = True) -> None:
        self.context = context
        self.knows_credits = knows_credits
        self.hub_port = 0
        self.port = 0
        self.kills: list[str] = []
        self.events: list[str] = []
        self.reasons: list[str] = []
        self.late_messages = 0
        self.dials = asyncio.Event()  # it dials for a backend while this is set
        self.dials.set()
        self.reject_stage0: tuple[int, str] | None = None
        self.reject_stage1: tuple[int, str] | None = None
        self.streams: dict[bytes, _HubStream] = {}
        self.up = asyncio.Event()
        self._session: ServerConnection | None = None
        self._hostnames: frozenset[str] = frozenset()
        self._answer: asyncio.Future[str] | None = None

    @property
    def url(self) -> str:
        """What backends dial."""
        return f"wss://localhost:{self.hub_port}/connect"

    async def run(self) -> None:
        """Serve until cancelled."""
        options: dict[str, Any] = {"ssl": self.context, "compression": None, "max_size": MESSAGE_MAX_BYTES}
        async with serve_websocket(
            self._backend, "127.0.0.1", 0, ping_interval=54, ping_timeout=None, close_timeout=1, **options
        ) as hub:
            public = await asyncio.start_server(self._user, "127.0.0.1", 0)
            self.hub_port = next(iter(hub.sockets)).getsockname()[1]
            self.port = public.sockets[0].getsockname()[1]
            self.up.set()
            try:
                await asyncio.get_running_loop().create_future()  # until cancelled
            finally:
                public.close()

    # -- Backends ---------------------------------------------------------------------------------------------------

    async def _backend(self, websocket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await websocket.recv(decode=True)
            if self.reject_stage0:
                await websocket.close(*self.reject_stage0)
                return
            nonce = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
            await websocket.send(json.dumps({"type": "handshake_challenge", "nonce": nonce}, separators=(",", ":")))
            claims = _claims(await websocket.recv(decode=True))
            if self.reject_stage1 or claims.get("session_nonce") != nonce:
                await websocket.close(*(self.reject_stage1 or (1008, "nonce mismatch")))
                return
            self._session = websocket
            self._hostnames = frozenset(claims["hostnames"])
            async with asyncio.TaskGroup() as self._outbound:
                with contextlib.suppress(ConnectionClosed):
                    async for message in websocket:
                        if isinstance(message, bytes):
                            await self._receive(message)
                        elif self._answer is not None and not self._answer.done():
                            self._answer.set_result(message)
                for stream in tuple(self.streams.values()):
                    self._close(stream)
                self.dials.set()

    async def reauthenticate(self, grace_s: float = 10.0, hostnames: frozenset[str] | None = None) -> bool:
        """Ask the backend for a fresh token; return whether it was good. If not, close without a close frame."""
        session = self._session
        assert session is not None
        nonce = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
        self._answer = asyncio.get_running_loop().create_future()
        await session.send(json.dumps({"type": "reauth_challenge", "nonce": nonce}, separators=(",", ":")))
        await asyncio.wait([self._answer], timeout=grace_s)
        claims = _claims(self._answer.result()) if self._answer.done() else {}
        expected = self._hostnames if hostnames is None else hostnames
        good = claims.get("session_nonce") == nonce and frozenset(claims["hostnames"]) == expected
        if not good:
            session.transport.close()
        return good

    async def _receive(self, message: bytes) -> None:
        if message[0] == 1:
            stream = self.streams.get(message[1:HEADER_BYTES])
            if stream is None:
                self.late_messages += 1
            elif self.knows_credits:
                await self._enqueue(stream, message[HEADER_BYTES:])
            else:  # the old hub writes to the user in the session's reader
                stream.writer.write(message[HEADER_BYTES:])
                with contextlib.suppress(OSError):
                    await stream.writer.drain()
        elif message[0] == 2:
            await self._receive_control(json.loads(message[1:]))

    async def _receive_control(self, document: dict[str, Any]) -> None:
        self.events.append(document["event"])
        stream = self.streams.get(uuid.UUID(document["client_id"]).bytes)
        if document["event"] == "ping_client" and stream is not None:
            await self._send(control("pong_client", stream.id))
        elif document["event"] == "outbound_connect":
            self._outbound.create_task(self._dial(uuid.UUID(document["client_id"]).bytes, document["target_addr"]))
        elif document["event"] == "disconnect":
            self.reasons.append(document.get("reason", ""))
            if stream is not None:
                self._close(stream)
        elif stream is not None and document["event"] in {"pause_stream", "resume_stream"}:
            async with stream.changed:
                stream.paused = document["event"] == "pause_stream"
                if self.knows_credits and document.get("credits", 0) > 0:
                    stream.credits = (stream.credits or 0) + document["credits"]
                stream.changed.notify_all()

    async def _enqueue(self, stream: _HubStream, payload: bytes) -> None:
        try:
            stream.queue.put_nowait(payload)
        except asyncio.QueueFull:
            self.kills.append("user buffer overflow")
            self._close(stream)
            await self._send(control("disconnect", stream.id))

    def _close(self, stream: _HubStream) -> None:
        self.streams.pop(stream.id, None)
        with contextlib.suppress(asyncio.QueueFull):
            stream.queue.put_nowait(None)

    async def _send(self, message: bytes) -> None:
        if self._session is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._session.send(message)

    # -- Outbound ---------------------------------------------------------------------------------------------------

    async def _dial(self, stream_id: bytes, target: str) -> None:
        """Dial whatever is asked for, also for a backend that has given up: it cannot tell."""
        host, _, port = target.rpartition(":")
        await self.dials.wait()
        try:
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError as error:
            await self._send(control("outbound_result", stream_id, reason=f"dial failed: {error}"))
            return
        unbuffered(writer)
        stream = self.streams[stream_id] = _HubStream(stream_id, writer)
        grant = GRANT if self.knows_credits else 0
        try:
            await self._send(control("outbound_result", stream_id, success=True, credits=grant))
            await self._splice(stream, reader, b"")
        finally:
            self.streams.pop(stream_id, None)
            await close(writer)

    # -- Users ------------------------------------------------------------------------------------------------------

    async def _user(self, reader: Reader, writer: Writer) -> None:
        unbuffered(writer)
        stream = _HubStream(uuid.uuid4().bytes, writer)
        try:
            prelude = await reader.readuntil(b"\r\n\r\n")
            self.streams[stream.id] = stream
            address = "{}:{}".format(*writer.get_extra_info("peername"))
            fields: dict[str, object] = {"conn_port": self.port, "client_ip": address, "transport": "tcp"}
            grant = GRANT if self.knows_credits else 0
            await self._send(control("connect", stream.id, **fields, hostname=HOST, credits=grant))
            await self._splice(stream, reader, prelude)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self.streams.pop(stream.id, None)
            await close(writer)

    async def _splice(self, stream: _HubStream, reader: Reader, prelude: bytes) -> None:
        async with asyncio.TaskGroup() as tasks:
            inward = tasks.create_task(self._from_user(stream, reader, prelude))
            with contextlib.suppress(OSError):
                await (self._to_user(stream) if self.knows_credits else self._wait_closed(stream))
            inward.cancel()

    async def _from_user(self, stream: _HubStream, reader: Reader, prelude: bytes) -> None:
        with contextlib.suppress(OSError):
            data = prelude or await reader.read(HUB_READ_BYTES)
            while data:
                async with stream.changed:
                    await stream.changed.wait_for(lambda: stream.credits != 0)
                    if stream.credits is not None:
                        stream.credits -= 1
                await self._send(b"\x01" + stream.id + data)
                async with stream.changed:
                    await stream.changed.wait_for(lambda: not stream.paused)
                data = await reader.read(HUB_READ_BYTES)
        if stream.id in self.streams:  # a FIN of the user ends the whole stream
            self._close(stream)
            await self._send(control("disconnect", stream.id))

    async def _to_user(self, stream: _HubStream) -> None:
        written = 0
        while (payload := await stream.queue.get()) is not None:
            stream.writer.write(payload)
            await stream.writer.drain()
            written += 1
            if written % BATCH == 0:
                await self._send(control("resume_stream", stream.id, credits=BATCH))

    async def _wait_closed(self, stream: _HubStream) -> None:
        while await stream.queue.get() is not None:
            pass


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


@contextlib.asynccontextmanager
async def go_hub(hub: GoHub) -> AsyncIterator[GoHub]:
    """Run a GoHub."""
    async with running(hub.run(), hub.up):
        yield hub
