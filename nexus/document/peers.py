"""Other nodes as an operator lists them in ``peers``, and the addresses they stand for.

Strategy: one entry is one text, parsed once into one of three values: the address of a node, or a name whose records in
the DNS are addresses of nodes. The configuration's rules and the mesh read by the same parser, so ``nexus config
check`` says what a start would. Files of the original hold URLs that it never parsed: whether a bad one refuses the
start is for the caller, who can ask ``is_dns_entry``; an entry with a ``dns+`` scheme is ours and no old file has it.

Whatever is written, names come out as routing compares them (``nexus.hostnames``) and addresses in their shortest
form, so that one node listed in two spellings is one value.

Source: spec node-and-mesh 2, 7.3; RFC 3986 3; RFC 6455 3 (WebSocket URIs); RFC 2782 (SRV).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote, urlsplit

from nexus.document.addresses import is_ip, parse_host_port
from nexus.hostnames import normalize
from nexus.protocol.constants import MESH_PATH

WEBSOCKET_PORTS: Final = {"wss": 443, "ws": 80}  # RFC 6455 3
NAME_MAX_CHARS: Final = 253  # RFC 1035 2.3.4, as text and without the last dot

_DNS_SCHEME = re.compile(r"dns\+[^:]*:", re.IGNORECASE)
_SRV_SCHEME: Final = "dns+srv:"
_HOST_SCHEME: Final = "dns+a:"
_SRV_MEND: Final = "write dns+srv:_nexus._tcp.example.com"
_HOST_MEND: Final = "write dns+a:nodes.example.com:8444"
_URL_MEND: Final = "write wss://host:8444/mesh"
# RFC 1035 2.3.1, and the underscore that names in private zones have.
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_SRV_NAME = re.compile(r"_[^._]+\._[^._]+\.[^_.].*")
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~?"  # RFC 3986 3.3, 3.4, and what is escaped already


class PeerEntryError(ValueError):
    """An entry of ``peers`` stands for no address: ``what`` is wrong, and ``mend`` helps."""

    def __init__(self, what: str, mend: str) -> None:
        """Take two texts that follow the entry's key in a message."""
        super().__init__(f"{what}; {mend}")
        self.what = what
        self.mend = mend


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a node listens for others.

    ``host`` is what is connected to, a name or an IP address without brackets; ``server_name`` the name that its
    certificate must have (the two differ where ``host`` is an address that a name was found to have); ``path`` goes
    into the request as it is, a query included; ``is_secure`` means TLS.
    """

    host: str
    port: int
    path: str
    server_name: str
    is_secure: bool

    @property
    def url(self) -> str:
        """The URL of ``host``, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.is_secure else 'ws'}://{host}:{self.port}{self.path}"

    def __str__(self) -> str:
        """The URL, and the server name where it is another; for logs."""
        return self.url if self.server_name == self.host else f"{self.url} ({self.server_name})"


@dataclass(frozen=True, slots=True)
class SrvEntry:
    """``dns+srv:NAME``: every target of the SRV records of ``name`` is a node; a last dot keeps search lists out."""

    name: str

    def __str__(self) -> str:
        """The entry as it may be written."""
        return _SRV_SCHEME + self.name

    def address(self, target: str, port: int) -> PeerAddress:
        """Return the address of one target, which is dialled and checked by its name."""
        host = normalize(target)
        return PeerAddress(host, port, MESH_PATH, host, is_secure=True)


@dataclass(frozen=True, slots=True)
class HostEntry:
    """``dns+a:NAME:PORT``: every address of ``name`` is a node; a last dot keeps search lists out."""

    name: str
    port: int

    def __str__(self) -> str:
        """The entry as it may be written."""
        return f"{_HOST_SCHEME}{self.name}:{self.port}"

    def address(self, ip: str) -> PeerAddress:
        """Return the address of one node; whichever it is, its certificate must have the entry's name."""
        return PeerAddress(ip, self.port, MESH_PATH, self.name.removesuffix("."), is_secure=True)


DnsEntry: TypeAlias = SrvEntry | HostEntry
PeerEntry: TypeAlias = PeerAddress | DnsEntry


def usable_entries(texts: Iterable[str]) -> tuple[PeerEntry, ...]:
    """Return the entries of ``peers`` in their order, each once, without the unusable that the rules warn of."""
    entries: dict[PeerEntry, None] = {}
    for text in texts:
        try:
            entries[parse_peer(text)] = None
        except PeerEntryError:
            continue
    return tuple(entries)


def parse_peer(text: str) -> PeerEntry:
    """Return what one entry of ``peers`` stands for.

    Raises:
        PeerEntryError: nothing; its text repeats no URL, which might hold a password.
    """
    scheme = _DNS_SCHEME.match(text)
    if scheme is None:
        return _parse_url(text)
    rest = text[scheme.end() :]
    if scheme.group().lower() == _SRV_SCHEME:
        return _parse_srv(rest)
    if scheme.group().lower() == _HOST_SCHEME:
        return _parse_host(rest)
    raise PeerEntryError(f"has the unknown scheme '{scheme.group()[:20]}'", f"{_HOST_MEND}, or dns+srv:NAME")


def is_dns_entry(text: str) -> bool:
    """Tell whether an entry has a scheme of ours, so that no file of the original can hold it."""
    return _DNS_SCHEME.match(text) is not None


def is_host_name(name: str) -> bool:
    """Tell whether a normalised name can be looked up."""
    return len(name) <= NAME_MAX_CHARS and _NAME.fullmatch(name) is not None


def _parse_url(text: str) -> PeerAddress:
    # Refused first: urlsplit drops tabs and line ends in silence.
    if any(character <= " " or character == "\x7f" for character in text):
        raise PeerEntryError("has a space or control character in it, and will never connect", _URL_MEND)
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError:
        raise PeerEntryError("is not a WebSocket URL with a host, and will never connect", _URL_MEND) from None
    host = _url_host(split.netloc, split.hostname or "")
    if split.scheme not in WEBSOCKET_PORTS or not host or port == 0:
        raise PeerEntryError("is not a WebSocket URL with a host, and will never connect", _URL_MEND)
    if "@" in split.netloc:
        what = "has a user name in it, which no node asks for, and will never connect"
        raise PeerEntryError(what, f"{_URL_MEND}; nodes know each other by their certificates")
    path = quote((split.path or "/") + (f"?{split.query}" if split.query else ""), safe=_PATH_SAFE, errors="replace")
    return PeerAddress(host, port or WEBSOCKET_PORTS[split.scheme], path, host, split.scheme == "wss")


def _url_host(netloc: str, host: str) -> str:
    """Return the host of a URL as it is dialled, "" for one that cannot be."""
    if is_ip(host):  # with '%' behind it, it is an address of one interface, whose name no other machine knows
        return "" if "%" in host else str(ipaddress.ip_address(host))
    host = normalize(host)
    return host if "[" not in netloc and is_host_name(host) else ""


def _parse_srv(text: str) -> SrvEntry:
    name = _dns_name(text, _SRV_MEND)
    if not _SRV_NAME.fullmatch(name):
        what = "does not begin with the service and the protocol, each behind an underscore"
        raise PeerEntryError(what, f"{_SRV_MEND}, or dns+a:NAME:PORT for the addresses of a name")
    return SrvEntry(name)


def _parse_host(text: str) -> HostEntry:
    try:
        host, port = parse_host_port(text)
    except ValueError as error:
        raise PeerEntryError(str(error).partition("; write")[0], _HOST_MEND) from None
    if not port:
        raise PeerEntryError("has the port 0, where nobody listens", _HOST_MEND)
    if is_ip(host):
        raise PeerEntryError("has an address in place of a name", _URL_MEND)
    return HostEntry(_dns_name(host, _HOST_MEND), port)


def _dns_name(text: str, mend: str) -> str:
    """Return a name as it is asked for: normalised, but with its last dot, if it has one."""
    name = normalize(text)
    if text != text.strip() or not is_host_name(name):
        what = f"has '{text[:NAME_MAX_CHARS]}' in place of a name" if text else "has no name"
        raise PeerEntryError(what, mend)
    return name + "." if text.endswith(".") else name
