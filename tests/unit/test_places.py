"""nexus.places: who gives way to whom, for any crowd of clients, silent and otherwise."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nexus.limits import UNBOUNDED
from nexus.places import GRACE_S, WIDE_FACTOR, Bursts, Places

WIDE = "2001:db8::/48"
SOURCES = (("192.0.2.1",), ("192.0.2.2",), ("2001:db8::/64", WIDE), ("2001:db8:0:1::/64", WIDE))
BURSTS = Bursts(4, 2)
CAPS = st.integers(1, 4)
PAUSES_S = (0.0, 0.125, GRACE_S / 2, GRACE_S, 2 * GRACE_S)  # exact in binary, so that sums of them are
ARRIVAL = st.tuples(st.sampled_from(SOURCES), st.sampled_from(PAUSES_S))
Step = tuple[tuple[str, ...], float] | int | tuple[str, int]
CLIENT = st.integers(0, 30)
STEPS = st.lists(st.one_of(ARRIVAL, CLIENT, st.tuples(st.sampled_from(("keep", "expose")), CLIENT)), max_size=200)
QUIET_STEPS = st.lists(st.one_of(ARRIVAL, CLIENT), max_size=200)


class Crowd:
    """A model beside the thing: who has a place, in order, by sources and time of arrival, and who is kept."""

    def __init__(self, total: int, per_source: int) -> None:
        self.places: Places[int] = Places(total, per_source, BURSTS)
        self.held: dict[int, tuple[tuple[str, ...], float]] = {}
        self.kept: set[int] = set()
        self.now = 0.0
        self.count = 0

    def arrive(self, sources: tuple[str, ...], after_s: float) -> tuple[bool, int | None]:
        """Let a client arrive; check what holds for every admission."""
        self.now += after_s
        self.count += 1
        admitted, evicted = self.places.admit(self.count, sources, self.now)
        if evicted is not None:
            assert admitted, "nobody gives way for nobody"
            assert self.now - self.held.pop(evicted)[1] >= GRACE_S, "a fresh client had to give way"
            assert evicted not in self.kept, "who was kept had to give way"
        if admitted:
            self.held[self.count] = (sources, self.now)
        return admitted, evicted

    def leave(self, client: int) -> None:
        """Let a client be decided, or one that is not there."""
        self.places.leave(client)
        self.held.pop(client, None)
        self.kept.discard(client)

    def keep(self, client: int) -> None:
        """Let a client speak, or one that is not there."""
        self.places.keep(client)
        self.kept |= {client} & set(self.held)

    def expose(self, client: int) -> None:
        """Take that back."""
        self.places.expose(client, self.now)
        if client in self.kept:
            self.kept.remove(client)
            self.held[client] = (self.held[client][0], self.now)

    def by_source(self) -> Counter[str]:
        """Count who has a place."""
        return Counter(source for sources, _ in self.held.values() for source in sources)


def play(steps: list[Step], total: int, per_source: int) -> Crowd:
    """Let clients arrive, leave, be kept and exposed; the counts agree after each step."""
    crowd = Crowd(total, per_source)
    for step in steps:
        match step:
            case int():
                crowd.leave(step)
            case "keep", int(client):
                crowd.keep(client)
            case "expose", int(client):
                crowd.expose(client)
            case tuple(sources), float(after_s):
                crowd.arrive(sources, after_s)
        assert len(crowd.places) == len(crowd.held)
        assert crowd.places.oldest_first() == tuple(crowd.held)
        assert {source: len(group) for source, group in crowd.places._by_source.items() if source} == crowd.by_source()
    return crowd


@given(STEPS, CAPS, CAPS)
def test_the_crowd_is_bounded_and_counted_right(steps: list[Step], total: int, per_source: int) -> None:
    """In all, by source and by wider network, never above the burst; what is empty is forgotten."""
    crowd = play(steps, total, per_source)
    assert len(crowd.places) <= total * BURSTS.total
    bounds = {WIDE: per_source * WIDE_FACTOR * BURSTS.source}
    assert all(held <= bounds.get(of, per_source * BURSTS.source) for of, held in crowd.by_source().items())
    for client in tuple(crowd.held):
        crowd.leave(client)
    assert len(crowd.places) == 0
    assert set(crowd.places._by_source) == {""}
    assert not crowd.places._by_source[""]


@given(QUIET_STEPS, CAPS, CAPS, st.sampled_from(SOURCES))
def test_old_silent_clients_never_keep_a_fresh_one_out(
    steps: list[Step], total: int, per_source: int, sources: tuple[str, ...]
) -> None:
    """However many there are, once all of them had their time to speak everybody is admitted."""
    crowd = play(steps, total, per_source)
    admitted, evicted = crowd.arrive(sources, GRACE_S)
    assert admitted
    if len(crowd.held) > total:
        assert evicted is not None


@given(QUIET_STEPS, CAPS, CAPS, st.sampled_from(SOURCES))
def test_nobody_gives_way_below_the_caps(
    steps: list[Step], total: int, per_source: int, sources: tuple[str, ...]
) -> None:
    """There is room."""
    crowd = play(steps, total, per_source)
    caps = zip(sources, (per_source, per_source * WIDE_FACTOR), strict=False)
    has_room = len(crowd.held) < total and all(crowd.by_source()[source] < cap for source, cap in caps)
    admitted, evicted = crowd.arrive(sources, 2 * GRACE_S)
    assert admitted
    assert (evicted is None) is has_room


@given(STEPS)
def test_without_caps_everybody_is_admitted(steps: list[Step]) -> None:
    """UNBOUNDED means that nobody ever gives way."""
    crowd = play(steps, UNBOUNDED, UNBOUNDED)
    assert crowd.arrive(SOURCES[-1], GRACE_S) == (True, None)


def test_the_oldest_of_the_same_source_gives_way_first() -> None:
    """A crowd from one address displaces its own, not others."""
    places: Places[str] = Places(10, 2, BURSTS)
    for number, source in enumerate(("a", "b", "b")):
        places.admit(f"{source}{number}", (source,), float(number))
    assert places.admit("b3", ("b",), 10.0) == (True, "b1")


def test_the_oldest_of_the_wider_network_gives_way_before_others() -> None:
    """One address in each of many networks of one owner is no way round the bound of a source."""
    places: Places[int] = Places(100, 1, BURSTS)
    places.admit(0, ("192.0.2.1",), 0.0)
    for number in range(1, WIDE_FACTOR + 1):
        assert places.admit(number, (f"2001:db8:0:{number}::/64", WIDE), 1.0) == (True, None)
    assert places.admit(9, ("2001:db8:0:9::/64", WIDE), 10.0) == (True, 1)


def test_the_oldest_of_all_gives_way_above_the_total() -> None:
    """When no source alone is too large."""
    places: Places[str] = Places(3, 2, BURSTS)
    for number, source in enumerate("abc"):
        places.admit(source, (source,), float(number))
    assert places.admit("d", ("d",), 10.0) == (True, "a")


def test_who_was_kept_counts_but_gives_way_to_nobody() -> None:
    """The next oldest goes; where there is none the newcomer is refused, until one of them is exposed again."""
    places: Places[str] = Places(2, UNBOUNDED, Bursts(1, 1))
    places.admit("a", ("a",), 0.0)
    places.admit("b", ("b",), 1.0)
    places.keep("a")
    assert places.admit("c", ("c",), 10.0) == (True, "b")
    places.keep("c")
    assert places.admit("d", ("d",), 20.0) == (False, None)
    places.expose("a", 20.0)
    assert places.admit("d", ("d",), 20.0) == (False, None)
    assert places.admit("d", ("d",), 20.0 + GRACE_S) == (True, "a")


def test_a_burst_is_refused_only_far_above_the_cap() -> None:
    """Fresh clients are admitted beyond it; who comes too many is refused and takes no place."""
    places: Places[int] = Places(2, UNBOUNDED, BURSTS)
    burst = 2 * BURSTS.total
    assert [places.admit(number, (str(number),), 0.0) for number in range(burst)] == [(True, None)] * burst
    assert places.admit(burst, ("late",), 0.0) == (False, None)
    assert len(places) == burst
    assert places.admit(burst, ("later",), GRACE_S) == (True, 0)
