"""STUN Binding: what is a request, and the answer to it.

Strategy: one message in, one out, so this is a reader of twenty octets and a writer of forty, as the original has
them. Attributes of a request are not looked at, whatever they are: nothing that one could ask for is refused, and
nothing is done but telling the address that the request came from.

Sources: RFC 8489 sections 5, 6.3.1, 14.2, 14.7; spec node-and-mesh 12.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from typing import Final

HEADER_BYTES: Final = 20
MAGIC_COOKIE: Final = 0x2112A442
BINDING_REQUEST: Final = 0x0001
BINDING_SUCCESS: Final = 0x0101
_XOR_MAPPED_ADDRESS: Final = 0x0020
_FINGERPRINT: Final = 0x8028
_FINGERPRINT_XOR: Final = 0x5354554E
_FINGERPRINT_BYTES: Final = 8
_HEADER: Final = struct.Struct("!HHI12s")
_ATTRIBUTE: Final = struct.Struct("!HH")
_IPV4, _IPV6 = 1, 2


def transaction_of(datagram: bytes) -> bytes | None:
    """Return the transaction id (12 octets) of a Binding request, None for anything else. Never raises.

    Octets behind the message are tolerated, as the original does; an RFC 3489 request, which has no cookie, is none.
    """
    if len(datagram) < HEADER_BYTES:
        return None
    kind, length, cookie, transaction = _HEADER.unpack_from(datagram)
    if kind != BINDING_REQUEST or cookie != MAGIC_COOKIE or length > len(datagram) - HEADER_BYTES:
        return None
    return bytes(transaction)


def binding_success(transaction: bytes, host: str, port: int) -> bytes:
    """Return the answer: the address (IPv4 also where it came v4-mapped), and a fingerprint; 40 or 52 octets."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    family = _IPV4 if address.version == 4 else _IPV6
    pad = MAGIC_COOKIE.to_bytes(4, "big") + transaction
    masked = bytes(one ^ other for one, other in zip(address.packed, pad, strict=False))
    value = struct.pack("!BBH", 0, family, port ^ (MAGIC_COOKIE >> 16)) + masked
    length = _ATTRIBUTE.size + len(value) + _FINGERPRINT_BYTES
    message = _HEADER.pack(BINDING_SUCCESS, length, MAGIC_COOKIE, transaction)
    message += _ATTRIBUTE.pack(_XOR_MAPPED_ADDRESS, len(value)) + value
    checksum = zlib.crc32(message) ^ _FINGERPRINT_XOR
    return message + _ATTRIBUTE.pack(_FINGERPRINT, 4) + checksum.to_bytes(4, "big")
