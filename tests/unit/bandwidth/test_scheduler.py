"""nexus.bandwidth.scheduler: bucket, rings and turns, one by one. What comes of them is in ``test_scheduler_world``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nexus.bandwidth.scheduler import BURST_S, BYTES_PER_MEGABIT, QUANTUM_MIN_BYTES, Member, Scheduler, Share
from nexus.protocol.constants import MESSAGE_MAX_BYTES

RATE = 1_000_000  # bytes a second: a burst of 50,000
QUANTUM = 2_000  # rounded, for tests that can be followed in one's head


class Pieces:
    """A source of indivisible pieces that notes what it sends in ``log``."""

    def __init__(self, name: str, share: Share, log: list[str], *pieces: int) -> None:
        self.name = name
        self.left = list(pieces)
        self.log = log
        self.limits: list[int] = []
        self.member = Member(share, self)
        self.then: Callable[[], None] = lambda: None
        if pieces:
            self.member.join()

    def serve(self, limit: int) -> int:
        """Send the next piece, if there is one."""
        self.limits.append(limit)
        if not self.left:
            return 0
        size = self.left.pop(0)
        self.log.append(self.name)
        if not self.left:
            self.member.leave()
        self.then()
        return size

    def waiting_bytes(self) -> int:
        """Return what is left."""
        return sum(self.left)


class Setup:
    """A scheduler whose bucket is full, and what it did."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.woken = 0
        self.now = 0.0
        self.scheduler = Scheduler(RATE, self._wake)
        self.scheduler.quantum = QUANTUM

    def _wake(self) -> None:
        self.woken += 1

    def source(self, name: str, *pieces: int, share: Share | None = None) -> Pieces:
        """Return a source with a share of its own, unless told otherwise."""
        return Pieces(name, share or self.scheduler.share(), self.log, *pieces)

    def rounds(self, count: int) -> list[str]:
        """Return what ``count`` rounds sent, each with a full bucket."""
        self.log.clear()
        for _ in range(count):
            self.now += 1.0
            self.scheduler.round(self.now)
        return self.log


@pytest.fixture
def setup() -> Setup:
    """A fresh scheduler."""
    return Setup()


# -- The bucket -----------------------------------------------------------------------------------------------------


def test_what_the_bucket_holds_goes_at_once(setup: Setup) -> None:
    """Up to the burst, exactly; then no more until time has passed."""
    share = setup.scheduler.share()
    assert setup.scheduler.burst == RATE * BURST_S == 50_000
    assert share.take(49_999, 0.0)
    assert share.take(1, 0.0)
    assert not share.take(1, 0.0)
    assert not share.take(1_001, 0.001)
    assert share.take(1_000, 0.001)
    assert setup.scheduler.charged_bytes == 51_000


def test_time_without_use_is_worth_one_burst_at_most(setup: Setup) -> None:
    """W25: neither does it earn more, nor is any of it lost to when the last byte was sent."""
    share = setup.scheduler.share()
    assert share.take(50_000, 0.0)
    for step in range(1, 11):
        assert share.take(999, step * 0.001)
    assert not share.take(50_001, 3600.0)
    assert share.take(50_000, 3600.0)


def test_nobody_passes_somebody_who_waits(setup: Setup) -> None:
    """Not even where the bucket would allow both."""
    waiting = setup.source("a", 500)
    assert not setup.scheduler.share().take(1, 0.0)
    setup.scheduler.round(0.0)
    assert not waiting.left
    assert setup.scheduler.share().take(1, 0.0)


@pytest.mark.parametrize(
    ("megabits", "quantum"),
    [(1, QUANTUM_MIN_BYTES), (16, 4_000), (100, 25_000), (200, MESSAGE_MAX_BYTES), (10_000, MESSAGE_MAX_BYTES)],
)
def test_a_turn_is_2_ms_of_the_cap_within_a_packet_and_a_message(megabits: int, quantum: int) -> None:
    """At a low cap a whole message would hold up the others for long; at a high one a small one costs too much."""
    assert Scheduler(megabits * BYTES_PER_MEGABIT, lambda: None).quantum == quantum


def test_rounds_follow_each_other_while_the_bucket_allows(setup: Setup) -> None:
    """At once; then nobody need come back."""
    for name in "abc":
        setup.source(name, *[QUANTUM] * 3)
    for _ in range(3):
        assert setup.scheduler.next_at(0.0) == 0.0
        setup.scheduler.round(0.0)
    assert setup.log == list("abcabcabc")
    assert setup.scheduler.next_at(0.0) is None


def test_a_round_stops_where_the_bucket_is_empty_and_goes_on_there(setup: Setup) -> None:
    """When a turn is affordable again, no earlier: to come back in vain is polling (W25)."""
    assert setup.scheduler.share().take(49_000, 0.0)
    setup.source("a", 500)
    setup.source("b", 500)
    setup.scheduler.round(0.0)
    assert setup.log == []
    assert setup.scheduler.next_at(0.0) == pytest.approx(0.001)
    setup.scheduler.round(0.001)
    assert setup.log == ["a"]
    assert setup.scheduler.next_at(0.001) == pytest.approx(0.0015)
    setup.scheduler.round(0.0016)
    assert setup.log == ["a", "b"]


# -- Rings ----------------------------------------------------------------------------------------------------------


def test_each_share_has_one_turn_in_a_round(setup: Setup) -> None:
    """However many members one has: backends are equal."""
    busy = setup.scheduler.share()
    for name in "abc":
        setup.source(name, *[QUANTUM] * 9, share=busy)
    setup.source("x", *[QUANTUM] * 9)
    assert setup.rounds(1) == ["a", "x"]
    assert setup.rounds(4) == ["b", "x", "c", "x", "a", "x", "b", "x"]


def test_members_of_a_share_have_turns_in_turn(setup: Setup) -> None:
    """W25: there was no fairness among the streams of a backend."""
    share = setup.scheduler.share()
    setup.source("a", *[500] * 40, share=share)
    setup.source("b", *[1_000] * 40, share=share)
    log = setup.rounds(10)
    assert (log.count("a") * 500, log.count("b") * 1_000) == (10_000, 10_000)


def test_who_joins_in_the_middle_of_a_round_has_a_turn_in_the_next(setup: Setup) -> None:
    """So a stream that leaves the ring to be read is neither ahead of one that stays, nor behind."""
    a = setup.source("a", QUANTUM)
    b = setup.source("b", *[QUANTUM] * 9)
    setup.source("c", *[QUANTUM] * 9)

    def read_a() -> None:
        if not a.left:
            a.left.append(QUANTUM)
            a.member.join()

    b.then = read_a
    assert "".join(setup.rounds(4)) == "abcabcabcabc"


def test_who_runs_dry_in_a_turn_goes_on_with_it(setup: Setup) -> None:
    """Small reads are no disadvantage, as long as the round lasts."""
    setup.scheduler.share().take(48_000, 0.0)  # one turn only
    a = setup.source("a", 500)
    setup.source("b", QUANTUM)
    setup.scheduler.round(0.0)
    a.left = [500, 1_000]
    a.member.join()
    setup.scheduler.round(0.0005)
    assert setup.log == ["a", "a", "a"]
    setup.scheduler.round(0.0025)
    assert setup.log == ["a", "a", "a", "b"]


def test_what_a_turn_left_counts_in_the_next_round_up_to_a_quantum(setup: Setup) -> None:
    """But not for ever: a backend that sends little does not save up for a flood."""
    a = setup.source("a", 500)
    setup.source("b", *[QUANTUM] * 99)
    setup.rounds(1)
    for _ in range(9):
        a.left = [500]
        a.member.join()
        setup.rounds(1)
    a.left = [500] * 100
    a.member.join()
    assert setup.rounds(1).count("a") == 2 * QUANTUM // 500
    assert setup.rounds(1).count("a") == QUANTUM // 500


def test_a_piece_that_cannot_be_cut_is_paid_for_by_later_turns(setup: Setup) -> None:
    """Who sends 5,000 bytes at once does not get more than who sends 1,000."""
    setup.source("a", *[5_000] * 99)
    setup.source("b", *[1_000] * 99)
    log = setup.rounds(20)
    assert (log.count("a") * 5_000, log.count("b") * 1_000) == (40_000, 40_000)


def test_members_pay_for_long_pieces_too(setup: Setup) -> None:
    """Inside a share as between shares."""
    share = setup.scheduler.share()
    setup.source("a", *[5_000] * 99, share=share)
    setup.source("b", *[1_000] * 99, share=share)
    log = setup.rounds(40)
    assert log.count("a") * 5_000 == pytest.approx(log.count("b") * 1_000, abs=5_000)


def test_a_debt_is_not_escaped_by_leaving(setup: Setup) -> None:
    """Else a flow of single long datagrams would get more than its part."""
    a = setup.source("a", 5_000)
    setup.source("b", *[1_000] * 99)
    setup.rounds(1)
    for _ in range(20):
        if not a.left:
            a.left = [5_000]
            a.member.join()
        setup.now += 1.0
        setup.scheduler.round(setup.now)
    assert setup.log.count("a") * 5_000 == pytest.approx(setup.log.count("b") * 1_000, abs=5_000)


def test_a_source_that_cannot_send_leaves_the_ring(setup: Setup) -> None:
    """It costs nothing, and joins when it can."""
    a = setup.source("a")
    a.member.join()
    setup.source("b", QUANTUM, QUANTUM)
    assert setup.rounds(1) == ["b"]
    assert a.limits == [QUANTUM]
    assert not a.member.waits
    assert setup.scheduler.waiting_shares == 1
    assert setup.rounds(1) == ["b"]
    assert a.limits == [QUANTUM]
    assert setup.scheduler.charged_bytes == 2 * QUANTUM


def test_a_member_may_leave_while_others_are_served(setup: Setup) -> None:
    """Whether its turn in the round was still to come or over."""
    share = setup.scheduler.share()
    first = setup.source("a", *[QUANTUM] * 9, share=share)
    last = setup.source("b", *[QUANTUM] * 9, share=share)
    assert setup.rounds(1) == ["a"]
    last.member.leave()
    first.member.leave()
    first.member.leave()
    assert setup.scheduler.waiting_shares == 0
    assert setup.rounds(3) == []
    last.member.join()
    last.member.join()
    assert setup.rounds(2) == ["b", "b"]


def test_tokens_are_gone_before_others_are_let_in(setup: Setup) -> None:
    """What a source sends may make room for others, who must not spend the same tokens."""
    assert setup.scheduler.share().take(47_000, 0.0)
    share = setup.scheduler.share()
    a = setup.source("a", QUANTUM, share=share)
    answers: list[bool] = []
    a.then = lambda: answers.extend([share.take(QUANTUM, 0.0), share.take(1_000, 0.0)])
    setup.scheduler.round(0.0)
    assert answers == [False, True]


# -- Who is told ----------------------------------------------------------------------------------------------------


def test_waking_happens_once_for_all_who_wait(setup: Setup) -> None:
    """And again once nobody waited in between."""
    share = setup.scheduler.share()
    a = setup.source("a", 1, share=share)
    setup.source("b", 1, share=share)
    setup.source("c", 1)
    assert setup.woken == 1
    setup.rounds(1)
    assert setup.woken == 1
    a.left = [1]
    a.member.join()
    assert setup.woken == 2


def test_what_waits_is_told_by_those_who_wait(setup: Setup) -> None:
    """A gauge that is kept beside the thing would drift."""
    share = setup.scheduler.share()
    setup.source("a", *[QUANTUM] * 3, share=share)
    setup.source("b", 100, share=share)
    setup.source("c", *[QUANTUM] * 2)
    assert (setup.scheduler.waiting_bytes(), setup.scheduler.waiting_shares) == (10_100, 2)
    setup.rounds(1)
    assert (setup.scheduler.waiting_bytes(), setup.scheduler.waiting_shares) == (6_100, 2)
    setup.rounds(9)
    assert (setup.scheduler.waiting_bytes(), setup.scheduler.waiting_shares) == (0, 0)
