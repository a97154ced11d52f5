"""Who is connected to this hub, what they serve, and what they have moved: the one view of status and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nexus.auth.grants import FLOW_IDLE_DEFAULT_S
from nexus.hostnames import normalize
from nexus.resolver import Resolver
from nexus.routing.decide import Reject, RejectReason, decide
from nexus.routing.table import RouteTable

if TYPE_CHECKING:
    from nexus.bandwidth.limiter import Limiter
    from nexus.hub.backend import BackendSession
    from nexus.link.flow import Address, Flow, FlowOwner
    from nexus.link.stream import Stream
    from nexus.transport import IsPassed, OpenRequest


class Member(Protocol):
    """A backend as the routing table knows it: a session of this hub, or one of another worker's."""

    def __hash__(self) -> int:
        """Members are compared by identity."""

    @property
    def udp_routes(self) -> Mapping[int, int]:
        """The UDP ports claimed, with the idle time of their flows in seconds."""

    def open_stream(self, request: OpenRequest, route_key: str) -> Stream | IsPassed | None:
        """Announce a new stream to the backend; None where it takes none."""

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | None:
        """Announce a new UDP flow; None where the backend takes none now."""


class Watcher(Protocol):
    """Is told of this hub's own backends."""

    def joined(self, backend: BackendSession) -> None:
        """It serves its routes."""

    def retired(self, backend: BackendSession) -> None:
        """It gets nothing new any more; called once, and before it leaves."""

    def left(self, backend: BackendSession) -> None:
        """It is gone."""


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
    """The sessions of this hub; the ``Dialer`` of the listeners.

    ``table`` routes to every backend of the node. It is ``own``, too, unless other workers have backends.
    """

    def __init__(self, bandwidth: Limiter | None = None, flow_idle_default_s: float = FLOW_IDLE_DEFAULT_S) -> None:
        """Start empty; with a cap, every session gets a gate of ``bandwidth``.

        The default idle time holds for a UDP port that nobody claims any more.
        """
        self.bandwidth = bandwidth
        self.resolver = Resolver()  # of the names that backends have dialled
        self._flow_idle_default_s = flow_idle_default_s
        self.table: RouteTable[Member] = RouteTable()
        self.own: RouteTable[Member] = self.table
        self.sessions: set[BackendSession] = set()
        self.totals = Totals()
        self.routes_changed: Callable[[], None] = lambda: None
        self.closed = False  # the node stops: backends may have nothing new dialled
        self._subjects: Counter[str] = Counter()
        self._watcher: Watcher | None = None
        self.prefers_own: Callable[[str], bool] = lambda _key: False

    def share(self, watcher: Watcher) -> None:
        """Have other workers' backends in the table beside this one's, and let them know; call before anybody joins."""
        self.own = RouteTable()
        self._watcher = watcher

    def join(self, backend: BackendSession) -> None:
        """Let an authenticated backend serve its routes."""
        self.sessions.add(backend)
        self.totals.sessions += 1
        grant = backend.grant
        if self.own is not self.table:
            self.own.claim(backend, grant.route_keys, grant.weight)
        self.claim(backend, grant.route_keys, grant.weight, grant.subject)
        if self._watcher is not None:
            self._watcher.joined(backend)

    def retire(self, backend: BackendSession) -> None:
        """Route nothing new to a backend; its streams go on. Idempotent."""
        if self.own is not self.table:
            self.own.release(backend)
        if self.release(backend) and self._watcher is not None:
            self._watcher.retired(backend)

    def leave(self, backend: BackendSession, why: str) -> None:
        """Forget a backend whose link is gone."""
        self.retire(backend)
        self.sessions.discard(backend)
        self.forget(backend.grant.subject)
        if self._watcher is not None:
            self._watcher.left(backend)
        self.totals.session_ends[why] += 1
        self.totals.bytes_to_backends += backend.session.bytes_sent
        self.totals.session_faults += backend.session.faults
        self.totals.bytes_to_clients += backend.session.bytes_received

    # -- The routes of all workers ------------------------------------------------------------------------------------

    def claim(self, member: Member, route_keys: Iterable[str], weight: int, subject: str) -> None:
        """Route to a backend, and count it for its token's subject until ``forget``."""
        self._subjects[subject] += 1
        self.table.claim(member, route_keys, weight)
        self.routes_changed()

    def release(self, member: Member) -> bool:
        """Route nothing new to a backend; return whether anything was."""
        had_any = self.table.release(member)
        if had_any:
            self.routes_changed()
        return had_any

    def forget(self, subject: str) -> None:
        """Note that a session of the token's subject is gone."""
        self._subjects[subject] -= 1
        if self._subjects[subject] <= 0:
            del self._subjects[subject]

    def sessions_of(self, subject: str) -> int:
        """Return how many sessions the token's subject holds."""
        return self._subjects[subject]

    # -- Dialer -----------------------------------------------------------------------------------------------------

    def open_stream(self, request: OpenRequest, *, own: bool = False) -> Stream | IsPassed | Reject:
        """Open a stream on the backend whose turn it is, or on the next one where that link is going down.

        With ``own`` only on those of this hub, which come first where ``prefers_own`` says so of the route.
        """
        tried: set[Member] = set()
        only_own = own or (self.own is not self.table and self._prefers_own(request))
        while True:
            decision = decide(
                self.own if only_own else self.table,
                request.host,
                is_tls=request.is_tls,
                local_port=request.local_port,
                nameless=request.nameless,
                exclude=tried,
            )
            if isinstance(decision, Reject):
                if only_own and not own:
                    only_own = False
                    continue
                return decision
            stream = decision.member.open_stream(request, decision.route_key)
            if stream is not None:
                return stream
            tried.add(decision.member)

    def _prefers_own(self, request: OpenRequest) -> bool:
        host = normalize(request.host) if request.host else ""
        return self.prefers_own(self.table.key_of_host(host) if host else f"tcp:{request.local_port}")

    def claims_port(self, port: int) -> bool:
        """Tell whether a backend has claimed this TCP port."""
        return self.table.claims_port("tcp", port)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address, *, own: bool = False) -> Flow | Reject:
        """Open a flow on the backend whose turn it is, or on the next one where that link is full or going down.

        With ``own`` only on those of this hub.
        """
        table = self.own if own else self.table
        tried: set[Member] = set()
        while (backend := table.lookup_port("udp", request.local_port, tried)) is not None:
            flow = backend.open_flow(request, owner, client)
            if flow is not None:
                return flow
            tried.add(backend)
        return Reject(RejectReason.OVERLOADED if tried else RejectReason.NO_BACKEND)

    def flow_idle_s(self, port: int) -> float:
        """Return the greatest idle time that the port's backends claim."""
        claimed = (backend.udp_routes[port] for backend in self.table.port_members("udp", port))
        return max(claimed, default=self._flow_idle_default_s)

    def streams(self) -> Iterator[Stream]:
        """Iterate over a snapshot of all streams."""
        for backend in tuple(self.sessions):
            yield from tuple(backend.session.streams.values())
