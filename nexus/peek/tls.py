"""The ClientHello at the start of a connection: the server name and the protocols it offers.

Strategy: three layers, each judged as early as its bytes allow at a bounded price.

1. Records. ``_records`` walks the headers and judges them as they come: handshake type, a version below 0x1000, a
   fragment of 1 to 16,384 bytes. Whatever lies beyond the hello's last byte is none of our business.
2. The message header: type and length, from the first four fragment bytes. From then on the walk stops, after a look at
   the first ``EAGER_RECORDS`` records, where the bytes still wanted cannot all be there: the answer is "need more".
3. The message itself, once it is there as a whole, strictly: each vector must fill its place exactly, no extension
   may come twice, ``pre_shared_key`` comes last. Extensions we do not use are opaque: the backend judges them.

The price: nothing is remembered between calls, so a hello dripped byte by byte is looked at once per byte. Each call
reads at most ``4 + EAGER_RECORDS`` headers, and one more for every five bytes beyond the message's own length that have
come, because that is what a header takes. So all calls together read at most ``8 * 32,768 + 5 * 512**2 / 2`` headers,
under a million, whatever is sent: a quarter of a second of one CPU core, spread over 32,768 reads that cost more.

Source: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1; spec node-and-mesh 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nexus.peek.values import Buffer, PeekStatus, read_dns_name

CLIENT_HELLO_MAX_BYTES: Final = 32_768  # bytes on the wire, record headers included: spec node-and-mesh 4.3
HANDSHAKE_MAX_BYTES: Final = 65_536  # length of one handshake message: spec node-and-mesh 4.3
RECORDS_MAX: Final = 512  # ours: a classic 512-byte hello in one-byte records still passes; see "The price" above
EAGER_RECORDS: Final = 4  # ours: real hellos come in one to three records
HANDSHAKE_RECORD: Final = 22  # RFC 8446 5.1, ContentType: the first byte of every hello
FRAGMENT_MAX_BYTES: Final = 2**14  # RFC 8446 5.1
RECORD_VERSION_LIMIT: Final = 0x1000  # spec node-and-mesh 4.3: versions from here on are no TLS record's
SESSION_ID_MAX_BYTES: Final = 32  # RFC 8446 4.1.2

_RECORD_HEADER: Final = struct.Struct(">BHH")  # type, version, length of the fragment
_EXTENSION_HEADER: Final = struct.Struct(">HH")  # type, length
_CLIENT_HELLO: Final = 1  # RFC 8446 4, HandshakeType
_MESSAGE_HEADER_BYTES: Final = 4  # type and 24 bits of length
_VERSION_AND_RANDOM_BYTES: Final = 2 + 32
_SERVER_NAME: Final = 0  # RFC 6066 1.1, ExtensionType
_ALPN: Final = 16  # RFC 7301 6
_PRE_SHARED_KEY: Final = 41  # RFC 8446 4.2
_HOST_NAME: Final = 0  # RFC 6066 3, NameType


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a ClientHello says about where it wants to go.

    ``server_name`` is the SNI in lower case; None when there is none, or none that is a DNS name. ``alpn`` holds the
    offered protocols in the client's order, their bytes read as Latin-1, and may hold GREASE values (RFC 8701).
    """

    server_name: str | None
    alpn: tuple[str, ...] = ()


class _MalformedError(Exception):
    """The bytes are no ClientHello; never leaves this file."""


def peek_client_hello(data: Buffer) -> ClientHello | PeekStatus:
    """Read the ClientHello at the start of ``data``, without consuming it; bytes after it are ignored.

    Never raises. NOT_THIS for anything malformed (see the file's head), TOO_LARGE when the hello does not end within
    ``CLIENT_HELLO_MAX_BYTES`` or ``RECORDS_MAX`` records, known from its length before those bytes have come.
    Nothing is remembered between calls, yet all calls for one connection together stay within the price stated above.
    """
    try:
        return _read_hello(data, min(len(data), CLIENT_HELLO_MAX_BYTES))
    except _MalformedError:
        return PeekStatus.NOT_THIS


def _read_hello(data: Buffer, size: int) -> ClientHello | PeekStatus:
    fragments, _ = _records(data, size, _MESSAGE_HEADER_BYTES)
    header = _join(data, fragments, _MESSAGE_HEADER_BYTES)
    wanted = _message_bytes(header)
    earliest_end = wanted + _RECORD_HEADER.size * -(-wanted // FRAGMENT_MAX_BYTES)
    if len(header) == _MESSAGE_HEADER_BYTES and earliest_end > CLIENT_HELLO_MAX_BYTES:
        return PeekStatus.TOO_LARGE
    fragments, missing = _records(data, size, wanted)
    if missing <= 0:
        return _parse_hello(_join(data, fragments, wanted)[_MESSAGE_HEADER_BYTES:])
    exhausted = size == CLIENT_HELLO_MAX_BYTES or len(fragments) == RECORDS_MAX
    return PeekStatus.TOO_LARGE if exhausted else PeekStatus.NEED_MORE


def _records(data: Buffer, size: int, wanted: int) -> tuple[list[tuple[int, int]], int]:
    """Return where the fragments lie that hold the first ``wanted`` bytes, and how many bytes ``data[:size]`` lacks.

    The number is 0 or less when it lacks none; otherwise the last fragment may end beyond ``size``. The walk ends
    early when the wanted bytes cannot all be there, and after ``RECORDS_MAX`` records.
    """
    fragments: list[tuple[int, int]] = []
    position = 0
    while wanted > 0 and len(fragments) < RECORDS_MAX:
        start = position + _RECORD_HEADER.size
        if start + wanted > size and len(fragments) >= EAGER_RECORDS:
            break
        if start > size:
            _check_header_start(bytes(data[position:size]))
            break
        kind, version, length = _RECORD_HEADER.unpack_from(data, position)
        # RFC 8446 5.1: no other type between the records of one message, and no empty fragment of a handshake.
        if kind != HANDSHAKE_RECORD or version >= RECORD_VERSION_LIMIT or not 0 < length <= FRAGMENT_MAX_BYTES:
            raise _MalformedError
        position = start + length
        fragments.append((start, position))
        wanted -= length
    return fragments, wanted + max(0, position - size)


def _check_header_start(part: bytes) -> None:
    """Raise if the first 0 to 4 bytes of a record header already show that it is none of ours."""
    kind, version_high, length_high = part[:1], part[1:2], part[3:4]
    if kind not in (b"", b"\x16") or version_high >= b"\x10" or length_high > b"\x40":
        raise _MalformedError


def _join(data: Buffer, fragments: list[tuple[int, int]], wanted: int) -> bytes:
    return b"".join([data[start : min(end, start + wanted)] for start, end in fragments])[:wanted]


def _message_bytes(header: bytes) -> int:
    """Return the length of the message with its header, or the least it can be while the header is incomplete."""
    if header and header[0] != _CLIENT_HELLO:
        raise _MalformedError
    length = int.from_bytes(header[1:].ljust(3, b"\0"), "big")
    if length > HANDSHAKE_MAX_BYTES:
        raise _MalformedError
    return _MESSAGE_HEADER_BYTES + length


def _parse_hello(body: bytes) -> ClientHello:
    """Read the body of a whole ClientHello (RFC 8446 4.1.2)."""
    session_id, position = _vector(body, _VERSION_AND_RANDOM_BYTES, 1)
    cipher_suites, position = _vector(body, position, 2)
    compressions, position = _vector(body, position, 1)
    if len(session_id) > SESSION_ID_MAX_BYTES or len(cipher_suites) % 2 or not cipher_suites or not compressions:
        raise _MalformedError
    if position == len(body):  # RFC 5246 7.4.1.2: a hello may end before its extensions
        return ClientHello(server_name=None)
    extensions = _parse_extensions(_whole_vector(body[position:], 2))
    server_name, protocols = extensions.get(_SERVER_NAME), extensions.get(_ALPN)
    return ClientHello(
        server_name=None if server_name is None else _parse_server_name(server_name),
        alpn=() if protocols is None else _parse_alpn(protocols),
    )


def _parse_extensions(block: bytes) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    position, size = 0, len(block)
    while position < size:
        start = position + _EXTENSION_HEADER.size
        # RFC 8446 4.2.11: pre_shared_key MUST be the last extension; 4.2: no type more than once.
        if start > size or _PRE_SHARED_KEY in extensions:
            raise _MalformedError
        kind, length = _EXTENSION_HEADER.unpack_from(block, position)
        position = start + length
        if position > size or kind in extensions:
            raise _MalformedError
        extensions[kind] = block[start:position]
    return extensions


def _parse_server_name(extension: bytes) -> str | None:
    """Read a server_name extension (RFC 6066 3); None if its host name is not one that can be routed.

    RFC 6066 3 asks for an ASCII DNS name, without a trailing dot, and forbids address literals, but leaves a server
    free to go on without a name it does not like. So breaking the structure (an empty name, two names of a type, the
    trailing dot) means "no ClientHello", as spec node-and-mesh 4.3 wants, whereas a well-formed entry with something
    else than a DNS name in it (an address, a colon, NUL, bytes above 127) is a hello that names nobody: it may be
    served as TLS without SNI is, and reaches no route key of its own choosing.
    """
    names = _whole_vector(extension, 2)
    host_name: bytes | None = None
    position = 0
    while position < len(names):
        kind = names[position]
        name, position = _vector(names, position + 1, 2)
        if not name:
            raise _MalformedError
        if kind != _HOST_NAME:
            continue
        if host_name is not None or name.endswith(b"."):
            raise _MalformedError
        host_name = name
    if not names:
        raise _MalformedError
    if host_name is None or host_name.rpartition(b".")[2].isdigit():  # RFC 1123 2.1: only an address ends in a number
        return None
    return read_dns_name(host_name)


def _parse_alpn(extension: bytes) -> tuple[str, ...]:
    """Read an ALPN extension (RFC 7301 3.1): one protocol or more, none of them empty."""
    protocols = tuple(name.decode("latin-1") for name in _short_vectors(_whole_vector(extension, 2)))
    if not protocols or "" in protocols:
        raise _MalformedError
    return protocols


def _short_vectors(block: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(block):
        value, position = _vector(block, position, 1)
        yield value


def _vector(data: bytes, position: int, prefix_bytes: int) -> tuple[bytes, int]:
    """Return the vector at ``position``, whose length comes first, and the position behind it (RFC 8446 3.4)."""
    start = position + prefix_bytes
    end = start + int.from_bytes(data[position:start], "big")
    if start > len(data) or end > len(data):
        raise _MalformedError
    return data[start:end], end


def _whole_vector(data: bytes, prefix_bytes: int) -> bytes:
    """Return the vector that fills ``data`` to its last byte."""
    value, end = _vector(data, 0, prefix_bytes)
    if end != len(data):
        raise _MalformedError
    return value
