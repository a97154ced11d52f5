"""Connecting by name: all addresses of it, a broken one not in the way of the others.

``open_socket`` does both steps, for names that the operator chose. Whoever must judge the addresses in between looks
the name up once (``nexus.resolver``) and calls ``connect`` with what was judged.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Final

from aiohappyeyeballs import AddrInfoType, start_connection

# RFC 8305 section 5: so long does the next address wait for the one before, neither being given up.
ATTEMPT_DELAY_S: Final = 0.25


async def open_socket(host: str, port: int) -> socket.socket:
    """Return a connected socket to the first address of ``host`` that answers; as ``resolve`` and ``connect``."""
    return await connect(await resolve(host, port))


async def resolve(host: str, port: int) -> Sequence[AddrInfoType]:
    """Return the addresses of ``host``, at least one, in the resolver's order.

    Raises:
        OSError: the name has no address.
        UnicodeError: a name that IDNA refuses.
    """
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not addresses:
        raise ConnectionError("the name has no address")
    return addresses


async def connect(addresses: Sequence[AddrInfoType]) -> socket.socket:
    """Return a connected, non-blocking socket with TCP_NODELAY to the first of these addresses that answers.

    The caller owns the socket and limits the time. Cancelling closes it.

    Raises:
        OSError: none of them can be reached.
    """
    try:
        sock = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S, interleave=1)
    except RuntimeError as error:  # of uvloop, which has a transport under the socket's number
        raise OSError(errno.EBADF, str(error)) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
