"""The names in status URIs: looked up apart from the node's own, few at once, few addresses of each.

Loaded with ``aiohttp``, which it extends; see ``nexus.hub.status``.
"""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from nexus.addresses import Network
from nexus.hub.targets import pick_addresses
from nexus.resolver import Resolver


class StatusNames(AbstractResolver):
    """What ``aiohttp`` asks for the addresses of a name."""

    def __init__(self, resolver: Resolver, allowed: tuple[Network, ...]) -> None:
        """Prefer public addresses and those in ``allowed``; what is connected to is judged again, by the socket."""
        self._resolver = resolver
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the few addresses to try. Raises OSError, or UnicodeError for a name that IDNA refuses.

        Each name is an owner of lookups: one that does not resolve keeps four threads, however many sessions ask.
        """
        del family  # aiohttp takes all there are
        found = await self._resolver.resolve(host, host, port)
        picked = pick_addresses(found, self._allowed) or found[:1]  # one for the socket to refuse, in its own words
        return [
            ResolveResult(hostname=host, host=str(info[4][0]), port=port, family=info[0], proto=info[2], flags=0)
            for info in picked
        ]

    async def close(self) -> None:
        """Do nothing: lookups end by themselves."""
