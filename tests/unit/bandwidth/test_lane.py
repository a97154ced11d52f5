"""nexus.bandwidth.lane: nothing is lost, nothing overtakes, and everything is paid for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.bandwidth.lane import Lane, cost_of
from nexus.bandwidth.scheduler import Scheduler
from nexus.protocol.constants import DATA_HEADER_BYTES, MESSAGE_MAX_BYTES, PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer

RATE = 125_000  # 1 Mbit/s: a burst of 6,250 bytes, a quantum of 2,065


class Case:
    """A lane on a clock of its own."""

    def __init__(self, *, pieces_are_messages: bool = True, rate: int = RATE) -> None:
        self.now = 0.0
        self.out: list[bytes] = []
        self.told: list[int] = []
        self.scheduler = Scheduler(rate, lambda: None)
        self.lane = Lane(
            self.scheduler.share(),
            self._deliver,
            lambda: self.told.append(self.lane.messages),
            pieces_are_messages=pieces_are_messages,
        )

    def _deliver(self, payload: Buffer) -> None:
        self.out.append(bytes(payload))

    def offer(self, payload: bytes) -> bool:
        """Offer bytes now."""
        return self.lane.offer(payload, self.now)

    def serve(self, times: int = 1) -> None:
        """Let time pass and serve who waits."""
        for _ in range(times):
            self.now += 1.0
            self.scheduler.round(self.now)

    def run_dry(self) -> None:
        """Serve until nothing waits."""
        while self.lane.is_held_up:
            self.serve()


def test_bytes_pass_straight_on_where_the_cap_allows() -> None:
    """The very object: nothing is copied or cut, and nobody is told of a queue that there was not."""
    case = Case()
    payload = b"x" * 5_000
    assert case.offer(payload)
    assert case.out == [payload]
    assert (case.lane.waiting, case.lane.messages, case.told) == (0, 0, [])
    assert case.scheduler.charged_bytes == 5_000 + DATA_HEADER_BYTES


def test_what_does_not_pass_is_cut_into_turns() -> None:
    """W25: a large message waited until its whole cost had gathered, which under load it never did."""
    case = Case()
    payload = bytes(at % 251 for at in range(PAYLOAD_MAX_BYTES))
    assert not case.offer(payload)
    assert case.lane.is_held_up
    case.serve()
    assert [len(piece) for piece in case.out] == [case.scheduler.quantum - DATA_HEADER_BYTES]
    assert case.told == [1]
    case.run_dry()
    assert b"".join(case.out) == payload
    assert case.told[-1] == 0
    assert case.scheduler.charged_bytes == PAYLOAD_MAX_BYTES + len(case.out) * DATA_HEADER_BYTES


def test_the_pieces_of_one_message_pay_for_one_header() -> None:
    """Towards the client nothing is framed."""
    case = Case(pieces_are_messages=False)
    for _ in range(2):
        assert not case.offer(bytes(20_000))
    case.run_dry()
    assert len(case.out) > 2
    assert case.scheduler.charged_bytes == 2 * (20_000 + DATA_HEADER_BYTES)


def test_a_whole_message_is_one_piece_where_the_cap_is_high() -> None:
    """And a longer prelude is cut into messages."""
    case = Case(rate=125_000_000)
    case.lane.set_open(False)
    case.offer(bytes(2 * PAYLOAD_MAX_BYTES + 1))
    case.lane.set_open(True)
    case.run_dry()
    assert [len(piece) for piece in case.out] == [PAYLOAD_MAX_BYTES, PAYLOAD_MAX_BYTES, 1]


def test_a_closed_lane_waits_outside_the_ring() -> None:
    """W25: whoever had bytes counted as active, whether it could send or not."""
    case = Case()
    case.lane.set_open(False)
    assert not case.offer(b"held")
    assert (case.lane.waiting, case.lane.is_held_up) == (4, False)
    assert case.scheduler.waiting_shares == 0
    case.lane.set_open(True)
    assert case.lane.is_held_up
    case.lane.set_open(False)
    assert not case.lane.is_held_up
    case.lane.set_open(True)
    case.serve()
    assert case.out == [b"held"]
    case.lane.set_open(True)
    assert not case.lane.is_held_up


def test_nothing_overtakes_what_waits() -> None:
    """Not even a byte that the bucket would let through."""
    case = Case()
    assert not case.offer(bytes(7_000))
    assert not case.offer(b"behind")
    assert case.lane.messages == 2
    case.run_dry()
    assert case.out[-1] == b"behind"


def test_what_is_dropped_is_gone() -> None:
    """And what comes after is whole, with a header of its own."""
    case = Case(pieces_are_messages=False)
    case.offer(bytes(7_000))
    case.serve()
    charged = case.scheduler.charged_bytes
    case.lane.clear()
    assert (case.lane.waiting, case.lane.messages, case.lane.is_held_up) == (0, 0, False)
    case.serve(5)
    assert case.offer(b"new")
    assert case.scheduler.charged_bytes == charged + 3 + DATA_HEADER_BYTES
    assert case.lane.waiting_bytes() == 0


@pytest.mark.parametrize(
    ("size", "cost"), [(1, 18), (PAYLOAD_MAX_BYTES, MESSAGE_MAX_BYTES), (PAYLOAD_MAX_BYTES + 1, MESSAGE_MAX_BYTES + 18)]
)
def test_a_cost_counts_each_message(size: int, cost: int) -> None:
    """A prelude may be two."""
    assert cost_of(size) == cost


@given(
    steps=st.lists(st.one_of(st.integers(1, 70_000), st.booleans(), st.none()), max_size=30),
    megabits=st.sampled_from([1, 7, 60, 400]),
    pieces_are_messages=st.booleans(),
)
def test_bytes_arrive_once_and_in_order_whatever_happens(
    steps: list[int | bool | None], megabits: int, pieces_are_messages: bool
) -> None:
    """Offers of any size, a far side that opens and closes, turns in between: what came in comes out."""
    case = Case(pieces_are_messages=pieces_are_messages, rate=megabits * 125_000)
    sent = bytearray()
    for number, step in enumerate(steps):
        if step is None:
            case.serve()
        elif isinstance(step, bool):
            case.lane.set_open(step)
        else:
            payload = bytes([number]) * step
            sent += payload
            case.offer(payload)
        assert case.lane.waiting == len(sent) - sum(map(len, case.out))
    case.lane.set_open(True)
    case.run_dry()
    assert b"".join(case.out) == sent
    assert case.scheduler.charged_bytes >= len(sent)
