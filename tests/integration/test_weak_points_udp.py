"""UDP flows through a whole node: the ways in which the original freezes, forgets or kills them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.asyncio.client import connect

from nexus.auth.claims import UdpRoute
from nexus.link.flow import Flow
from nexus.protocol.messages import id_text
from nexus.tls.contexts import hub_client_context
from tests.support.clients import forwarder, running
from tests.support.fake_hub import HubSession, fake_hub
from tests.support.hub import WAIT_S, Backend, eventually
from tests.support.loopback import LocalNode, local_client, local_node
from tests.support.ports import free_ports
from tests.support.processes import Pki

GRANT = 64  # of an original client, once for the life of a flow
MANY = 300
FLOOD = 8_000
FLOOD_BYTES = 1_400


@contextlib.contextmanager
def client_of(port: int) -> Iterator[socket.socket]:
    """Give a client of a public UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        yield sock


async def heard(client: socket.socket) -> bytes:
    """Return the next datagram for a client."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.get_running_loop().sock_recv(client, 65_536)


@contextlib.asynccontextmanager
async def node_with_port(pki: Pki, **settings: object) -> AsyncIterator[tuple[LocalNode, int]]:
    """Run a node with one public UDP port."""
    (port,) = free_ports(1)
    async with local_node(pki, udpRelayPorts=[port], allowedUDPPortClaims=[port], **settings) as node:
        yield node, port


@contextlib.asynccontextmanager
async def raw_backend(pki: Pki, node: LocalNode, port: int, idle_s: int | None = None) -> AsyncIterator[Backend]:
    """Log in a backend that does only what the test does, as an original one would."""
    context = hub_client_context(pki.ca_file)
    async with connect(node.hub_url, ssl=context, compression=None, ping_interval=None, proxy=None) as websocket:
        backend = await Backend(websocket).log_in(hostnames=(), udp_routes=(UdpRoute(port, idle_s),))
        yield backend


class Echo:
    """A UDP service that answers with what it gets; the event loops' own endpoints send no empty datagrams."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.seen: list[bytes] = []

    def readable(self) -> None:
        """Answer everything that is here."""
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, address = self.sock.recvfrom(65_536)
                self.seen.append(datagram)
                self.sock.sendto(datagram, address)


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    """Run the service."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        service = Echo(sock)
        loop.add_reader(sock.fileno(), service.readable)
        try:
            yield service, sock.getsockname()[1]
        finally:
            loop.remove_reader(sock.fileno())


async def test_a_flow_of_an_original_client_is_not_stopped_by_its_64_credits(pki: Pki) -> None:
    """W4: it never grants again; a hub that counts freezes the flow after the 65th datagram, and the port with it."""
    async with node_with_port(pki) as (node, port), raw_backend(pki, node, port) as backend:
        with client_of(port) as client:
            client.send(b"0")
            flow = (await backend.control()).stream_id
            await backend.send("resume_stream", client_id=id_text(flow), credits=GRANT)
            assert await backend.receive() == b"\x01" + flow + b"0"
            for number in range(1, MANY):
                client.send(b"%d" % number)
                assert await backend.receive() == b"\x01" + flow + b"%d" % number


async def test_an_original_hub_that_counts_credits_on_udp_is_granted_them() -> None:
    """W4: our client grants for every datagram, so that the hub's port never waits for one."""
    stream_id = b"\x03" * 16

    async with fake_hub() as hub, echo() as (service, port):
        to = {53: port}
        async with _client(hub.url, to):
            session = await hub.session()
            await session.connect(stream_id, conn_port=53, transport="udp", hostname="udp:53")
            credits_left = (await session.control("resume_stream")).credits
            assert credits_left == GRANT
            await _send_within(session, stream_id, credits_left)
            await eventually(lambda: len(service.seen) == MANY, "the service has every datagram")


@contextlib.asynccontextmanager
async def _client(hub_url: str, targets: dict[int, int]) -> AsyncIterator[None]:
    async with running(hub_url, to=forwarder({port: f"127.0.0.1:{to}" for port, to in targets.items()})):
        yield


async def _send_within(session: HubSession, stream_id: bytes, credits_left: int) -> None:
    """Send MANY datagrams, each for one credit, as the original hub does."""
    for number in range(MANY):
        if not credits_left:
            credits_left += (await session.control("resume_stream")).credits
        credits_left -= 1
        await session.send_data(stream_id, b"%d" % number)


async def test_a_flow_whose_backend_does_not_read_holds_up_no_other(pki: Pki) -> None:
    """W4, node W14: one receive loop waited for the slow flow; here its datagrams are dropped, and counted."""
    async with (
        node_with_port(pki) as (node, port),
        raw_backend(pki, node, port) as slow,
        raw_backend(pki, node, port) as quick,
    ):
        with client_of(port) as flooding, client_of(port) as other:
            flooding.send(b"first")
            await slow.control()
            slow.websocket.transport.pause_reading()
            dropped = node.node.stats
            for number in range(FLOOD):
                with contextlib.suppress(BlockingIOError):
                    flooding.send(bytes(FLOOD_BYTES))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await eventually(lambda: dropped().datagrams_dropped_total.get("backend_slow"), "datagrams are dropped")
            other.send(b"hello")
            flow = (await quick.control()).stream_id
            assert await quick.receive() == b"\x01" + flow + b"hello"
            await quick.websocket.send(b"\x01" + flow + b"answer")
            assert await heard(other) == b"answer"
            assert node.node.stats().sessions == 2
            slow.websocket.transport.resume_reading()


async def test_an_answer_too_large_for_a_datagram_does_not_end_the_flow(pki: Pki) -> None:
    """W26: the original's writer stops for good, and the client's next datagram is lost."""
    async with node_with_port(pki) as (node, port), raw_backend(pki, node, port) as backend:
        with client_of(port) as client:
            client.send(b"ask")
            flow = (await backend.control()).stream_id
            await backend.receive()
            await backend.websocket.send(b"\x01" + flow + bytes(2049))
            await backend.websocket.send(b"\x01" + flow + bytes(2048))
            assert await heard(client) == bytes(2048)
            client.send(b"again")
            assert await backend.receive() == b"\x01" + flow + b"again"
            assert node.node.stats().datagrams_dropped_total == {"oversize_from_backend": 1}


async def test_answers_keep_a_flow_and_silence_ends_it(pki: Pki) -> None:
    """W26: the original counts the client's datagrams only, so a stream of answers was cut off."""
    limits = {"udpFlowIdleTimeoutMinSeconds": 1}
    async with node_with_port(pki, **limits) as (node, port), raw_backend(pki, node, port, idle_s=2) as backend:
        with client_of(port) as client:
            client.send(b"subscribe")
            flow = (await backend.control()).stream_id
            await backend.receive()
            (held,) = (flow_ for port_ in node.node._udp.ports.values() for flow_ in port_.flows)
            began = held.last_seen
            while _age(held, began) < 3:  # longer than the idle time, with nothing from the client
                await backend.websocket.send(b"\x01" + flow + b"tick")
                assert await heard(client) == b"tick"
                await asyncio.sleep(0.05)
            assert node.node.stats().udp_flows == 1
            end = await backend.control()
            assert (end.event, end.stream_id, end.reason) == ("disconnect", flow, "timeout")
            assert node.node.stats().udp_flow_ends_total == {"idle": 1}


def _age(flow: Flow, began: float) -> float:
    return flow.last_seen - began


async def test_a_flow_moves_to_another_backend_when_its_own_is_gone(pki: Pki) -> None:
    """The client keeps its port; the original loses the datagram that finds out."""
    async with node_with_port(pki) as (node, port), echo() as (_, service), echo() as (_, other):
        for target in (service, other):
            async with local_client(node.hub_url, pki, {port: target}, name=f"b{target}", udp_ports=(port,)):
                with client_of(port) as client:
                    client.send(b"hello")
                    assert await heard(client) == b"hello"
            await eventually(lambda: not node.node.stats().udp_flows, "the flow went with its backend")


async def test_under_a_bandwidth_cap_a_flood_of_one_flow_leaves_the_others_their_turns(pki: Pki) -> None:
    """W25, W26: the flood's own datagrams are dropped; everybody else of the port is answered."""
    async with (
        node_with_port(pki, totalBandwidthMbps=1) as (node, port),
        echo() as (_, service),
        local_client(node.hub_url, pki, {port: service}, udp_ports=(port,)),
    ):
        with client_of(port) as flooding:
            others = [client_of(port) for _ in range(5)]
            for number in range(FLOOD):
                with contextlib.suppress(BlockingIOError):
                    flooding.send(bytes(FLOOD_BYTES))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await eventually(lambda: node.node.stats().datagrams_dropped_total.get("no_turn"), "some are dropped")
            for number, opened in enumerate(others):
                with opened as other:
                    other.send(b"%d" % number)
                    assert await heard(other) == b"%d" % number


@pytest.mark.parametrize("datagram", [b"", b"\xff" * 2048], ids=["empty", "largest"])
async def test_any_datagram_passes_unchanged(pki: Pki, datagram: bytes) -> None:
    """In both directions."""
    async with (
        node_with_port(pki) as (node, port),
        echo() as (_, service),
        local_client(node.hub_url, pki, {port: service}, udp_ports=(port,)),
    ):
        with client_of(port) as client:
            client.send(datagram)
            assert await heard(client) == datagram
