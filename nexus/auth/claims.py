"""What a backend's token says, read once into one frozen value.

Strategy: the payload comes from a JSON parser (ours, behind a verified signature, or a remote verifier's answer), so
nothing about its shape is trusted. ``parse_claims`` reads every claim the protocol knows with its exact JSON type: a
boolean is not an integer, ``1.0`` is not one either, an integer fits 64 bits, a text is valid Unicode. A claim of the
wrong type makes the whole token malformed; null reads as absent; a claim nobody knows is skipped. What the values
mean, and whether this node allows them, is decided in ``nexus.auth.grants``.

One leniency: the single ``hostname`` claim of very old backends is read as a list of one when ``hostnames`` is empty.
The two-stage handshake keeps that harmless, since the second token must claim the same.

Every refusal of a malformed token contains the words ``invalid token``: original backends look for them to tell a
refusal that will last from one that may pass.

Source: spec backend-protocol 3.2, 3.4, 24.3; RFC 7519 section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from nexus.auth.revocation import TokenIdentity
from nexus.errors import AuthError

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1  # the original's integers have 64 bits

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UdpRoute:
    """One element of ``udp_routes``; ``flow_idle_timeout_s`` is None when the token leaves it to the node."""

    port: int
    flow_idle_timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of one token as written: nothing normalised, nothing checked but its type. Durations in seconds.

    None means absent where absence differs from zero. ``issued_at`` and ``expires_at`` are seconds since the epoch,
    fractions cut.
    """

    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: tuple[UdpRoute, ...] = ()
    weight: int = 0
    session_nonce: str = field(default="", repr=False)
    handshake_max_age_s: int | None = None
    reauth_interval_s: int | None = None
    reauth_grace_s: int | None = None
    maintenance_grace_cap_s: int | None = None
    authorizer_status_uri: str = field(default="", repr=False)
    policy_version: str = ""
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()
    issued_at_quote: str = ""
    issued_at: int | None = None
    expires_at: int | None = None
    subject: str = ""
    token_id: str = ""
    key_id: str = ""

    @property
    def identity(self) -> TokenIdentity:
        """By what the token can be revoked."""
        return TokenIdentity(self.subject, self.token_id, self.key_id, self.issued_at)


def parse_claims(payload: Mapping[str, object], key_id: str = "") -> Claims:
    """Read a token's payload; ``key_id`` is that of its header.

    ``sub`` and ``jti`` only name the token, in logs and for its revocation, so one that is no text reads as none.

    Raises:
        AuthError: a known claim has the wrong JSON type; the text names the claim, never its value.
    """
    hostnames = _list(payload, "hostnames", _text)
    legacy = _optional(payload, "hostname", _text)
    return Claims(
        hostnames=hostnames or ((legacy,) if legacy else ()),
        tcp_ports=_list(payload, "tcp_ports", _integer),
        udp_routes=_list(payload, "udp_routes", _udp_route),
        weight=_optional(payload, "weight", _integer) or 0,
        session_nonce=_optional(payload, "session_nonce", _text) or "",
        handshake_max_age_s=_optional(payload, "handshake_max_age_seconds", _integer),
        reauth_interval_s=_optional(payload, "reauth_interval_seconds", _integer),
        reauth_grace_s=_optional(payload, "reauth_grace_seconds", _integer),
        maintenance_grace_cap_s=_optional(payload, "maintenance_grace_cap_seconds", _integer),
        authorizer_status_uri=_optional(payload, "authorizer_status_uri", _text) or "",
        policy_version=_optional(payload, "policy_version", _text) or "",
        outbound_allowed=_optional(payload, "outbound_allowed", _boolean) or False,
        allowed_outbound_ports=_list(payload, "allowed_outbound_ports", _integer),
        issued_at_quote=_optional(payload, "issued_at_quote", _text) or "",
        issued_at=parse_date(payload, "iat"),
        expires_at=parse_date(payload, "exp"),
        subject=_label(payload, "sub"),
        token_id=_label(payload, "jti"),
        key_id=key_id,
    )


def parse_date(payload: Mapping[str, object], name: str) -> int | None:
    """Return a registered date claim in whole seconds since the epoch, its fraction cut; None when absent.

    Raises:
        AuthError: not a finite number, or one beyond 64 bits.

    Source: RFC 7519 section 2 (NumericDate); spec backend-protocol 3.1.
    """
    return _optional(payload, name, _date)


def _optional(payload: Mapping[str, object], name: str, read: Callable[[object, str], _T]) -> _T | None:
    value = payload.get(name)
    return None if value is None else read(value, name)


def _list(payload: Mapping[str, object], name: str, read: Callable[[object, str], _T]) -> tuple[_T, ...]:
    items = _optional(payload, name, _items) or []
    return tuple(read(item, f"{name}[{position}]") for position, item in enumerate(items))


def _items(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise _malformed(name, "a list")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _malformed(name, "text")
    if not _is_unicode(value):
        raise _malformed(name, "valid Unicode")
    return value


def _integer(value: object, name: str) -> int:
    if type(value) is not int or not _INT_MIN <= value <= _INT_MAX:  # a bool is an instance of int
        raise _malformed(name, "an integer of 64 bits")
    return value


def _boolean(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise _malformed(name, "true or false")
    return value


def _date(value: object, name: str) -> int:
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    return _integer(value, name)


def _udp_route(value: object, name: str) -> UdpRoute:
    if not isinstance(value, dict):
        raise _malformed(name, "an object")
    timeout = value.get("flow_idle_timeout_seconds")
    return UdpRoute(
        _integer(value.get("port"), f"{name}.port"),
        None if timeout is None else _integer(timeout, f"{name}.flow_idle_timeout_seconds"),
    )


def _label(payload: Mapping[str, object], name: str) -> str:
    label = payload.get(name)
    return label if isinstance(label, str) and _is_unicode(label) else ""


def _is_unicode(text: str) -> bool:
    """Tell whether ``text`` has no lone surrogate, which JSON can write and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _malformed(name: str, expected: str) -> AuthError:
    return AuthError(f"invalid token: the claim {name} must be {expected}")
