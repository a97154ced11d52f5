"""Where a node's admin endpoint listens: a loopback TCP address or a Unix socket.

Strategy: the same text is written in the node's configuration, given to the CLI and used by health checks, so it is
parsed in one place: ``127.0.0.1:9180``, ``[::1]:9180``, ``localhost:9180`` or ``unix:/run/nexus/admin.sock``. Parsing
decides the form only; whether a host is loopback is asked by the server, which must not be reachable from outside by
accident, and not by the probe, which may ask any node. An address without a host is refused rather than read as "all
interfaces". Host names other than ``localhost`` are not resolved here, and so do not count as loopback.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from nexus.errors import ConfigError, Problem

UNIX_PREFIX = "unix:"

UNIX_PATH_MAX_BYTES = 103
"""Longest socket path that every system takes: sun_path holds 108 bytes on Linux, 104 elsewhere, one is the NUL."""

_PORT_MAX = 65535
_PORT_MAX_DIGITS = 5
_MEND = "write 127.0.0.1:9180, [::1]:9180 or unix:/path/to/admin.sock"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name or IP address, without brackets) and a port; port 0 lets the system choose when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        """``unix:`` and the path."""
        return UNIX_PREFIX + self.path


AdminAddress = TcpAddress | UnixAddress


def parse_address(text: str) -> AdminAddress:
    """Parse an admin address; ``str()`` of the result parses to the same.

    Raises ConfigError when it is neither ``host:port`` nor ``unix:/path``, or when the path is too long for a socket.
    """
    if text.startswith(UNIX_PREFIX):
        return _parse_unix(text)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _problem(text, "an IPv6 address needs brackets around it")
    if not colon or not host:
        raise _problem(text, "is not an admin address")
    if "[" in host or "]" in host:
        raise _problem(text, "brackets stand around an IPv6 address once, and nowhere else")
    if not (port.isascii() and port.isdigit() and len(port) <= _PORT_MAX_DIGITS and int(port) <= _PORT_MAX):
        raise _problem(text, f"{port!r} is not a port (0 to {_PORT_MAX})")
    return TcpAddress(host, int(port))


def is_loopback(address: AdminAddress) -> bool:
    """Tell whether only this machine can reach ``address``; of host names, ``localhost`` alone does."""
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix(UNIX_PREFIX)
    if not path.startswith("/") or "\0" in path:
        raise _problem(text, "a socket path starts with /")
    if len(path.encode(errors="surrogateescape")) > UNIX_PATH_MAX_BYTES:
        raise _problem(text, f"a socket path has at most {UNIX_PATH_MAX_BYTES} bytes")
    return UnixAddress(path)


def _problem(text: str, what: str) -> ConfigError:
    return ConfigError(Problem(source="admin address", line=0, key=text, what=what, mend=_MEND))
