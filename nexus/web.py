"""HTTP requests of the node to others: one way to make a session, with one place where addresses are refused.

``aiohttp`` skips its resolver for IP literals, so a filter there would miss them; ``socket_factory`` is called for each
address that is about to be connected to, whatever named it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

import aiohttp

CONNECTIONS_MAX: Final = 100
"""Connections of one session at once (aiohttp's default); a request beyond them waits within its own time limit."""


class RefusedAddressError(OSError):
    """The node does not connect to this address."""


def open_session(context: ssl.SSLContext | None, is_refused: Callable[[str], bool]) -> aiohttp.ClientSession:
    """Return a client session, to be closed by the caller; make it inside the event loop.

    It presents no certificate, keeps no cookies, reuses no connection and reads no proxy from the environment.

    Args:
        context: verifies servers; None is the system's roots.
        is_refused: tells of an IP address whether it must not be connected to.
    """

    def open_socket(target: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = target
        if is_refused(str(address[0])):
            # Without the address: aiohttp keeps the error of several addresses only where all say the same.
            raise RefusedAddressError("not a public address")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        ssl=True if context is None else context,
        limit=CONNECTIONS_MAX,
        force_close=True,
        use_dns_cache=False,
        socket_factory=open_socket,
    )
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), raise_for_status=False)
