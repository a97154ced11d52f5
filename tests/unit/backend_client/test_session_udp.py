"""backend_client.session: UDP flows that a hub announces, and those it should not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from backend_client.connection import Connection
from backend_client.flow_table import FlowTable
from backend_client.session import Forwarder
from nexus.eventloop import descriptor_limit
from tests.support.clients import connected, forwarder
from tests.support.hub import eventually

ON_BOTH_LOOPS = True
ID = b"\x07" * 16


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A UDP service that answers with what it gets."""

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(b"echo " + data, addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")[1]
    transport.close()


async def test_a_udp_flow_is_granted_at_once_and_forwarded_both_ways(echo: int) -> None:
    """Spec backend-protocol 7.2, 10: one message is one datagram; the end closes the socket."""
    async with connected(forwarder({53: f"127.0.0.1:{echo}"}, window=32)) as it:
        await it.session.connect(ID, conn_port=53, transport="udp", hostname="udp:53", credits=64)
        await it.session.send_data(ID, b"one")
        assert (await it.session.control("resume_stream")).credits == 32
        assert await it.session.receive(ID, 8) == b"echo one"
        assert it.client.stats.streams == 1
        await it.session.send("disconnect", ID)
        await eventually(lambda: it.client.stats.streams == 0, "the flow has ended")


async def test_a_udp_port_without_a_mapping_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The log line says what to add; a handler of the program takes TCP only, and says so."""

    async def handler(_connection: Connection) -> None:
        """Never called."""

    for to, words in ((forwarder(), "portMappings"), (forwarder(handler=handler), "TCP streams only")):
        async with connected(to) as it:
            await it.session.connect(ID, conn_port=53, transport="udp", hostname="udp:53")
            assert (await it.session.control("disconnect")).reason == "dial_failed"
            assert it.client.stats.dial_failures == 1
        assert words in caplog.text


async def test_a_udp_service_without_an_address_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """One line names it; an unknown transport is TCP (spec backend-protocol 8.2)."""
    async with connected(forwarder({53: "no-such-host.invalid:53"})) as it:
        await it.session.connect(ID, conn_port=53, transport="udp", hostname="udp:53")
        assert (await it.session.control("disconnect")).reason == "dial_failed"
    assert "cannot reach no-such-host.invalid:53/udp" in caplog.text


async def test_an_id_of_a_flow_is_not_announced_twice(echo: int, caplog: pytest.LogCaptureFixture) -> None:
    """Neither as a flow nor as a stream."""
    async with connected(forwarder({53: f"127.0.0.1:{echo}"})) as it:
        for transport in ("udp", "udp", "tcp"):
            await it.session.connect(ID, conn_port=53, transport=transport, hostname="udp:53")
        await it.session.send_data(ID, b"one")
        assert await it.session.receive(ID, 8) == b"echo one"
        assert (it.client.stats.streams, it.client.stats.streams_total) == (1, 1)
    assert caplog.text.count("an id that is in use") == 2


async def test_flows_leave_descriptors_to_streams(echo: int, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger opens flows with one datagram each: the least recently used gives way, and the hub is told."""
    ids = [bytes([number]) * 16 for number in range(1, 4)]
    ports = forwarder({53: f"127.0.0.1:{echo}"}).ports
    async with connected(Forwarder(ports, None, table=FlowTable(4))) as it:
        for stream_id in ids[:2]:
            await it.session.connect(stream_id, conn_port=53, transport="udp", hostname="udp:53")
        await it.session.send_data(ids[0], b"one")
        assert await it.session.receive(ids[0], 8) == b"echo one"
        await it.session.connect(ids[2], conn_port=53, transport="udp", hostname="udp:53")
        goodbye = await it.session.control("disconnect")
        assert (goodbye.stream_id, goodbye.reason) == (ids[1], "local_error")
        for stream_id in (ids[0], ids[2]):
            await it.session.send_data(stream_id, b"two")
            assert await it.session.receive(stream_id, 8) == b"echo two"
        assert it.client.stats.streams == 2
        assert it.client.stats.dial_failures == 0
    assert "more than 2 UDP flows: the least recently used gave way, 1 so far; raise the limit" in caplog.text


async def test_a_client_alone_takes_half_of_the_descriptors_for_flows() -> None:
    """Of those that its process may have."""
    assert forwarder().flows.table.limit == descriptor_limit() // 2


async def test_a_draining_client_ends_its_flows(echo: int) -> None:
    """The hub is told of each."""
    async with connected(forwarder({53: f"127.0.0.1:{echo}"})) as it:
        await it.session.connect(ID, conn_port=53, transport="udp", hostname="udp:53")
        await eventually(lambda: it.client.stats.streams == 1, "the flow is open")
        it.client.stop()
        assert (await it.session.control("disconnect")).reason == "shutdown"
