"""Tests of what peers are told and when, on the event loop's own timers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nexus.mesh import announcer as module
from nexus.mesh.announcer import Announcer
from nexus.protocol.tunnels import Announce, parse_text
from tests.support.hub import eventually

NODE = bytes(range(16))


class Told:
    """A peer; ``room`` False plays a link on which much waits."""

    def __init__(self) -> None:
        self.room = True
        self.heard: list[Announce] = []

    def announce(self, text: str) -> bool:
        if self.room:
            said = parse_text(text)
            assert isinstance(said, Announce)
            self.heard.append(said)
        return self.room

    def routes(self) -> list[tuple[str, ...]]:
        """What was heard, in order."""
        return [one.routes for one in self.heard]


class Setup:
    """An announcer, two peers, and the routes of the node."""

    def __init__(self) -> None:
        self.routes: set[str] = set()
        self.peers = [Told(), Told()]
        self.announcer = Announcer(NODE, lambda: self.routes, lambda: self.peers)

    def change(self, *routes: str) -> None:
        """Let the node serve these routes."""
        self.routes = set(routes)
        self.announcer.changed()


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    """Timers are short, and gone afterwards."""
    monkeypatch.setattr(module, "DELAY_S", 0.01)
    monkeypatch.setattr(module, "LATE_CHECK_S", 0.01)
    setup = Setup()
    yield setup
    setup.announcer.close()


async def test_a_change_is_told_to_all_once(setup: Setup) -> None:
    """Sorted, with this node's id, and the version rises."""
    setup.change("b.example", "a.example")
    await eventually(lambda: setup.peers[1].heard, "told")
    assert [peer.routes() for peer in setup.peers] == [[("a.example", "b.example")]] * 2
    setup.change("c.example")
    await eventually(lambda: len(setup.peers[1].heard) == 2, "told again")
    first, second = setup.peers[0].heard
    assert first.node_id == NODE
    assert 0 < first.version < second.version


async def test_a_thousand_backends_at_once_are_told_as_one_change(setup: Setup) -> None:
    """The number of announcements is bounded by time, not by changes."""
    for number in range(1000):
        setup.routes.add(f"host-{number}.example")
        setup.announcer.changed()
    await eventually(lambda: setup.peers[0].heard, "told")
    assert [len(routes) for routes in setup.peers[0].routes()] == [1000]


async def test_a_change_that_changes_nothing_is_not_told(setup: Setup) -> None:
    """A second backend of the same name is of no interest to anybody."""
    setup.change("a.example")
    await eventually(lambda: setup.peers[0].heard, "told")
    setup.change("a.example")
    await eventually(lambda: "change" not in setup.announcer._timers, "the change was looked at")
    assert len(setup.peers[0].heard) == 1


async def test_a_peer_that_comes_up_is_told_at_once(setup: Setup) -> None:
    """And the others with the change that made the difference, even one that is undone meanwhile."""
    setup.change("a.example")
    await eventually(lambda: setup.peers[0].heard, "told")
    newcomer = Told()
    setup.change("b.example")
    setup.announcer.greet(newcomer)
    setup.peers.append(newcomer)
    assert newcomer.routes() == [("b.example",)]
    setup.change("a.example")
    await eventually(lambda: len(newcomer.heard) == 2, "told what holds")
    assert newcomer.routes()[-1] == setup.peers[0].routes()[-1] == ("a.example",)


async def test_a_full_link_is_told_the_latest_when_there_is_room(setup: Setup) -> None:
    """300 changes while a peer cannot be told are one announcement for it, and the right one."""
    away, other = setup.peers
    away.room = False
    for number in range(300):
        setup.routes = {f"host-{number}.example"}
        setup.announcer.tell_now()
    assert len(other.heard) == 300
    away.room = True
    await eventually(lambda: away.heard, "told")
    assert away.routes() == [("host-299.example",)]
    await eventually(lambda: "late" not in setup.announcer._timers, "nobody waits any more")


async def test_a_peer_that_left_is_not_waited_for(setup: Setup) -> None:
    """Nothing is sent to a link that is gone."""
    away = setup.peers.pop()
    away.room = False
    setup.announcer.greet(away)
    setup.announcer.forget(away)
    away.room = True
    await eventually(lambda: "late" not in setup.announcer._timers, "looked")
    assert away.heard == []


async def test_what_holds_is_told_again_from_time_to_time(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an original that dropped an announcement."""
    monkeypatch.setattr(module, "REFRESH_S", 0.01)
    setup.routes = {"a.example"}
    setup.announcer.start()
    await eventually(lambda: len(setup.peers[0].heard) >= 3, "told again and again")
    assert set(setup.peers[0].routes()) == {("a.example",)}
    versions = [one.version for one in setup.peers[0].heard]
    assert versions == sorted(set(versions))


async def test_a_long_list_is_told_less_often(setup: Setup) -> None:
    """It costs every peer time to read."""
    setup.change(*(f"host-{number}.example" for number in range(50_000)))
    await eventually(lambda: setup.peers[0].heard, "told")
    before = asyncio.get_running_loop().time()
    setup.announcer.changed()
    assert setup.announcer._timers["change"].when() - before >= 50_000 * module.DELAY_PER_ROUTE_S


async def test_a_list_that_is_too_long_is_cut_and_said_to_be(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer would end the link over it."""
    monkeypatch.setattr(module, "ANNOUNCE_MAX_BYTES", 2000)
    setup.routes = {f"host-{number}.example.com" for number in range(200)}
    setup.announcer.tell_now()
    (told,) = setup.peers[0].routes()
    assert 0 < len(told) < 100
    assert f"peers are told only {len(told)} of 200 routes" in caplog.text
