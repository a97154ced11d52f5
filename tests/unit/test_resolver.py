"""nexus.resolver: lookups that hang in real threads, whose turn it is, and callers who give up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from nexus import resolver as module
from nexus.resolver import (
    LOOKUPS_MAX,
    LOOKUPS_PER_OWNER_MAX,
    WAITING_PER_OWNER_MAX,
    Found,
    Resolver,
    TooManyLookupsError,
    numeric,
)
from tests.support.hub import WAIT_S, eventually

ON_BOTH_LOOPS = True
ADDRESS: Found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]


class Server:
    """A name server that answers a name when it is told to; ``asked`` is in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Found | Exception = ADDRESS
        self._gates: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def look_up(self, host: str, _port: int) -> Found:
        """Wait for ``let``, then answer."""
        with self._lock:
            gate = self._gates.setdefault(host, threading.Event())
            self.asked.append(host)
        assert gate.wait(2 * WAIT_S)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def let(self, *hosts: str) -> None:
        """Answer these."""
        for host in hosts:
            with self._lock:
                gate = self._gates.setdefault(host, threading.Event())
            gate.set()

    def let_all(self) -> None:
        """Answer everything that was asked."""
        self.let(*self.asked)


@pytest.fixture
def server() -> Iterator[Server]:
    """A name server; at the end nothing hangs in it."""
    server = Server()
    yield server
    server.let_all()


@pytest.fixture
async def resolver(server: Server) -> AsyncIterator[Resolver]:
    """A resolver that asks it; at the end no lookup and nobody who waits is left."""
    resolver = Resolver(server.look_up)
    yield resolver
    for _ in range(2 * WAITING_PER_OWNER_MAX):
        server.let_all()
        if not resolver.running:
            break
        await asyncio.sleep(0.001)
    await eventually(lambda: not resolver.running, "every lookup has ended")
    assert not resolver.waiting
    assert not resolver._waiting


class Callers:
    """Tasks that want names."""

    def __init__(self, resolver: Resolver, tasks: asyncio.TaskGroup) -> None:
        self.all: list[asyncio.Task[Found]] = []
        self._resolver = resolver
        self._tasks = tasks

    async def ask(self, owner: str, *hosts: str) -> list[asyncio.Task[Found]]:
        """Ask for names, and return once each has its place or its turn."""
        asking = [self._tasks.create_task(self._resolver.resolve(owner, host, 80)) for host in hosts]
        self.all += asking
        await asyncio.sleep(0)
        return asking


@contextlib.asynccontextmanager
async def calling(resolver: Resolver) -> AsyncIterator[Callers]:
    """Give what asks; at the end whoever still waits gives up."""
    async with asyncio.TaskGroup() as tasks:
        callers = Callers(resolver, tasks)
        yield callers
        for task in callers.all:
            task.cancel()


def names(prefix: str, count: int) -> list[str]:
    """Return so many names."""
    return [f"{prefix}{number}.example" for number in range(count)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2130706433", "0x7f.1"])
async def test_an_address_is_not_looked_up(resolver: Resolver, server: Server, host: str) -> None:
    """Nor does it wait for a place; in whatever spelling, as what it is will be judged."""
    (found,) = await resolver.resolve("a", host, 80)
    assert found[4][:2] in {("127.0.0.1", 80), ("::1", 80)}
    assert not server.asked


@pytest.mark.parametrize("host", ["localhost", "app.example.com", "x" * 64, "1.2.3.4.5", "::1::"])
def test_a_name_is_no_address(host: str) -> None:
    """And is not asked for to find that out."""
    assert not numeric(host, 80)


async def test_the_system_is_asked_unless_told_otherwise() -> None:
    """The one name that every system knows."""
    found = await Resolver().resolve("a", "localhost", 80)
    assert {info[4][0] for info in found} <= {"127.0.0.1", "::1"}
    assert {info[1] for info in found} == {socket.SOCK_STREAM}


@pytest.mark.parametrize("answer", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("too long"), []])
async def test_a_name_without_an_address_is_an_error(resolver: Resolver, server: Server, answer: object) -> None:
    """Of the documented kinds, and its place is free."""
    server.answer = answer  # type: ignore[assignment]
    server.let("a.example")
    with pytest.raises((socket.gaierror, UnicodeError), match=r"unknown|too long|no address"):
        await resolver.resolve("a", "a.example", 80)
    assert not resolver.running


async def test_a_caller_who_gives_up_does_not_free_the_place(resolver: Resolver, server: Server) -> None:
    """The lookup goes on, and with it its thread: that is what is bounded."""
    async with calling(resolver) as callers:
        for task in await callers.ask("a", *names("slow", LOOKUPS_PER_OWNER_MAX)):
            task.cancel()
        (late,) = await callers.ask("a", "late.example")
        await eventually(lambda: all(task.done() for task in callers.all[:-1]), "they gave up")
        assert (resolver.running, resolver.waiting) == (LOOKUPS_PER_OWNER_MAX, 1)
        assert "late.example" not in server.asked
        server.let("slow0.example", "late.example")
        assert await late == ADDRESS


async def test_one_owner_does_not_hold_up_another(resolver: Resolver, server: Server) -> None:
    """Whatever the first has running and waiting."""
    async with calling(resolver) as callers:
        await callers.ask("a", *names("slow", 100))
        server.let("quick.example")
        assert await resolver.resolve("b", "quick.example", 80) == ADDRESS
        assert (resolver.running, resolver.waiting) == (LOOKUPS_PER_OWNER_MAX, 100 - LOOKUPS_PER_OWNER_MAX)


async def test_owners_have_their_turns_one_after_the_other(resolver: Resolver, server: Server) -> None:
    """Once all places are taken, not in the order of asking."""
    async with calling(resolver) as callers:
        for number in range(LOOKUPS_MAX // LOOKUPS_PER_OWNER_MAX):
            await callers.ask(f"early{number}", *names(f"early{number}-", LOOKUPS_PER_OWNER_MAX))
        await callers.ask("a", "a0", "a1", "a2")
        await callers.ask("b", "b0")
        assert (resolver.running, resolver.waiting) == (LOOKUPS_MAX, 4)
        order = ["a0", "b0", "a1", "a2"]
        for number, expected in enumerate(order):
            server.let(f"early{number}-0.example")
            await eventually(lambda: len(server.asked) > LOOKUPS_MAX + number, "the next turn")  # noqa: B023
            assert server.asked[-1] == expected
        assert resolver.running == LOOKUPS_MAX


async def test_a_turn_that_nobody_waits_for_any_more_goes_to_the_next(resolver: Resolver, server: Server) -> None:
    """Also in the very moment in which it comes."""
    async with calling(resolver) as callers:
        await callers.ask("a", *names("slow", LOOKUPS_PER_OWNER_MAX))
        gone, just_going, stays = await callers.ask("a", "gone", "just-going", "stays")
        gone.cancel()
        server.let("slow0.example")
        async with asyncio.timeout(WAIT_S):
            while resolver.waiting > 1:  # noqa: ASYNC110 — looks in each turn of the loop, so ahead of just_going
                await asyncio.sleep(0)
        just_going.cancel()
        server.let("stays")
        assert await stays == ADDRESS
        assert "gone" not in server.asked
        assert "just-going" not in server.asked


@pytest.mark.parametrize(("per_owner", "in_all", "owner"), [(3, 100, "a"), (100, 3, "b")])
async def test_what_may_wait_is_bounded(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, per_owner: int, in_all: int, owner: str
) -> None:
    """Of each owner and of all."""
    monkeypatch.setattr(module, "WAITING_PER_OWNER_MAX", per_owner)
    monkeypatch.setattr(module, "WAITING_MAX", in_all)
    async with calling(resolver) as callers:
        await callers.ask("b", *names("b", LOOKUPS_PER_OWNER_MAX))
        await callers.ask("a", *names("a", LOOKUPS_PER_OWNER_MAX + 3))
        with pytest.raises(TooManyLookupsError):
            await resolver.resolve(owner, "one-more.example", 80)


async def test_without_a_thread_it_is_an_oserror(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the place is free."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(OSError, match="start new thread"):
        await resolver.resolve("a", "a.example", 80)
    assert not resolver.running


def test_a_lookup_may_outlive_its_event_loop(server: Server) -> None:
    """A node that stops waits for no name server, and the late answer bothers nobody."""
    resolver = Resolver(server.look_up)

    async def give_up() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await resolver.resolve("a", "slow.example", 80)

    asyncio.run(give_up())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "nexus-lookup"]
    assert thread.daemon
    server.let("slow.example")
    thread.join(WAIT_S)
    assert not thread.is_alive()
