"""The socket at a stream's end: the public client's on the node, the local service's in the backend client.

Reads at most one message's worth at a time into a buffer shared by all sockets of a thread, so an idle connection costs
no buffer. Ends are honest: ``finish`` delivers everything, then FIN; ``abort`` is an RST.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Protocol, cast

from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer

# After FIN, bytes that still arrive are read and dropped for so long: closing a socket with unread bytes sends an RST,
# which may destroy what the peer has not read yet (RFC 1122 4.2.2.13; nginx `lingering_time` has the same value).
LINGER_S: Final = 30.0
# A peer that takes none of its last bytes for so long is gone.
DRAIN_STALL_S: Final = 60.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_thread = threading.local()

OnClosed = Callable[[], None]


class StreamSide(Protocol):
    """What a socket's endpoint tells: the stream, or what stands between the two where bandwidth is shared."""

    def send(self, payload: Buffer) -> None:
        """Take bytes that were read."""

    def send_eof(self) -> None:
        """The socket will send no more."""

    def endpoint_lost(self) -> None:
        """The socket broke."""

    def endpoint_full(self, full: bool) -> None:
        """The socket has too much to deliver, or has room again."""


class Unfinished(Protocol):
    """A connection whose stream is over, while some of its bytes are still to be delivered."""

    def unwritten_bytes(self) -> int:
        """Return how many bytes are still to be delivered."""

    def give_up(self) -> None:
        """Break the connection if any are."""


_finishing: set[Unfinished] = set()


def receive_view() -> memoryview:
    """Return this thread's receive buffer; what is read into it is copied out before the callback returns."""
    view: memoryview | None = getattr(_thread, "view", None)
    if view is None:
        view = _thread.view = memoryview(bytearray(PAYLOAD_MAX_BYTES))
    return view


def reset(transport: asyncio.Transport) -> None:
    """Close with an RST, dropping what waits; a no-op for a socket that is closed."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        if sock.fileno() < 0:  # both loops fail on a transport that is closed
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class SocketEndpoint(asyncio.BufferedProtocol):
    """A TCP connection as the endpoint of one stream; ``on_closed`` is called once when the socket is closed."""

    __slots__ = ("_eof_received", "_eof_sent", "_on_closed", "_over", "_view", "stream", "transport")

    transport: asyncio.Transport

    def __init__(
        self, stream: StreamSide, transport: asyncio.Transport | None = None, on_closed: OnClosed | None = None
    ) -> None:
        """Take a connected transport, or let ``connection_made`` bring it."""
        self.stream = stream
        if transport is not None:
            self.transport = transport
        self._view = receive_view()
        self._eof_received = False
        self._eof_sent = False
        self._over = False
        self._on_closed = on_closed

    # -- asyncio callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Offer the shared buffer."""
        del sizehint
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Send on what was read."""
        self.stream.send(bytes(self._view[:nbytes]))

    def eof_received(self) -> bool:
        """Pass the FIN on and keep the other direction."""
        self._eof_received = True
        self.stream.send_eof()
        return True

    def pause_writing(self) -> None:
        """Withhold credits while the socket is slow."""
        self.stream.endpoint_full(True)

    def resume_writing(self) -> None:
        """Grant what was withheld."""
        self.stream.endpoint_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the stream that the connection broke, unless this side broke it."""
        del exc
        if not self._over:
            self._over = True
            self.stream.endpoint_lost()
        if self._on_closed is not None:
            self._on_closed()

    # -- Endpoint ---------------------------------------------------------------------------------------------------

    def write(self, payload: Buffer) -> None:
        """Deliver bytes."""
        if not self.transport.is_closing():  # a loop may raise for a connection that broke a moment ago
            self.transport.write(payload)

    def write_eof(self) -> None:
        """Send FIN behind the last byte."""
        if not self._eof_sent and not self.transport.is_closing():
            self._eof_sent = True
            _write_eof(self.transport)

    def finish(self) -> None:
        """Deliver the rest, send FIN, and close once the other side has closed or LINGER_S passed."""
        if not self._over:
            self._over = True
            finish(self.transport, eof_received=self._eof_received, eof_sent=self._eof_sent, on_closed=self._on_closed)

    def abort(self) -> None:
        """Close with an RST."""
        self._over = True
        reset(self.transport)

    def read_more(self, wanted: bool) -> None:
        """Read, or stop reading."""
        if self.transport.is_closing() or self._eof_received:
            return
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def unwritten_bytes(self) -> int:
        """Return how many bytes wait in the transport."""
        return self.transport.get_write_buffer_size()


def finish(
    transport: asyncio.Transport, *, eof_received: bool, eof_sent: bool = False, on_closed: OnClosed | None = None
) -> None:
    """Take a transport over for its orderly end: deliver, FIN, drop what still arrives, close."""
    transport.set_protocol(_Finishing(transport, on_closed))
    if transport.is_closing():
        return
    if eof_received:
        transport.close()  # nothing is unread, and what waits is delivered first
        return
    if not eof_sent:
        _write_eof(transport)
    if not transport.is_closing():
        transport.resume_reading()


def _write_eof(transport: asyncio.Transport) -> None:
    """Send FIN behind the last byte; a connection that the peer has reset meanwhile is lost instead."""
    try:
        transport.write_eof()
    except OSError:  # shutdown(2) says ENOTCONN before the event loop has seen the RST
        transport.abort()


def delivery_begins(unfinished: Unfinished) -> None:
    """Count a connection among those that are finishing in this process."""
    _finishing.add(unfinished)


def delivery_ends(unfinished: Unfinished) -> None:
    """Undo ``delivery_begins``; idempotent."""
    _finishing.discard(unfinished)


def undelivered_bytes() -> int:
    """Return what connections that are finishing in this process still have to deliver."""
    return sum(finishing.unwritten_bytes() for finishing in _finishing)


def reset_undelivered() -> None:
    """Break what is not delivered; for the end of a process, which would cut it off with a FIN as if it were whole."""
    for finishing in tuple(_finishing):
        finishing.give_up()


class _Finishing(asyncio.BufferedProtocol):
    """The last protocol of a connection: drops what arrives, watches that what waits leaves, then closes."""

    __slots__ = ("_on_closed", "_timer", "_transport", "_view")

    def __init__(self, transport: asyncio.Transport, on_closed: OnClosed | None) -> None:
        self._transport = transport
        self._on_closed = on_closed
        self._view = receive_view()
        delivery_begins(self)
        waiting = transport.get_write_buffer_size()
        self._watch(waiting, DRAIN_STALL_S if waiting else LINGER_S)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Drop it."""

    def eof_received(self) -> bool:
        self._transport.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        delivery_ends(self)
        self._timer.cancel()
        if self._on_closed is not None:
            self._on_closed()

    def unwritten_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def give_up(self) -> None:
        if self.unwritten_bytes():
            reset(self._transport)

    def _watch(self, waiting: int, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check, waiting)

    def _check(self, before: int) -> None:
        """Go on while bytes leave; once all have left, wait LINGER_S more for the other side's FIN."""
        waiting = self.unwritten_bytes()
        if waiting and waiting == before:
            reset(self._transport)
        elif waiting:
            self._watch(waiting, DRAIN_STALL_S)
        elif before:
            self._watch(0, LINGER_S)
        else:
            self._transport.close()
