"""UDP tunnels at their destination: datagrams one by one, and ends."""

from __future__ import annotations

import pytest

from nexus.link.flow import Drop
from nexus.protocol.reasons import Reason
from nexus.routing.decide import Reject, RejectReason
from nexus.transport import OpenRequest
from tests.support.mesh import CLIENT, FakeBackend, Pair, settle


class Port:
    """The public UDP port at the origin."""

    def __init__(self) -> None:
        self.delivered: list[bytes] = []
        self.ended = 0
        self.told = 0

    def deliver(self, flow: object, datagram: bytes | bytearray | memoryview) -> None:
        del flow
        self.delivered.append(bytes(datagram))

    def sent(self, flow: object) -> None:
        del flow
        self.told += 1

    def dropped(self, flow: object, why: Drop, count: int = 1) -> None:
        raise AssertionError(flow, why, count)

    def flow_ended(self, flow: object) -> None:
        del flow
        self.ended += 1


@pytest.fixture
async def udp() -> tuple[Pair, FakeBackend, Port, object]:
    """A pair with a backend of a UDP port, and a flow that has sent a datagram."""
    pair = Pair()
    backend = pair.destination.backend(udp_routes={53: 30})
    settle(pair.cable)
    port = Port()
    request = OpenRequest(None, False, 53, CLIENT)
    flow = pair.origin.dialer.open_flow(request, port, ("192.0.2.7", 50000))
    assert not isinstance(flow, Reject)
    flow.send(b"query")
    assert port.told == 1
    settle(pair.cable)
    return pair, backend, port, flow


def test_datagrams_pass_one_by_one(udp: tuple[Pair, FakeBackend, Port, object]) -> None:
    """With what the backend must know of the client, and without credits."""
    pair, backend, port, _flow = udp
    connect = backend.link.controls("connect")[-1]
    assert (connect.hostname, connect.client_ip, connect.conn_port) == ("udp:53", CLIENT, 53)
    assert backend.link.data() == [b"query"]
    for number in range(200):
        backend.send(b"%d" % number)
    settle(pair.cable)
    assert port.delivered == [b"%d" % number for number in range(200)]
    assert not [sent for link in pair.cable.links for sent in link.log if sent.payload[:1] == b"\x15"]


def test_a_flow_ends_at_both_ends_whoever_ends_it(udp: tuple[Pair, FakeBackend, Port, object]) -> None:
    """The next datagram opens another."""
    pair, backend, port, _flow = udp
    backend.say("disconnect")
    settle(pair.cable)
    assert port.ended == 1
    assert not any(peer.tunnels for peer in pair.cable.peers)


def test_a_flow_the_origin_ends_ends_at_the_backend(udp: tuple[Pair, FakeBackend, Port, object]) -> None:
    """And one that the origin forgot ends by itself."""
    pair, backend, _port, flow = udp
    flow.close(Reason.TIMEOUT)  # type: ignore[attr-defined]
    settle(pair.cable)
    assert backend.link.controls("disconnect")
    assert not any(peer.tunnels for peer in pair.cable.peers)


def test_the_destination_ends_flows_that_were_idle_twice_as_long(udp: tuple[Pair, FakeBackend, Port, object]) -> None:
    """Its origin may have vanished without a word."""
    pair, backend, port, _flow = udp
    pair.destination.mesh.destination.sweep(59.0)
    assert not backend.link.controls("disconnect")
    pair.destination.mesh.destination.sweep(60.0)
    settle(pair.cable)
    assert backend.link.controls("disconnect")
    assert port.ended == 1


def test_a_port_nobody_serves_is_refused(udp: tuple[Pair, FakeBackend, Port, object]) -> None:
    """As without peers."""
    pair, _backend, port, _flow = udp
    request = OpenRequest(None, False, 54, CLIENT)
    refused = pair.origin.dialer.open_flow(request, port, ("192.0.2.7", 50000))
    assert refused == Reject(RejectReason.NO_BACKEND)
