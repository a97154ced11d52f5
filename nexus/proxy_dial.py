"""Dialling a hub or a peer, by way of the HTTP proxy that the environment names, where it names one.

`open_tunnel` asks the proxy that `nexus.proxies` found for a tunnel (RFC 9110 section 9.3.6) and returns the bare
connected socket, on which TLS and the WebSocket upgrade then run as on any other.

A password in the proxy's URL appears in no error: texts that may hold one are cut before they are quoted, and an
error of the URL parser, which quotes what it could not read, is never chained.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from nexus import proxies
from nexus.dial import open_socket
from nexus.errors import NexusError

RESPONSE_HEAD_MAX_BYTES: Final = 8 * 1024
"""Longest answer to CONNECT that is read; the usual limit of HTTP servers for a whole head."""

_REASON_MAX_CHARS: Final = 100
_DEFAULT_PROXY_PORT: Final = 80  # RFC 9110 section 4.2.1: the default port of the http scheme
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: ([^\r\n]*))?\r?\n")  # RFC 9112 section 4
_HEAD_ENDS = (b"\r\n\r\n", b"\n\n")  # RFC 9112 section 2.2: a bare LF may end a line
_HOST = re.compile(r"[\x21-\x7e]+")


class ProxyError(NexusError, ConnectionError):
    """The proxy could not be used; ``status`` is its HTTP status, None if it gave none.

    It is a `ConnectionError` too: to whoever dials it is one more way in which a connection can fail.
    """

    def __init__(self, proxy: str, what: str, status: int | None = None) -> None:
        """Take the proxy's URL without its password, and what went wrong."""
        super().__init__(f"proxy {proxy}: {what}")
        self.proxy = proxy
        self.status = status


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """A parsed ``http://`` proxy URL; ``str()`` masks the password."""

    host: str
    port: int
    username: str = ""
    credentials: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """``http://user:***@host:port``; a user without a password is masked too, for it may be an access key."""
        who = f"{self.username}:" if self.username else ""
        return f"http://{'' if self.credentials is None else who + '***@'}{proxies.authority(self.host, self.port)}"


def parse_proxy(url: str) -> ProxyAddress:
    """Parse the URL of an HTTP proxy; ``host:port`` alone means ``http://host:port``.

    Raises:
        ProxyError: The URL cannot be parsed, or its scheme is another than ``http``.
    """
    full = url if "://" in url else f"http://{url}"
    parsed = _split(full)
    if parsed is None:
        raise ProxyError(_masked(full), "the URL cannot be parsed (percent-encode special characters of a password)")
    scheme, address = parsed
    if scheme != "http":
        raise ProxyError(_masked(full), f"{scheme} proxies are not supported, only http:// ones")
    return address


async def open_way(host: str, port: int, schemes: tuple[str, ...], timeout_s: float) -> socket.socket:
    """Return a connected socket to a host, through the proxy for one of ``schemes`` (``nexus.proxies``) if any.

    Raises:
        OSError: it cannot be reached; a ProxyError where that is the proxy's doing.
        UnicodeError: a name that IDNA refuses.
    """
    proxy = proxies.proxy_for(host, port, schemes)
    return await (open_socket(host, port) if proxy is None else open_tunnel(proxy, host, port, timeout_s))


async def open_tunnel(proxy_url: str, host: str, port: int, timeout_s: float) -> socket.socket:
    """Open a tunnel through an HTTP proxy and return its socket, connected, non-blocking, with no byte read too many.

    The caller owns the socket. Cancelling closes it.

    Args:
        proxy_url: As `proxy_for` returns it; user and password in it are sent as Basic credentials (RFC 7617).
        host: The far end, a name (resolved by the proxy) or an IP address without brackets.
        port: The far end's port.
        timeout_s: Limit for everything together: resolving the proxy, connecting, and its answer.

    Raises:
        ProxyError: The proxy cannot be reached in time, refused, or answered something that is not HTTP.
    """
    proxy = parse_proxy(proxy_url)
    if not _HOST.fullmatch(host):
        raise ProxyError(str(proxy), f"the host {host!r} cannot be asked for")
    try:
        async with asyncio.timeout(timeout_s):
            sock = await open_socket(proxy.host, proxy.port)
            try:
                await _ask(sock, proxy, proxies.authority(host, port))
            except BaseException:
                sock.close()
                raise
    except ProxyError:
        raise
    except TimeoutError as error:
        raise ProxyError(str(proxy), f"no tunnel to {proxies.authority(host, port)} within {timeout_s:g} s") from error
    except (OSError, UnicodeError) as error:  # a name that IDNA refuses is a UnicodeError
        raise ProxyError(str(proxy), getattr(error, "strerror", None) or str(error)) from error
    return sock


async def _ask(sock: socket.socket, proxy: ProxyAddress, authority: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _request(proxy, authority))
    head = bytearray()
    while not head.endswith(_HEAD_ENDS):
        if len(head) >= RESPONSE_HEAD_MAX_BYTES:
            raise ProxyError(str(proxy), f"its answer is longer than {RESPONSE_HEAD_MAX_BYTES} bytes")
        # One byte at a time: what follows the head belongs to the tunnel, and a socket takes nothing back.
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise ProxyError(str(proxy), f"closed the connection instead of opening a tunnel to {authority}")
        head += byte
    _check_answer(bytes(head), proxy, authority)


def _request(proxy: ProxyAddress, authority: str) -> bytes:
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _check_answer(head: bytes, proxy: ProxyAddress, authority: str) -> None:
    match = _STATUS_LINE.match(head)
    if match is None:
        raise ProxyError(str(proxy), "its answer is not HTTP/1.1")
    status = int(match[1])
    if 200 <= status < 300:  # RFC 9110 section 9.3.6: any 2xx opens the tunnel
        return
    reason = _printable(match[2] or b"")
    raise ProxyError(str(proxy), f"refused a tunnel to {authority}: {status} {reason}".rstrip(), status)


def _printable(text: bytes) -> str:
    decoded = text.decode("ascii", "replace")
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in decoded[:_REASON_MAX_CHARS])


def _split(url: str) -> tuple[str, ProxyAddress] | None:
    """Split a URL; None if that fails. No exception leaves, for the parser's own would quote part of a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or not _HOST.fullmatch(host) or parts.path not in {"", "/"} or parts.query or parts.fragment:
        return None
    if parts.username is None:
        return parts.scheme, ProxyAddress(host, port or _DEFAULT_PROXY_PORT)
    user, password = unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")
    shown = _printable(user) if password else ""
    return parts.scheme, ProxyAddress(host, port or _DEFAULT_PROXY_PORT, shown, user + b":" + password)


def _masked(url: str) -> str:
    """Cut everything that may be user or password out of a URL that is about to be quoted.

    What stands before the last ``@`` may be a password, however broken the URL; without ``@`` there is none.
    """
    scheme, _, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{_printable(scheme.encode())}://{'***@' if at and credentials else ''}{_printable(host.encode())}"
