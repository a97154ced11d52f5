"""Tokens made with a shared secret or a private key: for the backend client, ``nexus token``, and tests.

Strategy: two steps that can be looked at one by one. ``build_claims`` writes the claims of one stage from what the
backend is configured to ask for, with a claim left out where its value is empty, as the original's built-in provider
does; ``mint_token`` signs any claims. The caller brings clock and secret.

Source: spec backend-protocol 18 ("Built-in HMAC").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nexus.auth.claims import UdpRoute
from nexus.auth.jws import AUDIENCE, ISSUER, JWS, Algorithm
from nexus.auth.keys import PrivateKey
from nexus.errors import AuthError

Stage = Literal["handshake", "attest", "reauth"]

TOKEN_TTL_DEFAULT_S = 30
"""Spec backend-protocol 16, ``tokenTTLSeconds``."""


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """What a backend asks for in its tokens. Durations in seconds; 0, empty and None leave the claim out.

    ``subject`` is the backend's name. ``hostnames`` go into the token as they are written. ``ttl_s`` of 0 makes a token
    without ``exp``. ``not_before`` is seconds since the epoch. A maintenance cap of 0 is claimed: never to be deferred.
    """

    subject: str
    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: tuple[UdpRoute, ...] = ()
    weight: int = 1
    ttl_s: int = TOKEN_TTL_DEFAULT_S
    handshake_max_age_s: int = 0
    reauth_interval_s: int = 0
    reauth_grace_s: int = 0
    maintenance_grace_cap_s: int | None = None
    authorizer_status_uri: str = ""
    policy_version: str = ""
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()
    token_id: str = ""
    not_before: int = 0
    issued_at_quote: str = ""


def build_claims(stage: Stage, nonce: str, spec: TokenSpec, now: float) -> dict[str, object]:
    """Return the claims of a token for ``stage``; ``now`` is seconds since the epoch, its fraction cut.

    ``nonce`` is the hub's, verbatim; it is left out at the handshake, which has none.
    """
    issued_at = int(now)
    fixed: dict[str, object] = {
        "iss": ISSUER,
        "sub": spec.subject,
        "aud": [AUDIENCE],
        "iat": issued_at,
        "weight": spec.weight,
    }
    optional = {**_label_claims(spec, issued_at), **_stage_claims(stage, nonce, spec), **_route_claims(spec)}
    optional |= _session_claims(spec)
    cap = spec.maintenance_grace_cap_s
    return (
        fixed
        | {name: value for name, value in optional.items() if value}
        | ({} if cap is None else {"maintenance_grace_cap_seconds": cap})
    )


def mint_token(
    claims: Mapping[str, object], key: bytes | PrivateKey, *, algorithm: Algorithm = "HS256", key_id: str = ""
) -> str:
    """Return ``claims`` as a signed token in compact form.

    Args:
        claims: what the token says, as JSON.
        key: a shared secret, or a private key, which has an algorithm of its own.
        algorithm: that of a shared secret.
        key_id: goes into the header, unless it is empty.

    Raises:
        AuthError: the secret is empty.
        TypeError, ValueError: the claims are not JSON.
    """
    if not key:
        raise AuthError("the secret to sign tokens with is empty")
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode()
    headers = {"kid": key_id} if key_id else None
    if isinstance(key, PrivateKey):
        return JWS.encode(payload, key.material, key.algorithm, headers)
    return JWS.encode(payload, key, algorithm, headers)


def _label_claims(spec: TokenSpec, issued_at: int) -> dict[str, object]:
    expires = {"exp": issued_at + spec.ttl_s} if spec.ttl_s else {}
    return {**expires, "jti": spec.token_id, "nbf": spec.not_before, "issued_at_quote": spec.issued_at_quote}


def _stage_claims(stage: Stage, nonce: str, spec: TokenSpec) -> dict[str, object]:
    if stage == "handshake":
        return {"handshake_max_age_seconds": max(spec.handshake_max_age_s, 0)}
    return {"session_nonce": nonce}


def _route_claims(spec: TokenSpec) -> dict[str, object]:
    return {
        "hostnames": list(spec.hostnames),
        "tcp_ports": list(spec.tcp_ports),
        "udp_routes": [_udp_route(route) for route in spec.udp_routes],
        "outbound_allowed": spec.outbound_allowed,
        "allowed_outbound_ports": list(spec.allowed_outbound_ports) if spec.outbound_allowed else [],
    }


def _session_claims(spec: TokenSpec) -> dict[str, object]:
    return {
        "reauth_interval_seconds": max(spec.reauth_interval_s, 0),
        "reauth_grace_seconds": max(spec.reauth_grace_s, 0),
        "authorizer_status_uri": spec.authorizer_status_uri,
        "policy_version": spec.policy_version,
    }


def _udp_route(route: UdpRoute) -> dict[str, int]:
    timeout = {"flow_idle_timeout_seconds": route.flow_idle_timeout_s} if route.flow_idle_timeout_s else {}
    return {"port": route.port, **timeout}
