"""backend_client.datagrams: flows that a hub announces, real sockets to a service, and every way to lose a datagram."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

from backend_client import datagrams as module
from backend_client.datagrams import DATAGRAM_COST_BYTES, PENDING_MAX, FlowParts, LocalFlow
from backend_client.flow_table import FlowTable
from backend_client.lookups import ServiceAddress
from backend_client.mapping import Target
from nexus.link.flow import SessionFlow
from nexus.link.session import DATAGRAMS_WAITING_MAX_BYTES
from nexus.protocol.constants import CREDITS_BATCH, CREDITS_INITIAL, PAYLOAD_MAX_BYTES
from nexus.protocol.messages import credit_message, simple_message
from nexus.protocol.reasons import Reason
from tests.support.hub import WAIT_S, eventually
from tests.support.sessions import LOST, Sent, Side

ON_BOTH_LOOPS = True
ID = b"\x09" * 16


class Setup:
    """One flow of a session with a fake link, and the service it leads to."""

    def __init__(self, service: socket.socket, granted: int) -> None:
        self.side = Side(ends_on_eof=True)
        self.service = service
        self.parts = FlowParts(FlowTable(64))
        self.lookups = self.parts.lookups
        self.stats = self.parts.stats
        self.where = ServiceAddress(socket.AF_INET, service.getsockname())
        self.target = Target(*service.getsockname())
        self.flow = self.add(ID, granted)

    def add(self, flow_id: bytes, granted: int) -> LocalFlow:
        """Make a flow of the session."""
        flow = LocalFlow(self.side.session, flow_id, granted, self.target, self.parts)
        self.side.session.flows[flow_id] = flow
        self.parts.table.add(flow)
        return flow

    def arrive(self, datagram: bytes) -> None:
        """Let a datagram of the hub arrive."""
        self.side.take(Sent("message", b"\x01" + ID + datagram))

    def tell(self, message: bytes) -> None:
        """Let a control message of the hub arrive."""
        self.side.take(Sent("message", message))

    async def heard(self) -> tuple[bytes, Any]:
        """Return what the service hears next, and from whom."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(BlockingIOError):
                    return self.service.recvfrom(65_536)
                await asyncio.sleep(0.001)

    async def peer(self) -> Any:
        """Connect the flow, and return its address as the service sees it."""
        self.flow.connect(self.where)
        self.arrive(b"hello")
        return (await self.heard())[1]

    @property
    def sent(self) -> list[bytes]:
        """The datagrams sent to the hub."""
        return self.side.link.data()


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """A UDP service on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.fixture
async def it(service: socket.socket) -> AsyncIterator[Setup]:
    """A flow whose hub knows credits."""
    setup = Setup(service, CREDITS_INITIAL)
    yield setup
    setup.side.session.link_lost(LOST)
    assert setup.flow._sock is None


async def test_datagrams_pass_one_by_one_in_both_directions(it: Setup) -> None:
    """Zero bytes are a datagram as well, which the original does not send on."""
    flow: SessionFlow = it.flow
    assert flow.id == ID
    peer = await it.peer()
    for datagram in (b"", b"x" * PAYLOAD_MAX_BYTES, b"answer"):
        it.service.sendto(datagram, peer)
    await eventually(lambda: len(it.sent) == 3, "all are sent on")
    assert it.sent == [b"", b"x" * PAYLOAD_MAX_BYTES, b"answer"]
    it.arrive(b"")
    assert await it.heard() == (b"", peer)
    assert (it.stats.from_hub, it.stats.to_hub, it.stats.dropped) == (2, 3, {})


async def test_what_comes_before_the_socket_is_kept_within_a_bound(it: Setup) -> None:
    """The original's 64; the rest is dropped and counted."""
    for number in range(PENDING_MAX + 2):
        it.arrive(b"%d" % number)
    it.flow.connect(it.where)
    assert [(await it.heard())[0] for _ in range(PENDING_MAX)] == [b"%d" % number for number in range(PENDING_MAX)]
    assert it.stats.dropped == {"service_not_ready": 2}


async def test_what_waits_for_sockets_is_bounded_for_all_flows_together(
    it: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes, empty datagrams too: a name server that is slow costs datagrams, not memory."""
    monkeypatch.setattr(module, "PENDING_MAX_BYTES", 2 * (100 + DATAGRAM_COST_BYTES))
    other = it.add(b"\x0a" * 16, CREDITS_INITIAL)
    for flow, size in ((it.flow, 100), (other, 100), (it.flow, 0), (other, 1)):
        flow.receive(bytes(size))
    assert it.stats.dropped == {"service_not_ready": 2}
    it.flow.connect(it.where)
    other.close(Reason.SHUTDOWN)
    assert (await it.heard())[0] == bytes(100)
    assert it.stats.pending_bytes == 0


async def test_a_flow_is_in_use_while_datagrams_pass_in_either_direction(it: Setup) -> None:
    """It is in the table from its start to its end, behind those that were used before it."""
    peer = await it.peer()
    other = it.add(b"\x0a" * 16, CREDITS_INITIAL)
    order = it.parts.table._flows
    assert list(order) == [it.flow, other]
    it.arrive(b"from the hub")
    assert list(order) == [other, it.flow]
    other.receive(b"from the hub")
    it.service.sendto(b"from the service", peer)
    await eventually(lambda: bool(it.sent), "it is sent on")
    assert list(order) == [other, it.flow]
    other.close(Reason.SHUTDOWN)
    assert list(order) == [it.flow]


async def test_every_datagram_of_the_hub_is_granted_again(it: Setup) -> None:
    """W4: also those that were dropped, or an original hub's port would freeze after 64."""
    for number in range(2 * PENDING_MAX):
        it.arrive(b"%d" % number)
    grants = [control.credits for control in it.side.link.controls("resume_stream")]
    assert grants == [CREDITS_BATCH] * (2 * PENDING_MAX // CREDITS_BATCH)


async def test_a_hub_without_credits_is_granted_none_and_sent_to_without_limit(service: socket.socket) -> None:
    """Hubs below v0.3.7."""
    it = Setup(service, 0)
    peer = await it.peer()
    for _ in range(2 * CREDITS_INITIAL):
        it.arrive(b"x")
        it.service.sendto(b"y", peer)
    await eventually(lambda: len(it.sent) == 2 * CREDITS_INITIAL, "all are sent on")
    assert it.side.link.controls() == []
    it.flow.session_lost()


async def test_without_credits_the_service_is_not_read(it: Setup) -> None:
    """And is again with the next grant; no datagram in the kernel is lost meanwhile."""
    peer = await it.peer()
    for number in range(CREDITS_INITIAL + 2):
        it.service.sendto(b"%d" % number, peer)
    await eventually(lambda: len(it.sent) == CREDITS_INITIAL, "all that is allowed is sent")
    assert not it.flow._reading
    it.tell(credit_message(ID, 1))
    it.tell(credit_message(ID, 1))
    await eventually(lambda: len(it.sent) == CREDITS_INITIAL + 2, "the rest is sent")
    assert it.sent[-1] == b"%d" % (CREDITS_INITIAL + 1)


async def test_a_pause_of_the_hub_is_heeded_until_it_resumes(it: Setup) -> None:
    """Hub v0.3.6 pauses; it knows no credits."""
    peer = await it.peer()
    it.tell(simple_message("pause_stream", ID))
    it.service.sendto(b"later", peer)
    assert not it.flow._reading
    it.tell(simple_message("resume_stream", ID))
    await eventually(lambda: it.sent == [b"later"], "it is sent on")


async def test_a_batch_leaves_the_rest_for_the_next_turn(it: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost."""
    monkeypatch.setattr(module, "BATCH_DATAGRAMS", 2)
    peer = await it.peer()
    for number in range(5):
        it.service.sendto(b"%d" % number, peer)
    await eventually(lambda: len(it.sent) == 5, "all are sent on")


async def test_a_datagram_no_message_can_carry_is_dropped_and_counted(it: Setup) -> None:
    """W26: not cut, as the original does at 16 KiB."""
    peer = await it.peer()
    it.service.sendto(bytes(PAYLOAD_MAX_BYTES + 1), peer)
    it.service.sendto(b"fits", peer)
    await eventually(lambda: it.sent == [b"fits"], "the next one is sent on")
    assert it.stats.dropped == {"oversize_from_service": 1}


async def test_a_full_link_costs_datagrams_and_holds_up_nobody(it: Setup) -> None:
    """They are counted; no credit is spent."""
    peer = await it.peer()
    it.side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
    it.service.sendto(b"lost", peer)
    await eventually(lambda: it.stats.dropped == {"hub_slow": 1}, "it is counted")
    it.side.link.waiting = 0
    it.service.sendto(b"sent", peer)
    await eventually(lambda: it.sent == [b"sent"], "the next one is sent on")


@pytest.mark.parametrize("speaks_first", [False, True], ids=["seen when sending", "seen when reading"])
async def test_a_service_that_refuses_ends_the_flow_and_its_address_goes_last(it: Setup, *, speaks_first: bool) -> None:
    """The hub is told; the next flow tries another address of the name."""
    refused: list[ServiceAddress] = []
    it.lookups.failed = lambda target, address, error: refused.append(address)  # type: ignore[method-assign]
    await it.peer()
    it.service.close()
    if not speaks_first:
        it.flow._loop.remove_reader(cast(socket.socket, it.flow._sock).fileno())
        it.flow._reading = False
    it.arrive(b"is anybody there?")
    for _ in range(3):
        it.arrive(b"hello?")
    await eventually(lambda: it.side.session.flows == {}, "the flow has ended")
    assert [(one.event, one.reason) for one in it.side.link.controls("disconnect")] == [("disconnect", "local_error")]
    assert refused == [it.where]


class _BrokenSocket:
    """A socket that fails as told; the rest is a real one's."""

    def __init__(self, real: socket.socket, error: OSError) -> None:
        self._real = real
        self._error = error

    def send(self, _datagram: bytes) -> int:
        raise self._error

    def recvmsg_into(self, _buffers: object) -> tuple[int, list[Any], int, Any]:
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def failed(it: Setup) -> list[tuple[ServiceAddress, int | None]]:
    """What the lookups are told of addresses that failed."""
    told: list[tuple[ServiceAddress, int | None]] = []
    it.lookups.failed = lambda target, address, error: told.append((address, error.errno))  # type: ignore[method-assign]
    return told


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BlockingIOError(errno.EAGAIN, "full"), "service_slow"),
        (OSError(errno.EMSGSIZE, "too long"), "service_unreachable"),
    ],
)
async def test_what_the_service_cannot_take_is_counted(it: Setup, error: OSError, reason: str) -> None:
    """The flow goes on."""
    await it.peer()
    it.flow._sock = cast(socket.socket, _BrokenSocket(cast(socket.socket, it.flow._sock), error))
    it.arrive(b"lost")
    assert it.stats.dropped == {reason: 1}
    assert it.side.session.flows == {ID: it.flow}


def say_filtered(flow: tuple[str, int], service: tuple[str, int]) -> None:
    """Be a firewall between a flow and its service: "administratively prohibited" (RFC 1812 section 5.2.7.1)."""
    (here, port), (there, service_port) = flow, service
    datagram = struct.pack("!HHHH", port, service_port, 8, 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + socket.inet_aton(here) + socket.inet_aton(there)
    words = struct.unpack("!14H", header + datagram)
    total = 0x030D + sum(words)
    checksum = 0xFFFF - (total % 0xFFFF)
    message = struct.pack("!BBHI", 3, 13, checksum, 0) + header + datagram
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(message, (here, 0))
    except PermissionError:
        pytest.skip("no right to send ICMP")


async def test_a_flow_hears_its_service_after_an_error_on_the_way(it: Setup) -> None:
    """uvloop gives a socket up that had an error in epoll, also where a send has taken the error meanwhile."""
    peer = await it.peer()
    hub, ours = socket.socketpair()
    with hub, ours:
        it.flow._loop.add_reader(ours.fileno(), lambda: it.arrive(ours.recv(9)))
        hub.send(b"passes")
        assert (await it.heard())[0] == b"passes"
        hub.send(b"is lost")  # in one turn of the loop: the hub's message, then the error
        say_filtered(peer, it.service.getsockname())
        await eventually(lambda: it.stats.dropped, "the error is met")
        assert it.stats.dropped == {"service_unreachable": 1}
        it.flow._loop.remove_reader(ours.fileno())
    it.service.sendto(b"still there", peer)
    await eventually(lambda: it.sent == [b"still there"], "it is sent on")


async def test_a_socket_that_breaks_ends_its_flow(it: Setup, failed: list[tuple[ServiceAddress, int | None]]) -> None:
    """And nothing else; the address is told as failed."""
    await it.peer()
    error = OSError(errno.ENETDOWN, "the network is down")
    it.flow._sock = cast(socket.socket, _BrokenSocket(cast(socket.socket, it.flow._sock), error))
    it.flow._readable()
    assert it.side.session.flows == {}
    assert [control.reason for control in it.side.link.controls("disconnect")] == ["local_error"]
    assert failed == [(it.where, errno.ENETDOWN)]


async def test_an_address_without_a_way_there_goes_last_and_its_flow_goes_on(
    it: Setup, failed: list[tuple[ServiceAddress, int | None]]
) -> None:
    """The way may come back; new flows need not wait for that."""
    await it.peer()
    error = OSError(errno.ENETUNREACH, "no route")
    it.flow._sock = cast(socket.socket, _BrokenSocket(cast(socket.socket, it.flow._sock), error))
    it.arrive(b"lost")
    assert it.side.session.flows == {ID: it.flow}
    assert failed == [(it.where, errno.ENETUNREACH)]


async def test_the_hubs_disconnect_closes_the_socket(it: Setup) -> None:
    """The flow has no clock of its own (spec backend-protocol 10); nothing is sent back."""
    await it.peer()
    it.tell(simple_message("disconnect", ID))
    assert it.flow._sock is None
    assert it.side.link.controls("disconnect") == []


async def test_an_address_that_comes_after_the_end_opens_nothing(it: Setup) -> None:
    """The lookup took longer than the flow lived."""
    it.flow.close(Reason.SHUTDOWN)
    it.flow.close(Reason.SHUTDOWN)
    it.flow.connect(it.where)
    assert it.flow._sock is None
    assert len(it.side.link.controls("disconnect")) == 1


async def test_an_address_that_cannot_be_connected_to_leaves_no_socket(
    it: Setup, failed: list[tuple[ServiceAddress, int | None]]
) -> None:
    """The caller is told why, and the next flow has another address."""
    broadcast = ServiceAddress(socket.AF_INET, ("255.255.255.255", 9))
    with pytest.raises(OSError, match=r".+"):
        it.flow.connect(broadcast)
    assert it.flow._sock is None
    assert failed == [(broadcast, errno.EACCES)]
