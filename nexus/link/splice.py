"""Joining a socket with a stream, directly or by way of the gate that a bandwidth cap gives the stream's session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Protocol

from nexus.link.endpoint import OnClosed, SocketEndpoint, StreamSide
from nexus.link.stream import Endpoint, Stream
from nexus.protocol.framing import Buffer


class Between(StreamSide, Endpoint, Protocol):
    """A stream's bytes under the cap: the stream to its ``socket``, the endpoint to the stream."""

    socket: Endpoint

    def end_cleanly(self) -> None:
        """End the stream in order behind the last byte."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the far end."""


class Gate(Protocol):
    """What a session's streams and flows go through under the node's cap, ``Session.gate``; see ``nexus.bandwidth``.

    All calls return at once.
    """

    def pace(
        self, stream: Stream, transport: asyncio.Transport | None, on_closed: OnClosed | None
    ) -> tuple[SocketEndpoint, Endpoint]:
        """Return a socket's protocol, and the endpoint of the stream that goes with it."""

    def between(self, stream: Stream) -> Between:
        """Return what stands between two streams; the other one's endpoint is its ``socket``, still to be set."""

    def offer(self, flow: Hashable, datagram: Buffer, send: Callable[[Buffer], None], *, to_backend: bool) -> bool:
        """Send a datagram of a flow, at once or in its turn; False: the caller drops and counts it."""

    def forget(self, flow: Hashable) -> int:
        """Drop what waits for a flow that ended, in both directions; return how many datagrams."""


def endpoint_for(
    stream: Stream, transport: asyncio.Transport | None = None, on_closed: OnClosed | None = None
) -> tuple[SocketEndpoint, Endpoint]:
    """Return the protocol for a socket and what to ``attach`` to the stream; without a cap the two are one.

    For a socket that is still to be connected; its transport comes with ``connection_made``.
    """
    gate = stream.gate or stream.session.gate
    if gate is not None:
        return gate.pace(stream, transport, on_closed)
    socket = SocketEndpoint(stream, transport, on_closed)
    return socket, socket


def splice(
    stream: Stream, transport: asyncio.Transport, prelude: bytes = b"", on_closed: OnClosed | None = None
) -> SocketEndpoint:
    """Join a connected transport with a stream that has no endpoint; ``prelude`` was read from it already.

    Returns the transport's protocol.
    """
    socket, endpoint = endpoint_for(stream, transport, on_closed)
    transport.set_protocol(socket)
    stream.attach(endpoint)
    if prelude:
        socket.stream.send(prelude)
    return socket
