"""Services, public clients, nodes and backend clients inside a test's own event loop, on loopback.

Streams are routed by an HTTP head and carry anything behind it, so a test reads and writes raw bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache

import yaml

from backend_client.client import BackendClient, Identity
from backend_client.events import EventHandler
from backend_client.mapping import PortMap
from backend_client.session import Forwarder
from backend_client.tokens import HmacTokenProvider, TokenProvider
from nexus.app import Node, NodeAddresses
from nexus.auth.claims import UdpRoute
from nexus.auth.mint import TokenSpec
from nexus.config.load import load_node_config
from nexus.document.addresses import parse_host_port
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.tls.contexts import hub_client_context
from tests.support.hub import WAIT_S
from tests.support.processes import SECRET, Pki

HOST = "app.example.com"
_CHUNK_BYTES = 65_536
_SLOW_SOCKET_BYTES = 65_536  # so that a slow reader is felt at once, not after megabytes in the kernel
_PAUSE_S = 0.003  # a paced reader takes _CHUNK_BYTES, then rests: about 20 MB/s at most

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]


@lru_cache(maxsize=8)
def pattern(size: int) -> bytes:
    """Return ``size`` bytes without a period, the same every time."""
    return hashlib.shake_256(b"nexus").digest(size)


def digest(data: bytes) -> str:
    """Return what ``sink`` answers to ``data``."""
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()}"


# -- Public clients ---------------------------------------------------------------------------------------------------


def head(method: str, path: str, host: str = HOST, **fields: object) -> bytes:
    """Return the head of an HTTP request."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{''.join(lines)}\r\n".encode()


@contextlib.asynccontextmanager
async def connection(port: int, *, slow: bool = False) -> AsyncIterator[tuple[Reader, Writer]]:
    """Connect to a port of this machine; ``slow`` keeps the kernel from reading ahead."""
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_SOCKET_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=_CHUNK_BYTES)
    except BaseException:
        sock.close()
        raise
    try:
        yield reader, writer
    finally:
        await close(writer)


async def close(writer: Writer) -> None:
    """Close without complaints about an end that came first."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def drain_eof(reader: Reader, *, paced: bool = False) -> bytes:
    """Return everything up to EOF; a broken stream raises OSError."""
    parts = bytearray()
    while chunk := await reader.read(_CHUNK_BYTES):
        parts += chunk
        if paced:
            await asyncio.sleep(_PAUSE_S)
    return bytes(parts)


async def exchange(port: int, request: bytes, *, paced: bool = False) -> bytes:
    """Send a request and return everything up to EOF; a broken stream raises OSError."""
    async with asyncio.timeout(WAIT_S), connection(port, slow=paced) as (reader, writer):
        writer.write(request)
        await writer.drain()
        return await drain_eof(reader, paced=paced)


async def upload(port: int, size: int, path: str = "/sink") -> str:
    """Send ``size`` bytes to ``sink`` and return its answer."""
    request = head("PUT", path, Content_Length=size) + pattern(size)
    return (await exchange(port, request)).decode()


# -- Services ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve(handler: Handler, *, context: ssl.SSLContext | None = None, slow: bool = False) -> AsyncIterator[int]:
    """Run a service and give its port; ``slow`` keeps the kernel from reading ahead.

    An error of ``handler`` other than a broken connection fails the test."""
    failures: list[BaseException] = []
    running: set[asyncio.Task[None]] = set()

    async def one(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await handler(reader, writer)
        except (OSError, EOFError):
            pass
        except Exception as error:  # noqa: BLE001 — handed to the test below
            failures.append(error)
        finally:
            await close(writer)
            running.discard(task)

    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    if slow:  # accepted sockets inherit it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_SOCKET_BYTES)
    server = await asyncio.start_server(one, sock=sock, ssl=context, limit=_CHUNK_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert not failures, failures


async def standard(reader: Reader, writer: Writer) -> None:
    """Serve ``GET /bytes/N``, ``PUT /sink``, ``PUT /slow-sink``, ``PUT /until-eof``, and ``GET /hold``."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    path = request.split(" ", 2)[1]
    if path.startswith("/bytes/"):
        writer.write(pattern(int(path.removeprefix("/bytes/"))))
    elif path.endswith("sink"):
        length = int(request.lower().partition("content-length:")[2].split(None, 1)[0])
        writer.write(digest(await _read_exactly(reader, length, paced=path == "/slow-sink")).encode())
    elif path == "/until-eof":
        writer.write(digest(await drain_eof(reader)).encode())
    else:
        writer.write(b"held")
        await reader.read()
    await writer.drain()


async def _read_exactly(reader: Reader, size: int, *, paced: bool) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await reader.read(_CHUNK_BYTES)
        if not chunk:
            raise EOFError
        data += chunk
        if paced:
            await asyncio.sleep(_PAUSE_S)
    return bytes(data)


# -- Nodes and backend clients ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalNode:
    """A node in this event loop."""

    node: Node
    addresses: NodeAddresses

    @property
    def port(self) -> int:
        """The public port."""
        return _port(self.addresses.relay[0])

    @property
    def hub_port(self) -> int:
        """The port for backends."""
        return _port(self.addresses.hub)

    @property
    def hub_url(self) -> str:
        """What backends dial."""
        return f"wss://localhost:{self.hub_port}/connect"


@contextlib.asynccontextmanager
async def local_node(pki: Pki, **settings: object) -> AsyncIterator[LocalNode]:
    """Run a node in this event loop, on free ports unless ``settings`` say otherwise."""
    cert_file, key_file = pki.issue("hub", "localhost", "127.0.0.1")
    file = pki.directory / "local-node.yaml"
    config = {
        "backendListenAddress": "127.0.0.1:0",
        "relayPorts": [0],
        "relayBindAddresses": ["127.0.0.1"],
        "backendsJWTSecret": SECRET,
        "hubTlsCertFile": str(cert_file),
        "hubTlsKeyFile": str(key_file),
        "shutdownGraceSeconds": 0,
        **settings,
    }
    file.write_text(yaml.safe_dump(config))
    node = Node(load_node_config(file, environ={}).config)
    ready: asyncio.Future[NodeAddresses] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(node.run(ready.set_result))
        try:
            yield LocalNode(node, await ready)
        finally:
            node.stop()


def tokens(**terms: int) -> HmacTokenProvider:
    """Return a provider that the nodes of the tests believe."""
    return HmacTokenProvider(SECRET, TokenSpec(subject="", **terms))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def local_client(
    hub_url: str,
    pki: Pki,
    targets: dict[int, int],
    *hostnames: str,
    provider: TokenProvider | None = None,
    on_event: EventHandler | None = None,
    window: int = CREDITS_INITIAL,
    name: str = "backend",
    tcp_ports: tuple[int, ...] = (),
    udp_ports: tuple[int, ...] = (),
    connected: bool = True,
) -> AsyncIterator[BackendClient]:
    """Run a backend client in this event loop; ``connected`` waits for its session first."""
    ports = PortMap.compile({port: (f"127.0.0.1:{target}", {}) for port, target in targets.items()})
    client = BackendClient(
        hub_url,
        Identity(name, hostnames or (HOST,), tcp_ports, udp_routes=tuple(map(UdpRoute, udp_ports))),
        provider or tokens(),
        Forwarder(ports, None, window),
        context=hub_client_context(pki.ca_file),
        on_event=on_event,
        drain_timeout_s=0,
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


def _port(address: str) -> int:
    return parse_host_port(address)[1]
