"""A node of the original as its peers see it: v0.3.14, or the credit-less one of v0.2.3's day; see ``go_wire``.

One link of it, dialled or accepted, with the weak points that concern a peer: it answers no request it has no backend
for, its reader waits for whom it serves, it sends without limit until the first credits come, it counts at most 64.

Source: spec node-and-mesh 7, 8, 9, 15, 16.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from tests.support.go_wire import BATCH, GRANT, HEADER_BYTES, HUB_READ_BYTES

NIL = str(uuid.UUID(int=0))
DATA, CLOSE, PAUSE, RESUME, CREDITS = 0x11, 0x12, 0x13, 0x14, 0x15
Answer = Callable[[bytes], bytes]


class GoTunnel:
    """One end of a tunnel; ``received`` is what came, ``closed`` is set by the other side's close."""

    def __init__(self, tunnel_id: bytes, request: dict[str, Any]) -> None:
        self.id = tunnel_id
        self.request = request
        self.received = bytearray()
        self.messages = 0
        self.unlimited = True
        self.credits = asyncio.Semaphore(0)
        self.closed = asyncio.Event()
        self.paused = False
        self.turn = asyncio.Lock()  # answers leave one behind the other
        self._ungranted = 0

    def grant(self, count: int) -> None:
        """Take credits as the original does: 0 and more than 64 are 64, and no more than 64 are ever held."""
        self.unlimited = False
        count = count if 0 < count <= GRANT else GRANT
        for _ in range(min(count, GRANT - self.credits._value)):
            self.credits.release()

    def took(self) -> int:
        """Count a message that was written on; return what is to be granted."""
        self._ungranted += 1
        if self._ungranted < BATCH:
            return 0
        self._ungranted = 0
        return BATCH


class GoNode:
    """One link of an original node. ``serves`` maps a route key to what its backend answers to what it was sent."""

    def __init__(self, serves: dict[str, Answer] | None = None, *, knows_credits: bool = True) -> None:
        self.serves = serves or {}
        self.knows_credits = knows_credits
        self.tunnels: dict[bytes, GoTunnel] = {}
        self.announced: list[dict[str, Any]] = []
        self.log: list[bytes | str] = []
        self.gate = asyncio.Event()  # its backends take data while this is set; its reader waits for them
        self.gate.set()
        self.up = asyncio.Event()
        self._version = 0
        self._link: Connection | None = None

    # -- Links ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def dialling(self, url: str, context: ssl.SSLContext) -> AsyncIterator[GoNode]:
        """Dial a node, as the original does: pings every 54 s, any size of message."""
        async with (
            connect(
                url,
                ssl=context,
                compression=None,
                ping_interval=54,
                ping_timeout=None,
                max_size=None,
                proxy=None,
                close_timeout=1,
            ) as link,
            self._running(link),
        ):
            yield self

    @contextlib.asynccontextmanager
    async def listening(self, context: ssl.SSLContext) -> AsyncIterator[int]:
        """Accept links of nodes, one at a time; give the port."""

        async def one(link: Connection) -> None:
            async with self._running(link):
                await link.wait_closed()

        async with serve(
            one,
            "127.0.0.1",
            0,
            ssl=context,
            compression=None,
            ping_interval=54,
            ping_timeout=None,
            max_size=None,
            close_timeout=1,
        ) as server:
            yield next(iter(server.sockets)).getsockname()[1]

    @contextlib.asynccontextmanager
    async def _running(self, link: Connection) -> AsyncIterator[None]:
        self._link = link
        await self.announce()
        async with asyncio.TaskGroup() as self._tasks:
            self._running_tasks = [self._tasks.create_task(self._read(link))]
            self.up.set()
            try:
                yield
            finally:
                for task in self._running_tasks:  # an answer may wait for credits that never come
                    task.cancel()

    async def announce(self) -> None:
        """Send what this node serves."""
        self._version += 1
        document: dict[str, Any] = {"version": self._version, "type": "announce"}
        if self.serves:
            document["hostnames"] = list(self.serves)
        await self.say(json.dumps({**document, "client_id": NIL}, separators=(",", ":")))

    async def say(self, message: str | bytes) -> None:
        """Send any message."""
        assert self._link is not None
        await self._link.send(message)

    async def cut(self) -> None:
        """End the link without a close frame."""
        assert self._link is not None
        self._link.transport.abort()

    # -- Origin -----------------------------------------------------------------------------------------------------

    async def open(
        self, key: str, *, is_tls: bool = False, client: str = "192.0.2.7:50000", port: int = 443
    ) -> GoTunnel:
        """Request a tunnel, and grant its first credits."""
        raw = uuid.uuid4()
        request = {
            "type": "tunnel_request",
            "client_id": str(raw),
            "conn_port": port,
            "client_ip": client,
            "hostname": key,
            "transport": "udp" if key.startswith("udp:") else "tcp",
            **({"is_tls": True} if is_tls else {}),
        }
        tunnel = self.tunnels[raw.bytes] = GoTunnel(raw.bytes, request)
        await self.say(json.dumps(request, separators=(",", ":")))
        if self.knows_credits and not key.startswith("udp:"):
            await self._grant(tunnel, GRANT)
        return tunnel

    async def send(self, tunnel: GoTunnel, data: bytes) -> None:
        """Send data in messages as the original reads them, one credit each once there are credits."""
        async with tunnel.turn:
            for at in range(0, len(data), HUB_READ_BYTES) or (0,):
                if not tunnel.unlimited:
                    await tunnel.credits.acquire()
                await self.say(bytes([DATA]) + tunnel.id + data[at : at + HUB_READ_BYTES])

    async def close(self, tunnel: GoTunnel) -> None:
        """End a tunnel."""
        self.tunnels.pop(tunnel.id, None)
        await self.say(bytes([CLOSE]) + tunnel.id)

    # -- The reader -------------------------------------------------------------------------------------------------

    async def _read(self, link: Connection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in link:
                self.log.append(message)
                if isinstance(message, str):
                    await self._text(message)
                elif len(message) >= HEADER_BYTES:
                    await self._binary(message[0], message[1:HEADER_BYTES], message[HEADER_BYTES:])
        for tunnel in self.tunnels.values():
            tunnel.closed.set()

    async def _text(self, text: str) -> None:
        document = json.loads(text)
        uuid.UUID(document["client_id"])  # any other text makes the original ignore the message
        if document["type"] == "announce":
            self.announced.append(document)
        elif document["type"] == "tunnel_request" and document["hostname"] in self.serves:
            raw = uuid.UUID(document["client_id"]).bytes
            tunnel = self.tunnels[raw] = GoTunnel(raw, document)
            if self.knows_credits and not document["hostname"].startswith("udp:"):
                await self._grant(tunnel, GRANT)

    async def _binary(self, code: int, tunnel_id: bytes, rest: bytes) -> None:
        tunnel = self.tunnels.get(tunnel_id)
        if tunnel is None:
            return
        if code == DATA:
            await self.gate.wait()
            tunnel.received += rest
            tunnel.messages += 1
            if (count := tunnel.took()) and self.knows_credits and not tunnel.request["hostname"].startswith("udp:"):
                await self._grant(tunnel, count)
            if (answer := self.serves.get(tunnel.request["hostname"])) is not None and (data := answer(rest)):
                self._running_tasks.append(self._tasks.create_task(self.send(tunnel, data)))
        elif code == CLOSE:
            tunnel.closed.set()
            self.tunnels.pop(tunnel_id, None)
            await self.say(bytes([CLOSE]) + tunnel_id)  # the original echoes it
        elif code == CREDITS and self.knows_credits:
            tunnel.grant(int.from_bytes(rest[:8], "big"))
        elif code in {PAUSE, RESUME}:
            tunnel.paused = code == PAUSE

    async def _grant(self, tunnel: GoTunnel, count: int) -> None:
        await self.say(bytes([CREDITS]) + tunnel.id + count.to_bytes(8, "big"))
