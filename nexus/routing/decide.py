"""What becomes of one accepted connection, once its first bytes are read.

Strategy: one plain function from facts to a value. The listener hands in what peeking found (a host name or none, and
whether it was TLS) and gets back either the member to open a stream on, or the reason to close. It does the I/O, and
when the chosen member cannot take the stream it asks again with that member excluded; nothing is decided twice for
the same member, so the retries end.

A name that was read decides alone: if nobody serves it the connection is refused, and a port claim is no second
choice. A connection without a name is the only one a port claim may serve; ``_without_host`` is the place for that
rule, and carries ``nameless`` so that the refusal still says why no name was found.

``RejectReason`` holds every reason to refuse a client before a stream exists, including those the listener finds by
itself (too many peeks, a client that goes away), so that logs and metrics have one list.

Source: spec node-and-mesh 4.5, 4.7.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

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


@dataclass(frozen=True, slots=True)
class ToBackend(Generic[M]):
    """Open a stream on ``member``.

    ``route_key`` is the name that matched, normalised; ``local_port`` the port the client connected to. Both, and
    ``is_tls``, go into the ``connect`` message.
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
    serves the name. Source: spec node-and-mesh 4.7.
    """
    name = normalize(host) if host else ""
    if not name:
        return _without_host(nameless)
    member = table.lookup_host(name, exclude)
    if member is None:
        return Reject(RejectReason.NO_BACKEND, name)
    return ToBackend(member, name, is_tls, local_port)


def _without_host(nameless: RejectReason) -> Reject:
    return Reject(nameless)
