"""Which nodes there are: those listed, and those that the DNS names, followed as it changes.

Each entry in the DNS has one task, which asks, reports and waits. What answers mean is in ``answers``. The addresses of
all entries are one set: an address that two entries have is reported once, and gone when neither has it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from nexus.document.peers import DnsEntry, PeerAddress, PeerEntry
from nexus.mesh.answers import (
    ADDRESSES_MAX,
    RETRY_FIRST_S,
    Answer,
    Bounds,
    Memory,
    Picked,
    Question,
    Trust,
    pick,
    questions,
    wait_after,
)
from nexus.mesh.backoff import RetryDelay
from nexus.mesh.lookup import DnsLookup

NAMES_SHOWN: Final = 4  # ours: of those that are not dialled, in one line of the log

_log = logging.getLogger("nexus.mesh.discovery")

Addresses: TypeAlias = tuple[PeerAddress, ...]
OnChange: TypeAlias = Callable[[Addresses, Addresses], object]
Lookup: TypeAlias = Callable[[Question], Awaitable[Answer]]
Wait: TypeAlias = Callable[[float], Awaitable[object]]


class Discovery:
    """The addresses of the other nodes."""

    def __init__(
        self,
        entries: Iterable[PeerEntry],
        on_change: OnChange,
        trusts: Trust,
        lookup: Lookup | None = None,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 — frozen
        wait: Wait = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Find nothing yet.

        Args:
            entries: What is listed; see ``usable_entries``.
            on_change: Called with the addresses that are dialled from now on and those that are not any more, of which
                at least one is not empty. An address that left the DNS may still serve: a node that drains, for one. So
                it should not be dialled again, but a link to it needs no cutting.
            trusts: Tells whether the target of an SRV record, a normalised name, may be a node of ours; where it is not
                asked for the suffixes that the certificates of accepted nodes must have, who can forge DNS answers can
                lead this node to a server of his own.
            lookup: Asks the DNS; the system's name servers where it is None.
            bounds: Limits of times.
            wait: Waits some seconds.
            now: A clock in seconds that never goes back.
        """
        self._entries = tuple(dict.fromkeys(entries))
        self._on_change = on_change
        self._trusts = trusts
        self._lookup = lookup or DnsLookup()
        self._bounds = bounds
        self._wait = wait
        self._now = now
        self._followers: dict[DnsEntry, tuple[_Follower, asyncio.Task[None]]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._addresses: dict[PeerAddress, None] = {}

    @property
    def addresses(self) -> Addresses:
        """All that was reported and is still there, in the order of the entries."""
        return tuple(self._addresses)

    async def run(self) -> None:
        """Report and follow until cancelled, which reports nothing more. Once."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                self.replace(self._entries)
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    def replace(self, entries: Iterable[PeerEntry]) -> None:
        """Follow other entries from now on; those that stay keep what is known of them. Also right before ``run``."""
        self._entries = tuple(dict.fromkeys(entries))
        if self._tasks is None:
            return
        for gone in self._followers.keys() - set(self._entries):
            self._followers.pop(gone)[1].cancel()
        for entry in self._entries:
            if not isinstance(entry, PeerAddress) and entry not in self._followers:
                follower = _Follower(entry, self._bounds.grace_s)
                self._followers[entry] = (follower, self._tasks.create_task(self._follow(follower)))
        self._report()

    async def _follow(self, follower: _Follower) -> None:
        rng = random.Random()  # noqa: S311 — spreads questions, guards nothing
        retry = RetryDelay(RETRY_FIRST_S, self._bounds.ttl_max_s)
        while True:
            answers = []
            for question in follower.memories:
                answer = await self._lookup(question)
                answers.append(answer)
                follower.take(question, answer, self._trusts, self._now())
                self._report()
            follower.note(answers)
            await self._wait(wait_after(answers, retry, self._bounds, rng))

    def _report(self) -> None:
        before, self._addresses = self._addresses, dict.fromkeys(self._found())
        added = tuple(address for address in self._addresses if address not in before)
        removed = tuple(address for address in before if address not in self._addresses)
        if added or removed:
            self._on_change(added, removed)

    def _found(self) -> Iterable[PeerAddress]:
        for entry in self._entries:
            if isinstance(entry, PeerAddress):
                yield entry
            else:
                yield from self._followers[entry][0].peers()


class _Follower:
    """What is known about one entry, and what the log was told of it."""

    def __init__(self, entry: DnsEntry, grace_s: float) -> None:
        self.memories = {question: Memory(grace_s) for question in questions(entry)}
        self._entry = entry
        self._grace_s = grace_s
        self._picked: dict[Question, Picked] = {}
        self._told: dict[str, object] = {}

    def peers(self) -> Addresses:
        return tuple(peer for memory in self.memories.values() for peer in memory.peers)

    def take(self, question: Question, answer: Answer, trusts: Trust, now: float) -> None:
        if not answer.failure:
            self._picked[question] = pick(question, answer, trusts)
            self.memories[question].take(self._picked[question].peers, now)

    def note(self, answers: list[Answer]) -> None:
        """Tell the log what is another than before, each with its mend."""
        known = len(self.peers())
        failure = next((answer.failure for answer in answers if answer.failure), "")
        if self._is_news("state", self._state(failure, known)):
            self._tell_state(failure, known)
        refused = sorted({name for picked in self._picked.values() for name in picked.refused})
        if self._is_news("refused", refused) and refused:
            names = ", ".join(refused[:NAMES_SHOWN]) + (", ..." if len(refused) > NAMES_SHOWN else "")
            _log.warning("%s: not dialled: %s; add their suffix to trustedDomainSuffixes", self._entry, names)
        beyond = sum(picked.beyond for picked in self._picked.values())
        if self._is_news("beyond", beyond > 0) and beyond:
            _log.warning("%s: beyond the %d nodes that are dialled: %d", self._entry, ADDRESSES_MAX, beyond)

    def _state(self, failure: str, known: int) -> str:
        if failure:
            return "failing"
        if any(picked.peers for picked in self._picked.values()):
            return "found"
        return "nobody yet" if known else "nobody"

    def _tell_state(self, failure: str, known: int) -> None:
        match self._told["state"]:
            case "failing":
                text = "%s: no answer from the name servers, known nodes stay (%d): %s; check /etc/resolv.conf"
                _log.warning(text, self._entry, known, failure)
            case "found":
                _log.info("%s: nodes in the DNS: %d", self._entry, known)
            case "nobody yet":
                text = "%s: no node in the DNS any more, known nodes stay (%d) for %g s"
                _log.warning(text, self._entry, known, self._grace_s)
            case _:
                _log.warning("%s: no node in the DNS; check the name, and whether its nodes run", self._entry)

    def _is_news(self, topic: str, value: object) -> bool:
        is_news = topic not in self._told or self._told[topic] != value
        self._told[topic] = value
        return is_news
