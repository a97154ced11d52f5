"""A whole node in a test's own event loop, with backends and clients as raw as the test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from websockets.asyncio.client import connect

from nexus.app import Node, NodeAddresses
from nexus.config.load import load_node_config
from nexus.config.model import NodeConfig
from nexus.document.addresses import parse_host_port
from nexus.link import endpoint as endpoints
from nexus.tls.contexts import hub_client_context
from tests.support.hub import WAIT_S, Backend, eventually
from tests.support.processes import SECRET, Pki

Config = Callable[..., NodeConfig]


def configurations(pki: Pki, directory: Path) -> Config:
    """Return what makes a configuration by way of a file, on free ports of loopback unless told otherwise."""

    def make(**settings: Any) -> NodeConfig:
        cert_file, key_file = pki.issue("hub", "localhost")
        document = {
            "backendListenAddress": "127.0.0.1:0",
            "relayPorts": [0],
            "relayBindAddresses": ["127.0.0.1"],
            "backendsJWTSecret": SECRET,
            "hubTlsCertFile": str(cert_file),
            "hubTlsKeyFile": str(key_file),
            "shutdownGraceSeconds": 0,
            **settings,
        }
        file = directory / "server.yaml"
        file.write_text(yaml.safe_dump(document))
        return load_node_config(file, environ={}).config

    return make


def port(address: str) -> int:
    """Return the port of an address."""
    return parse_host_port(address)[1]


@dataclass
class Running:
    """A node that serves."""

    node: Node
    addresses: NodeAddresses
    task: asyncio.Task[None]
    pki: Pki
    stack: contextlib.AsyncExitStack

    async def backend(self, **terms: Any) -> Backend:
        """Return a backend that serves HOST, unless its token says more."""
        url = f"wss://localhost:{port(self.addresses.hub)}/connect"
        trust = hub_client_context(self.pki.ca_file)
        websocket = connect(url, ssl=trust, compression=None, ping_interval=None, proxy=None)
        return await Backend(await self.stack.enter_async_context(websocket)).log_in(**terms)

    async def client(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first public port, with a small buffer in the kernel."""
        sock = socket.socket()
        self.stack.callback(sock.close)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        address = ("127.0.0.1", port(self.addresses.relay[0]))
        await asyncio.get_running_loop().sock_connect(sock, address)
        reader, writer = await asyncio.open_connection(sock=sock)
        self.stack.callback(_abort, writer)
        writer.write(data)
        return reader, writer

    async def stop(self) -> None:
        """Stop and wait for the end."""
        self.node.stop()
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([self.task])


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@contextlib.asynccontextmanager
async def running(pki: Pki, config: NodeConfig) -> AsyncIterator[Running]:
    """Run a node; at the end it is stopped, and nothing of it is left."""
    node = Node(config)
    ready: asyncio.Future[NodeAddresses] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(node.run(ready.set_result))
        async with contextlib.AsyncExitStack() as stack:
            try:
                yield Running(node, await ready, task, pki, stack)
            finally:
                node.stop()
    await eventually(lambda: not endpoints._finishing, "no client is left")
