"""The seam between listeners and whoever carries a stream: the hub now, the mesh beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nexus.link.stream import Stream
from nexus.routing.decide import Reject, RejectReason


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a listener knows about a client when it asks for a stream.

    ``host`` is the name as peeked, None where there was none, and then ``nameless`` says why. ``client`` is
    ``ip:port``.
    """

    host: str | None
    is_tls: bool
    local_port: int
    client: str
    nameless: RejectReason = RejectReason.NO_NAME


class Dialer(Protocol):
    """Opens streams towards backends."""

    def open_stream(self, request: OpenRequest) -> Stream | Reject:
        """Return a stream without endpoint, already announced to its backend, or why there is none; never blocks."""

    def claims_port(self, port: int) -> bool:
        """Tell whether a client of this TCP port is served although it names no host."""
