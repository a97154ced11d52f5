"""Who is connected to this hub, what they serve, and what they have moved: the one view of status and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nexus.auth.grants import FLOW_IDLE_DEFAULT_S
from nexus.resolver import Resolver
from nexus.routing.decide import Reject, RejectReason, decide
from nexus.routing.table import RouteTable

if TYPE_CHECKING:
    from nexus.bandwidth.limiter import Limiter
    from nexus.hub.backend import BackendSession
    from nexus.link.flow import Address, Flow, FlowOwner
    from nexus.link.stream import Stream
    from nexus.transport import OpenRequest


@dataclass(slots=True)
class Totals:
    """What ended sessions and streams leave behind; counters only ever rise."""

    sessions: int = 0
    streams: int = 0
    bytes_to_backends: int = 0
    bytes_to_clients: int = 0
    session_ends: Counter[str] = field(default_factory=Counter)
    auth_failures: Counter[str] = field(default_factory=Counter)
    stream_resets: Counter[str] = field(default_factory=Counter)
    reauthentications: Counter[str] = field(default_factory=Counter)
    ignored_texts: int = 0
    session_faults: int = 0
    outbound: int = 0
    outbound_refusals: Counter[str] = field(default_factory=Counter)


class Registry:
    """The sessions of this hub; the ``Dialer`` of the listeners."""

    def __init__(self, bandwidth: Limiter | None = None, flow_idle_default_s: float = FLOW_IDLE_DEFAULT_S) -> None:
        """Start empty; with a cap, every session gets a gate of ``bandwidth``.

        The default idle time holds for a UDP port that nobody claims any more.
        """
        self.bandwidth = bandwidth
        self.resolver = Resolver()  # of the names that backends have dialled
        self._flow_idle_default_s = flow_idle_default_s
        self.table: RouteTable[BackendSession] = RouteTable()
        self.sessions: set[BackendSession] = set()
        self.totals = Totals()
        self.routes_changed: Callable[[], None] = lambda: None
        self.closed = False  # the node stops: backends may have nothing new dialled
        self._subjects: Counter[str] = Counter()

    def join(self, backend: BackendSession) -> None:
        """Let an authenticated backend serve its routes."""
        self.sessions.add(backend)
        self.totals.sessions += 1
        self._subjects[backend.grant.subject] += 1
        self.table.claim(backend, backend.grant.route_keys, backend.grant.weight)
        self.routes_changed()

    def retire(self, backend: BackendSession) -> None:
        """Route nothing new to a backend; its streams go on. Idempotent."""
        if self.table.release(backend):
            self.routes_changed()

    def leave(self, backend: BackendSession, why: str) -> None:
        """Forget a backend whose link is gone."""
        self.retire(backend)
        self.sessions.discard(backend)
        self._subjects[backend.grant.subject] -= 1
        if self._subjects[backend.grant.subject] <= 0:
            del self._subjects[backend.grant.subject]
        self.totals.session_ends[why] += 1
        self.totals.bytes_to_backends += backend.session.bytes_sent
        self.totals.session_faults += backend.session.faults
        self.totals.bytes_to_clients += backend.session.bytes_received

    def sessions_of(self, subject: str) -> int:
        """Return how many sessions the token's subject holds."""
        return self._subjects[subject]

    def open_stream(self, request: OpenRequest) -> Stream | Reject:
        """Open a stream on the backend whose turn it is, or on the next one where that link is going down."""
        tried: set[BackendSession] = set()
        while True:
            decision = decide(
                self.table,
                request.host,
                is_tls=request.is_tls,
                local_port=request.local_port,
                nameless=request.nameless,
                exclude=tried,
            )
            if isinstance(decision, Reject):
                return decision
            stream = decision.member.open_stream(request, decision.route_key)
            if stream is not None:
                self.totals.streams += 1
                return stream
            tried.add(decision.member)

    def claims_port(self, port: int) -> bool:
        """Tell whether a backend has claimed this TCP port."""
        return self.table.claims_port("tcp", port)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Open a flow on the backend whose turn it is, or on the next one where that link is full or going down."""
        tried: set[BackendSession] = set()
        while (backend := self.table.lookup_port("udp", request.local_port, tried)) is not None:
            flow = backend.open_flow(request, owner, client)
            if flow is not None:
                self.totals.streams += 1
                return flow
            tried.add(backend)
        return Reject(RejectReason.OVERLOADED if tried else RejectReason.NO_BACKEND)

    def flow_idle_s(self, port: int) -> float:
        """Return the greatest idle time that the port's backends claim."""
        claimed = (backend.grant.udp_routes[port] for backend in self.table.port_members("udp", port))
        return max(claimed, default=self._flow_idle_default_s)

    def streams(self) -> Iterator[Stream]:
        """Iterate over a snapshot of all streams."""
        for backend in tuple(self.sessions):
            yield from tuple(backend.session.streams.values())
