"""What strangers may do to a node: before a backend is authenticated, and before a client has said whom it wants."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backend_client.client import BackendClient, Identity
from backend_client.connection import Connection
from backend_client.mapping import PortMap
from backend_client.session import Forwarder, Handler
from nexus.hub.server import HubLimits
from nexus.listeners.answers import UNRECOGNIZED_NAME_ALERT
from nexus.tls.contexts import hub_client_context
from tests.support.client_hello import client_hello, in_records, sni
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    HOST,
    LocalNode,
    connection,
    digest,
    drain_eof,
    exchange,
    head,
    local_client,
    local_node,
    pattern,
    serve,
    standard,
    tokens,
)
from tests.support.processes import Client, Node, Pki

MIB = 1024 * 1024
UPGRADE = (
    b"GET /connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, CONTINUATION, CLOSE = 0x01, 0x00, 0x88


# -- Before a backend is authenticated --------------------------------------------------------------------------------


def _upgraded(node: Node) -> ssl.SSLSocket:
    """Return a WebSocket to the hub of which nothing but the upgrade is done."""
    context = ssl.create_default_context(cafile=str(node.pki.ca_file))
    sock = context.wrap_socket(
        socket.create_connection(("127.0.0.1", node.hub_port), WAIT_S), server_hostname="localhost"
    )
    sock.sendall(UPGRADE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(1)
    assert b" 101 " in answer
    return sock


def _frame_header(first: int, size: int) -> bytes:
    return struct.pack("!BBQ", first, 0xFF, size) + bytes(4)


def _close_code(sock: ssl.SSLSocket) -> int:
    first, length, code = struct.unpack("!BBH", sock.recv(4))
    assert first == CLOSE
    assert length >= 2
    return int(code)


def _pour(sock: ssl.SSLSocket, size: int, *, fragment: int) -> None:
    """Send ``size`` bytes of one text message, in fragments, as far as the hub reads."""
    frame = _frame_header(CONTINUATION, fragment) + bytes(fragment)
    with contextlib.suppress(OSError):
        sock.sendall(_frame_header(TEXT, 0))
        batch = frame * max(1, MIB // len(frame))
        for _ in range(0, size, len(batch)):
            sock.sendall(batch)


def test_a_stranger_cannot_fill_the_hubs_memory(directory: Path, pki: Pki) -> None:
    """W3: 300 MB of text before authentication took the hub from 11 to 900 MB."""
    size = 300 * MIB
    with Node(directory, pki) as node:
        before = node.rss_bytes()
        with _upgraded(node) as sock:
            sock.sendall(_frame_header(0x80 | TEXT, size) + bytes(1000))
            assert _close_code(sock) == 1009
        for fragment in (size, 60_000, 1, 0):
            with _upgraded(node) as sock:
                _pour(sock, size if fragment > 1 else 2 * MIB, fragment=fragment)
        assert node.rss_bytes() - before < 30 * MIB


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose limits before authentication are short."""
    limits = functools.partial(HubLimits, upgrade_timeout_s=0.5, stage0_timeout_s=0.5, stage1_timeout_s=0.5)
    monkeypatch.setattr("nexus.assembly.HubLimits", limits)


@pytest.mark.usefixtures("hurried")
async def test_slow_strangers_are_closed_at_the_hub(pki: Pki) -> None:
    """W3, node W20: the hub's HTTP server had no timeouts: a slow-loris could sit for ever."""
    context = ssl.create_default_context(cafile=str(pki.ca_file))
    hello = in_records(client_hello(sni(b"localhost")))
    async with local_node(pki) as node, contextlib.AsyncExitStack() as strangers, asyncio.timeout(WAIT_S):
        readers = []
        for said in (b"", hello[: len(hello) // 2], b"\x16"):
            reader, writer = await strangers.enter_async_context(connection(node.hub_port))
            writer.write(said)
            readers.append(reader)
        for said in (b"", UPGRADE[:40], UPGRADE):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", node.hub_port, ssl=context, server_hostname="localhost"
            )
            strangers.callback(writer.close)
            writer.write(said)
            readers.append(reader)
        for reader in readers:
            with contextlib.suppress(ConnectionResetError):
                await drain_eof(reader)
        await eventually(lambda: node.node.stats().unauthenticated == 0, "the end of them all")
        assert node.node.stats().auth_failures_total["upgrade"] >= len(readers) - 1


async def test_strangers_of_one_source_are_counted_and_disturb_no_session(pki: Pki) -> None:
    """W3, W28: there was no cap on connections that are not authenticated."""
    async with (
        serve(standard) as target,
        local_node(pki, maxUnauthenticatedSessionsPerSource=8) as node,
        local_client(node.hub_url, pki, {node.port: target}),
        contextlib.AsyncExitStack() as strangers,
        asyncio.timeout(WAIT_S),
    ):
        readers = [(await strangers.enter_async_context(connection(node.hub_port)))[0] for _ in range(12)]
        refused = [asyncio.wait_for(drain_eof(reader), WAIT_S) for reader in readers[8:]]
        assert await asyncio.gather(*refused) == [b""] * 4
        assert node.node.stats().unauthenticated == 8
        assert digest(await exchange(node.port, head("GET", "/bytes/99"))) == digest(pattern(99))
        await strangers.aclose()
        await eventually(lambda: node.node.stats().unauthenticated == 0, "the end of the strangers")
        async with local_client(node.hub_url, pki, {}, name="late"):
            assert len(node.node.registry.sessions) == 2


# -- Before a client has said whom it wants ---------------------------------------------------------------------------


@pytest.fixture
async def node(pki: Pki) -> AsyncIterator[LocalNode]:
    """A node with one backend."""
    async with (
        serve(standard) as target,
        local_node(pki, relayPorts=[0], allowedTCPPortClaims=[25]) as node,
        local_client(node.hub_url, pki, {node.port: target}),
    ):
        yield node


async def test_silent_connections_of_one_source_keep_nobody_out(node: LocalNode) -> None:
    """Node W17: 256 silent connections locked everybody out for 30 s."""
    async with contextlib.AsyncExitStack() as silent:
        for _ in range(300):
            await silent.enter_async_context(connection(node.port))
        await eventually(lambda: node.node.stats().peeking == 300, "300 connections")
        for _ in range(20):
            assert digest(await exchange(node.port, head("GET", "/bytes/99"))) == digest(pattern(99))


async def test_a_node_without_descriptors_is_quiet_and_recovers(directory: Path, pki: Pki) -> None:
    """Node W15: without file descriptors the accept loop span, with a log line each time."""
    async with serve(standard) as target:
        with (
            Node(directory, pki, maxConcurrentPeeksPerSource=-1) as node,
            Client(directory, node, {node.http_port: target}, HOST),
        ):
            logged = node.output()
            resource.prlimit(node.popen.pid, resource.RLIMIT_NOFILE, (64, 64))
            cpu_s = node.metric("process_cpu_seconds_total")
            async with contextlib.AsyncExitStack() as crowd:
                for port in [node.http_port] * 150 + [node.hub_port] * 150:
                    await crowd.enter_async_context(connection(port))
                await asyncio.sleep(2)  # how busy it is meanwhile is under test
                assert node.popen.poll() is None
            await eventually(node.is_ready, "the node answers again")
            assert node.metric("process_cpu_seconds_total") - cpu_s < 1
            assert digest(await _patiently(node.http_port)) == digest(pattern(99))
            assert (node.output().removeprefix(logged)).count("\n") < 50


async def _patiently(port: int) -> bytes:
    """Ask again while what waited in the backlog is still being cleared away."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(ConnectionError):
                if body := await exchange(port, head("GET", "/bytes/99")):
                    return body
            await asyncio.sleep(0.05)


async def test_route_keys_cannot_be_reached_by_name(node: LocalNode, pki: Pki) -> None:
    """Node W18: SNI `tcp:25` or `Host: [tcp:25]:80` reached whoever had claimed the port."""
    reached: list[bytes] = []
    claims = BackendClient(
        node.hub_url,
        Identity("mail", (), (25,)),
        tokens(),
        Forwarder(PortMap.compile({}), _note(reached)),
        context=hub_client_context(pki.ca_file),
        drain_timeout_s=0,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(claims.run())
        await eventually(lambda: "tcp:25" in node.node.registry.table.routes(), "the claim")
        for key in ("tcp:25", "TCP:25", "udp:25"):
            assert await _tls_answer(node, key) == UNRECOGNIZED_NAME_ALERT
            for name in (key, f"[{key}]", f"[{key}]:80"):
                answer = await exchange(node.port, head("GET", "/", name))
                assert answer == b"" or answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
        claims.stop()
    assert not reached


def _note(reached: list[bytes]) -> Handler:
    async def handle(stream: Connection) -> None:
        reached.append(await stream.read())

    return handle


async def _tls_answer(node: LocalNode, name: str) -> bytes:
    return await exchange(node.port, in_records(client_hello(sni(name.encode()))))


@pytest.mark.parametrize(
    "request_head", [b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nX: y\r\n\r\n"]
)
async def test_a_request_without_a_host_is_answered(node: LocalNode, request_head: bytes) -> None:
    """Node W3: what had been read of it was thrown away."""
    assert (await exchange(node.port, request_head)).startswith(b"HTTP/1.1 400 ")
    assert node.node.stats().rejected_total == {"no_name": 1}
