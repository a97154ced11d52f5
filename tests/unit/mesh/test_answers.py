"""What follows from an answer: who is dialled, what is kept, and when to ask again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.document.peers import HostEntry, PeerAddress, SrvEntry
from nexus.mesh.answers import (
    ADDRESSES_MAX,
    RETRY_FIRST_S,
    SPREAD,
    Answer,
    Bounds,
    Memory,
    Picked,
    Question,
    pick,
    questions,
    wait_after,
)
from nexus.mesh.backoff import RetryDelay

HOSTS = HostEntry("nodes", 8444)
SERVICE = SrvEntry("_nexus._tcp.example.com")
SRV = Question(SERVICE, "SRV")
A = Question(HOSTS, "A")
ONE, TWO = HOSTS.address("192.0.2.1"), HOSTS.address("192.0.2.2")
FAILED = Answer(failure="SERVFAIL")
BOUNDS = Bounds()


class Lowest:
    """A source that always answers with the lower end."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return the lower end."""
        return min(a, b)


def is_ours(name: str) -> bool:
    """Trust one domain."""
    return name.endswith(".example.com")


def target(name: str, port: int = 8444) -> PeerAddress:
    """Return the address of a target."""
    return SERVICE.address(name, port)


def wait(*answers: Answer, retry: RetryDelay | None = None, bounds: Bounds = BOUNDS) -> float:
    """Return the shortest wait."""
    return wait_after(answers, retry or RetryDelay(RETRY_FIRST_S, 300), bounds, Lowest())


def test_the_numbers_are_those_of_the_documentation() -> None:
    """Every number is pinned, so that a change is a decision."""
    assert Bounds(5.0, 300.0, 30.0, 300.0) == BOUNDS
    assert (ADDRESSES_MAX, RETRY_FIRST_S, SPREAD) == (256, 1.0, 0.1)


def test_a_name_is_asked_for_both_kinds_of_addresses() -> None:
    """A service for its targets alone."""
    assert [question.record for question in questions(HOSTS)] == ["A", "AAAA"]
    assert questions(SERVICE) == (SRV,)


def test_each_address_is_picked_once_in_its_order() -> None:
    """The order is that of the priorities, and no name from the DNS is in it that had to be trusted."""
    assert pick(A, Answer((TWO, ONE, TWO)), lambda _: False) == Picked((TWO, ONE), (), 0)


@pytest.mark.parametrize("name", ["evil.example.net", "example.com", "a b.example.com", r"a\032b.example.com", ""])
def test_a_target_that_is_not_trusted_is_not_dialled(name: str) -> None:
    """Its certificate would be checked for a name that anybody may have put into the answer."""
    answer = Answer((target(name), target("a.example.com"), target(name, 8445)))
    assert pick(SRV, answer, is_ours) == Picked((target("a.example.com"),), (name,), 0)


def test_an_endless_answer_is_cut() -> None:
    """Always the same are left out."""
    peers = tuple(target(f"{number}.example.com") for number in range(ADDRESSES_MAX + 3))
    assert pick(SRV, Answer(peers), is_ours) == Picked(peers[:ADDRESSES_MAX], (), 3)


def test_an_answer_counts_at_once() -> None:
    """For those who came and for those who went."""
    memory = Memory(60)
    memory.take((ONE, TWO), 0)
    memory.take((TWO,), 1)
    assert memory.peers == (TWO,)


def test_nobody_takes_nobody_away_before_the_grace_is_over() -> None:
    """And only where nothing else was said in between."""
    memory = Memory(60)
    memory.take((ONE,), 0)
    memory.take((), 10)
    memory.take((), 69)
    assert memory.peers == (ONE,)
    memory.take((ONE,), 70)
    memory.take((), 71)
    memory.take((), 130)
    assert memory.peers == (ONE,)
    memory.take((), 131)
    assert not memory.peers


def test_one_single_nobody_is_never_enough() -> None:
    """However long ago the last answer was: name servers may have failed in between."""
    memory = Memory(60)
    memory.take((ONE,), 0)
    memory.take((), 10_000)
    assert memory.peers == (ONE,)


@pytest.mark.parametrize(
    ("answers", "expected_s"),
    [
        ((Answer((ONE,), 60),), 60),
        ((Answer((ONE,), 0),), 5),
        ((Answer((ONE,), 86_400),), 300),
        ((Answer((ONE,), 60), Answer((), 7)), 7),
        ((Answer((ONE,), 60), Answer((), 3600)), 60),
        ((Answer((), 3600),), 30),
        ((Answer((), 10), Answer((), 20)), 10),
    ],
)
def test_an_answer_holds_for_its_life_within_bounds(answers: tuple[Answer, ...], expected_s: float) -> None:
    """The shortest of all decides; where there is nobody, somebody is soon."""
    assert wait(*answers) == expected_s


def test_failures_are_asked_about_soon_and_then_less_often() -> None:
    """Until an answer comes; the life of what was said is no longer for it."""

    class Highest(Lowest):
        def uniform(self, a: float, b: float, /) -> float:
            return max(a, b)

    retry = RetryDelay(RETRY_FIRST_S, 8)
    waits = [wait_after((FAILED, Answer((ONE,), 6)), retry, BOUNDS, Highest()) for _ in range(5)]
    assert waits == [1, 2, 4, 6 * (1 + SPREAD), 6 * (1 + SPREAD)]
    assert wait_after((FAILED, FAILED), retry, BOUNDS, Highest()) == 8
    wait_after((Answer((ONE,), 6),), retry, BOUNDS, Highest())
    assert wait_after((FAILED,), retry, BOUNDS, Highest()) == 1


ANSWERS = st.builds(Answer, st.sampled_from([(), (ONE,)]), st.floats(0, 2**31), st.sampled_from(["", "x"]))


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=2), max_size=20), st.integers())
def test_every_wait_is_bounded(rounds: list[list[Answer]], seed: int) -> None:
    """No loop, and no change that is never seen."""
    retry, rng = RetryDelay(RETRY_FIRST_S, BOUNDS.ttl_max_s), random.Random(seed)
    for answers in rounds:
        assert 0.1 <= wait_after(answers, retry, BOUNDS, rng) <= BOUNDS.ttl_max_s * (1 + SPREAD)
