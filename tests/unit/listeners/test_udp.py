"""nexus.listeners.udp: real datagrams on loopback, a dialer that a test controls, and every way to drop one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nexus.bandwidth.datagrams import FLOW_MAX_BYTES
from nexus.bandwidth.limiter import BackendGate
from nexus.bandwidth.scheduler import BYTES_PER_MEGABIT, Scheduler
from nexus.limits import UNBOUNDED
from nexus.link.flow import Flow
from nexus.link.session import DATAGRAMS_WAITING_MAX_BYTES
from nexus.listeners import udp
from nexus.listeners.udp import UdpListeners, UdpPort, UdpSettings
from nexus.protocol.constants import DATA_HEADER_BYTES
from nexus.routing.decide import RejectReason
from nexus.sockets import listen_udp
from nexus.transport import OpenRequest
from tests.support.hub import WAIT_S, eventually
from tests.support.listeners import Dialer
from tests.support.sessions import LOST, Side

ON_BOTH_LOOPS = True
LIMIT = 100


@dataclass
class Setup:
    """One public UDP port."""

    dialer: Dialer
    listeners: UdpListeners
    number: int
    clients: list[socket.socket] = field(default_factory=list)

    def client(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a client of the port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        self.clients.append(sock)
        sock.setblocking(False)
        sock.connect((host, self.number))
        return sock

    @property
    def port(self) -> UdpPort:
        """The port."""
        return self.listeners.ports[self.number]

    async def flow(self, client: socket.socket, datagram: bytes = b"hello") -> Flow:
        """Open a flow by its first datagram."""
        before = self.listeners.flows
        client.send(datagram)
        await eventually(lambda: self.listeners.flows > before, "a flow is open")
        return tuple(self.port.flows)[-1]

    @property
    def dropped(self) -> dict[str, int]:
        """Drops by reason."""
        return dict(self.listeners.stats.dropped)


async def heard(client: socket.socket) -> bytes:
    """Return the next datagram for a client."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.get_running_loop().sock_recv(client, 65_536)


@contextlib.asynccontextmanager
async def listening(
    host: str = "127.0.0.1", flows_max: int = 1000, flows_per_source: int = UNBOUNDED, also: str = ""
) -> AsyncIterator[Setup]:
    """Read a free UDP port, perhaps on another address as well; at the end no flow is left in any table."""
    dialer = Dialer()
    listeners = UdpListeners(dialer, UdpSettings(flows_max, LIMIT, flows_per_source))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(sock)) for sock in listen_udp(host, 0, "udpRelayPorts")]
        setup = Setup(dialer, listeners, int(sockets[0].getsockname()[1]))
        if also:
            more = listen_udp(also, setup.number, "udpRelayPorts")
            sockets += [stack.enter_context(contextlib.closing(sock)) for sock in more]
        listeners.listen(sockets)
        try:
            yield setup
        finally:
            for client in setup.clients:
                client.close()
            listeners.close()
            dialer.side.session.link_lost(LOST)
            assert listeners.flows == listeners.sources.held == 0


async def test_each_client_has_a_flow_of_its_own_and_gets_its_own_answers() -> None:
    """Spec backend-protocol 10: the flow is the client's address and port; the dialer is asked once for each."""
    async with listening() as setup:
        one, two = setup.client(), setup.client()
        flows = [await setup.flow(one, b"from one"), await setup.flow(two, b"from two")]
        one.send(b"again")
        await eventually(lambda: len(setup.dialer.side.link.data()) == 3, "all datagrams are sent on")
        assert setup.dialer.side.link.data() == [b"from one", b"from two", b"again"]
        assert setup.dialer.requests == [
            OpenRequest(None, False, setup.number, f"127.0.0.1:{sock.getsockname()[1]}") for sock in (one, two)
        ]
        for flow, answer in zip(reversed(flows), (b"to two", b""), strict=True):
            flow.receive(answer)
        assert (await heard(two), await heard(one)) == (b"to two", b"")
        assert (setup.listeners.stats.to_backends, setup.listeners.stats.to_clients) == (3, 2)


async def test_both_families_are_served_on_all_addresses_each_from_the_one_that_was_asked() -> None:
    """W26: a socket for each family; an answer from another address than the one asked would be dropped."""
    async with listening("") as setup:
        for host, shown in (("127.0.0.1", "127.0.0.1:"), ("127.0.0.9", "127.0.0.1:"), ("::1", "[::1]:")):
            client = setup.client(host)
            flow = await setup.flow(client)
            assert setup.dialer.requests[-1].client.startswith(shown if host != "127.0.0.9" else "127.")
            flow.receive(b"answer")
            assert await heard(client) == b"answer"


async def test_of_several_addresses_of_a_port_the_one_that_was_asked_last_answers() -> None:
    """With ``relayBindAddresses``; a client's connected socket hears no other address, and is one flow for all."""
    async with listening(also="127.0.0.2") as setup:
        client = setup.client("127.0.0.1")
        flow = await setup.flow(client)
        for asked in ("127.0.0.2", "127.0.0.1"):
            client.connect((asked, setup.number))
            setup.dialer.side.link.log.clear()
            client.send(b"again")
            await eventually(setup.dialer.side.link.data, "it is sent on")
            flow.receive(b"answer")
            assert await heard(client) == b"answer"
        assert setup.listeners.flows == 1


async def test_too_large_a_datagram_costs_only_itself() -> None:
    """W26: in either direction it is dropped and counted; the flow lives on."""
    async with listening() as setup:
        client = setup.client()
        client.send(bytes(LIMIT + 1))
        flow = await setup.flow(client, bytes(LIMIT))
        flow.receive(bytes(LIMIT + 1))
        flow.receive(bytes(LIMIT))
        assert await heard(client) == bytes(LIMIT)
        assert setup.dropped == {"oversize_from_client": 1, "oversize_from_backend": 1}
        assert setup.dialer.side.link.data() == [bytes(LIMIT)]


async def test_a_port_without_a_backend_drops_and_counts() -> None:
    """And serves the same client as soon as there is one."""
    async with listening() as setup:
        client = setup.client()
        setup.dialer.refusal = RejectReason.NO_BACKEND
        client.send(b"lost")
        await eventually(lambda: setup.dropped == {"no_backend": 1}, "it is counted")
        setup.dialer.refusal = None
        await setup.flow(client, b"served")
        assert setup.dialer.side.link.data() == [b"served"]


async def test_a_slow_backend_costs_datagrams_and_holds_up_nobody() -> None:
    """W4, node W14: the port goes on being read, and the flow stays."""
    async with listening() as setup:
        client = setup.client()
        await setup.flow(client)
        setup.dialer.side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
        client.send(b"lost")
        await eventually(lambda: setup.dropped == {"backend_slow": 1}, "it is counted")
        setup.dialer.side.link.waiting = 0
        client.send(b"arrives")
        await eventually(lambda: setup.dialer.side.link.data()[-1] == b"arrives", "the next one arrives")
        assert setup.listeners.flows == 1


async def test_a_flow_whose_session_is_going_down_moves_to_another_backend() -> None:
    """With the very datagram that finds it so."""
    async with listening() as setup:
        client = setup.client()
        old = await setup.flow(client)
        setup.dialer.side.link.closing = True
        client.send(b"second")
        await eventually(lambda: len(setup.dialer.requests) == 2, "another flow is opened")
        (new,) = setup.port.flows
        assert new is not old
        assert setup.listeners.stats.flow_ends == {"session": 1}


async def test_a_flow_that_its_backend_ended_is_opened_anew_by_the_next_datagram() -> None:
    """Its id is another one."""
    async with listening() as setup:
        client = setup.client()
        old = await setup.flow(client)
        del setup.dialer.side.session.flows[old.id]
        old.receive_disconnect("local_error")
        assert setup.listeners.flows == 0
        assert (await setup.flow(client)).id != old.id
        assert setup.listeners.stats.flow_ends == {"backend": 1}


async def test_beyond_the_bound_the_least_recently_seen_flow_goes() -> None:
    """Its backend is told; answers count as being seen (W26)."""
    async with listening(flows_max=2) as setup:
        one, two, three = (setup.client() for _ in range(3))
        first, second = await setup.flow(one), await setup.flow(two)
        first.receive(b"seen")
        await heard(one)
        three.send(b"new")
        await eventually(lambda: setup.listeners.stats.flow_ends == {"evicted": 1}, "one is evicted")
        assert second not in tuple(setup.port.flows)
        assert [control.stream_id for control in setup.dialer.side.link.controls("disconnect")] == [second.id]


async def test_flows_of_one_source_are_bounded_where_the_operator_says_so() -> None:
    """Whatever port they come from; an ended flow makes room."""
    async with listening(flows_per_source=1) as setup:
        flow = await setup.flow(setup.client())
        setup.client().send(b"one too many")
        await eventually(lambda: setup.dropped == {"overloaded": 1}, "it is counted")
        setup.port.end(flow, "idle")
        setup.dialer.refusal = RejectReason.NO_BACKEND
        setup.client().send(b"nobody there")
        await eventually(lambda: setup.dropped == {"overloaded": 1, "no_backend": 1}, "it holds no place")
        setup.dialer.refusal = None
        await setup.flow(setup.client())


async def test_flows_are_counted_by_source_only_where_they_are_bounded() -> None:
    """Of 200,000 flows that end together each count would cost everybody's time."""
    async with listening() as setup:
        await setup.flow(setup.client())
        assert setup.listeners.sources.held == 0
    async with listening(flows_per_source=9) as setup:
        await setup.flow(setup.client())
        assert setup.listeners.sources.held == 1


async def test_idle_flows_end_and_busy_ones_stay() -> None:
    """W26: what the backend says keeps a flow, too. The idle time is asked for at each look."""
    async with listening() as setup:
        flows = [await setup.flow(setup.client()) for _ in range(3)]
        setup.dialer.idle_s = 10.0
        now = flows[0].last_seen = flows[1].last_seen = flows[2].last_seen
        assert not setup.port.expire(now + 9.9)
        assert setup.listeners.flows == 3
        assert not setup.port.expire(now + 10.0)
        assert setup.listeners.flows == 0
        assert setup.listeners.stats.flow_ends == {"idle": 3}
        assert [control.reason for control in setup.dialer.side.link.controls("disconnect")] == ["timeout"] * 3


async def test_many_flows_end_in_portions_and_not_faster_than_their_links_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end is a message: 200,000 at once would be taken for a backend that does not read."""
    monkeypatch.setattr(udp, "SWEEP_FLOWS", 2)
    async with listening() as setup:
        for _ in range(3):
            await setup.flow(setup.client())
        assert setup.port.expire(1e9)
        assert setup.listeners.flows == 1
        setup.dialer.side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
        assert not setup.port.expire(1e9)
        assert setup.listeners.flows == 1


async def test_a_full_link_does_not_keep_the_idle_flows_of_others() -> None:
    """Its own flow is looked at again after another idle time; one whose link is lost ends, since nobody is told."""
    async with listening() as setup:
        full, lost = setup.dialer.side, Side()
        stuck = await setup.flow(setup.client())
        setup.dialer.side = Side()
        await setup.flow(setup.client())
        setup.dialer.side = lost
        await setup.flow(setup.client())
        full.link.waiting = lost.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
        lost.link.closing = True
        assert not setup.port.expire(1e9)
        assert tuple(setup.port.flows) == (stuck,)
        full.link.waiting = 0
        assert not setup.port.expire(1e9 + setup.dialer.idle_s - 1)
        assert setup.listeners.flows == 1
        assert not setup.port.expire(1e9 + setup.dialer.idle_s)
        assert setup.listeners.flows == 0


async def test_the_sweep_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is cancelled; sooner where more may be waiting."""
    monkeypatch.setattr(udp, "SWEEP_FLOWS", 1)
    monkeypatch.setattr(udp, "SWEEP_AGAIN_S", 0.0)
    async with listening() as setup, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            await setup.flow(setup.client())
        setup.dialer.idle_s = 0.0
        sweeping = tasks.create_task(setup.listeners.sweep())
        await eventually(lambda: setup.listeners.flows == 0, "all have ended")
        sweeping.cancel()


async def test_a_batch_leaves_the_rest_for_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost where more datagrams wait than one batch takes."""
    monkeypatch.setattr(udp, "BATCH_DATAGRAMS", 3)
    async with listening() as setup:
        client = setup.client()
        sent = [b"%d" % number for number in range(10)]
        for datagram in sent:
            client.send(datagram)
        await eventually(lambda: setup.dialer.side.link.data() == sent, "all arrive in order")


async def test_after_closing_nothing_is_read_but_answers_still_leave() -> None:
    """So that a node that stops does not cut off what is asked already."""
    async with listening() as setup:
        client = setup.client()
        flow = await setup.flow(client)
        setup.listeners.close()
        client.send(b"unread")
        flow.receive(b"answer")
        assert await heard(client) == b"answer"
        assert setup.dialer.side.link.data() == [b"hello"]


async def test_what_becomes_of_a_datagram_under_a_cap_is_counted_when_it_is_known() -> None:
    """It is relayed, finds no place, or is dropped with its flow, and is counted once."""
    async with listening() as setup:
        scheduler = Scheduler(BYTES_PER_MEGABIT, lambda: None)
        setup.dialer.side.session.gate = gate = BackendGate(scheduler)
        gate._now = lambda: 0.0
        client = setup.client()
        flow = await setup.flow(client)
        stats = setup.listeners.stats
        assert stats.to_backends == 1
        assert scheduler.share().take(int(scheduler.burst - scheduler.charged_bytes), 0.0)
        kept = FLOW_MAX_BYTES // (LIMIT + DATA_HEADER_BYTES)
        for _ in range(kept + 20):
            client.send(bytes(LIMIT))
        await eventually(lambda: setup.dropped == {"no_turn": 20}, "the queue is full, all others are dropped")
        assert stats.to_backends == 1
        scheduler.round(1.0)
        relayed = stats.to_backends - 1
        assert 0 < relayed == len(setup.dialer.side.link.data()) - 1 < kept
        setup.listeners.ports[setup.number].end(flow, "idle")
        assert setup.dropped == {"no_turn": 20, "flow_ended": kept - relayed}
        assert stats.to_backends == 1 + relayed


class _BrokenSocket:
    """A socket whose every call fails."""

    def __init__(self, error: OSError, real: socket.socket) -> None:
        self.error = error
        self.left = 3
        self._real = real

    def recvmsg(self, *_arguments: object) -> tuple[bytes, list[Any], int, Any]:
        self.left -= 1
        raise self.error if self.left else BlockingIOError

    def sendmsg(self, *_arguments: object) -> int:
        raise self.error

    def fileno(self) -> int:
        return self._real.fileno()


@pytest.fixture
def broken() -> Iterator[_BrokenSocket]:
    """A broken socket with a real descriptor."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as real:
        yield _BrokenSocket(OSError(errno.EHOSTUNREACH, "no route"), real)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BlockingIOError(errno.EAGAIN, "full"), "client_slow"),
        (OSError(errno.EHOSTUNREACH, "no route"), "client_unreachable"),
    ],
)
async def test_an_answer_that_cannot_leave_is_counted(broken: _BrokenSocket, error: OSError, reason: str) -> None:
    """The flow stays: UDP promises nothing."""
    async with listening() as setup:
        flow = await setup.flow(setup.client())
        broken.error = error
        cast(Any, flow.owner)._sock = broken
        flow.receive(b"answer")
        assert setup.dropped == {reason: 1}
        assert setup.listeners.flows == 1


async def test_an_error_of_the_socket_does_not_end_the_port(
    broken: _BrokenSocket, caplog: pytest.LogCaptureFixture
) -> None:
    """It belongs to a datagram that was sent before; one debug line each, and reading goes on."""
    caplog.set_level(logging.DEBUG, "nexus.listeners")
    async with listening() as setup:
        flow = await setup.flow(setup.client())
        reader = cast(Any, flow.owner)
        real, reader._sock = reader._sock, broken
        reader._readable()
        reader._sock = real
        assert broken.left == 0
        assert [record.levelname for record in caplog.records if "no route" in record.getMessage()] == ["DEBUG"] * 2
