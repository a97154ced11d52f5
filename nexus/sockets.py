"""Listening sockets: dual stack, keep-alive, long backlog, and errors an operator can act on."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

from nexus.errors import ConfigError, Problem

BACKLOG: Final = 4096  # the kernel cuts it to net.core.somaxconn
# The original's: 15 s idle, every 15 s, 9 probes.
_KEEPALIVE_IDLE_S: Final = 15
_KEEPALIVE_INTERVAL_S: Final = 15
_KEEPALIVE_PROBES: Final = 9
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_LISTENING: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
ACCEPT_PAUSE_S: Final = 0.5

_MENDS: Final = {
    errno.EADDRINUSE: "stop the program that uses the port (`ss -ltnp` shows it) or choose another port",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE (or root)",
    errno.EADDRNOTAVAIL: "the address is not one of this machine's",
}


def listen(host: str, port: int, key: str) -> socket.socket:
    """Return a listening socket; an empty host means all interfaces, IPv4 and IPv6 on one socket.

    Raises:
        ConfigError: the socket cannot be bound; ``key`` names the setting it came from.
    """
    try:
        return _bind(*_family_and_host(host), port)
    except (OSError, UnicodeError) as error:  # a name that IDNA refuses is a UnicodeError
        shown = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
        mend = _MENDS.get(getattr(error, "errno", None) or 0, "check the address")
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(Problem("listen", 0, key, f"cannot listen on {shown}: {reason}", mend)) from error


def _family_and_host(host: str) -> tuple[socket.AddressFamily, str]:
    if not host:
        return (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    return family, str(address[0])


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel find out within some minutes that the other side is gone, although nothing is sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


async def accept(sock: socket.socket) -> tuple[socket.socket, str]:
    """Return the next connection and its IP address; waits out a lack of descriptors or memory, quietly.

    Raises:
        OSError: the socket is closed or does not listen.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, address = await loop.sock_accept(sock)
        except OSError as error:
            if error.errno in _NOT_LISTENING:
                raise
            # Anything else concerns one connection that broke while it waited (accept(2)).
            await asyncio.sleep(ACCEPT_PAUSE_S if error.errno in _OUT_OF_RESOURCES else 0)
            continue
        return connection, str(address[0])


def format_address(address: tuple[object, ...]) -> str:
    """Return ``ip:port`` or ``[ip]:port`` of a socket name; a v4-mapped address is shown as IPv4."""
    host, port = str(address[0]), address[1]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
