"""May this session have the hub dial this target, and what to say where the dial came to nothing.

Strategy: ``check_request`` is the list of spec backend-protocol 12 in its order, so that the first mistake is the one
answered; it looks at what is written only. What a name resolves to is judged by ``pick_addresses``.
A refusal is one of a few texts (``OutboundRefusal``): a backend learns nothing of the hub's network beyond refused,
unreachable, no answer and no such name.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from aiohappyeyeballs import AddrInfoType

from nexus.addresses import Network, is_refused
from nexus.auth.grants import Grant
from nexus.document.addresses import parse_host_port
from nexus.limits import UNBOUNDED
from nexus.protocol.constants import NIL_STREAM_ID, OUTBOUND_TARGET_MAX_BYTES
from nexus.protocol.messages import Control
from nexus.protocol.reasons import OutboundRefusal

ADDRESSES_MAX: Final = 4
"""Ours: the addresses of one name that are dialled; one or two of each family are usual, and the backend asks again."""

_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")
_NO_WAY_THERE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
)


@dataclass(frozen=True, slots=True)
class OutboundPolicy:
    """What this node lets its backends dial; see the configuration's keys. No ``ports`` means all of them.

    ``connections`` is the bound of one session, UNBOUNDED for none. ``idle_timeout_s`` 0 is none.
    """

    allowed: bool = False
    ports: frozenset[int] = frozenset()
    connections: int = 100
    dial_timeout_s: float = 10
    idle_timeout_s: float = 0
    private_networks: tuple[Network, ...] = ()


NO_OUTBOUND: Final = OutboundPolicy()


@dataclass(frozen=True, slots=True)
class Target:
    """What to dial; ``host`` is a name or an address without brackets."""

    host: str
    port: int


def check_request(
    request: Control, policy: OutboundPolicy, grant: Grant, *, held: int, id_in_use: bool
) -> Target | OutboundRefusal:
    """Return what an ``outbound_connect`` asks for, or the first thing that forbids it.

    ``held`` counts the session's connections, those being dialled included.
    """
    if not policy.allowed:
        return OutboundRefusal.HUB
    if not grant.outbound_allowed:
        return OutboundRefusal.TOKEN
    target = parse_target(request.target_addr)
    if target is None:
        return OutboundRefusal.TARGET
    if policy.ports and target.port not in policy.ports:
        return OutboundRefusal.HUB_PORT
    if grant.outbound_ports and target.port not in grant.outbound_ports:
        return OutboundRefusal.TOKEN_PORT
    if policy.connections != UNBOUNDED and held >= policy.connections:
        return OutboundRefusal.LIMIT
    return OutboundRefusal.ID if request.stream_id == NIL_STREAM_ID or id_in_use else target


def parse_target(text: str) -> Target | None:
    """Return the parts of ``host:port``, an IPv6 address in brackets; None for anything else, port 0 included."""
    if len(text.encode()) > OUTBOUND_TARGET_MAX_BYTES or _CONTROL_CHARACTER.search(text):
        return None
    try:
        host, port = parse_host_port(text)
    except ValueError:
        return None
    return Target(host, port) if host and port else None


def pick_addresses(found: Sequence[AddrInfoType], allowed: tuple[Network, ...]) -> list[AddrInfoType]:
    """Return the addresses of a name that are dialled: the first public or ``allowed`` ones of each family."""
    families: dict[int, list[AddrInfoType]] = {}
    for info in found:
        if not is_refused(str(info[4][0]), allowed):
            families.setdefault(info[0], []).append(info)
    turns = zip_longest(*families.values())
    return [info for turn in turns for info in turn if info is not None][:ADDRESSES_MAX]


def failure_of(error: OSError) -> OutboundRefusal:
    """Return what to answer where a dial failed; several addresses that failed in different ways are unreachable."""
    if isinstance(error, TimeoutError):
        return OutboundRefusal.TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return OutboundRefusal.REFUSED
    no_way = error.errno is None or error.errno in _NO_WAY_THERE
    return OutboundRefusal.UNREACHABLE if no_way else OutboundRefusal.FAILED
