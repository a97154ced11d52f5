"""Builds ClientHellos, whole, odd and hostile, and asks OpenSSL what it makes of them.

Each builder returns plain bytes, so that a test can break them anywhere: ``extension`` and its kin make the parts,
``client_hello`` a handshake message, ``in_records`` what goes over the wire.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

RECORD_HEADER_BYTES = 5
FRAGMENT_MAX_BYTES = 2**14
GREASE = 0x0A0A  # RFC 8701
VECTORS = Path(__file__).parent.parent / "vectors" / "client_hello"


def vector(data: bytes, prefix_bytes: int) -> bytes:
    """Put the length of ``data`` before it."""
    return len(data).to_bytes(prefix_bytes, "big") + data


def extension(kind: int, body: bytes = b"") -> bytes:
    """Return one extension."""
    return kind.to_bytes(2, "big") + vector(body, 2)


def name_entry(name: bytes, kind: int = 0) -> bytes:
    """Return one entry of a server name list; kind 0 is host_name."""
    return bytes([kind]) + vector(name, 2)


def server_name(*entries: bytes) -> bytes:
    """Return a server_name extension of these entries, each from ``name_entry``."""
    return extension(0, vector(b"".join(entries), 2))


def sni(name: bytes) -> bytes:
    """Return the server_name extension every client sends: one host name."""
    return server_name(name_entry(name))


def alpn(*protocols: bytes) -> bytes:
    """Return an ALPN extension."""
    return extension(16, vector(b"".join(vector(protocol, 1) for protocol in protocols), 2))


def padding(size: int) -> bytes:
    """Return a padding extension with ``size`` zeros (RFC 7685)."""
    return extension(21, bytes(size))


def key_share(group: int = 0x11EC, size: int = 1216) -> bytes:
    """Return a key_share extension; by default the size of a hybrid post-quantum one (X25519MLKEM768)."""
    return extension(51, vector(group.to_bytes(2, "big") + vector(bytes(size), 2), 2))


def handshake(body: bytes, kind: int = 1) -> bytes:
    """Return a handshake message; kind 1 is a ClientHello."""
    return bytes([kind]) + vector(body, 3)


def client_hello(
    *extensions: bytes,
    session_id: bytes = bytes(32),
    cipher_suites: bytes = b"\x0a\x0a\x13\x01\x13\x02\xc0\x2f",
    compressions: bytes = b"\0",
    tail: bytes | None = None,
) -> bytes:
    """Return a ClientHello message; ``tail`` stands in for the block of extensions and all that follows it."""
    body = b"\x03\x03" + bytes(32) + vector(session_id, 1) + vector(cipher_suites, 2) + vector(compressions, 1)
    return handshake(body + (vector(b"".join(extensions), 2) if tail is None else tail))


def record(fragment: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    """Return one TLS record; kind 22 is a handshake's."""
    return bytes([kind]) + version.to_bytes(2, "big") + vector(fragment, 2)


def in_records(message: bytes, *sizes: int) -> bytes:
    """Cut a message into records of these sizes, and what is left into records as large as allowed."""
    return b"".join(map(record, _cut(message, sizes)))


def _cut(message: bytes, sizes: tuple[int, ...]) -> Iterator[bytes]:
    for size in chain(sizes, repeat(FRAGMENT_MAX_BYTES)):
        if not message:
            return
        yield message[:size]
        message = message[size:]


def hello_of(*extensions: bytes) -> bytes:
    """Return a ClientHello with these extensions as it goes over the wire, in as few records as possible."""
    return in_records(client_hello(*extensions))


def message_in(recorded: bytes) -> bytes:
    """Return the handshake message in a recorded hello that came in one record."""
    assert len(recorded) == RECORD_HEADER_BYTES + int.from_bytes(recorded[3:5], "big")
    return recorded[RECORD_HEADER_BYTES:]


def hello_by_openssl(name: str, protocols: list[str]) -> bytes:
    """Return the hello that Python's own TLS client sends for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def names_seen_by_openssl(data: bytes) -> list[str | None]:
    """Return the server name OpenSSL's server sees in a hello, as a list of one; none if it refuses or needs more."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _connection, name, _context: names.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with suppress(ssl.SSLError):  # it has no certificate, and some hellos are meant to be refused
        server.do_handshake()
    return names
