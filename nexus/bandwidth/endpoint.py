"""Between a socket and its stream where the node has a cap: bytes wait here for their turn, in both directions.

Strategy: to the socket this is the stream, to the stream it is the endpoint; both are as they are without a cap. Where
a stream is joined with another one (a tunnel at its destination), that one is the socket. What
the cap does not let through at once waits in a lane. Towards the backend that is one read, and the socket is not read
until it has left. Towards the client it is what the backend's credits allow: above ``QUEUE_HIGH_BYTES``, or
``QUEUE_HIGH_MESSAGES``, they wait for bytes that have left, as with a slow socket. Ends follow the bytes before them;
where the stream is over by then, this delivers the rest on its own, and counts among what the process has still to
deliver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from nexus.bandwidth.lane import Lane
from nexus.bandwidth.scheduler import Share
from nexus.link.endpoint import DRAIN_STALL_S, delivery_begins, delivery_ends
from nexus.link.stream import Endpoint, Stream
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.protocol.framing import Buffer

# Both loops' transports have these marks for what waits for a socket.
QUEUE_HIGH_BYTES: Final = 64 * 1024
QUEUE_LOW_BYTES: Final = 16 * 1024
# A message is an object, however small: as many as a new stream's window lets a backend send, and again a quarter.
QUEUE_HIGH_MESSAGES: Final = CREDITS_INITIAL
QUEUE_LOW_MESSAGES: Final = CREDITS_INITIAL // 4


class PacedEndpoint:
    """One stream's bytes under the cap. Give it its ``socket`` before anything else."""

    __slots__ = (
        "_end",
        "_end_held",
        "_forward",
        "_full",
        "_now",
        "_reverse",
        "_socket_full",
        "_stall",
        "_stream",
        "_wanted",
        "socket",
    )

    socket: Endpoint

    def __init__(self, stream: Stream, share: Share, now: Callable[[], float], *, joined: bool = False) -> None:
        """Send for ``stream`` what ``share`` allows, by the clock ``now``.

        ``joined``: the socket is a stream, to which one piece is one message.
        """
        self._stream = stream
        self._now = now
        self._forward = Lane(share, stream.send, self._has_sent, pieces_are_messages=True)
        self._reverse = Lane(share, self._deliver, self._has_delivered, pieces_are_messages=joined)
        self._wanted = True
        self._end_held: Callable[[], None] | None = None
        self._full = False
        self._socket_full = False
        self._end: Callable[[], None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        stream.held_up = self._is_held_up

    # -- StreamSide: from the socket --------------------------------------------------------------------------------

    def send(self, payload: Buffer) -> None:
        """Send bytes read from the socket, now or in their turn."""
        if payload and not self._stream.ended and not self._forward.offer(payload, self._now()):
            self.socket.read_more(False)

    def send_eof(self) -> None:
        """Pass the FIN on behind the last byte."""
        self._behind_last_byte(self._stream.send_eof)

    def end_cleanly(self) -> None:
        """End the stream in order behind the last byte."""
        self._behind_last_byte(self._stream.end_cleanly)

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the far end, here and in the stream."""
        return self._forward.waiting + self._stream.unsent_bytes()

    def endpoint_lost(self) -> None:
        """The socket broke: nothing that waits has anywhere to go."""
        self._drop()
        self._stream.endpoint_lost()

    def endpoint_full(self, full: bool) -> None:
        """The socket is slow, or has room again."""
        self._socket_full = full
        self._reverse.set_open(not full)
        self._tell_full()

    # -- Endpoint: from the stream ----------------------------------------------------------------------------------

    def write(self, payload: Buffer) -> None:
        """Deliver bytes, now or in their turn."""
        if not self._reverse.offer(payload, self._now()):
            self._tell_full()

    def write_eof(self) -> None:
        """Send FIN behind the last byte."""
        if self._reverse.messages:
            self._end = self.socket.write_eof
        else:
            self.socket.write_eof()

    def finish(self) -> None:
        """Deliver the rest, then end both directions; what the client still sends is read and dropped."""
        self._forward.clear()
        if not self._reverse.messages:
            self.socket.finish()
            return
        self._end = self._finish
        self.socket.read_more(True)
        delivery_begins(self)
        self._watch()

    def abort(self) -> None:
        """Drop what waits and break both directions."""
        self._drop()
        self.socket.abort()

    def read_more(self, wanted: bool) -> None:
        """Note whether the stream takes bytes; while some wait here, the socket is not read anyway."""
        self._wanted = wanted
        self._forward.set_open(wanted)
        if not self._forward.messages:
            self.socket.read_more(wanted)

    def unwritten_bytes(self) -> int:
        """Return how many bytes wait for the client, here and in the socket's transport."""
        return self._reverse.waiting + self.socket.unwritten_bytes()

    # -- Unfinished: the stream is over, the rest is not delivered --------------------------------------------------

    def give_up(self) -> None:
        """Break the connection rather than cut it off as if it were whole."""
        self.abort()

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _is_held_up(self) -> bool:
        return self._forward.is_held_up or self._reverse.is_held_up

    def _behind_last_byte(self, end: Callable[[], None]) -> None:
        if self._forward.messages:
            self._end_held = end
        else:
            end()

    def _deliver(self, payload: Buffer) -> None:
        self.socket.write(payload)

    def _has_sent(self) -> None:
        if self._forward.messages:
            return
        if self._end_held is not None:
            end, self._end_held = self._end_held, None
            end()
        elif self._wanted:
            self.socket.read_more(True)

    def _has_delivered(self) -> None:
        if self._end is not None and not self._reverse.messages:
            end, self._end = self._end, None
            end()
        self._tell_full()
        if self._full and not self._socket_full:
            # Credits follow each message: a sender that got none before the queue is nearly empty would leave it
            # empty for a round trip.
            self._stream.endpoint_keeps(self._reverse.messages)

    def _tell_full(self) -> None:
        """Let credits wait, or flow again."""
        lane = self._reverse
        if self._full:
            is_long = lane.waiting > QUEUE_LOW_BYTES or lane.messages > QUEUE_LOW_MESSAGES
        else:
            is_long = lane.waiting > QUEUE_HIGH_BYTES or lane.messages >= QUEUE_HIGH_MESSAGES
        full = self._socket_full or is_long
        if full is not self._full:
            self._full = full
            self._stream.endpoint_full(full)

    def _finish(self) -> None:
        self._drop()
        self.socket.finish()

    def _drop(self) -> None:
        self._forward.clear()
        self._reverse.clear()
        self._end_held = None
        self._end = None
        delivery_ends(self)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch(self) -> None:
        self._stall = asyncio.get_running_loop().call_later(DRAIN_STALL_S, self._check, self.unwritten_bytes())

    def _check(self, before: int) -> None:
        """Break a connection whose client takes none of its last bytes; to wait for the cap is no stall."""
        if self._socket_full and self.unwritten_bytes() == before:
            self.abort()
        else:
            self._watch()
