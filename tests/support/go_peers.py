"""Stand-ins for the original's peers, written from the specification: what they send, count, bound and forget.

``GoClient`` is a backend client (v0.3.14, or v0.2.3 without credits), ``GoHub`` a hub with one public port (v0.3.14, or
the credit-less one of v0.2.3's day). Both know outbound connections (with credits v0.3.8 and later, without them v0.3.1
to v0.3.5). Where the original would break a stream they note it in ``kills`` and break it, so
that a test sees both. They are kinder than the original in one thing: at a stream's end they deliver what they hold,
where the original gives it 50 ms, so that a missing byte is our fault.

Source: spec backend-protocol 1, 2, 6, 7, 8, 12, 24.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from nexus.auth.mint import Stage, TokenSpec, build_claims, mint_token
from tests.support.loopback import HOST, Reader, Writer, close
from tests.support.processes import SECRET

MESSAGE_MAX_BYTES = 32_785
HUB_READ_BYTES = 32_768
CLIENT_READ_BYTES = 16_384
FRAGMENT_BYTES = 4_096
GRANT = 64
BATCH = 8
HUB_QUEUE = 128
CLIENT_QUEUE = 64
CLIENT_OUT_QUEUE = 256
HIGH_WATER, LOW_WATER = 48, 16
TURN_MESSAGES = 4
CLOSE_BONUS = 8
ANSWER_TIMEOUT_S = 15.0
_HEADER_BYTES = 17

Dial = Callable[[], Awaitable[tuple[Reader, Writer]]]


def control(event: str, stream_id: bytes, **fields: object) -> bytes:
    """Return a control message; zero values are left out, as Go does."""
    document = {"event": event, "client_id": str(uuid.UUID(bytes=stream_id))}
    return b"\x02" + json.dumps({**document, **{k: v for k, v in fields.items() if v}}, separators=(",", ":")).encode()


def _unbuffered(writer: Writer) -> None:
    """Let ``drain`` return once everything is with the kernel: a Go write is synchronous."""
    writer.transport.set_write_buffer_limits(0)


class _ClientStream:
    """One stream of a GoClient."""

    def __init__(self, stream_id: bytes, granted: int | None) -> None:
        self.id = stream_id
        self.credits = granted  # None: never limited
        self.to_local: deque[bytes] = deque()
        self.to_hub: deque[bytes] = deque()
        self.changed = asyncio.Condition()
        self.pause_sent = False
        self.written = 0
        self.closing = False


class GoClient:
    """A backend client of the original; ``knows_credits`` False is v0.2.3."""

    def __init__(self, hub_url: str, context: ssl.SSLContext, dial: Dial, *, knows_credits: bool = True) -> None:
        self.url = hub_url
        self.context = context
        self.dial = dial
        self.knows_credits = knows_credits
        self.heeds_level = True  # False: its pause never comes in time
        self.claims_outbound = False
        self.kills: list[str] = []
        self.up = asyncio.Event()
        self.streams: dict[bytes, _ClientStream] = {}
        self.refusals: list[str] = []
        self._asked: dict[bytes, asyncio.Future[_ClientStream | None]] = {}
        self._control: deque[bytes] = deque()
        self._ready: deque[_ClientStream] = deque()
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self, *hostnames: str) -> None:
        """Keep one session until it ends."""
        spec = TokenSpec("go", hostnames or (HOST,), outbound_allowed=self.claims_outbound)
        async with (
            connect(
                self.url,
                ssl=self.context,
                compression=None,
                max_size=MESSAGE_MAX_BYTES,
                ping_interval=5,
                ping_timeout=10,
                close_timeout=0.1,
            ) as websocket,
            asyncio.TaskGroup() as self._tasks,
        ):
            await websocket.send(_token("handshake", "", spec))
            challenge = json.loads(await websocket.recv())
            assert challenge["type"] == "handshake_challenge"
            await websocket.send(_token("attest", challenge["nonce"], spec))
            await (await websocket.ping())  # ours answers once it has accepted; the original does not care
            self.up.set()
            writer = self._tasks.create_task(self._write(websocket))
            with contextlib.suppress(ConnectionClosed):
                async for message in websocket:
                    if isinstance(message, bytes):
                        self._receive(message)
            writer.cancel()
            raise _Over

    def _receive(self, message: bytes) -> None:
        if message[0] == 1 and len(message) >= _HEADER_BYTES:
            self._receive_data(message[1:_HEADER_BYTES], message[_HEADER_BYTES:])
        elif message[0] == 2:
            document = json.loads(message[1:])
            stream_id = uuid.UUID(document["client_id"]).bytes
            if document["event"] == "connect":
                self._open(stream_id, document)
            elif document["event"] == "outbound_result":
                self._receive_result(stream_id, document)
            elif stream := self.streams.get(stream_id):
                self._receive_control(stream, document)

    def _receive_data(self, stream_id: bytes, payload: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self._send(control("disconnect", stream_id, reason="unknown"))
        elif stream.closing:
            pass
        elif len(stream.to_local) >= CLIENT_QUEUE:
            self.kills.append(f"buffer_full after {stream.written} messages")
            del self.streams[stream_id]
            stream.closing = True
            self._send(control("disconnect", stream_id, reason="buffer_full"))
            self._notify(stream)
        else:
            stream.to_local.append(payload)
            if self.heeds_level and len(stream.to_local) >= HIGH_WATER and not stream.pause_sent:
                stream.pause_sent = True
                self._send(control("pause_stream", stream_id, reason="buffer_full"))
            self._notify(stream)

    def _receive_control(self, stream: _ClientStream, document: dict[str, Any]) -> None:
        if document["event"] == "disconnect":
            stream.closing = True
        elif document["event"] == "resume_stream" and stream.credits is not None:
            stream.credits += int(document.get("credits", 0))
            self._have(stream)
        self._notify(stream)

    def _open(self, stream_id: bytes, document: dict[str, Any]) -> None:
        granted = int(document.get("credits", 0)) if self.knows_credits else 0
        stream = self.streams[stream_id] = _ClientStream(stream_id, granted or None)
        if self.knows_credits:
            self._send(control("resume_stream", stream_id, credits=GRANT))
        self._tasks.create_task(self._serve(stream))

    async def _serve(self, stream: _ClientStream) -> None:
        try:
            reader, writer = await self.dial()
        except OSError:
            self._send(control("disconnect", stream.id, reason="dial_failed"))
            self.streams.pop(stream.id, None)
            return
        await self._relay(stream, reader, writer)

    async def _relay(self, stream: _ClientStream, reader: Reader, writer: Writer) -> None:
        _unbuffered(writer)
        outward = self._tasks.create_task(self._to_local(stream, writer))
        inward = self._tasks.create_task(self._from_local(stream, reader))
        await asyncio.wait([inward, outward], return_when=asyncio.FIRST_COMPLETED)
        stream.closing = True
        self._notify(stream)
        inward.cancel()
        await asyncio.wait([outward], timeout=0.05)
        outward.cancel()
        await close(writer)
        await self._finish(stream)

    async def _finish(self, stream: _ClientStream) -> None:
        """Send what the local service said to the end, then say so."""
        if stream.credits is not None:
            stream.credits += CLOSE_BONUS
        self._have(stream)
        async with stream.changed:
            await stream.changed.wait_for(lambda: not stream.to_hub or stream.id not in self.streams)
        if self.streams.pop(stream.id, None) is not None:
            self._send(control("disconnect", stream.id, reason="normal"))

    async def _to_local(self, stream: _ClientStream, writer: Writer) -> None:
        with contextlib.suppress(OSError):
            while True:
                async with stream.changed:
                    await stream.changed.wait_for(lambda: stream.to_local or stream.closing)
                if not stream.to_local:
                    return
                writer.write(stream.to_local.popleft())
                await writer.drain()
                self._wrote(stream)

    def _wrote(self, stream: _ClientStream) -> None:
        stream.written += 1
        if self.knows_credits and stream.written % BATCH == 0:
            self._send(control("resume_stream", stream.id, credits=BATCH))
        if stream.pause_sent and len(stream.to_local) <= LOW_WATER:
            stream.pause_sent = False
            self._send(control("resume_stream", stream.id))

    async def _from_local(self, stream: _ClientStream, reader: Reader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CLIENT_READ_BYTES):
                async with stream.changed:
                    await stream.changed.wait_for(lambda: len(stream.to_hub) < CLIENT_OUT_QUEUE)
                stream.to_hub.append(data)
                self._have(stream)

    # -- Outbound ---------------------------------------------------------------------------------------------------

    async def outbound(self, target: str, reader: Reader, writer: Writer) -> None:
        """Relay a connection of its SOCKS5 listener to what the hub dials; close it where the hub does not."""
        stream_id = uuid.uuid4().bytes
        self._asked[stream_id] = asyncio.get_running_loop().create_future()
        self._send(control("outbound_connect", stream_id, target_addr=target))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                stream = await self._asked[stream_id]
        except TimeoutError:
            self._send(control("disconnect", stream_id, reason="timeout"))
            stream = None
        finally:
            del self._asked[stream_id]
        if stream is None:
            await close(writer)
        else:
            await self._relay(stream, reader, writer)

    def _receive_result(self, stream_id: bytes, document: dict[str, Any]) -> None:
        asked = self._asked.get(stream_id)
        if asked is None or asked.done():
            return  # an orphan of the original: nobody gives it back
        if not document.get("success"):
            self.refusals.append(document["reason"])
            asked.set_result(None)
            return
        granted = int(document.get("credits", 0)) if self.knows_credits else 0
        stream = self.streams[stream_id] = _ClientStream(stream_id, granted or None)
        if self.knows_credits:
            self._send(control("resume_stream", stream_id, credits=GRANT))
        asked.set_result(stream)

    # -- Writing ----------------------------------------------------------------------------------------------------

    def _send(self, message: bytes) -> None:
        self._control.append(message)
        self._wake.set()

    def _have(self, stream: _ClientStream) -> None:
        if stream.to_hub and stream not in self._ready:
            self._ready.append(stream)
        self._wake.set()

    def _notify(self, stream: _ClientStream) -> None:
        self._tasks.create_task(_notify_all(stream.changed))

    async def _write(self, websocket: ClientConnection) -> None:
        """Control first; then a ready stream at a time, a few messages each."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                while self._control:
                    await _send_fragmented(websocket, self._control.popleft())
                if self._ready:
                    await self._turn(websocket, self._ready.popleft())
                else:
                    self._wake.clear()
                    await self._wake.wait()

    async def _turn(self, websocket: ClientConnection, stream: _ClientStream) -> None:
        for _ in range(TURN_MESSAGES):
            if not stream.to_hub or stream.credits == 0:
                break
            if stream.credits is not None:
                stream.credits -= 1
            await _send_fragmented(websocket, b"\x01" + stream.id + stream.to_hub.popleft())
        async with stream.changed:
            stream.changed.notify_all()
        if stream.credits != 0:
            self._have(stream)


async def _send_fragmented(websocket: ClientConnection, message: bytes) -> None:
    """Send as gorilla does with its 4,096-byte write buffer."""
    parts = [message[at : at + FRAGMENT_BYTES] for at in range(0, len(message), FRAGMENT_BYTES)]
    async with websocket.send_context():
        websocket.protocol.send_binary(parts[0], fin=len(parts) == 1)
        for number, part in enumerate(parts[1:], 2):
            websocket.protocol.send_continuation(part, fin=number == len(parts))


async def _notify_all(condition: asyncio.Condition) -> None:
    async with condition:
        condition.notify_all()


def _token(stage: Stage, nonce: str, spec: TokenSpec) -> str:
    return mint_token(build_claims(stage, nonce, spec, time.time()), SECRET.encode())


@contextlib.asynccontextmanager
async def go_client(client: GoClient, *hostnames: str) -> AsyncIterator[GoClient]:
    """Run a GoClient."""
    async with _running(client.run(*hostnames), client.up):
        yield client


# -- Hub --------------------------------------------------------------------------------------------------------------


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
            async with asyncio.TaskGroup() as self._outbound:
                with contextlib.suppress(ConnectionClosed):
                    async for message in websocket:
                        if isinstance(message, bytes):
                            await self._receive(message)
                for stream in tuple(self.streams.values()):
                    self._close(stream)
                self.dials.set()

    async def _receive(self, message: bytes) -> None:
        if message[0] == 1:
            stream = self.streams.get(message[1:_HEADER_BYTES])
            if stream is None:
                self.late_messages += 1
            elif self.knows_credits:
                await self._enqueue(stream, message[_HEADER_BYTES:])
            else:  # the old hub writes to the user in the session's reader
                stream.writer.write(message[_HEADER_BYTES:])
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
        _unbuffered(writer)
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
        _unbuffered(writer)
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
    async with _running(hub.run(), hub.up):
        yield hub


@contextlib.asynccontextmanager
async def _running(main: Any, up: asyncio.Event) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_until_over(main))
        try:
            async with asyncio.timeout(10):
                await up.wait()
            yield
        finally:
            task.cancel()


async def _until_over(main: Any) -> None:
    with contextlib.suppress(_Over):
        try:
            await main
        except* _Over:
            pass


class _Over(Exception):  # noqa: N818 — leaves a task group, is no error
    """The session ended."""
