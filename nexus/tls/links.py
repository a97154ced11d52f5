"""Links on connected sockets, nearly all with TLS: by aiofastnet, which drives OpenSSL from C, or by the event loop.

What waits in the kernel and in the TLS layer cannot be overtaken, so both are kept short: a slow uplink should have its
queue where streams take turns.

The event loop serves where aiofastnet is not installed, and for contexts that drive connections themselves
(``pyopenssl_context``), which aiofastnet would not ask. Where Python's OpenSSL is linked statically aiofastnet uses
``ssl`` by itself. Contexts, protocols and kinds of errors are the same in all cases.

Source: docs/decisions/0022.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from nexus.sockets import keep_unsent_short

try:
    import aiofastnet
except ImportError:  # pragma: no cover — a platform without a wheel of it
    aiofastnet = None  # type: ignore[assignment]

# Four records in each direction: what a link writes in one go (WRITE_BATCH_BYTES), and no more that waits unseen.
_BUFFER_BYTES: Final = 4 * (16 * 1024 + 64)


async def accept_tls(
    protocol: asyncio.BaseProtocol, connection: socket.socket, context: ssl.SSLContext, timeout_s: float
) -> None:
    """Be the server of a handshake; ``protocol`` notes its ``transport`` when that is over.

    Where it fails or takes longer than ``timeout_s`` the connection is closed. Raises OSError (ssl.SSLError and
    TimeoutError are ones).
    """
    loop = asyncio.get_running_loop()
    with _handshake(protocol, connection):
        if _is_plain(context):
            await aiofastnet.connect_accepted_socket(
                loop,
                lambda: protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=timeout_s,
                ssl_incoming_bio_size=_BUFFER_BYTES,
                ssl_outgoing_bio_size=_BUFFER_BYTES,
            )
        else:
            await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context, ssl_handshake_timeout=timeout_s
            )


async def connect(
    protocol: asyncio.BaseProtocol, connection: socket.socket, context: ssl.SSLContext | None, server_name: str
) -> None:
    """Be the client of a handshake with the server of that name, otherwise as ``accept_tls``; None: without TLS."""
    loop = asyncio.get_running_loop()
    with _handshake(protocol, connection):
        if context is None:
            await loop.create_connection(lambda: protocol, sock=connection)
        elif _is_plain(context):
            await aiofastnet.create_connection(
                loop,
                lambda: protocol,
                sock=connection,
                ssl=context,
                server_hostname=server_name,
                ssl_incoming_bio_size=_BUFFER_BYTES,
                ssl_outgoing_bio_size=_BUFFER_BYTES,
            )
        else:
            await loop.create_connection(lambda: protocol, sock=connection, ssl=context, server_hostname=server_name)


def has_aiofastnet() -> bool:
    """Tell whether aiofastnet drives the connections of contexts that leave that to others."""
    return aiofastnet is not None


def _is_plain(context: ssl.SSLContext) -> bool:
    return has_aiofastnet() and type(context).wrap_bio is ssl.SSLContext.wrap_bio


@contextlib.contextmanager
def _handshake(protocol: asyncio.BaseProtocol, connection: socket.socket) -> Iterator[None]:
    """Prepare a connection for its handshake; close it where that fails, while it is not yet the transport's."""
    keep_unsent_short(connection)
    try:
        yield
    except BaseException:
        if not hasattr(protocol, "transport"):
            connection.close()
        raise
