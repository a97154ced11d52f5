"""A backend client of the original, from the specification: v0.3.14, or v0.2.3 without credits; see ``go_wire``.

It knows outbound connections with credits as v0.3.8 and later, without them as v0.3.1 to v0.3.5.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from nexus.auth.mint import Stage, TokenSpec, build_claims, mint_token
from tests.support.go_wire import (
    ANSWER_TIMEOUT_S,
    BATCH,
    CLIENT_OUT_QUEUE,
    CLIENT_QUEUE,
    CLIENT_READ_BYTES,
    CLOSE_BONUS,
    DEADLINE_S,
    FRAGMENT_BYTES,
    GRANT,
    HEADER_BYTES,
    HIGH_WATER,
    LOW_WATER,
    MESSAGE_MAX_BYTES,
    PING_S,
    TURN_MESSAGES,
    Dial,
    Over,
    control,
    running,
    unbuffered,
)
from tests.support.loopback import HOST, Reader, Writer, close
from tests.support.processes import SECRET


class _Connection(ClientConnection):
    """Tells of each pong; the library's own deadline is for the pongs to its pings only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_pong: Callable[[], None] = lambda: None

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PONG:
            self.on_pong()
        super().process_event(event)


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

    def __init__(
        self, hub_url: str, context: ssl.SSLContext, dial: Dial, *, knows_credits: bool = True, **terms: Any
    ) -> None:
        self.url = hub_url
        self.terms = terms
        self.reauthentications = 0
        self.reauth_weight = 1
        self.context = context
        self.dial = dial
        self.knows_credits = knows_credits
        self.heeds_level = True  # False: its pause never comes in time
        self.claims_outbound = False
        self.kills: list[str] = []
        self.ping_s, self.deadline_s = PING_S, DEADLINE_S
        self.pongs = 0
        self.up = asyncio.Event()
        self.streams: dict[bytes, _ClientStream] = {}
        self.refusals: list[str] = []
        self._asked: dict[bytes, asyncio.Future[_ClientStream | None]] = {}
        self._control: deque[bytes | str] = deque()
        self._ready: deque[_ClientStream] = deque()
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self, *hostnames: str) -> None:
        """Keep one session until it ends."""
        spec = TokenSpec("go", hostnames or (HOST,), outbound_allowed=self.claims_outbound, **self.terms)
        async with (
            connect(
                self.url,
                ssl=self.context,
                compression=None,
                max_size=MESSAGE_MAX_BYTES,
                ping_interval=None,
                close_timeout=0.1,
                create_connection=_Connection,
            ) as websocket,
            asyncio.TaskGroup() as self._tasks,
        ):
            await websocket.send(_token("handshake", "", spec))
            challenge = json.loads(await websocket.recv())
            assert challenge["type"] == "handshake_challenge"
            await websocket.send(_token("attest", challenge["nonce"], spec))
            await (await websocket.ping())  # ours answers once it has accepted; the original does not care
            self.up.set()
            workers = [self._tasks.create_task(work(websocket)) for work in (self._write, self._ping)]
            with contextlib.suppress(ConnectionClosed):
                await self._read(cast(_Connection, websocket), spec)
            for worker in workers:
                worker.cancel()
            raise Over

    async def _read(self, websocket: _Connection, spec: TokenSpec) -> None:
        """Take messages until the end, or until neither a message nor a pong has come for so long."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.deadline_s) as deadline:

                def heard() -> None:
                    deadline.reschedule(loop.time() + self.deadline_s)

                def on_pong() -> None:
                    self.pongs += 1
                    heard()

                websocket.on_pong = on_pong
                async for message in websocket:
                    heard()
                    if isinstance(message, bytes):
                        self._receive(message)
                    elif not self._receive_text(message, spec):
                        websocket.transport.abort()
        except TimeoutError:
            self.kills.append(f"no sign of life for {self.deadline_s:g} s")
            websocket.transport.abort()
        finally:
            websocket.on_pong = lambda: None

    async def _ping(self, websocket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self.ping_s)
                async with websocket.send_context():
                    websocket.protocol.send_ping(b"")

    def _receive(self, message: bytes) -> None:
        if message[0] == 1 and len(message) >= HEADER_BYTES:
            self._receive_data(message[1:HEADER_BYTES], message[HEADER_BYTES:])
        elif message[0] == 2:
            document = json.loads(message[1:])
            stream_id = uuid.UUID(document["client_id"]).bytes
            if document["event"] == "connect":
                self._open(stream_id, document)
            elif document["event"] == "outbound_result":
                self._receive_result(stream_id, document)
            elif stream := self.streams.get(stream_id):
                self._receive_control(stream, document)

    def _receive_text(self, text: str, spec: TokenSpec) -> bool:
        """Answer a challenge with control priority; return False where that ends the session."""
        try:
            document = json.loads(text)
        except ValueError:
            return True
        if not isinstance(document, dict) or document.get("type") != "reauth_challenge":
            return True
        if not document["nonce"].strip():
            return False
        self.reauthentications += 1
        self._send(_token("reauth", document["nonce"], replace(spec, weight=self.reauth_weight)))
        return True

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
        unbuffered(writer)
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

    def _send(self, message: bytes | str) -> None:
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


async def _send_fragmented(websocket: ClientConnection, message: bytes | str) -> None:
    """Send as gorilla does with its 4,096-byte write buffer."""
    raw = message.encode() if isinstance(message, str) else message
    parts = [raw[at : at + FRAGMENT_BYTES] for at in range(0, len(raw), FRAGMENT_BYTES)]
    async with websocket.send_context():
        start = websocket.protocol.send_text if isinstance(message, str) else websocket.protocol.send_binary
        start(parts[0], fin=len(parts) == 1)
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
    async with running(client.run(*hostnames), client.up):
        yield client
