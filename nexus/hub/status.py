"""Asks an authorizer's status URI whether the authorizer is up.

The URI comes from a token: what it names is not to be trusted. The node connects to public addresses only (and to those
in ``statusPrivateNetworks``), follows redirects within the same origin only, reads no body, and shows no certificate of
its own, since a stranger's server has no business with it. What it tells of a failure never holds the URI.

Source: spec backend-protocol 4 (healthy is exactly 200), 25 (W27); RFC 9110 section 15.4.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Final

import aiohttp
from yarl import URL

from nexus.addresses import Network, is_refused
from nexus.web import RefusedAddressError, open_session

STATUS_TIMEOUT_S: Final = 5.0
"""For everything: resolving, connecting, TLS, redirects, and the head of the answer (the original's)."""

REDIRECTS_MAX: Final = 3
"""Ours; a status page has no reason for more than a missing slash."""

_OK: Final = 200
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class StatusClient:
    """Asks status URIs; ``aclose`` it in the end."""

    def __init__(self, context: ssl.SSLContext | None, allowed_networks: Iterable[Network]) -> None:
        """Take what verifies the servers (None: the system's roots) and the private networks they may be in."""
        self._context = context
        self._allowed = tuple(allowed_networks)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, uri: str) -> str:
        """Return "" if the authorizer is up, else what is wrong, in words without the URI."""
        if self._session is None:
            self._session = open_session(self._context, lambda address: is_refused(address, self._allowed))
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return await _ask(self._session, URL(uri))
        except TimeoutError:
            return f"no answer within {STATUS_TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _words(error)

    async def aclose(self) -> None:
        """Close what is open; idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _ask(session: aiohttp.ClientSession, url: URL) -> str:
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


def _words(error: BaseException) -> str:
    """Name a failure; the words of an aiohttp error would repeat the URI."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, RefusedAddressError):
        return "its address is not public (statusPrivateNetworks)"
    if isinstance(cause, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
        return "its certificate is refused"
    return f"no connection ({type(cause).__name__})"
