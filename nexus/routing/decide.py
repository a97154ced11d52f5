"""What becomes of one accepted connection, once its first bytes are read.

Strategy: one plain function from facts to a value. The listener hands in what peeking found (a host name or none, and
whether it was TLS) and gets back either the member to open a stream on, or the reason to close. It does the I/O, and
when the chosen member cannot take the stream it asks again with that member excluded; nothing is decided twice for
the same member, so the retries end.

A name that was read decides alone: if nobody serves it the connection is refused, and a port claim is no second
choice. A connection without a name is the only one a port claim may serve, whatever the reason is why none was read:
``nameless`` carries it, so that a refusal still says why, and ``CLAIMABLE`` holds those for which a claim is tried.

``RejectReason`` holds every reason to refuse a client before a stream exists, including those the listener finds by
itself (too many peeks, a client that goes away), so that logs and metrics have one list.

Source: spec node-and-mesh 4.5, 4.7.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from nexus.hostnames import normalize
from nexus.routing.table import RouteTable

M = TypeVar("M", bound=Hashable)


class RejectReason(Enum):
    """Why a client is refused; the value is the word in logs and metric labels."""

    NO_NAME = "no_name"
    """Valid TLS or HTTP, but neither SNI nor Host."""
    UNRECOGNISED = "unrecognised"
    """Neither TLS nor HTTP."""
    TOO_LARGE = "too_large"
    """The name did not come within the bytes allowed for peeking."""
    TIMEOUT = "timeout"
    """The name did not come within the time allowed for peeking."""
    CLIENT_GONE = "client_gone"
    """The client closed before it said whom it wants."""
    OVERLOADED = "overloaded"
    """Too many connections are being peeked at."""
    NO_BACKEND = "no_backend"
    """Nobody serves the name, or nobody is left to try."""


CLAIMABLE: Final = frozenset(
    {RejectReason.NO_NAME, RejectReason.UNRECOGNISED, RejectReason.TIMEOUT, RejectReason.CLIENT_GONE}
)
"""Why no name was read, where a port claim may serve the connection. A hello or head that is too large may well have
one, which nobody looked at, so it is refused as in the original."""


@dataclass(frozen=True, slots=True)
class ToBackend(Generic[M]):
    """Open a stream on ``member``.

    ``route_key`` is the name that matched, normalised, or ``tcp:<port>``; ``local_port`` the port the client connected
    to. Both, and ``is_tls``, go into the ``connect`` message.
    """

    member: M
    route_key: str
    is_tls: bool
    local_port: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Close the connection; ``host`` is the normalised name that was asked for, empty when there was none."""

    reason: RejectReason
    host: str = ""


def decide(
    table: RouteTable[M],
    host: str | None,
    *,
    is_tls: bool,
    local_port: int,
    nameless: RejectReason = RejectReason.NO_NAME,
    exclude: Container[M] = (),
) -> ToBackend[M] | Reject:
    """Decide where a connection goes.

    ``host`` is the SNI or Host as peeked, normalised or not; None or blank when there was none, and then ``nameless``
    says why. ``exclude`` holds the members that already failed this connection. Takes one turn of the pool that
    serves the name or the port. Source: spec node-and-mesh 4.5, 4.7.
    """
    name = normalize(host) if host else ""
    if name:
        member = table.lookup_host(name, exclude)
        rejected = Reject(RejectReason.NO_BACKEND, name)
    else:
        member = table.lookup_port("tcp", local_port, exclude) if nameless in CLAIMABLE else None
        rejected = Reject(nameless)
    return rejected if member is None else ToBackend(member, name or f"tcp:{local_port}", is_tls, local_port)
