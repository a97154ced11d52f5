"""Addresses of services, looked up once for many UDP flows.

Strategy: an answer holds for some seconds, and whoever asks meanwhile waits for the same lookup. UDP has no connection
whose failure would lead on to the next address of a name, so a failure is told here: an address that refuses, or that
nothing leads to, goes behind the others. A service that listens on one address of ``localhost`` only is thus found by
the second flow at the latest.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from backend_client.mapping import Target
from nexus.link.flow import Address
from nexus.protocol.constants import DIAL_TIMEOUT_S

LOOKUP_TTL_S: Final = 10.0  # ours: a name is asked for again after so long, as its addresses may change

# Nothing listens, no way there, a firewall of this machine (EPERM, EACCES), no IPv6 here.
_LEADS_NOWHERE: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EACCES,
        errno.EPERM,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    }
)


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where to connect a UDP socket."""

    family: int
    address: Address


Then = Callable[[ServiceAddress | Exception], None]
"""Is told the address, or why there is none (OSError, or UnicodeError for a name that IDNA refuses)."""


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: deque[ServiceAddress]
    until: float


class Lookups:
    """The addresses known, and who waits for others."""

    def __init__(self) -> None:
        """Start without knowledge."""
        self._found: dict[Target, _Found] = {}
        self._waiting: dict[Target, list[Then]] = {}

    def find(self, target: Target, tasks: asyncio.TaskGroup, then: Then) -> None:
        """Call ``then`` with the best address of ``target``: at once where it is known, else when it is."""
        found = self._found.get(target)
        if found is not None and asyncio.get_running_loop().time() < found.until:
            then(found.addresses[0])
        elif target in self._waiting:
            self._waiting[target].append(then)
        else:
            self._waiting[target] = [then]
            tasks.create_task(self._look_up(target))

    def failed(self, target: Target, address: ServiceAddress, error: OSError) -> None:
        """Note how an address failed: where it leads nowhere, the others of the name come before it."""
        found = self._found.get(target)
        if error.errno in _LEADS_NOWHERE and found is not None and found.addresses[0] == address:
            found.addresses.rotate(-1)

    async def _look_up(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        answer: ServiceAddress | Exception = OSError("the name has no address")
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                infos = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
            addresses = deque(ServiceAddress(info[0], info[4]) for info in infos)  # type: ignore[arg-type]  # of IP only
            if addresses:
                self._found[target] = _Found(addresses, loop.time() + LOOKUP_TTL_S)
                answer = addresses[0]
        except TimeoutError:
            answer = TimeoutError(f"no address within {DIAL_TIMEOUT_S:g} s")
        except (OSError, UnicodeError) as error:
            answer = error
        finally:
            waiting = self._waiting.pop(target)
        for then in waiting:
            then(answer)
