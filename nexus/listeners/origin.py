"""Which of this machine's addresses a datagram came to, so that the answer leaves from the same one.

Strategy: a socket that is bound to all addresses gets the kernel to attach packet information to each datagram it
reads; the interesting part is turned into bytes that a flow keeps, and back into what ``sendmsg`` wants. The bytes of
one address are one object, however many flows there are.

Source: RFC 3542 section 6 (IPV6_PKTINFO), ip(7) (IP_PKTINFO).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

_IP_PKTINFO: Final = getattr(socket, "IP_PKTINFO", 8)  # Linux's number; Python knows the name since 3.13
ANCILLARY_BYTES: Final = 64  # one control message with 20 bytes of packet information, and padding
_IPV4_INFO_BYTES: Final = 12
_IPV6_INFO_BYTES: Final = 20
_ANY: Final = frozenset({"0.0.0.0", "::"})
# This machine's addresses, each as one object; beyond so many (a whole prefix may be local) they are made anew.
_KNOWN_MAX: Final = 1024
_known: dict[bytes, bytes] = {}

Ancillary = Iterable[tuple[int, int, bytes]]


def ask_for_origin(sock: socket.socket) -> None:
    """Let the kernel tell the local address of each datagram, where the socket has more than one."""
    if sock.getsockname()[0] not in _ANY:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def origin_of(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Return what ``reply_from`` needs to answer from the address a datagram came to; empty leaves it to the kernel."""
    if not ancillary:
        return b""
    level, kind, info = ancillary[0]
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(info) == _IPV4_INFO_BYTES:
        # struct in_pktinfo: interface, the local address to answer from, the address in the datagram's header.
        return _one(bytes(4) + info[4:8] + bytes(4))
    if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(info) == _IPV6_INFO_BYTES:
        return _one(_ipv6_origin(info))
    return b""


def reply_from(origin: bytes) -> Ancillary:
    """Return the ancillary data that makes ``sendmsg`` send from ``origin``."""
    if not origin:
        return ()
    if len(origin) == _IPV4_INFO_BYTES:
        return ((socket.IPPROTO_IP, _IP_PKTINFO, origin),)
    return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, origin),)


def _ipv6_origin(info: bytes) -> bytes:
    """Keep the interface only of a link-local address, which means nothing without it; a group is no source."""
    address = ipaddress.IPv6Address(info[:16])
    if address.is_multicast:
        return b""
    return info if address.is_link_local else info[:16] + bytes(4)


def _one(origin: bytes) -> bytes:
    known = _known.get(origin)
    if known is None:
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        known = _known[origin] = origin
    return known
