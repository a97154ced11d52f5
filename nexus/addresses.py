"""Which IP addresses are public: what a node may dial for somebody else (SSRF).

Strategy: refuse everything that is not plainly an address of the public internet, and let the operator allow networks
by name. ``ipaddress`` knows IANA's special-purpose registries (RFC 6890), but lets multicast, reserved and transition
addresses through, and its tables differ between patch versions of Python, so the ones that matter are named here too.
Of IPv6 only what IANA has assigned to global unicast (2000::/3) is public. An IPv6 address that carries an IPv4 address
for a translator or a tunnel to deliver to is as public as that one. A v4-mapped address is the IPv4 address.

Judge what a resolver returned, not what a user wrote: 2130706433, 0x7f.1 and a name in anybody's zone may all be
127.0.0.1. And dial the very addresses that were judged, for the next answer may be another one.

Sources: RFC 6890, RFC 4291 2.5.5, RFC 6052 (NAT64), RFC 5214 (ISATAP).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "100.64.0.0/10",  # RFC 6598: carrier-grade NAT; a cloud's metadata service is in it, too
        "168.63.129.16/32",  # a public address that is one cloud's metadata service, seen only from inside it
        "192.0.0.0/24",  # RFC 6890 2.1: protocol assignments
        "192.88.99.0/24",  # RFC 7526: 6to4 relays, deprecated
        "224.0.0.0/3",  # RFC 5771, RFC 1112 4: multicast; reserved; broadcast
        "2001::/23",  # RFC 2928: protocol assignments, Teredo among them
        "2002::/16",  # RFC 3056: 6to4, deprecated, leads to any IPv4 address
        "3fff::/20",  # RFC 9637: documentation
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # RFC 4291 2.4: all that IANA hands out
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214 6.1: the upper half of the interface identifier
_IPV4_BITS: Final = 0xFFFFFFFF
_PORT_MAX: Final = 65_535


def is_refused(address: str | Address, allowed: Iterable[Network] = ()) -> bool:
    """Tell whether an address must not be dialled for somebody else: not public, and in no ``allowed`` network.

    Text that is no IP address is refused. ``allowed`` is looked at with the address itself, with the IPv4 address that
    a v4-mapped one is, and with the IPv4 address that one of a translator or tunnel carries.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    return not _is_good(_unmapped(parsed), tuple(allowed))


def parse_network(text: str) -> Network:
    """Return the network that ``text`` names, such as ``10.0.0.0/8``, ``fd00::/8`` or a single address.

    Raises:
        ValueError: it is no network, or has bits behind its prefix; the text says which.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"is not a network: {error}") from None


def split_address(text: str) -> tuple[str, int] | None:
    """Return IP address and port of ``ip:port`` or ``[ip]:port``, None for any other text; an IPv6 scope is refused."""
    host, colon, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 5 or "%" in host:
        return None
    port = int(digits)
    return (str(parsed), port) if port <= _PORT_MAX else None


def _is_good(address: Address, allowed: tuple[Network, ...]) -> bool:
    if any(address in network for network in allowed):
        return True
    carried = _carried(address)
    if carried is not None and not _is_good(carried, allowed):
        return False
    return _is_public(address)


def _is_public(address: Address) -> bool:
    if any(address in network for network in _NOT_PUBLIC) or not address.is_global:
        return False
    return isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST or address in _NAT64


def _unmapped(address: Address) -> Address:
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _carried(address: Address) -> IPv4Address | None:
    """Return the IPv4 address that something on the way would deliver to."""
    if isinstance(address, IPv4Address):
        return None
    bits = int(address)
    if address in _NAT64 or bits >> 32 & _IPV4_BITS in _ISATAP:
        return IPv4Address(bits & _IPV4_BITS)
    return None
