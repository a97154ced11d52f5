"""nexus.workers.shares: where every worker has the same part of a route."""

from __future__ import annotations

from nexus.workers.shares import Shares


def test_a_route_is_even_where_every_worker_weighs_the_same() -> None:
    """Whoever makes up the weight: the kernel spreads clients evenly over workers."""
    shares = Shares(2)
    shares.add(0, ["a", "b"], 3)
    assert not shares.are_even("a")
    shares.add(1, ["a"], 1)
    assert not shares.are_even("a")
    shares.add(1, ["a"], 2)
    assert shares.are_even("a")
    assert not shares.are_even("b")
    assert not shares.are_even("c")


def test_a_route_is_uneven_again_when_a_backend_leaves() -> None:
    """And nothing is left of one that nobody serves."""
    shares = Shares(2)
    for worker in (0, 1):
        shares.add(worker, ["a"], 1)
    shares.add(0, ["a"], -1)
    assert not shares.are_even("a")
    shares.add(1, ["a"], -1)
    assert not shares.are_even("a")
    assert shares._weights == {}
    assert shares._even == set()
