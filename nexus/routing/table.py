"""Which members serve which route keys on this node.

Strategy: three maps that never mix. Names live in ``_hosts``, valid wildcards in ``_wildcards`` under their suffix,
port claims in ``_ports``. A name a user sent can only ever be looked up in the first two, so an SNI or a Host header
that reads ``tcp:25`` finds nothing, whatever is claimed; port claims answer to ``lookup_port`` alone.

A key exists exactly as long as a member claims it: the pool that loses its last member is deleted in the same call.
An emptied exact name therefore never hides a wildcard that covers it, and names that come and go leave nothing
behind. Exact wins over wildcard; a wildcard covers exactly one label.

The table stores keys as they come: the caller normalises them first (``nexus.hostnames``). A key that looks like a
wildcard and is not a valid one (``*.com``) is kept as an ordinary name, as in the original.

Source: spec backend-protocol 11; node-and-mesh 3, 4.7.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator
from typing import Generic, Literal, TypeVar

from nexus.hostnames import is_port_key, is_wildcard, wildcard_suffix
from nexus.routing.pool import Pool

M = TypeVar("M", bound=Hashable)

Transport = Literal["tcp", "udp"]


class RouteTable(Generic[M]):
    """Claims of members, and the lookups over them. Members are hashable and compared with ``==``; not thread-safe."""

    __slots__ = ("_claims", "_hosts", "_ports", "_wildcards")

    def __init__(self) -> None:
        """Start empty."""
        self._hosts: dict[str, Pool[M]] = {}
        self._wildcards: dict[str, Pool[M]] = {}
        self._ports: dict[str, Pool[M]] = {}
        self._claims: dict[M, tuple[str, ...]] = {}

    def claim(self, member: M, route_keys: Iterable[str], weight: int = 1) -> None:
        """Let ``member`` serve ``route_keys`` (normalised names, wildcards and port keys) until it is released.

        A second claim replaces the member's first. Blank keys are ignored. Raises ValueError for a weight below 1, and
        then changes nothing.
        """
        if weight < 1:
            raise ValueError(f"weight must be at least 1, not {weight}")
        self.release(member)
        keys = tuple(dict.fromkeys(key for key in route_keys if key))
        for key in keys:
            pools, name = self._place(key)
            pools.setdefault(name, Pool()).join(member, weight)
        self._claims[member] = keys

    def release(self, member: M) -> bool:
        """Drop every claim of ``member``; return whether it had any, which is when peers must be told. Idempotent."""
        keys = self._claims.pop(member, ())
        for key in keys:
            pools, name = self._place(key)
            pools[name].leave(member)
            if not pools[name]:
                del pools[name]
        return bool(keys)

    def key_of_host(self, host: str) -> str:
        """Return the claim that serves a normalised name: itself, else the wildcard that would cover it."""
        suffix = wildcard_suffix(host) if host not in self._hosts else None
        return host if suffix is None else f"*{suffix}"

    def lookup_host(self, host: str, exclude: Container[M] = ()) -> M | None:
        """Return the member whose turn it is for a normalised name a user sent, or None.

        ``exclude`` names the members already tried for this connection. A name somebody claims exactly is never handed
        to a wildcard, not even when all its members are excluded. Takes one turn of the pool.
        """
        pool = self._host_pool(host)
        return pool.select(exclude) if pool is not None else None

    def lookup_port(self, transport: Transport, port: int, exclude: Container[M] = ()) -> M | None:
        """Return the member whose turn it is for a claimed port of this node, or None. Takes one turn of the pool."""
        pool = self._ports.get(f"{transport}:{port}")
        return pool.select(exclude) if pool is not None else None

    def claims_port(self, transport: Transport, port: int) -> bool:
        """Tell whether a member claims a port of this node."""
        return f"{transport}:{port}" in self._ports

    def port_members(self, transport: Transport, port: int) -> tuple[M, ...]:
        """Return every member that claims a port, in no particular order and without taking a turn."""
        pool = self._ports.get(f"{transport}:{port}")
        return pool.members() if pool is not None else ()

    def routes(self) -> tuple[str, ...]:
        """Return every key with a member, as peers are told: names, ``*`` + suffix, and port keys."""
        return tuple(self._announced())

    def __len__(self) -> int:
        """Return the number of keys somebody serves."""
        return len(self._hosts) + len(self._wildcards) + len(self._ports)

    def __contains__(self, member: object) -> bool:
        """Tell whether ``member`` has claimed anything."""
        return member in self._claims

    def _announced(self) -> Iterator[str]:
        yield from self._hosts
        yield from (f"*{suffix}" for suffix in self._wildcards)
        yield from self._ports

    def _place(self, key: str) -> tuple[dict[str, Pool[M]], str]:
        """Return the map ``key`` belongs to, and its name there."""
        if is_port_key(key):
            return self._ports, key
        if is_wildcard(key):
            return self._wildcards, key.removeprefix("*")
        return self._hosts, key

    def _host_pool(self, host: str) -> Pool[M] | None:
        pool = self._hosts.get(host)
        if pool is None:
            suffix = wildcard_suffix(host)
            pool = self._wildcards.get(suffix) if suffix is not None else None
        return pool
