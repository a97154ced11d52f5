"""Asks an authorizer's status URI whether the authorizer is up.

The URI comes from a token: what it names is not to be trusted. The node connects to public addresses only (and to those
in ``statusPrivateNetworks``), directly, since a proxy would resolve the name by itself; it follows redirects within the
same origin only, reads no body, keeps no cookie, and shows no certificate of its own: whom a backend may name, that one
has no business with the node's identity. What is told of a failure never holds the URI.

``aiohttp`` skips its resolver for IP literals, so a filter there would miss them; ``socket_factory`` is called for each
address that is about to be connected to, whatever named it. Names are looked up apart from the node's own, few at once
(``nexus.hub.status_names``), as one that hangs would keep a thread of everybody's. The library is loaded at the first
question, in a thread: it takes half a second, which no node without status URIs should spend, and no stream should
notice.

Source: spec backend-protocol 4 (healthy is exactly 200), 25 (W27); RFC 9110 section 15.4.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from nexus.addresses import Network, is_refused
from nexus.resolver import Resolver
from nexus.web import Sockets

if TYPE_CHECKING:
    import aiohttp

STATUS_TIMEOUT_S: Final = 5.0
"""For everything: resolving, connecting, TLS, redirects, and the head of the answer (the original's)."""

REDIRECTS_MAX: Final = 3
"""Ours; a status page has no reason for more than a missing slash."""

CONNECTIONS_MAX: Final = 32
"""Ours: connections at once, for all sessions together; a question beyond them waits within its own time limit."""

_OK: Final = 200
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class StatusClient:
    """Asks status URIs; ``aclose`` it in the end."""

    def __init__(self, context: ssl.SSLContext | None, allowed_networks: Iterable[Network]) -> None:
        """Take what verifies the servers (None: the system's roots) and the private networks they may be in."""
        self._context = context
        self._allowed = tuple(allowed_networks)
        self._session: aiohttp.ClientSession | None = None
        self._sockets = Sockets()
        self._resolver = Resolver()

    async def ask(self, uri: str) -> str:
        """Return "" if the authorizer is up, else what is wrong, in words without the URI."""
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                await asyncio.to_thread(importlib.import_module, "nexus.hub.status_names")
                if self._session is None:
                    self._session = self._open()
                return await _ask(self._session, uri)
        except TimeoutError:
            return f"no answer within {STATUS_TIMEOUT_S:g} s"

    async def aclose(self) -> None:
        """Close what is open; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await self._sockets.wait_closed()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415 — see the module's docstring

        from nexus.hub.status_names import StatusNames  # noqa: PLC0415 — loads aiohttp

        connector = aiohttp.TCPConnector(
            ssl=True if self._context is None else self._context,
            limit=CONNECTIONS_MAX,
            force_close=True,
            use_dns_cache=False,
            resolver=StatusNames(self._resolver, self._allowed),
            socket_factory=self._open_socket,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)

    def _open_socket(self, target: aiohttp.AddrInfoType) -> socket.socket:
        if is_refused(str(target[4][0]), self._allowed):
            # Without the address: aiohttp keeps the error of several addresses only where all say the same.
            raise _RefusedAddressError("not a public address")
        return self._sockets.open(target)


async def _ask(session: aiohttp.ClientSession, uri: str) -> str:
    import aiohttp  # noqa: PLC0415 — see the module's docstring

    try:
        return await _follow(session, uri)
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a URI that aiohttp cannot read
        return _words(error)


async def _follow(session: aiohttp.ClientSession, uri: str) -> str:
    from yarl import URL  # noqa: PLC0415 — comes with aiohttp, which reads its URIs by it

    url = URL(uri)
    for _ in range(1 + REDIRECTS_MAX):
        async with session.get(url, allow_redirects=False) as response:
            if response.status == _OK:
                return ""
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                return f"status {response.status}"
        following = url.join(URL(target))
        if following.origin() != url.origin():
            return "it redirects elsewhere"
        url = following
    return f"it redirects more than {REDIRECTS_MAX} times"


def _words(error: Exception) -> str:
    """Name a failure; the words of an aiohttp error would repeat the URI."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, _RefusedAddressError):
        return "its address is not public (statusPrivateNetworks)"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is refused"
    return f"no connection ({type(cause).__name__})"


class _RefusedAddressError(OSError):
    """The node does not connect to this address."""
