"""Which peers serve which route keys, as they announced it.

Strategy: as in ``nexus.routing.table`` names, wildcards and ports are maps that never mix, so a name a client sent
finds no port key. Here a key holds its peers in the order in which they announced it, for ``choice`` to choose from.
An announcement is a whole list; only what changed is touched. A key exists as long as a peer announces it.

Source: spec node-and-mesh 3, 4.7, 8.2.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from nexus.document.addresses import MAX_PORT
from nexus.hostnames import is_port_key, is_wildcard, normalize_wildcard, wildcard_suffix

M = TypeVar("M", bound=Hashable)

Transport = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The ports for which this node believes a peer's claim: those it listens on, and of these the allowed ones.

    ``allowed`` is the list that binds backends; where it is empty it binds no peer, as in the original.
    """

    listening: frozenset[int]
    allowed: frozenset[int] = frozenset()

    def admits(self, port: int) -> bool:
        """Tell whether a peer may serve a port of this node."""
        return port in self.listening and (not self.allowed or port in self.allowed)


NO_PORTS: Final = PortPolicy(frozenset())
"""What holds before the node listens: no port of a peer is of use."""


def usable(routes: Iterable[str], tcp: PortPolicy, udp: PortPolicy) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the normalised keys of an announcement that this node can use, and those that it refuses.

    Refused is a port key that is malformed, or for a port that ``tcp`` or ``udp`` does not admit. Blank names vanish.
    """
    policies = {"tcp": tcp, "udp": udp}
    keys: set[str] = set()
    refused = []
    for route in routes:
        key = normalize_wildcard(route)
        if is_port_key(key):
            port = port_of(key)
            if port is None or not policies[key[:3]].admits(port):
                refused.append(route)
                continue
        if key:
            keys.add(key)
    return frozenset(keys), tuple(refused)


def port_of(key: str) -> int | None:
    """Return the number of a port key (decimal, without padding), None for a key that is none or is malformed."""
    digits = key[len("tcp:") :] if is_port_key(key) else ""
    if not digits.isascii() or not digits.isdigit() or len(digits) > len(str(MAX_PORT)) or digits[0] == "0":
        return None
    port = int(digits)
    return port if port <= MAX_PORT else None


class PeerRoutes(Generic[M]):
    """Route keys of peers; not thread-safe."""

    __slots__ = ("_announced", "_members", "_turns")

    def __init__(self) -> None:
        """Start empty."""
        self._members: dict[str, dict[M, None]] = {}  # wildcards under "*" + suffix, so that they meet no name
        self._announced: dict[M, frozenset[str]] = {}
        self._turns: dict[str, int] = {}

    def replace(self, member: M, keys: frozenset[str]) -> None:
        """Let ``member`` serve these keys (``usable`` gives them) and no others."""
        before = self._announced.get(member, frozenset())
        for key in before - keys:
            members = self._members[key]
            del members[member]
            if not members:
                del self._members[key]
                self._turns.pop(key, None)
        for key in keys - before:
            self._members.setdefault(key, {})[member] = None
        if keys:
            self._announced[member] = keys
        else:
            self._announced.pop(member, None)

    def of_host(self, host: str) -> tuple[str, tuple[M, ...]]:
        """Return the key that serves a normalised name, and the peers behind it: exact, else by wildcard, else none."""
        if host in self._members and not is_port_key(host) and not is_wildcard(host):
            return host, tuple(self._members[host])
        suffix = wildcard_suffix(host)
        key = f"*{suffix}"
        if suffix is not None and is_wildcard(key):
            return key, tuple(self._members.get(key, ()))
        return host, ()

    def of_port(self, transport: Transport, port: int) -> tuple[str, tuple[M, ...]]:
        """Return the key of a port of this node, and the peers that serve it."""
        key = f"{transport}:{port}"
        return key, tuple(self._members.get(key, ()))

    def turn(self, key: str) -> int:
        """Return how often a key that some peer serves was asked for this before; a choice per call."""
        count = self._turns.get(key, 0)
        self._turns[key] = count + 1
        return count

    def of_member(self, member: M) -> frozenset[str]:
        """Return what a peer serves."""
        return self._announced.get(member, frozenset())

    def __len__(self) -> int:
        """Return the number of keys some peer serves."""
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._members)
