"""The node as a client of web servers: verifiers, key sets, status pages. Every answer is bounded in bytes and time.

Strategy: ``aiohttp`` speaks HTTP; this module decides what is asked of it, in one place for all who ask:

- TLS context of the caller: its roots, and the client certificate that is shown where a server asks for one. It is
  asked for at each request, and each request has a connection of its own: a renewed certificate is used at once, and
  no POST is lost on a connection that the server was just closing.
- No redirect is followed: what is sent may be a token, and whoever answers for one URL does not speak for another. The
  caller that may follow one is told where it leads.
- No cookie is kept, no compressed answer is accepted (a small one could become huge), ``~/.netrc`` is not read.
- Proxies are those of the environment (``nexus.proxies``).

The library is loaded at the first request: a node that asks nobody does without its time and memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nexus.errors import WebError
from nexus.proxies import HTTP, HTTPS, proxy_for

if TYPE_CHECKING:
    import aiohttp

REQUEST_TIMEOUT_S: Final = 10.0  # original: everything from the look-up of the name to the last byte
CONNECTIONS_MAX: Final = 32  # ours: of all requests together; a handshake waits for one at most
CLOSE_TIMEOUT_S: Final = 1.0  # ours: how long the end waits for servers that do not answer the end of TLS
_CLOSE_POLL_S: Final = 0.005  # a socket that closes tells nobody
_PORTS: Final[Mapping[str, int]] = {"https": 443, "http": 80}
_CHUNK_BYTES: Final = 16_384
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_UNCACHEABLE = re.compile(r"(?:^|[\s,])(?:no-store|no-cache)(?:$|[\s,])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """A whole answer; ``max_age_s`` is how long it says it stays fresh, None where it does not say.

    ``location`` and ``retry_after`` are the header fields of these names, empty where they are absent.
    """

    status: int
    body: bytes = field(repr=False)
    max_age_s: int | None = None
    location: str = field(default="", repr=False)
    retry_after: str = ""


class Sockets:
    """The sockets of one HTTP client: ``aiohttp`` does not say when those that it is closing are closed."""

    def __init__(self) -> None:
        """Start without any."""
        self._opened: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def open(self, target: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket for an address: a ``socket_factory``."""
        family, kind, protocol, _, _ = target
        sock = socket.socket(family, kind, protocol)
        self._opened.add(sock)
        return sock

    async def wait_closed(self) -> None:
        """Return once all are closed, at the latest after CLOSE_TIMEOUT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while any(sock.fileno() >= 0 for sock in self._opened):  # noqa: ASYNC110 — see _CLOSE_POLL_S
                    await asyncio.sleep(_CLOSE_POLL_S)


class WebClient:
    """Asks web servers; ``aclose`` it in the event loop it was used in."""

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        """Ask ``context`` at each request. Raises nothing and opens nothing."""
        self._context = context
        self._session: aiohttp.ClientSession | None = None
        self._sockets = Sockets()

    async def get(self, url: str, *, max_bytes: int, timeout_s: float = REQUEST_TIMEOUT_S) -> WebAnswer:
        """Return the answer to a GET, whatever its status.

        Raises:
            WebError: there is none within the time, or it is longer than ``max_bytes``.
        """
        return await self._request("GET", url, None, max_bytes, timeout_s)

    async def post_json(
        self,
        url: str,
        document: Mapping[str, object],
        *,
        max_bytes: int,
        timeout_s: float = REQUEST_TIMEOUT_S,
        is_cut: bool = False,
    ) -> WebAnswer:
        """Return the answer to a POST of a JSON document; otherwise as ``get``.

        With ``is_cut`` a longer body is no error: its first ``max_bytes`` are returned.
        """
        data = json.dumps(dict(document)).encode()
        return await self._request("POST", url, data, max_bytes, timeout_s, is_cut=is_cut)

    async def aclose(self) -> None:
        """Close every connection; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await self._sockets.wait_closed()

    async def _request(
        self, method: str, url: str, data: bytes | None, max_bytes: int, timeout_s: float, *, is_cut: bool = False
    ) -> WebAnswer:
        import aiohttp  # noqa: PLC0415 — see the module's docstring

        headers = {"Accept-Encoding": "identity", "Accept": "application/json", "User-Agent": "nexus-proxy"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._opened().request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    ssl=self._context(),
                    proxy=_proxy(url),
                    allow_redirects=False,
                ) as response,
            ):
                body = await _read(response.content, max_bytes, is_cut=is_cut)
                cache = response.headers.get("Cache-Control", "")
                return WebAnswer(
                    response.status,
                    body,
                    parse_max_age(cache),
                    response.headers.get("Location", ""),
                    response.headers.get("Retry-After", ""),
                )
        except TimeoutError:
            raise WebError(f"no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a URL or header that is none
            raise WebError(_in_words(error)) from None

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415 — see the module's docstring

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS_MAX, force_close=True, socket_factory=self._sockets.open
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),  # ``asyncio.timeout`` above bounds all of it
                auto_decompress=False,
            )
        return self._session


def parse_max_age(cache_control: str) -> int | None:
    """Return the seconds that a ``Cache-Control`` field allows, 0 where it forbids caching, None where it is silent.

    Source: RFC 9111 section 5.2.2.
    """
    if _UNCACHEABLE.search(cache_control):
        return 0
    match = _MAX_AGE.search(cache_control)
    return int(match[1]) if match else None


async def _read(stream: aiohttp.StreamReader, max_bytes: int, *, is_cut: bool) -> bytes:
    body = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            if is_cut:
                return bytes(body[:max_bytes])
            raise WebError(f"the answer is longer than {max_bytes} bytes", answered=True)
    return bytes(body)


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    schemes = HTTPS if parts.scheme == "https" else HTTP
    return proxy_for(parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0), schemes)


def _in_words(error: Exception) -> str:
    """Tell what went wrong without the URL of a proxy, which may hold a password."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {(cause.reason or 'unknown').lower().replace('_', ' ')}"
    if isinstance(cause, OSError) and cause.strerror:
        return f"cannot be reached: {cause.strerror}"
    return f"cannot be asked: {type(error).__name__}"
