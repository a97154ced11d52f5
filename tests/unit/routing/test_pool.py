"""Tests of nexus.routing.pool."""

from __future__ import annotations

from collections import Counter
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.routing.pool import Pool

_WEIGHTS = st.lists(st.integers(1, 30), min_size=1, max_size=8)
_JOIN = st.tuples(st.just("join"), st.integers(0, 5), st.integers(1, 40))
_LEAVE = st.tuples(st.just("leave"), st.integers(0, 5), st.just(0))
_SELECT = st.tuples(st.just("select"), st.integers(1, 12), st.just(0))


class _Literal:
    """The weighted round robin of spec backend-protocol 13, line by line."""

    def __init__(self) -> None:
        self.ring: list[tuple[int, int]] = []
        self.i = -1
        self.cw = 0

    def join(self, member: int, weight: int) -> None:
        self.ring.append((member, weight))

    def leave(self, member: int) -> None:
        position = [other for other, _ in self.ring].index(member)
        self.ring[position] = self.ring[-1]
        self.ring.pop()

    def select(self) -> int | None:
        n = len(self.ring)
        if n < 2:
            return self.ring[0][0] if n else None
        while True:
            self.i = (self.i + 1) % n
            if self.i == 0:
                self.cw -= gcd(*(weight for _, weight in self.ring))
                if self.cw <= 0:
                    self.cw = max(weight for _, weight in self.ring)
            if self.ring[self.i][1] >= self.cw:
                return self.ring[self.i][0]


def _pool(*weights: int) -> Pool[int]:
    pool: Pool[int] = Pool()
    for member, weight in enumerate(weights):
        pool.join(member, weight)
    return pool


def test_the_sequence_of_the_original_is_kept() -> None:
    """Weights 4, 3 and 2 interleave as the algorithm of the spec has it."""
    pool = _pool(4, 3, 2)
    assert [pool.select() for _ in range(9)] == [0, 0, 1, 0, 1, 2, 0, 1, 2]


@given(_WEIGHTS)
def test_over_a_full_cycle_every_member_gets_its_weight(weights: list[int]) -> None:
    """Each share over one cycle is the weight divided by the common divisor."""
    pool = _pool(*weights)
    divisor = gcd(*weights)
    picked = Counter(pool.select() for _ in range(sum(weights) // divisor))
    assert picked == {member: weight // divisor for member, weight in enumerate(weights)}


@given(st.lists(st.one_of(_JOIN, _LEAVE, _SELECT), max_size=30))
def test_random_joins_and_leaves_pick_what_the_literal_algorithm_picks(steps: list[tuple[str, int, int]]) -> None:
    """Skipping the empty rounds changes no pick."""
    pool: Pool[int] = Pool()
    model = _Literal()
    for step, argument, weight in steps:
        present = argument in pool.members()
        if step == "select":
            assert [pool.select() for _ in range(argument)] == [model.select() for _ in range(argument)]
        elif step == "join" and not present:
            pool.join(argument, weight)
            model.join(argument, weight)
        elif step == "leave":
            pool.leave(argument)
            if present:
                model.leave(argument)
        assert pool.members() == tuple(member for member, _ in model.ring)


def test_a_heavy_member_that_left_costs_no_empty_rounds() -> None:
    """The level left behind by a weight of 2^62 sinks at once to what the others weigh."""
    pool = _pool(1, 2, 2**62)
    assert pool.select() == 2
    pool.leave(2)
    assert [pool.select() for _ in range(6)].count(1) == 4


def test_an_empty_pool_selects_nobody() -> None:
    """None is a value, not an error."""
    pool: Pool[int] = Pool()
    assert pool.select() is None
    assert len(pool) == 0


def test_a_pool_of_one_does_not_move_its_turn() -> None:
    """The second member joins and finds the ring where a fresh one stands."""
    pool = _pool(1)
    assert [pool.select(), pool.select()] == [0, 0]
    pool.join(1)
    assert [pool.select(), pool.select()] == [0, 1]


def test_a_second_join_changes_the_weight_alone() -> None:
    """A member stands in the ring once, and in its place."""
    pool = _pool(1, 1)
    pool.join(0, 3)
    assert pool.members() == (0, 1)
    assert Counter(pool.select() for _ in range(4)) == {0: 3, 1: 1}


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_below_one_is_refused(weight: int) -> None:
    """Weights are made positive before they come here."""
    pool = _pool(1)
    with pytest.raises(ValueError, match="at least 1"):
        pool.join(7, weight)
    assert pool.members() == (0,)


def test_leaving_moves_the_last_member_into_the_gap() -> None:
    """The ring keeps the order of the original; leaving twice is harmless."""
    pool = _pool(1, 1, 1, 1)
    pool.leave(1)
    pool.leave(1)
    assert pool.members() == (0, 3, 2)
    pool.leave(2)
    assert pool.members() == (0, 3)


def test_an_excluded_member_is_replaced_by_the_next_in_the_ring() -> None:
    """A connection whose backend failed is offered to another one, whatever the weights."""
    pool = _pool(2**62, 1, 1)
    assert pool.select(exclude={0}) == 1
    assert pool.select(exclude={0, 1}) == 2
    assert pool.select(exclude={0, 1, 2}) is None
    assert _pool(1).select(exclude={0}) is None
