"""Hostnames as the whole proxy compares them.

Strategy: every name that takes part in routing passes through ``normalize`` exactly once, where it enters: SNI, HTTP
Host, a token's claim, a peer's announcement, a configuration file. After that, names are compared as plain strings.
Nearly all names on the wire are ASCII already (SNI is by RFC 6066), so plain ASCII takes a path without IDNA: for
ASCII input the lookup profile either changes nothing but case or refuses the name, and a refused name is kept as it
is. Names that IDNA refuses (underscore, colon, odd hyphens) are thus usable as they are, in lower case.

A wildcard is ``*.`` and a base of at least two labels; it covers exactly one more label. It is filed under its suffix,
``.example.com``, and found again from a host by cutting at the host's first dot. A port key (``tcp:25``, ``udp:53``)
lives in the same text form in tokens and announcements, yet is never a hostname: ``is_port_key`` tells them apart.
"""

from __future__ import annotations

import idna

_PORT_KEY_PREFIXES = ("tcp:", "udp:")
_WILDCARD_PREFIX = "*."


def normalize(name: str) -> str:
    """Return the form of ``name`` that routing compares.

    Trim white space, drop one trailing dot, map to ASCII by the IDNA lookup profile (UTS 46 non-transitional, STD3
    rules; a name IDNA refuses stays as it is), lower-case. Never raises; a blank name gives ``""``.

    Source: UTS 46 section 4; RFC 5891 section 5; spec backend-protocol 15.1.
    """
    name = name.strip().removesuffix(".")
    if name.isascii():
        return name.lower()
    try:
        return idna.encode(name, uts46=True, std3_rules=True).decode("ascii").lower()
    except UnicodeError:  # idna.IDNAError is one
        return name.lower()


def normalize_wildcard(name: str) -> str:
    """Return ``normalize(name)``, keeping a leading ``*.`` out of IDNA's sight.

    Never raises; a wildcard without a base gives ``""``. Source: spec backend-protocol 15.2.
    """
    name = name.strip()
    if not name.startswith(_WILDCARD_PREFIX):
        return normalize(name)
    base = normalize(name.removeprefix(_WILDCARD_PREFIX))
    return _WILDCARD_PREFIX + base if base else ""


def is_wildcard(name: str) -> bool:
    """Tell whether a normalised name is a valid wildcard: ``*.example.com`` is, ``*.com`` is not.

    Source: spec backend-protocol 15.3.
    """
    if not name.startswith(_WILDCARD_PREFIX):
        return False
    base = name.removeprefix(_WILDCARD_PREFIX)
    return "." in base and "*" not in base and all(base.split("."))


def wildcard_suffix(host: str) -> str | None:
    """Return the suffix from the first dot, the key of the wildcard that may cover a normalised host.

    ``a.example.com`` and ``*.example.com`` both give ``.example.com``. None for a name without a dot, for one that
    starts with its only dot, and for a port key. Source: spec node-and-mesh 3.
    """
    dot = host.find(".")
    return host[dot:] if dot > 0 and not is_port_key(host) else None


def is_port_key(name: str) -> bool:
    """Tell whether a normalised name is written like a port key, ``tcp:...`` or ``udp:...``, and so is no hostname."""
    return name.startswith(_PORT_KEY_PREFIXES)
