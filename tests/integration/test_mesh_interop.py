"""A node of ours among original nodes: stand-ins written from the specification, over real TLS, in both roles."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nexus.auth.claims import UdpRoute
from nexus.mesh.peer import BURST_MAX_MESSAGES
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.tls.contexts import hub_client_context
from tests.support.fleet import knows, mesh_settings, reserved_ports
from tests.support.go_node import CLOSE, CREDITS, DATA, NIL, PAUSE, RESUME, GoNode, GoTunnel
from tests.support.hub import HOST, WAIT_S, Backend, eventually
from tests.support.node import Running, configurations, port, running
from tests.support.processes import Pki

GO_HOST = "go.example.com"
REQUEST = f"GET / HTTP/1.1\r\nHost: {GO_HOST}\r\n\r\n".encode()
DATA_BYTES = 2 * 1024 * 1024
both_ages = pytest.mark.parametrize("knows_credits", [True, False], ids=["v0.3.14", "v0.2"])


class Setup:
    """One node of ours, and what makes original nodes that it meets."""

    def __init__(self, pki: Pki, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self.pki = pki
        self.stack = stack
        self.config = configurations(pki, directory)
        self.node: Running

    async def start(self, *peers: int, **settings: Any) -> Running:
        """Run our node; it dials original nodes at these ports."""
        (own,) = self.stack.enter_context(reserved_ports(1))
        made = self.config(**{**mesh_settings(self.pki, "ours", own, peers), **settings})
        self.node = await self.stack.enter_async_context(running(self.pki, made))
        return self.node

    async def dialling(self, node: GoNode) -> GoNode:
        """Let an original node dial ours."""
        context = hub_client_context(self.pki.ca_file)
        context.load_cert_chain(*self.pki.issue("go", "go.mesh.test"))
        url = f"wss://localhost:{port(self.node.addresses.peer)}/mesh"
        await self.stack.enter_async_context(node.dialling(url, context))
        return node

    async def listening(self, node: GoNode) -> int:
        """Let an original node listen; return its port, for ours to dial."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.pki.issue(f"go-{id(node)}", "localhost", "go.mesh.test"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.pki.ca_file)
        return await self.stack.enter_async_context(node.listening(context))


@pytest.fixture
async def setup(pki: Pki, tmp_path: Path) -> AsyncIterator[Setup]:
    """Everything is closed in the end."""
    async with contextlib.AsyncExitStack() as stack:
        yield Setup(pki, tmp_path, stack)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """A CA."""
    return Pki.create(tmp_path)


async def first_tunnel(node: GoNode) -> GoTunnel:
    """Return the tunnel that was requested at an original node."""
    await eventually(lambda: node.tunnels, "the tunnel is requested")
    return next(iter(node.tunnels.values()))


async def from_backend(backend: Backend, size: int) -> tuple[bytes, bytes]:
    """Take ``size`` bytes at a backend of ours, granting as it goes; return the stream's id and the bytes."""
    got, stream_id, messages = bytearray(), b"", 0
    while len(got) < size:
        message = await backend.receive()
        assert isinstance(message, bytes)
        if message[0] != 1:
            continue
        stream_id = message[1:17]
        got += message[17:]
        messages += 1
        if messages % 8 == 0:
            await backend.send("resume_stream", client_id=str(uuid.UUID(bytes=stream_id)), credits=8)
    return stream_id, bytes(got)


# -- Ours has the client --------------------------------------------------------------------------------------------


@both_ages
@pytest.mark.parametrize("dials", [True, False], ids=["it dials", "ours dials"])
async def test_a_client_of_ours_is_served_by_an_original(setup: Setup, knows_credits: bool, dials: bool) -> None:
    """Request, credits, data, in this order and as the specification's vectors have them (15); then both ways."""
    go = GoNode({GO_HOST: lambda data: b"<" + data + b">"}, knows_credits=knows_credits)
    node = await setup.start(*([] if dials else [await setup.listening(go)]))
    if dials:
        await setup.dialling(go)
    await knows(node, GO_HOST)
    reader, writer = await node.client(REQUEST)
    async with asyncio.timeout(WAIT_S):
        assert await reader.readexactly(len(REQUEST) + 2) == b"<" + REQUEST + b">"
    tunnel = await first_tunnel(go)
    local, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    assert tunnel.request == {
        "type": "tunnel_request",
        "client_id": str(uuid.UUID(bytes=tunnel.id)),
        "conn_port": peer[1],
        "client_ip": f"127.0.0.1:{local[1]}",
        "hostname": GO_HOST,
        "transport": "tcp",
    }
    requested = next(at for at, said in enumerate(go.log) if isinstance(said, str) and "tunnel_request" in said)
    assert go.log[requested + 1] == bytes([CREDITS]) + tunnel.id + (64).to_bytes(8, "big")
    assert go.log[requested + 2] == bytes([DATA]) + tunnel.id + REQUEST
    await go.close(tunnel)
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""


@both_ages
async def test_megabytes_pass_to_and_from_an_original(setup: Setup, knows_credits: bool) -> None:
    """Its 64 credits, its grants of 8, or none at all."""
    data = hashlib.shake_256(b"go").digest(DATA_BYTES)
    go = GoNode({GO_HOST: lambda got: got}, knows_credits=knows_credits)
    node = await setup.start()
    await setup.dialling(go)
    await knows(node, GO_HOST)
    reader, writer = await node.client(REQUEST)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:

        async def send() -> None:
            for at in range(0, len(data), 65_536):
                writer.write(data[at : at + 65_536])
                await writer.drain()

        tasks.create_task(send())
        assert await reader.readexactly(len(REQUEST) + len(data)) == REQUEST + data


async def test_a_stalled_original_keeps_no_other_peer_from_serving(setup: Setup) -> None:
    """W2: its reader waits for its backend, and with it everything on that link; tunnels elsewhere go on."""
    stalled, other = GoNode({GO_HOST: lambda got: got}), GoNode({"other.example.com": lambda got: got})
    node = await setup.start()
    await setup.dialling(stalled)
    await setup.dialling(other)
    await knows(node, GO_HOST, "other.example.com")
    stalled.gate.clear()
    _reader, writer = await node.client(REQUEST)
    writer.write(bytes(4 * 1024 * 1024))
    await eventually(lambda: stalled.tunnels, "the tunnel is requested")
    request = REQUEST.replace(b"go.", b"other.")
    reader, _ = await node.client(request)
    async with asyncio.timeout(WAIT_S):
        assert await reader.readexactly(len(request)) == request
    assert len(node.node.mesh.peers) == 2
    stalled.gate.set()


async def test_an_original_without_an_answer_is_left_for_the_next_peer(setup: Setup) -> None:
    """W7: it says nothing where it has no backend any more; every byte reaches the other one."""
    silent, serving = GoNode({GO_HOST: lambda got: got}), GoNode({GO_HOST: lambda got: b"served " + got})
    node = await setup.start()
    await setup.dialling(silent)
    await setup.dialling(serving)
    await eventually(lambda: len(node.node.mesh.routes.of_host(GO_HOST)[1]) == 2, "both announce it")
    silent.serves.clear()
    answers = []
    for _ in range(2):
        reader, _writer = await node.client(REQUEST)
        async with asyncio.timeout(WAIT_S):
            answers.append(await reader.readexactly(len(REQUEST) + 7))
    assert answers == [b"served " + REQUEST] * 2


async def test_a_link_that_is_cut_breaks_its_streams_at_once(setup: Setup) -> None:
    """W7: the client sees a reset, and the route is gone."""
    go = GoNode({GO_HOST: lambda got: got})
    node = await setup.start()
    await setup.dialling(go)
    await knows(node, GO_HOST)
    reader, _writer = await node.client(REQUEST)
    async with asyncio.timeout(WAIT_S):
        await reader.readexactly(len(REQUEST))
        await go.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    await knows(node)


async def test_a_pause_of_an_original_stops_the_client_and_a_resume_lets_it_go_on(setup: Setup) -> None:
    """0x13 and 0x14; credits in between end no pause."""
    go = GoNode({GO_HOST: lambda _got: b""})
    node = await setup.start()
    await setup.dialling(go)
    await knows(node, GO_HOST)
    _reader, writer = await node.client(REQUEST)
    tunnel = await first_tunnel(go)
    await eventually(lambda: tunnel.received == REQUEST, "the request has arrived")
    await go.say(bytes([PAUSE]) + tunnel.id)
    await go.say(bytes([CREDITS]) + tunnel.id + (8).to_bytes(8, "big"))
    (stream,) = node.node.mesh.streams()
    await eventually(lambda: stream.send_window.paused, "the pause is heeded")
    writer.write(b"after the pause")
    await eventually(lambda: stream.unsent_bytes() or not stream._reading, "nothing is sent")
    assert tunnel.received == REQUEST
    await go.say(bytes([RESUME]) + tunnel.id)
    await eventually(lambda: tunnel.received == REQUEST + b"after the pause", "it went on")


# -- Ours has the backend -------------------------------------------------------------------------------------------


@both_ages
async def test_a_client_of_an_original_is_served_by_a_backend_of_ours(setup: Setup, knows_credits: bool) -> None:
    """With all that the backend must know; megabytes up at its pace, an answer, and a bare close with an echo."""
    data = hashlib.shake_256(b"up").digest(DATA_BYTES)
    node = await setup.start()
    backend = await node.backend()
    go = await setup.dialling(GoNode(knows_credits=knows_credits))
    await eventually(lambda: go.announced and go.announced[-1].get("hostnames") == [HOST], "ours is announced")
    tunnel = await go.open(HOST, is_tls=True, client="192.0.2.7:50000", port=443)
    connect = await backend.control()
    assert (connect.hostname, connect.client_ip, connect.conn_port) == (HOST, "192.0.2.7:50000", 443)
    assert connect.is_tls
    await backend.send("resume_stream", client_id=str(uuid.UUID(bytes=connect.stream_id)), credits=64)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(go.send(tunnel, data))
        stream_id, got = await from_backend(backend, len(data))
    assert got == data
    await backend.websocket.send(b"\x01" + stream_id + b"answer")
    await eventually(lambda: tunnel.received == b"answer", "the answer has arrived")
    await backend.send("disconnect", client_id=str(uuid.UUID(bytes=stream_id)), reason="normal")
    async with asyncio.timeout(WAIT_S):
        await tunnel.closed.wait()
    assert go.log[-1] == bytes([CLOSE]) + tunnel.id
    await eventually(lambda: not node.node.registry.sessions or not any(node.node.registry.streams()), "it is over")


async def test_the_first_burst_of_an_original_is_borne_and_no_more(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    """It sends without limit until it has our credits; W1: nothing of that is lost, and the link never waits."""
    node = await setup.start()
    backend = await node.backend()
    go = await setup.dialling(GoNode())
    await eventually(lambda: go.announced and go.announced[-1].get("hostnames"), "ours is announced")
    tunnel = await go.open(HOST)
    for number in range(BURST_MAX_MESSAGES):
        await go.say(bytes([DATA]) + tunnel.id + bytes([number % 256]) * 100)
    connect = await backend.control()
    await backend.send("resume_stream", client_id=str(uuid.UUID(bytes=connect.stream_id)), credits=64)
    _, got = await from_backend(backend, BURST_MAX_MESSAGES * 100)
    assert got == b"".join(bytes([number % 256]) * 100 for number in range(BURST_MAX_MESSAGES))
    for _ in range(2 * (BURST_MAX_MESSAGES + CREDITS_INITIAL)):
        await go.say(bytes([DATA]) + tunnel.id + b"too much")
    async with asyncio.timeout(WAIT_S):
        await tunnel.closed.wait()
    assert "overran the credits of a tunnel" in caplog.text
    assert len(node.node.mesh.peers) == 1


async def test_datagrams_pass_between_an_original_and_a_backend_of_ours(setup: Setup) -> None:
    """One a message, both ways, without credits; a close of either side ends the flow."""
    (number,) = setup.stack.enter_context(reserved_ports(1))
    node = await setup.start(udpRelayPorts=[number], allowedUDPPortClaims=[number])
    backend = await node.backend(hostnames=(), udp_routes=(UdpRoute(number, 30),))
    go = await setup.dialling(GoNode())
    await eventually(lambda: go.announced and go.announced[-1].get("hostnames"), "ours is announced")
    assert go.announced[-1]["hostnames"] == [f"udp:{number}"]
    tunnel = await go.open(f"udp:{number}", port=number)
    await go.send(tunnel, b"query")
    connect = await backend.control()
    assert (connect.transport, connect.client_ip) == ("udp", "192.0.2.7:50000")
    message = await backend.receive()
    assert message == b"\x01" + connect.stream_id + b"query"
    await backend.websocket.send(b"\x01" + connect.stream_id + b"answer")
    await eventually(lambda: tunnel.received == b"answer", "the answer has arrived")
    await go.close(tunnel)
    ended = await backend.control()
    assert (ended.event, ended.stream_id) == ("disconnect", connect.stream_id)


async def test_a_request_that_nobody_serves_is_refused(setup: Setup) -> None:
    """An original would say nothing, and its user would wait."""
    await setup.start()
    go = await setup.dialling(GoNode())
    tunnel = await go.open("nobody.example.com")
    async with asyncio.timeout(WAIT_S):
        await tunnel.closed.wait()


# -- Announcements, and what is odd ---------------------------------------------------------------------------------


async def test_the_latest_routes_reach_an_original_that_was_away_for_300_changes(setup: Setup) -> None:
    """W6: whatever was queued meanwhile; versions rise on each link."""
    node = await setup.start()
    context = hub_client_context(setup.pki.ca_file)
    context.load_cert_chain(*setup.pki.issue("go", "go.mesh.test"))
    url = f"wss://localhost:{port(node.addresses.peer)}/mesh"
    first = GoNode()
    async with first.dialling(url, context):
        await eventually(lambda: first.announced, "it is told")
    for number in range(300):
        node.node.registry.table.claim(f"b{number}", [f"host-{number}.example.com"])  # type: ignore[arg-type]
        node.node.mesh.changed()
        if number:
            node.node.registry.table.release(f"b{number - 1}")  # type: ignore[arg-type]
    second = GoNode()
    async with second.dialling(url, context):
        await eventually(lambda: second.announced, "it is told")
        assert second.announced[-1]["hostnames"] == ["host-299.example.com"]
        assert second.announced[0]["version"] > first.announced[-1]["version"]
        assert second.announced[0]["client_id"] == NIL
    node.node.registry.table.release("b299")  # type: ignore[arg-type]


async def test_a_version_that_does_not_rise_is_ignored(setup: Setup) -> None:
    """As the original does."""
    node = await setup.start()
    go = await setup.dialling(GoNode({GO_HOST: lambda got: got}))
    await knows(node, GO_HOST)
    go._version = 0
    go.serves = {"other.example.com": lambda got: got}
    await go.announce()
    go._version = 5
    go.serves["third.example.com"] = go.serves["other.example.com"]
    await go.announce()
    await knows(node, "other.example.com", "third.example.com")


async def test_what_is_odd_is_ignored_and_the_link_stays(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """W19: unknown tunnels and codes, short frames, broken text; then an honest tunnel is served."""
    node = await setup.start()
    backend = await node.backend()
    go = await setup.dialling(GoNode())
    stranger = uuid.uuid4().bytes
    for odd in (
        b"",
        b"\x11",
        bytes([DATA]) + stranger + b"x",
        bytes([CLOSE]) + stranger,
        b"\x7f" + stranger,
        "{",
        "[]",
    ):
        await go.say(odd)
    await go.say('{"type":"announce","version":"x"}')
    await go.say('{"type":"later","client_id":""}')
    await go.open(HOST)
    assert (await backend.control()).event == "connect"
    assert len(node.node.mesh.peers) == 1
    assert "go.mesh.test at 127.0.0.1 sent a text message that was dropped" in caplog.text


async def test_a_huge_frame_ends_the_link_with_a_reason(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """1009, and a line that says who."""
    node = await setup.start()
    go = await setup.dialling(GoNode())
    await eventually(lambda: node.node.mesh.peers, "the link is up")
    with caplog.at_level(logging.INFO):
        await go.say(bytes([DATA]) + uuid.uuid4().bytes + bytes(5_000_000))
        await eventually(lambda: not node.node.mesh.peers, "the link has ended")
    assert go._link is not None
    await eventually(lambda: go._link is not None and go._link.close_code == 1009, "it was told why")
    assert "go.mesh.test at 127.0.0.1: link ended: protocol violation" in caplog.text
