"""Connecting by name: all addresses of it, a broken one not in the way of the others."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohappyeyeballs import start_connection

# RFC 8305 section 5: so long does the next address wait for the one before, neither being given up.
ATTEMPT_DELAY_S: Final = 0.25


async def open_socket(host: str, port: int) -> socket.socket:
    """Return a connected, non-blocking socket with TCP_NODELAY to the first address of ``host`` that answers.

    The caller owns the socket and limits the time. Cancelling closes it.

    Raises:
        OSError: the name has no address, or none of them can be reached.
        UnicodeError: a name that IDNA refuses.
    """
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not addresses:
        raise ConnectionError("the name has no address")
    sock = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S, interleave=1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
