"""Public sockets: dual stack, keep-alive, long backlog, large UDP buffers, and errors an operator can act on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import Final

from nexus.errors import ConfigError, Problem

BACKLOG: Final = 4096  # the kernel cuts it to net.core.somaxconn
# What the kernel keeps of a link without having sent it: half a millisecond of a gigabit path, 50 ms of a slow uplink.
LINK_UNSENT_BYTES: Final = 64 * 1024
# The original's: 15 s idle, every 15 s, 9 probes.
_KEEPALIVE_IDLE_S: Final = 15
_KEEPALIVE_INTERVAL_S: Final = 15
_KEEPALIVE_PROBES: Final = 9
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_LISTENING: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
ACCEPT_PAUSE_S: Final = 0.5
# A burst of 5,000 small datagrams takes about 4 MiB of the kernel's bookkeeping; it cuts this to net.core.rmem_max.
UDP_BUFFER_BYTES: Final = 4 * 1024 * 1024
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_SITE_BYTES: Final = 8
_WIDE_BYTES: Final = 6

_MENDS: Final = {
    errno.EADDRINUSE: "stop the program that uses the port (`ss -tulpn` shows it) or choose another port",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE (or root)",
    errno.EADDRNOTAVAIL: "the address is not one of this machine's",
}


def listen(host: str, port: int, key: str, *, shared: bool = False) -> socket.socket:
    """Return a listening socket; an empty host means all interfaces, IPv4 and IPv6 on one socket.

    With ``shared`` there may be more of them, by ``listen_too``. It is set when the address is bound, so that two nodes
    never share one by accident.

    Raises:
        ConfigError: the socket cannot be bound; ``key`` names the setting it came from.
    """
    try:
        return _bind(*_family_and_host(host), port, shared=shared)
    except (OSError, UnicodeError) as error:  # a name that IDNA refuses is a UnicodeError
        raise _refusal(host, port, key, error) from error


def listen_too(sock: socket.socket) -> socket.socket:
    """Return another socket that listens where a shared one does; the kernel spreads connections over both.

    Source: socket(7), SO_REUSEPORT.
    """
    return _bind(socket.AddressFamily(sock.family), *sock.getsockname()[:2], again=True)


def listen_udp(host: str, port: int, key: str) -> list[socket.socket]:
    """Return bound UDP sockets; an empty host means all interfaces, with a socket each for IPv4 and IPv6.

    Port 0 binds a free one, the same for both. Raises ConfigError as ``listen``.
    """
    families = {"0.0.0.0": socket.AF_INET} | ({"::": socket.AF_INET6} if socket.has_dualstack_ipv6() else {})
    with contextlib.ExitStack() as stack:
        try:
            if host:
                family, address = _family_and_host(host)
                families = {address: family}
            sockets: list[socket.socket] = []
            for address, family in families.items():
                number = port or (int(sockets[0].getsockname()[1]) if sockets else 0)
                sockets.append(stack.enter_context(contextlib.closing(_bind_udp(family, address, number))))
        except (OSError, UnicodeError) as error:
            raise _refusal(host, port, key, error) from error
        stack.pop_all()
        return sockets


def _refusal(host: str, port: int, key: str, error: Exception) -> ConfigError:
    shown = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
    mend = _MENDS.get(getattr(error, "errno", None) or 0, "check the address")
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(Problem("listen", 0, key, f"cannot listen on {shown}: {reason}", mend))


def _family_and_host(host: str) -> tuple[socket.AddressFamily, str]:
    if not host:
        return (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    return family, str(address[0])


def _bind(
    family: socket.AddressFamily, host: str, port: int, *, shared: bool = False, again: bool = False
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        if again:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_udp(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER_BYTES)
        sock.bind((host, port))
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


def keep_unsent_short(sock: socket.socket) -> None:
    """Let the kernel keep no more than LINK_UNSENT_BYTES that it has not sent yet.

    What is there has its order; what waits in the process can still take turns. Source: tcp_notsent_lowat in Linux's
    documentation of ip-sysctl; a no-op where the system has no such option, and for a Unix socket.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, LINK_UNSENT_BYTES)


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


def source_key(address: str) -> str:
    """Return what counts as one source: an IPv4 address (also a v4-mapped one), or the /64 of an IPv6 address.

    A /64 is the smallest block a site gets (RFC 6177), so that one host cannot take 2^64 shares.
    """
    return source_keys(address)[0]


def source_keys(address: str) -> tuple[str, ...]:
    """Return ``source_key``, and for IPv6 also the /48: what one owner of many sources often has (RFC 6177)."""
    if ":" not in address:
        return (address,)
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):
        return (address,)
    if packed.startswith(_V4_MAPPED):
        return (socket.inet_ntop(socket.AF_INET, packed[len(_V4_MAPPED) :]),)
    return tuple(
        f"{socket.inet_ntop(socket.AF_INET6, packed[:kept].ljust(len(packed), bytes(1)))}/{8 * kept}"
        for kept in (_SITE_BYTES, _WIDE_BYTES)
    )
