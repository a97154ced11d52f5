"""Which nodes there are, while the list and the DNS change; the time is the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable

import pytest

from nexus.document.peers import HostEntry, PeerAddress, PeerEntry, SrvEntry, parse_peer
from nexus.mesh.answers import Answer, Bounds, Question
from nexus.mesh.discovery import Discovery
from nexus.mesh.lookup import DnsLookup
from tests.support.hub import eventually
from tests.support.name_server import name_server

ON_BOTH_LOOPS = True
STATIC = parse_peer("wss://static.example.com:8444/mesh")
NODES = HostEntry("nodes.test", 8444)
SERVICE = SrvEntry("_nexus._tcp.example.com")
ONE, TWO, SIX = map(NODES.address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
NOBODY = Answer((), 30)
FAILED = Answer(failure="the server answered SERVFAIL")
LIFE_S = 30.0

Changes = tuple[set[PeerAddress], set[PeerAddress]]


def found(*peers: PeerAddress) -> Answer:
    """Return an answer that holds for LIFE_S."""
    return Answer(peers, LIFE_S)


class World:
    """A DNS and a clock: each question's answer is the last one set, and time passes only when a test lets it."""

    def __init__(self) -> None:
        self.answers: dict[tuple[PeerEntry, str], Answer] = {}
        self.asked: list[tuple[PeerEntry, str]] = []
        self.changes: list[Changes] = []
        self.waits: deque[tuple[float, asyncio.Future[None]]] = deque()
        self.time_s = 0.0

    def discovery(self, *entries: PeerEntry) -> Discovery:
        """Return a discovery in this world."""

        def changed(added: tuple[PeerAddress, ...], removed: tuple[PeerAddress, ...]) -> None:
            self.changes.append((set(added), set(removed)))

        return Discovery(
            entries,
            changed,
            lambda name: name.endswith(".example.com"),
            self.lookup,
            bounds=Bounds(grace_s=100),
            wait=self.wait,
            now=lambda: self.time_s,
        )

    @contextlib.asynccontextmanager
    async def running(self, *entries: PeerEntry) -> AsyncIterator[Discovery]:
        """Run one until all it asks is answered, and cancel it in the end."""
        discovery = self.discovery(*entries)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(discovery.run())
            await self.settled(entries)
            yield discovery
            task.cancel()

    async def lookup(self, question: Question) -> Answer:
        """Answer at once."""
        self.asked.append((question.entry, question.record))
        return self.answers.get((question.entry, question.record), NOBODY)

    async def wait(self, seconds: float) -> None:
        """Wait for ``later``."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits.append((seconds, turn))
        await turn

    async def settled(self, entries: Iterable[PeerEntry]) -> None:
        """Wait until every entry in the DNS waits."""
        count = sum(not isinstance(entry, PeerAddress) for entry in entries)
        await eventually(lambda: len(self._waiting()) == count, "every entry waits")
        await asyncio.sleep(0)

    async def later(self, seconds: float = 0.0) -> None:
        """Let so much time pass that everybody who waits goes on."""
        waiting = self._waiting()
        self.waits.clear()
        self.time_s += seconds or max(seconds for seconds, _ in waiting)
        for _, turn in waiting:
            turn.set_result(None)
        await eventually(lambda: len(self._waiting()) == len(waiting), "everybody waits again")

    def _waiting(self) -> list[tuple[float, asyncio.Future[None]]]:
        return [(seconds, turn) for seconds, turn in self.waits if not turn.done()]


@pytest.fixture
def world() -> World:
    """A world in which nobody is known."""
    return World()


def change(added: Iterable[object] = (), removed: Iterable[object] = ()) -> tuple[set[object], set[object]]:
    """Return what is reported."""
    return set(added), set(removed)


async def test_listed_nodes_are_reported_at_once_and_once(world: World) -> None:
    """Before any name server has answered, and whoever is listed twice as one."""
    async with world.running(STATIC, STATIC) as discovery:
        assert world.changes == [change([STATIC])]
        assert discovery.addresses == (STATIC,)
    assert world.changes == [change([STATIC])]


async def test_a_name_is_followed(world: World) -> None:
    """Those who come and those who go, of both kinds of addresses, and nothing where nothing changed."""
    world.answers = {(NODES, "A"): found(ONE, TWO), (NODES, "AAAA"): found(SIX)}
    async with world.running(NODES) as discovery:
        assert world.changes == [change([ONE, TWO]), change([SIX])]
        await world.later()
        assert len(world.changes) == 2
        world.answers[NODES, "A"] = found(TWO)
        await world.later()
        assert world.changes[2:] == [change([], [ONE])]
        assert discovery.addresses == (TWO, SIX)


async def test_an_answer_is_not_asked_for_again_before_its_life_is_over(world: World) -> None:
    """The wait is that of the answer, and a little for chance."""
    world.answers = {(NODES, "A"): found(ONE), (NODES, "AAAA"): Answer((), 3600)}
    async with world.running(NODES):
        ((wait_s, _),) = world.waits
        assert LIFE_S <= wait_s <= LIFE_S * 1.1


async def test_failing_name_servers_take_nobody_away(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts; the log hears of it once, and once of the end."""
    caplog.set_level(logging.INFO, "nexus.mesh.discovery")
    world.answers = {(NODES, "A"): found(ONE)}
    async with world.running(NODES) as discovery:
        world.answers = {(NODES, "A"): FAILED, (NODES, "AAAA"): FAILED}
        for _ in range(5):
            await world.later(1000)
        assert discovery.addresses == (ONE,)
        world.answers = {(NODES, "A"): found(ONE)}
        await world.later()
    assert world.changes == [change([ONE])]
    assert [record.getMessage() for record in caplog.records] == [
        "dns+a:nodes.test:8444: nodes in the DNS: 1",
        (
            "dns+a:nodes.test:8444: no answer from the name servers, known nodes stay (1):"
            " the server answered SERVFAIL; check /etc/resolv.conf"
        ),
        "dns+a:nodes.test:8444: nodes in the DNS: 1",
    ]


async def test_a_service_without_nodes_loses_them_after_a_grace(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A service that is made anew has none for a moment."""
    world.answers = {(NODES, "A"): found(ONE)}
    async with world.running(NODES) as discovery:
        world.answers = {}
        for _ in range(3):
            await world.later(40)
            assert discovery.addresses == (ONE,)
        await world.later(40)
        assert world.changes == [change([ONE]), change([], [ONE])]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "dns+a:nodes.test:8444: no node in the DNS any more, known nodes stay (1) for 100 s",
        "dns+a:nodes.test:8444: no node in the DNS; check the name, and whether its nodes run",
    ]


async def test_one_address_of_two_entries_is_one(world: World) -> None:
    """Reported with the first, and gone with the last that has it."""
    target = SERVICE.address("static.example.com", 8444)
    assert target == STATIC
    world.answers = {(SERVICE, "SRV"): found(target)}
    async with world.running(STATIC, SERVICE) as discovery:
        discovery.replace([SERVICE])
        assert world.changes == [change([STATIC])]
        discovery.replace([])
        assert world.changes == [change([STATIC]), change([], [STATIC])]


async def test_a_new_list_is_followed_from_then_on(world: World) -> None:
    """What stays listed is not asked again for it and keeps what is known; what is not, is asked for no more."""
    world.answers = {(NODES, "A"): found(ONE), (SERVICE, "SRV"): found(SERVICE.address("a.example.com", 1))}
    async with world.running(NODES) as discovery:
        asked = len(world.asked)
        discovery.replace([STATIC, NODES, SERVICE])
        await world.settled([NODES, SERVICE])
        assert world.changes[1:] == [change([STATIC]), change([SERVICE.address("a.example.com", 1)])]
        assert world.asked[asked:] == [(SERVICE, "SRV")]
        discovery.replace([SERVICE])
        assert world.changes[3:] == [change([], [STATIC, ONE])]
        await world.settled([SERVICE])
        asked = len(world.asked)
        await world.later()
        assert world.asked[asked:] == [(SERVICE, "SRV")]


async def test_a_list_can_be_replaced_before_it_is_followed(world: World) -> None:
    """The first one is never reported."""
    discovery = world.discovery(STATIC)
    discovery.replace([NODES])
    assert not world.changes
    world.answers = {(NODES, "A"): found(ONE)}
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(discovery.run())
        await world.settled([NODES])
        task.cancel()
    assert world.changes == [change([ONE])]


async def test_targets_that_are_not_trusted_are_told_and_not_dialled(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, until they are others."""
    good, evil = SERVICE.address("a.example.com", 1), SERVICE.address("evil.test", 1)
    world.answers = {(SERVICE, "SRV"): found(evil, good)}
    async with world.running(SERVICE):
        await world.later()
        assert world.changes == [change([good])]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        "dns+srv:_nexus._tcp.example.com: not dialled: evil.test; add their suffix to trustedDomainSuffixes"
    )


async def test_an_endless_answer_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """And cut."""
    world.answers = {(NODES, "A"): found(*(NODES.address(f"192.0.2.{number}") for number in range(256)), SIX)}
    async with world.running(NODES) as discovery:
        assert len(discovery.addresses) == 256
    assert "beyond the 256 nodes that are dialled: 1" in caplog.text


async def test_a_question_that_is_out_can_be_dropped() -> None:
    """With the entry, and with the run."""
    async with name_server() as server:
        server.is_silent = True
        discovery = Discovery([NODES], lambda *_: None, lambda _: True, DnsLookup(server.resolver))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(discovery.run())
            await eventually(lambda: server.asked, "the question is out")
            discovery.replace([HostEntry("other.test", 1)])
            await eventually(lambda: "other.test A" in server.asked, "the other question is out")
            task.cancel()
        assert not discovery.addresses
