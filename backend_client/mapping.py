"""Which local address serves a stream: the backend's `portMappings`, compiled once, asked once per stream.

Strategy: every pattern is normalised and every target parsed when the configuration is read, so a mistake is reported
then, with all the others, and a lookup is three dictionary accesses on plain strings.

The order is that of the protocol's section 19: the entry of the exact port; in it an exact override, then a wildcard
override, then the default, then no route. "Longest suffix first" needs no search: a wildcard covers exactly one label
(15.4), so a host has one possible suffix. The suffix is cut at the host's first dot. A client may use wildcards
that a hub would refuse (`*.internal`). Route keys such as `udp:53`, which a hub sends in place of a hostname,
never match an override; they and an absent hostname take the default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nexus.errors import ConfigError, Problem
from nexus.hostnames import is_port_key, normalize, normalize_wildcard, wildcard_suffix

PORT_MAX: Final = 65535
"""Largest port number (RFC 9293 section 3.1: 16 bits)."""

_TARGET = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_LOCAL_HOST = "localhost"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """An address to dial; ``host`` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortRoutes:
    """The compiled entry of one port: ``exact`` by host, ``wildcards`` by suffix (``.example.com``)."""

    default: Target | None = None
    exact: Mapping[str, Target] = field(default_factory=dict)
    wildcards: Mapping[str, Target] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PortMap:
    """Every entry of a backend's ``portMappings``, ready for `route`."""

    ports: Mapping[int, PortRoutes]

    @classmethod
    def compile(cls, mappings: Mapping[int, tuple[str, Mapping[str, str]]], source: str = "configuration") -> PortMap:
        """Build the map from ``{port: (default target or "", {pattern: target})}``.

        ``source`` is the file named in the problems. Source: protocol sections 15.4, 16 and 19.

        Raises:
            ConfigError: With every problem found: a port outside 1..65535, an entry without any target, a blank
                pattern, a target that cannot be parsed, two patterns that mean the same host but differ in target.
        """
        problems: list[Problem] = []
        ports = {port: _compile_port(port, *entry, source, problems) for port, entry in mappings.items()}
        if problems:
            raise ConfigError(*problems)
        return cls(ports)


def route(port_map: PortMap, conn_port: int, hostname: str) -> Target | None:
    """Return the local address for a stream, or None for "no route".

    ``hostname`` is what the hub sent with ``connect``: a host in any spelling, a route key, or "" if it sent none.
    """
    routes = port_map.ports.get(conn_port)
    if routes is None:
        return None
    host = normalize(hostname)
    if not host or is_port_key(host):
        return routes.default
    target = routes.exact.get(host)
    if target is None and (suffix := wildcard_suffix(host)) is not None:
        target = routes.wildcards.get(suffix)
    return routes.default if target is None else target


def parse_target(text: str) -> Target:
    """Parse ``host:port`` or ``[IPv6]:port``; an empty host means this machine, as it does for the original.

    Raises:
        ValueError: The text is blank, has no port in 1..65535, or holds an IPv6 address without brackets.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"target {text!r} is not host:port (an IPv6 address needs brackets: [::1]:8080)")
    host = match["bracketed"] or match["plain"] or _LOCAL_HOST
    if _UNPRINTABLE.search(host):
        raise ValueError(f"target {text!r} has a space or a control character in its host")
    port = int(match["port"])
    if not 1 <= port <= PORT_MAX:
        raise ValueError(f"target {text!r} has a port outside 1..{PORT_MAX}")
    return Target(host, port)


def _compile_port(
    port: int, default: str, hosts: Mapping[str, str], source: str, problems: list[Problem]
) -> PortRoutes:
    key = f"portMappings.{port}"
    if not 1 <= port <= PORT_MAX:
        problems.append(Problem(source, 0, key, f"the port is outside 1..{PORT_MAX}"))
    if not default.strip() and not hosts:
        problems.append(Problem(source, 0, key, "there is no target", "give it a default, hosts, or both"))
    exact: dict[str, Target] = {}
    wildcards: dict[str, Target] = {}
    for pattern, target in _overrides(hosts, f"{key}.hosts", source, problems):
        is_suffix = pattern.startswith("*.")
        table, name = (wildcards, pattern.removeprefix("*")) if is_suffix else (exact, pattern)
        if table.setdefault(name, target) != target:
            what = f"two spellings of this host have different targets, {table[name]} and {target}"
            problems.append(Problem(source, 0, f"{key}.hosts.{pattern}", what, "keep one"))
    fallback = _checked(default, f"{key}.default", source, problems) if default.strip() else None
    return PortRoutes(fallback, exact, wildcards)


def _overrides(
    hosts: Mapping[str, str], key: str, source: str, problems: list[Problem]
) -> Iterator[tuple[str, Target]]:
    for raw, text in hosts.items():
        pattern = normalize_wildcard(raw)
        if not pattern:
            problems.append(Problem(source, 0, f"{key}.{raw!r}", "the pattern is blank", "write a host or *.suffix"))
        target = _checked(text, f"{key}.{raw}", source, problems)
        if pattern and target is not None:
            yield pattern, target


def _checked(text: str, key: str, source: str, problems: list[Problem]) -> Target | None:
    try:
        return parse_target(text)
    except ValueError as error:
        problems.append(Problem(source, 0, key, str(error), "write host:port"))
        return None
