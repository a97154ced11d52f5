"""Looks up names that strangers choose, so that none whose answer does not come holds up anybody else's.

Strategy: the system's lookup keeps a thread, may take half a minute, and cannot be stopped; a caller who gives up
leaves it running. The event loop has few threads for it (uvloop four, and its connects need them, too), so asking and
giving up would soon have them all. Here each lookup has a thread of its own, and its place is free when the lookup has
ended, not when nobody waits for it any more. Places are bounded for everybody together and for each owner; who finds
none waits, and the owners have their turns one after the other. An address in place of a name needs none of this.

The threads are daemons: a node that stops does not wait for a name server.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from aiohappyeyeballs import AddrInfoType

from nexus.threads import start_thread

LOOKUPS_MAX: Final = 32
"""As many threads as asyncio has at most (``concurrent.futures.ThreadPoolExecutor``)."""

LOOKUPS_PER_OWNER_MAX: Final = 4
"""Ours: as many as uvloop runs for a whole process; eight owners together could keep the others waiting."""

WAITING_PER_OWNER_MAX: Final = 256
WAITING_MAX: Final = 4096
"""Ours: a browser's burst many times over, and of small tasks that wait a few MiB at most."""

Found = Sequence[AddrInfoType]
Lookup = Callable[[str, int], Found]


class TooManyLookupsError(OSError):
    """So many lookups wait already that this one is refused."""


def numeric(host: str, port: int) -> Found:
    """Return the address that ``host`` is, in any spelling that the system knows; nothing for a name. Never waits."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):  # UnicodeError: IDNA refuses it
        return ()


def look_up(host: str, port: int) -> Found:
    """Ask the system, and wait for it."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """The lookups of one node for one purpose; used in one event loop."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        """Call ``lookup`` in threads. Starts none yet."""
        self._lookup = lookup
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @property
    def running(self) -> int:
        """How many lookups have not ended, those that nobody waits for any more included."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(map(len, self._waiting.values()))

    async def resolve(self, owner: Hashable, host: str, port: int) -> Found:
        """Return the addresses of ``host``, at least one, in the system's order. The caller limits the time.

        Raises:
            OSError: the name has no address (``socket.gaierror``), or there is no thread to look it up.
            TooManyLookupsError: too many of this owner, or of all, wait already.
            UnicodeError: a name that IDNA refuses.
        """
        if found := numeric(host, port):
            return found
        await self._take_place(owner)
        result = await self._start(owner, host, port)
        if isinstance(result, Exception):
            raise result
        if not result:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        return result

    # -- Places -----------------------------------------------------------------------------------------------------

    async def _take_place(self, owner: Hashable) -> None:
        if self._has_place(owner):
            self._running[owner] += 1
            return
        if len(self._waiting.get(owner, ())) >= WAITING_PER_OWNER_MAX or self.waiting >= WAITING_MAX:
            raise TooManyLookupsError(errno.EAGAIN, "too many names are being looked up")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(owner, turn)
            else:  # its turn came in the same moment
                self._release(owner)
            raise

    def _has_place(self, owner: Hashable) -> bool:
        return self.running < LOOKUPS_MAX and self._running[owner] < LOOKUPS_PER_OWNER_MAX

    def _leave(self, owner: Hashable, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[owner]
        turns.remove(turn)
        if not turns:
            del self._waiting[owner]

    def _release(self, owner: Hashable) -> None:
        """Free a place and give it to the next owner who may have it."""
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        for other, turns in self._waiting.items():
            turn = next((one for one in turns if not one.done()), None)
            if turn is not None and self._has_place(other):
                self._running[other] += 1
                self._leave(other, turn)
                if other in self._waiting:
                    self._waiting[other] = self._waiting.pop(other)  # behind the others
                turn.set_result(None)
                return

    # -- Threads ----------------------------------------------------------------------------------------------------

    def _start(self, owner: Hashable, host: str, port: int) -> asyncio.Future[Found | Exception]:
        answer: asyncio.Future[Found | Exception] = asyncio.get_running_loop().create_future()

        def ended(result: Found | Exception) -> None:
            self._release(owner)
            if not answer.done():
                answer.set_result(result)

        try:
            start_thread("nexus-lookup", lambda: self._lookup(host, port), ended)
        except RuntimeError as error:  # the system gives no more threads
            ended(OSError(errno.EAGAIN, str(error)))
        return answer
