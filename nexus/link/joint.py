"""Joining two streams: what a stream of one session receives, a stream of another sends.

Each stream is the other's endpoint. Neither waits: a stream that cannot send keeps what it was given and says that it
wants no more, and that withholds credits on the other's side, so at most one window of messages stands between them.
Under the node's cap its gate stands between the two.
"""

from __future__ import annotations

from typing import Protocol

from nexus.link.endpoint import StreamSide
from nexus.link.splice import Gate
from nexus.link.stream import Stream
from nexus.protocol.framing import Buffer


class Side(StreamSide, Protocol):
    """A stream as its endpoint sees it, itself or what stands before it under the cap."""

    def end_cleanly(self) -> None:
        """End in order behind the last byte."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the far end."""


def join(one: Stream, other: Stream, gate: Gate | None = None) -> None:
    """Connect two streams that have no endpoint yet, through ``gate`` where there is one."""
    to_other = _Joint(other)
    if gate is None:
        to_one = _Joint(one)
        one.attach(to_other)
    else:
        between = gate.between(one)
        between.socket = to_other
        to_one = _Joint(between)
        one.attach(between)
    to_other.twin, to_one.twin = to_one, to_other
    other.attach(to_one)


class _Joint:
    """The endpoint of a stream that is another stream; ends and breaks pass through as they are, once."""

    __slots__ = ("_other", "over", "twin")

    twin: _Joint

    def __init__(self, other: Side) -> None:
        self._other = other
        self.over = False

    def write(self, payload: Buffer) -> None:
        self._other.send(payload)

    def write_eof(self) -> None:
        self._other.send_eof()

    def finish(self) -> None:
        if self._ends():
            self._other.end_cleanly()

    def abort(self) -> None:
        if self._ends():
            self._other.endpoint_lost()

    def read_more(self, wanted: bool) -> None:
        self._other.endpoint_full(not wanted)

    def unwritten_bytes(self) -> int:
        return self._other.unsent_bytes()

    def _ends(self) -> bool:
        """Note the end of both streams; return whether the other one is still to be told."""
        first = not self.over
        self.over = self.twin.over = True
        return first
