"""nexus.bandwidth.datagrams: flows that wait their turn, and what is dropped where they must not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexus.bandwidth.datagrams import DIRECTION_MAX_BYTES, FLOW_MAX_BYTES, DatagramQueues
from nexus.bandwidth.scheduler import Scheduler
from nexus.protocol.constants import DATA_HEADER_BYTES
from nexus.protocol.framing import Buffer

RATE = 125_000  # 1 Mbit/s: a burst of 6,250 bytes, a quantum of 2,065


class Case:
    """The queues of one backend on a clock of their own."""

    def __init__(self, rate: int = RATE) -> None:
        self.now = 0.0
        self.out: list[tuple[str, bytes]] = []
        self.scheduler = Scheduler(rate, lambda: None)
        self.queues = DatagramQueues(self.scheduler.share())

    def offer(self, flow: str, datagram: bytes) -> bool:
        """Offer a datagram now."""

        def send(data: Buffer) -> None:
            self.out.append((flow, bytes(data)))

        return self.queues.offer(flow, datagram, send, self.now)

    def block(self) -> None:
        """Use up what the bucket holds."""
        assert self.offer("blocker", bytes(6_250 - DATA_HEADER_BYTES))
        self.out.clear()

    def run_dry(self) -> list[tuple[str, bytes]]:
        """Serve until nothing waits; return what was sent."""
        while self.scheduler.waiting_shares:
            self.now += 1.0
            self.scheduler.round(self.now)
        return self.out


def test_a_datagram_goes_at_once_where_the_cap_allows() -> None:
    """Nothing is kept of its flow then."""
    case = Case()
    assert case.offer("a", b"query")
    assert case.out == [("a", b"query")]
    assert (len(case.queues), case.queues.waiting) == (0, 0)
    assert case.scheduler.charged_bytes == 5 + DATA_HEADER_BYTES


def test_others_wait_in_order_and_then_nothing_is_kept() -> None:
    """A flow's queue exists only while something waits in it."""
    case = Case()
    case.block()
    assert all(case.offer("a", bytes([number]) * 1_000) for number in range(3))
    assert (len(case.queues), case.queues.waiting) == (1, 3 * 1_017)
    assert case.scheduler.waiting_bytes() == 3 * 1_017
    assert case.run_dry() == [("a", bytes([number]) * 1_000) for number in range(3)]
    assert (len(case.queues), case.queues.waiting) == (0, 0)


def test_a_flow_that_floods_loses_its_own_datagrams_only() -> None:
    """W4: one flow could stop all others of its port."""
    case = Case()
    case.block()
    flood = [case.offer("flood", bytes(1_000)) for _ in range(1_000)]
    assert sum(flood) == FLOW_MAX_BYTES // 1_017
    assert case.offer("modest", b"query")
    out = case.run_dry()
    assert out.index(("modest", b"query")) <= 3
    assert len(out) == sum(flood) + 1


def test_empty_datagrams_are_bounded_too() -> None:
    """They are charged, so they count."""
    case = Case()
    case.block()
    assert sum(case.offer("a", b"") for _ in range(10_000)) == FLOW_MAX_BYTES // DATA_HEADER_BYTES


def test_a_backend_keeps_a_bounded_number_of_bytes_over_all_flows() -> None:
    """However many flows there are; the first of a flow is kept whatever its length."""
    case = Case()
    case.block()
    kept = [case.offer(f"flow {number}", bytes(20_000)) for number in range(100)]
    assert sum(kept) == DIRECTION_MAX_BYTES // 20_017
    assert case.queues.waiting <= DIRECTION_MAX_BYTES


def test_a_datagram_longer_than_a_turn_is_sent_whole() -> None:
    """And paid for by the time after it."""
    case = Case()
    case.block()
    assert case.offer("a", bytes(30_000))
    assert case.run_dry() == [("a", bytes(30_000))]
    assert not case.scheduler.share().take(1, case.now)


def test_flows_get_equal_parts_in_bytes() -> None:
    """Whatever the length of their datagrams; who sends one that is longer than a turn owes for it."""
    case = Case()
    case.block()
    sizes = {"small": 50, "full": 1_983, "huge": 6_000}
    for flow, size in sizes.items():
        while case.offer(flow, bytes(size)):
            pass
    for _ in range(18):
        case.now += 2_065 / RATE
        case.scheduler.round(case.now)
    sent = {flow: sum(len(data) + DATA_HEADER_BYTES for by, data in case.out if by == flow) for flow in sizes}
    assert max(sent.values()) - min(sent.values()) <= 6_017
    assert min(sent.values()) > 2 * 2_065


def test_all_flows_of_a_direction_are_one_member() -> None:
    """However many wait, a stream beside them has every second turn."""
    case = Case()
    case.block()
    for number in range(100):
        case.offer(f"flow {number}", b"x" * 100)
    (share,) = case.scheduler._shares
    assert len(share.members) == 1
    for number in range(100):
        case.queues.forget(f"flow {number}")
    assert not case.scheduler.waiting_shares


def test_a_flow_that_ended_leaves_nothing_behind() -> None:
    """What waited for it is dropped, and only that."""
    case = Case()
    case.block()
    case.offer("a", b"gone")
    case.offer("b", b"stays")
    assert [case.queues.forget(flow) for flow in ("a", "a", "never there")] == [1, 0, 0]
    assert case.queues.waiting == 5 + DATA_HEADER_BYTES
    assert case.run_dry() == [("b", b"stays")]


@given(
    steps=st.lists(
        st.one_of(st.tuples(st.sampled_from("abc"), st.integers(0, 9_000)), st.sampled_from("ABC"), st.none()),
        max_size=60,
    )
)
def test_what_is_accepted_is_sent_once_and_in_order_of_its_flow(steps: list[tuple[str, int] | str | None]) -> None:
    """Unless its flow ends before."""
    case = Case()
    expected: dict[str, list[bytes]] = {flow: [] for flow in "abc"}
    for number, step in enumerate(steps):
        if step is None:
            case.now += 0.01
            case.scheduler.round(case.now)
        elif isinstance(step, str):
            flow = step.lower()
            case.queues.forget(flow)
            expected[flow] = [data for sent_by, data in case.out if sent_by == flow]
        else:
            flow, size = step
            datagram = (number.to_bytes(2, "big") * size)[:size]
            if case.offer(flow, datagram):
                expected[flow].append(datagram)
        assert case.queues.waiting <= DIRECTION_MAX_BYTES
    case.run_dry()
    assert {flow: [data for sent_by, data in case.out if sent_by == flow] for flow in "abc"} == expected
    assert (len(case.queues), case.queues.waiting) == (0, 0)
