"""nexus.bandwidth.scheduler, lane and datagrams together, on a simulated clock: the promises of the cap.

Over any 5 s at most 1.02 times the cap; at least 0.95 times where there is demand; backends equal, streams inside a
backend equal; who wants less gets what it wants, and the rest is there for the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.bandwidth import Backend, World

CAP_MOST = 1.02
CAP_LEAST = 0.95
LATE_S = 0.030
SPREAD = 1.05  # "a few percent", over some seconds: pieces have a size

Late = Callable[[], float]


def late() -> Late:
    """Return what makes every timer late, by up to LATE_S, the same in each run."""
    dice = random.Random(25)
    return lambda: dice.uniform(0, LATE_S)


def prompt() -> Late:
    """Return what makes no timer late."""
    return lambda: 0.0


def spread(totals: Iterable[int]) -> float:
    """Return the ratio of the most to the least."""
    values = list(totals)
    return max(values) / min(values)


def check_cap(world: World, until: float, *, demand: bool = True) -> None:
    """Check the promise for every window of 5 s, and that everything was charged."""
    least, most = world.sent.windows(until)
    assert most <= CAP_MOST * 5 * world.rate
    if demand:
        assert least >= CAP_LEAST * 5 * world.rate
    assert world.scheduler.charged_bytes == world.sent.total


def fair_shares(total: float, demands: Sequence[float]) -> list[float]:
    """Return the max-min fair division: nobody gets more than it wants, the others divide the rest equally."""
    shares = [0.0] * len(demands)
    left = total
    for done, position in enumerate(sorted(range(len(demands)), key=lambda at: demands[at])):
        shares[position] = min(demands[position], left / (len(demands) - done))
        left -= shares[position]
    return shares


# -- Equal demand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lateness", [prompt, late])
@pytest.mark.parametrize("count", [2, 8, 32])
@pytest.mark.parametrize("megabits", [1, 20, 200, 1000])
def test_backends_with_equal_demand_get_equal_parts(megabits: int, count: int, lateness: Callable[[], Late]) -> None:
    """W25: uploads and downloads mixed, prompt and late timers, from 1 Mbit/s to 1 Gbit/s."""
    world = World(megabits, lateness())
    backends = [world.backend() for _ in range(count)]
    for number, backend in enumerate(backends):
        if number % 2:
            backend.upload()
        else:
            backend.download(round_trip_s=0.002)
    seconds = 12.0 if megabits < 200 else 6.0
    world.run(seconds)
    check_cap(world, seconds)
    assert spread(backend.sent.total for backend in backends) < SPREAD


def test_ten_gigabits_are_kept_and_reached() -> None:
    """On a machine that could; the loop's turn is short accordingly."""
    world = World(10_000, turn_s=5e-6)
    backends = [world.backend() for _ in range(2)]
    for backend in backends:
        backend.upload()
        backend.download(round_trip_s=0.001)
    world.run(5.2)
    check_cap(world, 5.2)
    assert spread(backend.sent.total for backend in backends) < SPREAD


@pytest.mark.parametrize("lateness", [prompt, late])
@pytest.mark.parametrize("megabits", [1, 20, 200])
def test_sixty_four_streams_weigh_as_much_as_one(megabits: int, lateness: Callable[[], Late]) -> None:
    """W25: between backends; and the 64 are equal among themselves, whichever way they go."""
    world = World(megabits, lateness())
    many, one = world.backend(), world.backend()
    streams = [many.upload() if number % 2 else many.download() for number in range(64)]
    one.upload()
    world.run(1.0)  # behind the first burst, which goes to who comes first
    before = [stream.sent.total for stream in streams]
    seconds = {1: 240.0, 20: 25.0, 200: 9.0}[megabits]
    world.run(seconds)
    check_cap(world, seconds)
    assert spread([many.sent.total, one.sent.total]) < SPREAD
    assert spread(stream.sent.total - start for stream, start in zip(streams, before, strict=True)) < 1.1


def test_both_directions_of_a_backend_draw_on_one_budget() -> None:
    """Spec 14: a backend with uploads and downloads gets no more than one with either."""
    world = World(20)
    both, other = world.backend(), world.backend()
    for _ in range(3):
        both.upload()
        both.download()
    other.download()
    world.run(10.0)
    check_cap(world, 10.0)
    assert spread([both.sent.total, other.sent.total]) < SPREAD


# -- Unequal demand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lateness", [prompt, late])
@pytest.mark.parametrize("megabits", [1, 20, 200])
def test_a_trickle_costs_the_others_nothing_but_itself(megabits: int, lateness: Callable[[], Late]) -> None:
    """W25: any trickle counted as active and took a whole share from those who could have used it."""
    world = World(megabits, lateness())
    trickles = [world.backend() for _ in range(7)]
    wanted = world.rate / 1000
    for backend in trickles:
        backend.upload(bytes_per_second=wanted)
    busy = world.backend()
    busy.download()
    world.run(20.0)
    check_cap(world, 20.0)
    for backend in trickles:
        assert backend.sent.total >= 0.9 * wanted * 20.0 - 2_000
    assert busy.sent.total >= CAP_LEAST * world.rate * 20.0 - sum(backend.sent.total for backend in trickles)


def test_idle_backends_cost_nothing() -> None:
    """One busy backend among 31 idle ones has the whole cap."""
    world = World(20)
    backends = [world.backend() for _ in range(32)]
    for backend in backends[1:]:
        backend.upload(bytes_per_second=1e-6)
    backends[0].upload()
    world.run(10.0)
    check_cap(world, 10.0)
    assert backends[0].sent.total == world.sent.total


@pytest.mark.parametrize("lateness", [prompt, late])
def test_who_wants_less_gets_what_it_wants(lateness: Callable[[], Late]) -> None:
    """The rest is divided equally: max-min fairness."""
    world = World(20, lateness())
    demands = [0.02, 0.05, 0.1, 0.3, 0.9, 9.0]
    backends = [world.backend() for _ in demands]
    for backend, demand in zip(backends, demands, strict=True):
        backend.upload(bytes_per_second=demand * world.rate)
    world.run(20.0)
    check_cap(world, 20.0)
    shares = fair_shares(world.rate * 20.0, [demand * world.rate * 20.0 for demand in demands])
    assert [backend.sent.total for backend in backends] == [pytest.approx(share, rel=0.05) for share in shares]


def test_a_backend_whose_client_takes_nothing_leaves_the_cap_to_others() -> None:
    """And has its part again as soon as bytes can go."""
    world = World(20)
    stuck, other = world.backend(), world.backend()
    download = stuck.download()
    other.download()
    world.run(5.0)
    download.lane.set_open(False)
    before = (stuck.sent.total, other.sent.total)
    world.run(10.0)
    assert stuck.sent.total == before[0]
    assert other.sent.total - before[1] >= CAP_LEAST * 5 * world.rate
    download.lane.set_open(True)
    before = (stuck.sent.total, other.sent.total)
    world.run(15.0)
    assert spread([stuck.sent.total - before[0], other.sent.total - before[1]]) < SPREAD
    check_cap(world, 15.0)


def test_backends_come_and_go() -> None:
    """Whoever is there has an equal part of the time that it is there."""
    world = World(20, late())
    first, second, third = (world.backend() for _ in range(3))
    first.upload()
    world.run(5.0)
    gone = second.download()
    world.run(10.0)
    third.upload()
    gone.lane.clear()
    gone.lane.set_open(False)
    world.run(15.0)
    check_cap(world, 15.0)
    part = world.rate * 2.5
    assert [backend.sent.total for backend in (first, second, third)] == [
        pytest.approx(4 * part, rel=0.05),
        pytest.approx(part, rel=0.05),
        pytest.approx(part, rel=0.05),
    ]


# -- Small pieces, datagrams ------------------------------------------------------------------------------------------


def test_small_messages_pay_for_their_headers() -> None:
    """A backend of 100-byte answers moves as many bytes of the wire as one of full messages."""
    world = World(20)
    small, large = world.backend(), world.backend()
    for _ in range(40):
        small.download(100)
    large.download()
    world.run(8.0)
    check_cap(world, 8.0)
    assert spread([small.sent.total, large.sent.total]) < SPREAD


@pytest.mark.parametrize("size", [64, 1_200, 2_048])
@pytest.mark.parametrize("megabits", [1, 20])
def test_flows_share_with_streams(megabits: int, size: int) -> None:
    """A flow that floods is one member of its backend and loses its own; an upload beside it is another."""
    world = World(megabits)
    mixed, other = world.backend(), world.backend()
    flow = Flood(mixed, size)
    upload = mixed.upload()
    other.upload()
    world.run(20.0)
    check_cap(world, 20.0)
    assert spread([mixed.sent.total, other.sent.total]) < SPREAD
    assert spread([flow.sent_bytes, upload.sent.total]) < SPREAD
    assert flow.dropped


def test_ten_thousand_flows_weigh_as_much_as_one_stream() -> None:
    """And as much as each other: whoever opens flows by the thousand starves no stream of the same backend."""
    world = World(20)
    mixed = world.backend()
    crowd = Flood(mixed, 1_200, flows=10_000)
    upload, download = mixed.upload(), mixed.download()
    world.run(20.0)
    check_cap(world, 20.0)
    assert spread([crowd.sent_bytes, upload.sent.total, download.sent.total]) < SPREAD
    assert crowd.dropped


@dataclass
class Flood:
    """UDP flows that offer more than the whole cap, one datagram each in turn."""

    backend: Backend
    size: int
    flows: int = 1
    offered: int = 0
    sent_bytes: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self.burst()

    def burst(self) -> None:
        """Offer 2 ms of the cap, and again after 1 ms."""
        cost = self.size + 17
        for _ in range(max(1, int(self.backend.world.rate * 0.002 / cost))):
            flow = self.offered % self.flows
            self.offered += 1
            if not self.backend.datagrams.offer(flow, bytes(self.size), self._send, self.backend.world.now):
                self.dropped += 1
        self.backend.world.after(0.001, self.burst)

    def _send(self, datagram: object) -> None:
        del datagram
        self.sent_bytes += self.size + 17
        self.backend.note(self.size + 17)


# -- Anything ---------------------------------------------------------------------------------------------------------

BACKENDS = 6
DEMANDS = st.lists(st.tuples(st.integers(0, BACKENDS - 1), st.sampled_from([0.01, 0.05, 0.2, 0.5, 2.0])), max_size=12)
DOWNLOADS = st.lists(st.tuples(st.integers(0, BACKENDS - 1), st.sampled_from([16_384, 32_768])), max_size=8)


# No shrinking: it would run the simulation for minutes, and the case is readable as it is.
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    megabits=st.sampled_from([1, 3, 20, 90]),
    uploads=DEMANDS,
    downloads=DOWNLOADS,
    seed=st.integers(0, 1000),
    late_s=st.sampled_from([0.0, 0.004, LATE_S]),
)
def test_any_mix_is_kept_within_the_cap_and_shared_fairly(
    megabits: int, uploads: list[tuple[int, float]], downloads: list[tuple[int, int]], seed: int, late_s: float
) -> None:
    """Conservation, the cap, no starvation: each backend gets its max-min fair part."""
    seconds = 15.0
    dice = random.Random(seed)
    world = World(megabits, lambda: dice.uniform(0, late_s))
    backends = [world.backend() for _ in range(BACKENDS)]
    demands = [0.0] * BACKENDS
    for number, demand in uploads:
        backends[number].upload(demand * world.rate)
        demands[number] += demand * world.rate * seconds
    for number, size in downloads:
        backends[number].download(size, round_trip_s=0.002)
        demands[number] = math.inf
    world.run(seconds)
    check_cap(world, seconds, demand=sum(demands) > 1.1 * world.rate * seconds)
    for backend, share in zip(backends, fair_shares(world.rate * seconds, demands), strict=True):
        assert backend.sent.total == pytest.approx(share, rel=0.08, abs=70_000)
