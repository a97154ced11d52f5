"""The seam between listeners and whoever carries a stream: the hub, the mesh beside it, and other workers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, Protocol, TypeAlias

from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Stream
from nexus.routing.decide import Reject, RejectReason


class _Passed(Enum):
    PASSED = "passed"


PASSED: Final = _Passed.PASSED
"""The answer to a request whose connection another worker has now: nothing is left to do here but to forget it."""

IsPassed: TypeAlias = Literal[_Passed.PASSED]


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection, for another worker to go on with.

    ``prelude`` was read from it already; ``spoke`` says what a refusal is answered in.
    """

    transport: asyncio.Transport
    prelude: bytes
    spoke: str


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a listener knows about a client when it asks for a stream.

    ``host`` is the name as peeked, None where there was none, and then ``nameless`` says why. ``client`` is
    ``ip:port``. With ``connection`` the whole of it may be passed to another worker.
    """

    host: str | None
    is_tls: bool
    local_port: int
    client: str
    nameless: RejectReason = RejectReason.NO_NAME
    connection: Connection | None = field(default=None, compare=False, repr=False)


class Dialer(Protocol):
    """Opens streams towards backends."""

    def open_stream(self, request: OpenRequest) -> Stream | IsPassed | Reject:
        """Return a stream without endpoint, already announced to its backend, or why there is none; never blocks.

        PASSED only where the request came with its connection.
        """

    def claims_port(self, port: int) -> bool:
        """Tell whether a client of this TCP port is served although it names no host."""

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Return a flow for a client of a UDP port, already announced to its backend, or why there is none."""

    def flow_idle_s(self, port: int) -> float:
        """Return after how many seconds without a datagram a flow of this UDP port ends."""


class LocalFirst:
    """A node's own backends, and peers for what those do not serve. Local beats peers, exact or not."""

    def __init__(self, local: Dialer, peers: Dialer) -> None:
        """Ask ``local`` first."""
        self._local = local
        self._peers = peers

    def open_stream(self, request: OpenRequest) -> Stream | IsPassed | Reject:
        """Open a stream here, else through a peer, else say why there is none here."""
        opened = self._local.open_stream(request)
        if not isinstance(opened, Reject):
            return opened
        through = self._peers.open_stream(request)
        return opened if isinstance(through, Reject) else through

    def claims_port(self, port: int) -> bool:
        """Tell whether anybody serves this TCP port."""
        return self._local.claims_port(port) or self._peers.claims_port(port)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Open a flow here, else through a peer, else say why there is none here."""
        opened = self._local.open_flow(request, owner, client)
        if isinstance(opened, Flow):
            return opened
        through = self._peers.open_flow(request, owner, client)
        return through if isinstance(through, Flow) else opened

    def flow_idle_s(self, port: int) -> float:
        """Return what holds for this node's own backends."""
        return self._local.flow_idle_s(port)
