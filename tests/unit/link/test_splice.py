"""nexus.link.splice: a socket and a stream, with and without a gate in between."""

from __future__ import annotations

import asyncio

from nexus.bandwidth.limiter import Limiter
from nexus.link.endpoint import SocketEndpoint
from nexus.link.splice import endpoint_for, splice
from tests.support.links import MemoryTransport
from tests.support.sessions import Side


class Transport(MemoryTransport):
    """Notes its protocol."""

    protocol: asyncio.BaseProtocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Take the protocol."""
        self.protocol = protocol


def test_without_a_cap_the_socket_is_the_endpoint() -> None:
    """Nothing of the cap exists on the path of a byte."""
    stream = Side().dialling()
    socket, endpoint = endpoint_for(stream)
    assert socket is endpoint
    assert socket.stream is stream
    assert stream.held_up is None


def test_a_transport_is_spliced_with_what_was_read_of_it() -> None:
    """The prelude goes first; bytes flow both ways."""
    side = Side()
    stream = side.dialling()
    transport = Transport()
    splice(stream, transport, b"hello")
    assert isinstance(transport.protocol, SocketEndpoint)
    assert side.link.data(stream) == [b"hello"]
    stream.receive(b"world")
    assert transport.written == b"world"


async def test_under_a_cap_the_prelude_is_charged_too() -> None:
    """And the rest of the stream goes the same way."""
    limiter = Limiter(1)
    side = Side()
    side.session.gate = limiter.gate()
    stream = side.dialling()
    transport = Transport()
    closed: list[bool] = []
    splice(stream, transport, b"hello", lambda: closed.append(True))
    assert side.link.data(stream) == [b"hello"]
    stream.receive(b"world")
    assert transport.written == b"world"
    assert limiter.scheduler.charged_bytes == 2 * (5 + 17)
    assert isinstance(transport.protocol, SocketEndpoint)
    transport.protocol.connection_lost(None)
    assert closed == [True]


def test_nothing_is_sent_where_nothing_was_read() -> None:
    """An outbound connection has no prelude."""
    side = Side()
    stream = side.dialling()
    splice(stream, Transport())
    assert side.link.data(stream) == []
