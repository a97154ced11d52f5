"""All other workers of the node, as one of them sees them.

Strategy: every worker tells all others which backends it has; so each knows all routes, and takes its own turns in each
pool. What is one of a kind (the mesh, UDP ports, the certificate authority's questions) is the first worker's: the
others pass on to it whom no backend serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final

from nexus.addresses import split_address
from nexus.admin.metrics import NodeStats
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.hub.server import HubServer
from nexus.link.connection import CLOSE_TIMEOUT_S
from nexus.link.flow import Address, Flow, FlowOwner
from nexus.link.stream import Stream
from nexus.listeners.tcp import TcpListeners
from nexus.mesh.destination import Destination
from nexus.protocol.tunnels import TunnelRequest
from nexus.routing.decide import Reject, RejectReason
from nexus.sockets import source_key
from nexus.transport import PASSED, IsPassed, LocalFirst, OpenRequest
from nexus.workers import messages
from nexus.workers.channel import close_all
from nexus.workers.figures import figures_of, left_behind, merged
from nexus.workers.messages import (
    AskFigures,
    Figures,
    Leaves,
    Look,
    News,
    PassedBackend,
    PassedClient,
    Retires,
    Serves,
    parse_passed,
)
from nexus.workers.places import Place
from nexus.workers.shares import Shares
from nexus.workers.sibling import Line, RemoteBackend, Sibling

_log = logging.getLogger("nexus.workers")

FIRST: Final = 0
HEAR_TIMEOUT_S: Final = 3.0  # ours: a worker that is too busy to be heard until then is not waited for
FIGURES_TIMEOUT_S: Final = 1.0  # ours: a worker that is busy for longer is shown with its last figures
TELL_S: Final = 0.5  # ours: how late the others hear of what is looked for


class Siblings:
    """The other workers; the ``Dialer`` for what this one does not serve.

    Set ``tasks`` before ``meet``, and what tells of this worker: ``figures``, ``peer_ports``, and ``reasons`` why it
    does not serve; ``look`` looks for a new certificate.
    """

    tasks: asyncio.TaskGroup

    def __init__(self, index: int, count: int, registry: Registry, own_name: str) -> None:
        """Be worker ``index`` of ``count``; who asks for ``own_name``, the hub's by ACME, wants the first worker."""
        self.index = index
        self.count = count
        self.figures: Callable[[], NodeStats]
        self.peer_ports: Callable[[], Iterable[int]] = tuple
        self.reasons: Callable[[], Iterable[str]] = tuple
        self.look: Callable[[], None] = lambda: None
        self.missed: Callable[[int], object] = lambda _index: None  # a worker that was here is not any more
        self.destination = Destination(OwnBackends(registry))
        self._registry = registry
        self._own_name = own_name
        self._listeners: TcpListeners
        self._hub: HubServer
        self._all: dict[int, Sibling] = {}
        self._left_behind: dict[int, Mapping[str, Any]] = {}  # by process
        self._ports: Container[int] = ()
        self._expected: set[int] = set()
        self._heard = asyncio.Event()
        self._closed = False
        self._meetings = 0
        self._served: set[asyncio.Task[None]] = set()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._numbers: dict[BackendSession, int] = {}
        self._last_number = 0
        self._own = Place()
        self._shares = Shares(count)
        registry.share(self)
        registry.prefers_own = self._shares.are_even

    @property
    def is_first(self) -> bool:
        """Whether this worker does what only one does."""
        return self.index == FIRST

    def connect(self, listeners: TcpListeners, hub: HubServer) -> None:
        """Hand over what takes in clients and backends."""
        self._listeners, self._hub = listeners, hub
        listeners.passes = True
        if self.is_first:
            hub.passes_on = self.place_backend

    def meet(self, index: int, link_socket: socket.socket, channel_socket: socket.socket) -> None:
        """Begin to know another worker; of two the one with the lower index answers."""
        if self._closed:
            link_socket.close()
            channel_socket.close()
            return
        self._meetings += 1
        sibling = Sibling(index, self, self._meetings)
        task = self.tasks.create_task(sibling.serve(link_socket, channel_socket, dials=self.index > index))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def hear(self, expected: Iterable[int]) -> None:
        """Return when it is known what these workers serve: whoever comes earlier is refused what they have."""
        self._expected.update(expected)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_TIMEOUT_S):
                while self._expected:
                    self._heard.clear()
                    await self._heard.wait()

    async def run(self) -> None:
        """Tell the others what has changed of what they cannot see, until cancelled."""
        told: News | None = None
        while True:
            await asyncio.sleep(TELL_S)
            if (news := self._news()) != told:
                told = news
                self._tell_all(news)

    def certificate_changed(self) -> None:
        """Have the others take up a new certificate of the hub's at once."""
        self._tell_all(Look())

    async def close(self) -> None:
        """Say goodbye to all, and wait a little for theirs."""
        self._closed = True
        links = [sibling.line.session.link for sibling in self._all.values()]
        for link in links:
            link.close(reason="the worker stops")
        if links:
            await asyncio.wait([link.lost for link in links], timeout=CLOSE_TIMEOUT_S)
        for task in self._served:
            task.cancel()

    @property
    def serving(self) -> int:
        """How many workers there are now."""
        return 1 + len(self._all)

    def sweep(self, now: float, idle_timeout_s: float) -> None:
        """End tunnels between workers that were idle too long (0: never)."""
        self.destination.sweep(now)
        for sibling in tuple(self._all.values()):
            sibling.line.sweep(now, idle_timeout_s)

    def streams(self) -> Iterable[Stream]:
        """Return all tunnels to other workers that begin here."""
        return [
            stream
            for sibling in self._all.values()
            for stream in sibling.line.session.streams.values()
            if stream not in sibling.line.served
        ]

    def unready(self) -> tuple[str, ...]:
        """Return why not all of the node serves; nothing where it does."""
        missing = [index for index in range(self.count) if index != self.index and index not in self._all]
        others = sorted(self._all.values(), key=lambda sibling: sibling.index) if self.is_first else []
        return (
            *(f"worker {index} does not serve" for index in missing),
            *(f"worker {sibling.index}: {reason}" for sibling in others for reason in sibling.reasons),
        )

    def place_backend(self, connection: socket.socket, address: str) -> bool:
        """Give a connection to the hub to the worker that has the fewest of its source; tell whether it is another one.

        So the sessions of one program are spread over the workers; of equals the one with the fewest of all has it, or
        this one. Only the first worker listens for backends: one that decides knows who is on the way.
        """
        source = source_key(address)
        place, least = self._own, None
        for sibling in self._all.values():
            if not sibling.reasons and sibling.place.load(source) < place.load(source):
                place, least = sibling.place, sibling
        if least is not None and least.hand(PassedBackend(address), connection.fileno()):
            least.place.expect(source)
            connection.close()
            return True
        self._own.expect(source)
        return False

    # -- Figures ----------------------------------------------------------------------------------------------------

    async def ask_figures(self) -> None:
        """Have the figures of all workers brought up to date."""
        loop = asyncio.get_running_loop()
        for index, sibling in self._all.items():
            if index not in self._awaited:  # asked a moment ago
                self._awaited[index] = loop.create_future()
                sibling.tell(AskFigures())
        if self._awaited:
            await asyncio.wait(tuple(self._awaited.values()), timeout=FIGURES_TIMEOUT_S)

    def merged(self, own: NodeStats) -> NodeStats:
        """Return this worker's figures with those of all others, as they were last known."""
        living = [sibling.figures.values for sibling in self._all.values()]
        return merged(own, [*self._left_behind.values(), *living])

    # -- Dialer, for what has no backend ----------------------------------------------------------------------------

    def open_stream(self, request: OpenRequest) -> Stream | IsPassed | Reject:
        """Pass a client on to the first worker, which may have peers that serve it, or answer it itself."""
        first = self._all.get(FIRST)
        if first is not None and first.take_over(request, own=False):
            return PASSED
        return Reject(RejectReason.NO_BACKEND, request.host or "")

    def claims_port(self, port: int) -> bool:
        """Tell whether a peer of the first worker serves this TCP port."""
        return port in self._ports

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """UDP ports are the first worker's."""
        del request, owner, client
        return Reject(RejectReason.NO_BACKEND)

    def flow_idle_s(self, port: int) -> float:
        """Return what holds for the backends of all workers."""
        return self._registry.flow_idle_s(port)

    def wants_first(self, request: OpenRequest) -> bool:
        """Tell whether a client asks for what only the first worker answers."""
        return not self.is_first and bool(self._own_name) and request.host == self._own_name

    # -- Watcher of the registry ------------------------------------------------------------------------------------

    def joined(self, backend: BackendSession) -> None:
        """Let all know whom this worker serves now."""
        self._last_number += 1
        self._numbers[backend] = self._last_number
        self._own.join(_source_of(backend))
        self._shares.add(self.index, backend.grant.route_keys, backend.grant.weight)
        self._tell_all(self._serves(backend))

    def retired(self, backend: BackendSession) -> None:
        """Let nobody send it anything new."""
        self._shares.add(self.index, backend.grant.route_keys, -backend.grant.weight)
        self._tell_all(Retires(self._numbers[backend]))

    def left(self, backend: BackendSession) -> None:
        """Let all forget it."""
        self._own.leave(_source_of(backend))
        self._tell_all(Leaves(self._numbers.pop(backend)))

    # -- SiblingOwner -----------------------------------------------------------------------------------------------

    def met(self, sibling: Sibling) -> None:
        """Tell a worker that has come up what this one serves; of two links to it the later one is used, as there."""
        twin = self._all.get(sibling.index)
        if twin is not None and twin.meeting > sibling.meeting:
            sibling.line.session.link.close()
            return
        if twin is not None:
            twin.line.session.link.close()
        self._all[sibling.index] = sibling
        for backend in self._numbers:
            sibling.tell(self._serves(backend))
            if backend not in self._registry.table:
                sibling.tell(Retires(self._numbers[backend]))
        sibling.tell(self._news())
        _log.debug("%s is there", sibling.name)

    def told(self, sibling: Sibling, text: messages.Text) -> None:
        """Take over what a worker says."""
        match text:
            case Serves():
                backend = sibling.joined(text)
                self._shares.add(sibling.index, text.keys, text.weight)
                self._registry.claim(backend, text.keys, text.weight, text.subject)
            case Retires():
                self._retire(sibling.backends[text.number])
            case Leaves():
                self._forget(sibling.left(text.number))
            case News():
                sibling.reasons = text.reasons
                if sibling.index == FIRST:
                    self._ports = frozenset(text.peer_ports)
                self._expected.discard(sibling.index)
                self._heard.set()
            case Look():
                self.look()
            case AskFigures():
                sibling.tell(Figures(os.getpid(), figures_of(self.figures())))
            case Figures():
                sibling.figures = text
                self._left_behind.pop(text.process, None)  # it was only out of sight
                self._answered(sibling)

    def handed(self, message: bytes, descriptors: Sequence[int]) -> None:
        """Take over the socket that a worker passed on."""
        if len(descriptors) != 1:  # this process may have no more descriptors; the other side is told by the kernel
            close_all(descriptors)
            return
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        passed = parse_passed(message)
        if isinstance(passed, PassedBackend):
            self._own.expect(source_key(passed.address))
            self._hub.take_in(sock, passed.address)
        else:
            self.tasks.create_task(self._adopt(sock, passed))

    def requested(self, line: Line, request: TunnelRequest) -> None:
        """Serve a tunnel by this worker's own backends."""
        self.destination.serve(line, request, line.session.link.now())

    def lost(self, sibling: Sibling) -> None:
        """Forget a worker and what it serves; its counters stay."""
        for number in tuple(sibling.backends):
            self._forget(sibling.left(number))
        self._expected.discard(sibling.index)
        self._heard.set()
        if self._all.get(sibling.index) is sibling:
            del self._all[sibling.index]
            self._left_behind[sibling.figures.process] = left_behind(sibling.figures.values)
            self._answered(sibling)
            self.missed(sibling.index)

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _answered(self, sibling: Sibling) -> None:
        """Wait no more for a worker's figures."""
        awaited = self._awaited.pop(sibling.index, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(None)

    async def _adopt(self, sock: socket.socket, passed: PassedClient) -> None:
        dialer = OwnBackends(self._registry) if passed.own else None
        with contextlib.suppress(OSError):
            await self._listeners.adopt(sock, passed.request, passed.prelude, passed.spoke, dialer)

    def _news(self) -> News:
        return News(tuple(self.reasons()), tuple(self.peer_ports()))

    def _serves(self, backend: BackendSession) -> Serves:
        grant = backend.grant
        number = self._numbers[backend]
        source = _source_of(backend)
        return Serves(number, grant.route_keys, grant.weight, grant.subject, source, dict(grant.udp_routes))

    def _forget(self, backend: RemoteBackend) -> None:
        self._retire(backend)
        self._registry.forget(backend.serves.subject)

    def _retire(self, backend: RemoteBackend) -> None:
        if self._registry.release(backend):
            self._shares.add(backend.sibling.index, backend.serves.keys, -backend.serves.weight)

    def _tell_all(self, text: messages.Text) -> None:
        for sibling in self._all.values():
            sibling.tell(text)


class OwnBackends:
    """The ``Dialer`` of what other workers ask for: this one's own backends, and nobody else."""

    def __init__(self, registry: Registry) -> None:
        """Take the registry of both kinds."""
        self._registry = registry

    def open_stream(self, request: OpenRequest) -> Stream | IsPassed | Reject:
        """Open a stream on an own backend."""
        return self._registry.open_stream(request, own=True)

    def claims_port(self, port: int) -> bool:
        """Tell whether an own backend has claimed this TCP port."""
        return self._registry.own.claims_port("tcp", port)

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | Reject:
        """Open a flow on an own backend."""
        return self._registry.open_flow(request, owner, client, own=True)

    def flow_idle_s(self, port: int) -> float:
        """Return the greatest idle time that the port's backends claim."""
        return self._registry.flow_idle_s(port)


class WorkerDialer(LocalFirst):
    """The ``Dialer`` of a worker that is not the first: every backend of the node, else the first worker."""

    def __init__(self, registry: Registry, siblings: Siblings) -> None:
        """Ask ``registry`` first, but for what only the first worker answers."""
        super().__init__(registry, siblings)
        self._siblings = siblings

    def open_stream(self, request: OpenRequest) -> Stream | IsPassed | Reject:
        """Open a stream here, or let another worker do."""
        if self._siblings.wants_first(request):
            return self._siblings.open_stream(request)
        return super().open_stream(request)


def _source_of(backend: BackendSession) -> str:
    address = split_address(backend.address)
    return source_key(address[0]) if address is not None else ""
