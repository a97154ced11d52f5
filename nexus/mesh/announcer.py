"""What peers are told of this node's own routes, and when.

Strategy: a change starts a short timer, and what holds when it runs out is sent to all: however many backends join at
once, the number of announcements is bounded by time. A list that is the same as the last one is not sent. A link that
comes up is told at once. A link on which much waits is passed over and told the latest list once there is room, so what
a peer gets last is always what holds. Every so often the list is sent although nothing changed, for an original that
dropped one.

Source: spec node-and-mesh 8.2; weak points W6, W24.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from nexus.protocol.constants import ANNOUNCE_MAX_BYTES, MESH_FEATURES
from nexus.protocol.tunnels import Announce, serialize_announce

_log = logging.getLogger("nexus.mesh")

DELAY_S: Final = 0.1  # ours: peers learn of a new backend within a tenth of a second
# A list takes time to write and to read, and its peers as many times as there are: 100,000 names take 2 s longer.
DELAY_PER_ROUTE_S: Final = 20e-6
REFRESH_S: Final = 60.0  # ours
LATE_CHECK_S: Final = 0.5  # ours: how soon a link that was passed over is looked at again


class Listener(Protocol):
    """A peer that is told."""

    def announce(self, text: str) -> bool:
        """Send an announcement; False: much waits on the link, ask again later."""


class Announcer:
    """Tells peers; lives on the event loop's timers, ``close`` ends them."""

    def __init__(
        self,
        node_id: bytes,
        routes: Callable[[], Iterable[str]],
        listeners: Callable[[], Iterable[Listener]],
        challenges: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Ask ``routes``, ``listeners`` and ``challenges`` whenever it is time."""
        self._node_id = node_id
        self._routes = routes
        self._listeners = listeners
        self._challenges = challenges
        self._version = 0
        self._told: frozenset[str] | None = None
        self._late: set[Listener] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.announcements = 0

    def changed(self) -> None:
        """Note that this node's routes may have changed."""
        if "change" not in self._timers:
            self._later("change", DELAY_S + DELAY_PER_ROUTE_S * len(self._told or ()), self._tell_changes)

    def greet(self, listener: Listener) -> None:
        """Tell a peer whose link came up."""
        self._tell([listener], self._text(self._current()))

    def forget(self, listener: Listener) -> None:
        """Drop a peer whose link is gone."""
        self._late.discard(listener)

    def tell_now(self) -> None:
        """Tell all peers what holds without waiting."""
        self._told = frozenset(self._routes())
        self._tell(self._listeners(), self._text(self._told))

    def start(self) -> None:
        """Begin to refresh."""
        self._later("refresh", REFRESH_S, self._refresh)

    def close(self) -> None:
        """Tell nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _tell_changes(self) -> None:
        del self._timers["change"]
        if self._current() != self._told:
            self.tell_now()

    def _current(self) -> frozenset[str]:
        """Return what holds; where only some peers are told of it the rest must be told, too, whatever comes after."""
        routes = frozenset(self._routes())
        if routes != self._told:
            self._told = None
        return routes

    def _refresh(self) -> None:
        self.tell_now()
        self._later("refresh", REFRESH_S, self._refresh)

    def _tell_late(self) -> None:
        del self._timers["late"]
        late, self._late = self._late, set()
        if late:
            self._tell(late, self._text(self._current()))

    def _tell(self, listeners: Iterable[Listener], text: str) -> None:
        for listener in listeners:
            if listener.announce(text):
                self.announcements += 1
                self._late.discard(listener)
            else:
                self._late.add(listener)
        if self._late and "late" not in self._timers:
            self._later("late", LATE_CHECK_S, self._tell_late)

    def _text(self, routes: frozenset[str]) -> str:
        """Return an announcement of what fits into one; a peer ends the link over a longer one."""
        self._version += 1
        names = sorted(routes)
        while len(text := self._announcement(names)) > ANNOUNCE_MAX_BYTES:  # ASCII, as names are normalised
            names = names[: len(names) * 9 // 10]
        if len(names) < len(routes):
            _log.error(
                "peers are told only %d of %d routes: the list is too long; use wildcards", len(names), len(routes)
            )
        return text

    def _announcement(self, names: list[str]) -> str:
        announce = Announce(self._version, tuple(names), self._node_id, MESH_FEATURES, tuple(self._challenges()))
        return serialize_announce(announce)

    def _later(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, call)
