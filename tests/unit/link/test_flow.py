"""nexus.link.flow: one UDP flow at the hub, between a session with a fake link and an owner that notes everything."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator

import pytest

from nexus.link.endpoint import OnClosed, SocketEndpoint
from nexus.link.flow import FLOW_BATCH, FLOW_WINDOW, Address, Drop, Flow, SessionFlow
from nexus.link.flow_table import FlowTable
from nexus.link.session import DATAGRAMS_WAITING_MAX_BYTES, Session
from nexus.link.splice import Between
from nexus.link.stream import Endpoint, Stream
from nexus.protocol.constants import CREDITS_BATCH
from nexus.protocol.framing import Buffer
from nexus.protocol.messages import credit_message, simple_message
from nexus.protocol.reasons import Reason
from tests.support.sessions import LOST, Sent, Side

CLIENT = ("192.0.2.1", 5353)
ID = b"\x05" * 16
FLOW_BYTES_MAX = 500
MANY = 20_000


class Owner:
    """Notes what a flow tells."""

    def __init__(self) -> None:
        self.delivered: list[bytes] = []
        self.ended: list[Flow] = []
        self.relayed = 0
        self.drops: Counter[Drop] = Counter()

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        self.delivered.append(bytes(datagram))

    def flow_ended(self, flow: Flow) -> None:
        self.ended.append(flow)

    def sent(self, flow: Flow) -> None:
        self.relayed += 1

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        self.drops[why] += count


@pytest.fixture
def side() -> Side:
    """A hub's session."""
    return Side()


@pytest.fixture
def owner() -> Owner:
    """The public port."""
    return Owner()


@pytest.fixture
def flow(side: Side, owner: Owner) -> Flow:
    """One flow in the session."""
    return opened(side.session, ID, owner, CLIENT)


def opened(session: Session, flow_id: bytes, owner: Owner, client: Address) -> Flow:
    flow = Flow(session, flow_id, owner, client)
    session.flows[flow_id] = flow
    return flow


def arrive(side: Side, message: bytes) -> None:
    """Let a message of the backend arrive."""
    side.take(Sent("message", message))


def test_a_flow_is_what_a_session_needs(flow: Flow) -> None:
    """The client's side has another class."""
    one: SessionFlow = flow
    assert one.id == ID


@pytest.mark.parametrize("datagram", [b"", b"x" * 1200])
def test_datagrams_pass_one_by_one_in_both_directions(side: Side, owner: Owner, flow: Flow, datagram: bytes) -> None:
    """Empty ones, too; both directions are counted."""
    flow.send(datagram)
    assert side.link.data() == [datagram]
    assert owner.relayed == 1
    arrive(side, b"\x01" + ID + datagram)
    assert owner.delivered == [datagram]
    assert (side.session.bytes_sent, side.session.bytes_received) == (len(datagram), len(datagram))


@pytest.mark.parametrize("capped", [False, True])
def test_a_datagram_that_finds_the_link_full_is_dropped(side: Side, owner: Owner, flow: Flow, capped: bool) -> None:
    """W4, node W14: nothing waits for it; streams have stopped long before."""
    gate = TakesTurns()
    side.session.gate = gate if capped else None
    side.link.writable = False
    side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES - 1
    flow.send(b"fits")
    side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
    flow.send(b"does not")
    side.link.waiting = 0
    gate.serve()
    side.link.closing = True
    flow.send(b"neither")
    assert side.link.data() == [b"fits"]
    assert (owner.relayed, owner.drops) == (1, {Drop.BACKEND_SLOW: 2})


def test_no_number_of_datagrams_needs_a_credit(side: Side, owner: Owner, flow: Flow) -> None:
    """W4: original backends grant 64 once; a hub that counted them would stop the flow, and its whole port."""
    arrive(side, credit_message(ID, 64))
    for _ in range(1000):
        flow.send(b"x")
    assert (owner.relayed, len(side.link.data())) == (1000, 1000)


def test_a_pause_does_not_hold_a_flow(side: Side, flow: Flow) -> None:
    """Spec backend-protocol 7.4: it has no effect on UDP."""
    arrive(side, simple_message("pause_stream", ID, Reason.BUFFER_FULL))
    flow.send(b"x")
    assert side.link.data() == [b"x"]


def test_credits_come_back_in_batches(side: Side, flow: Flow) -> None:
    """Every datagram counts, and an original backend never waits for a remainder below its own batch."""
    assert FLOW_BATCH % CREDITS_BATCH == 0
    assert FLOW_WINDOW >= 2 * FLOW_BATCH
    for _ in range(2 * FLOW_BATCH + 1):
        arrive(side, b"\x01" + ID + b"x")
    assert [control.credits for control in side.link.controls("resume_stream")] == [FLOW_BATCH, FLOW_BATCH]
    assert flow.held == 1


@pytest.mark.parametrize("reason", ["", "normal", "local_error"])
def test_a_backends_disconnect_ends_the_flow_for_everybody(side: Side, owner: Owner, flow: Flow, reason: str) -> None:
    """Nothing is sent back; what still arrives belongs to nobody."""
    arrive(side, simple_message("disconnect", ID, reason))
    arrive(side, b"\x01" + ID + b"late")
    assert owner.ended == [flow]
    assert (side.session.flows, side.role.unknown, side.link.controls()) == ({}, [ID], [])


def test_an_end_from_this_side_is_told_once(side: Side, owner: Owner, flow: Flow) -> None:
    """The owner knows already."""
    flow.close(Reason.TIMEOUT)
    flow.close(Reason.TIMEOUT)
    assert [(control.event, control.reason) for control in side.link.controls()] == [("disconnect", "timeout")]
    assert (side.session.flows, owner.ended) == ({}, [])


def test_the_end_of_the_session_ends_its_flows(side: Side, owner: Owner, flow: Flow) -> None:
    """An owner that looks finds none any more."""
    side.link.closing = True
    side.session.link_lost(LOST)
    assert owner.ended == [flow]
    assert side.session.flows == {}


def test_events_that_mean_nothing_to_a_flow_are_ignored(side: Side, flow: Flow) -> None:
    """A half-close, for one."""
    arrive(side, simple_message("half_close", ID))
    arrive(side, simple_message("no_such_event", ID))
    assert side.session.flows == {ID: flow}


# -- Under a cap ------------------------------------------------------------------------------------------------------


class TakesTurns:
    """A gate that keeps every datagram until the test says so, at most ``room`` of them."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.waiting: list[tuple[Hashable, Buffer, Callable[[Buffer], None]]] = []

    def pace(
        self, stream: Stream, transport: asyncio.Transport | None, on_closed: OnClosed | None
    ) -> tuple[SocketEndpoint, Endpoint]:
        raise AssertionError("no stream here")

    def offer(self, flow: Hashable, datagram: Buffer, send: Callable[[Buffer], None], *, to_backend: bool) -> bool:
        del to_backend
        if len(self.waiting) < self.room:
            self.waiting.append((flow, datagram, send))
            return True
        return False

    def between(self, stream: Stream) -> Between:
        raise AssertionError(stream)

    def forget(self, flow: Hashable) -> int:
        kept = [entry for entry in self.waiting if entry[0] != flow]
        dropped, self.waiting = len(self.waiting) - len(kept), kept
        return dropped

    def serve(self) -> None:
        """Let everybody have a turn."""
        waiting, self.waiting = self.waiting, []
        for _, datagram, send in waiting:
            send(datagram)


def test_under_a_cap_datagrams_of_both_directions_wait_for_their_turns(side: Side, owner: Owner, flow: Flow) -> None:
    """Each direction in order; a backend's credits do not wait with them."""
    side.session.gate = gate = TakesTurns()
    for number in range(FLOW_BATCH):
        flow.send(b"%d" % number)
        arrive(side, b"\x01" + ID + b"%d" % number)
    assert len(side.link.controls("resume_stream")) == 1
    assert (side.link.data(), owner.delivered, owner.relayed) == ([], [], 0)
    gate.serve()
    assert (owner.relayed, owner.drops) == (FLOW_BATCH, {})
    expected = [b"%d" % number for number in range(FLOW_BATCH)]
    assert side.link.data() == owner.delivered == expected


def test_what_finds_no_place_under_the_cap_is_dropped_and_counted(side: Side, owner: Owner, flow: Flow) -> None:
    """Once, under its reason; the link may also have filled up before its turn came."""
    side.session.gate = gate = TakesTurns(room=1)
    flow.send(b"kept")
    flow.send(b"dropped")
    arrive(side, b"\x01" + ID + b"dropped")
    assert owner.drops == {Drop.NO_TURN: 2}
    side.link.waiting = DATAGRAMS_WAITING_MAX_BYTES
    gate.serve()
    assert owner.drops == {Drop.NO_TURN: 2, Drop.BACKEND_SLOW: 1}
    assert (side.link.data(), owner.relayed) == ([], 0)


@pytest.mark.parametrize("end", ["close", "disconnect", "lost"])
def test_a_flow_that_ends_leaves_nothing_waiting_under_the_cap(side: Side, owner: Owner, flow: Flow, end: str) -> None:
    """It has nobody to go to, and is counted as dropped."""
    side.session.gate = gate = TakesTurns()
    flow.send(b"x")
    arrive(side, b"\x01" + ID + b"y")
    if end == "close":
        flow.close(Reason.TIMEOUT)
    elif end == "disconnect":
        arrive(side, simple_message("disconnect", ID))
    else:
        side.session.link_lost(LOST)
    assert gate.waiting == []
    assert owner.drops == {Drop.FLOW_ENDED: 2}


def test_a_flow_takes_little_memory(side: Side, owner: Owner) -> None:
    """200,000 of them, with their places in both tables, stay below 100 MB."""
    table: FlowTable[Address, Flow] = FlowTable(MANY)

    def addresses() -> Iterator[Address]:
        for number in range(MANY):
            yield f"198.51.{number % 251}.{number // 251}", 1024 + number

    gc.collect()
    tracemalloc.start()
    try:
        for number, client in enumerate(addresses()):
            flow = opened(side.session, number.to_bytes(16, "little"), owner, client)
            table.add(client, flow, float(number))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == MANY
    assert used / MANY < FLOW_BYTES_MAX
