"""nexus.listeners.peeks: who gives way to whom, for any crowd of clients, silent and otherwise."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nexus.limits import UNBOUNDED
from nexus.listeners.peeks import BURST_FACTOR, GRACE_S, Peeks

SOURCES = ("192.0.2.1", "192.0.2.2", "2001:db8::/64")
CAPS = st.integers(1, 4)
PAUSES_S = (0.0, 0.125, GRACE_S / 2, GRACE_S, 2 * GRACE_S)  # exact in binary, so that sums of them are
ARRIVAL = st.tuples(st.sampled_from(SOURCES), st.sampled_from(PAUSES_S))
STEPS = st.lists(st.one_of(ARRIVAL, st.integers(0, 30)), max_size=200)


class Crowd:
    """A model beside the thing: who is being peeked at, in order, by source and time of arrival."""

    def __init__(self, total: int, per_source: int) -> None:
        self.peeks: Peeks[int] = Peeks(total, per_source)
        self.waiting: dict[int, tuple[str, float]] = {}
        self.now = 0.0
        self.count = 0

    def arrive(self, source: str, after_s: float) -> tuple[bool, int | None]:
        """Let a client arrive; check what holds for every admission."""
        self.now += after_s
        self.count += 1
        admitted, evicted = self.peeks.admit(self.count, source, self.now)
        if evicted is not None:
            assert admitted, "nobody gives way for nobody"
            assert self.now - self.waiting.pop(evicted)[1] >= GRACE_S, "a fresh client had to give way"
        if admitted:
            self.waiting[self.count] = (source, self.now)
        return admitted, evicted

    def leave(self, client: int) -> None:
        """Let a client be decided, or one that is not there."""
        self.peeks.leave(client)
        self.waiting.pop(client, None)

    def by_source(self) -> Counter[str]:
        """Count who waits."""
        return Counter(source for source, _ in self.waiting.values())


def play(steps: list[tuple[str, float] | int], total: int, per_source: int) -> Crowd:
    """Let clients arrive and leave; the counts agree after each step."""
    crowd = Crowd(total, per_source)
    for step in steps:
        if isinstance(step, int):
            crowd.leave(step)
        else:
            crowd.arrive(*step)
        assert len(crowd.peeks) == len(crowd.waiting)
        assert crowd.peeks.oldest_first() == tuple(crowd.waiting)
    return crowd


@given(STEPS, CAPS, CAPS)
def test_the_crowd_is_bounded_and_counted_right(
    steps: list[tuple[str, float] | int], total: int, per_source: int
) -> None:
    """In all and by source, never above the burst; what is empty is forgotten."""
    crowd = play(steps, total, per_source)
    assert len(crowd.peeks) <= total * BURST_FACTOR
    assert all(held <= per_source * BURST_FACTOR for held in crowd.by_source().values())
    assert set(crowd.peeks._by_source) == set(crowd.by_source())
    for client in tuple(crowd.waiting):
        crowd.leave(client)
    assert len(crowd.peeks) == 0
    assert not crowd.peeks._by_source


@given(STEPS, CAPS, CAPS, st.sampled_from(SOURCES))
def test_old_silent_clients_never_keep_a_fresh_one_out(
    steps: list[tuple[str, float] | int], total: int, per_source: int, source: str
) -> None:
    """However many there are, once all of them had their time to speak everybody is admitted."""
    crowd = play(steps, total, per_source)
    admitted, evicted = crowd.arrive(source, GRACE_S)
    assert admitted
    if len(crowd.waiting) > total:
        assert evicted is not None


@given(STEPS, CAPS, CAPS, st.sampled_from(SOURCES))
def test_nobody_gives_way_below_the_caps(
    steps: list[tuple[str, float] | int], total: int, per_source: int, source: str
) -> None:
    """There is room."""
    crowd = play(steps, total, per_source)
    has_room = len(crowd.waiting) < total and crowd.by_source()[source] < per_source
    admitted, evicted = crowd.arrive(source, 2 * GRACE_S)
    assert admitted
    assert (evicted is None) is has_room


@given(STEPS)
def test_without_caps_everybody_is_admitted(steps: list[tuple[str, float] | int]) -> None:
    """UNBOUNDED means that nobody ever gives way."""
    crowd = Crowd(UNBOUNDED, UNBOUNDED)
    for step in steps:
        if not isinstance(step, int):
            assert crowd.arrive(*step) == (True, None)


def test_the_oldest_of_the_same_source_gives_way_first() -> None:
    """A crowd from one address displaces its own, not others."""
    peeks: Peeks[str] = Peeks(10, 2)
    for number, source in enumerate(("a", "b", "b")):
        peeks.admit(f"{source}{number}", source, float(number))
    assert peeks.admit("b3", "b", 10.0) == (True, "b1")


def test_the_oldest_of_all_gives_way_above_the_total() -> None:
    """When no source alone is too large."""
    peeks: Peeks[str] = Peeks(3, 2)
    for number, source in enumerate("abc"):
        peeks.admit(source, source, float(number))
    assert peeks.admit("d", "d", 10.0) == (True, "a")


def test_a_burst_is_refused_only_far_above_the_cap() -> None:
    """Fresh clients are admitted beyond it; who comes too many is refused and takes no place."""
    peeks: Peeks[int] = Peeks(2, UNBOUNDED)
    burst = 2 * BURST_FACTOR
    assert [peeks.admit(number, str(number), 0.0) for number in range(burst)] == [(True, None)] * burst
    assert peeks.admit(burst, "late", 0.0) == (False, None)
    assert len(peeks) == burst
    assert peeks.admit(burst, "later", GRACE_S) == (True, 0)
