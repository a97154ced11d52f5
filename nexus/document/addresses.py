"""Addresses as an operator writes them: ``host:port``.

Strategy: one splitting rule for every key, the one Go's ``net.SplitHostPort`` has, because the original's files are
written for it: the last colon parts host and port, an IPv6 host stands in brackets, the host may be empty, and the
port is a number or the name of a service. Names of services are looked up by a function the caller passes in
(``socket.getservbyname`` in a shell), since this module does no I/O; without one a well-formed name is left as it is.

Source: spec node-and-mesh 2; RFC 3986 3.2.2 (brackets), RFC 6335 5.1 (service names).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import TypeAlias

MAX_PORT = 65535  # RFC 9293 3.1
ServiceResolver: TypeAlias = Callable[[str], int]
"""Returns the TCP port of a service name; raises ``OSError`` for an unknown one."""

_SERVICE_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_SERVICE_NAME_MAX_CHARS = 15  # RFC 6335 5.1


def split_host_port(text: str) -> tuple[str, str]:
    """Return the host, without brackets and possibly empty, and the port as written.

    Raises ``ValueError`` with a text that follows the key in a message.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ValueError("has no port; write host:port")
    if host.startswith("["):
        if not host.endswith("]"):
            raise ValueError("has a '[' that is not closed before the port")
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("has an IPv6 address without brackets; write [address]:port")
    if "[" in host or "]" in host:
        raise ValueError("has brackets around something that is no IPv6 address")
    return host, port


def parse_host_port(text: str, resolve_service: ServiceResolver | None = None) -> tuple[str, int]:
    """Return host and port of ``host:port``, looking up a service name with ``resolve_service``.

    Raises ``ValueError`` for anything malformed, a port beyond ``MAX_PORT``, and a service name that is unknown or
    cannot be looked up because there is no ``resolve_service``.
    """
    host, port = split_host_port(text)
    if port.isascii() and port.isdecimal():
        number = int(port) if len(port) <= len(str(MAX_PORT)) else MAX_PORT + 1
        if number > MAX_PORT:
            raise ValueError(f"has the port {port[:20]}; ports end at {MAX_PORT}")
        return host, number
    if not is_service_name(port):
        raise ValueError(f"has the port '{port[:20]}', which is neither a number nor the name of a service")
    try:
        if resolve_service is not None:
            return host, resolve_service(port)
    except OSError:
        pass
    raise ValueError(f"has the port '{port}', which is no service known to this machine")


def check_host_port(text: str, resolve_service: ServiceResolver | None = None) -> str:
    """Return what is wrong with a ``host:port``, or nothing; a service name passes unless it can be looked up."""
    try:
        if resolve_service is None and is_service_name(split_host_port(text)[1]):
            return ""
        parse_host_port(text, resolve_service)
    except ValueError as error:
        return str(error)
    return ""


def is_service_name(port: str) -> bool:
    """Tell whether a port is written like the name of a service (RFC 6335 5.1)."""
    return len(port) <= _SERVICE_NAME_MAX_CHARS and _SERVICE_NAME.fullmatch(port) is not None


def is_loopback(host: str) -> bool:
    """Tell whether a host is ``localhost`` or a loopback address (RFC 1122 3.2.1.3, RFC 4291 2.5.3, RFC 6761 6.3)."""
    name = host.lower().removesuffix(".")
    return (
        name == "localhost" or name.endswith(".localhost") or (is_ip(host) and ipaddress.ip_address(host).is_loopback)
    )


def is_ip(host: str) -> bool:
    """Tell whether a host is an IPv4 or IPv6 address, without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
