"""Tokens made with a shared secret: for the backend client, ``nexus token``, and tests.

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
from nexus.errors import AuthError

Stage = Literal["handshake", "attest", "reauth"]

TOKEN_TTL_DEFAULT_S = 30
"""Spec backend-protocol 16, ``tokenTTLSeconds``."""


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """What a backend asks for in its tokens. Durations in seconds; 0 and empty leave the claim out.

    ``subject`` is the backend's name. ``hostnames`` go into the token as they are written.
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
    maintenance_grace_cap_s: int = 0
    authorizer_status_uri: str = ""
    policy_version: str = ""
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()


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
        "exp": issued_at + spec.ttl_s,
        "weight": spec.weight,
    }
    optional = {**_stage_claims(stage, nonce, spec), **_route_claims(spec), **_session_claims(spec)}
    return fixed | {name: value for name, value in optional.items() if value}


def mint_token(claims: Mapping[str, object], secret: bytes, *, algorithm: Algorithm = "HS256") -> str:
    """Return ``claims`` as a signed token in compact form.

    Raises:
        AuthError: the secret is empty.
        TypeError, ValueError: the claims are not JSON.
    """
    if not secret:
        raise AuthError("the secret to sign tokens with is empty")
    payload = json.dumps(dict(claims), separators=(",", ":"), allow_nan=False).encode()
    return JWS.encode(payload, secret, algorithm)


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
        "maintenance_grace_cap_seconds": max(spec.maintenance_grace_cap_s, 0),
        "authorizer_status_uri": spec.authorizer_status_uri,
        "policy_version": spec.policy_version,
    }


def _udp_route(route: UdpRoute) -> dict[str, int]:
    timeout = {"flow_idle_timeout_seconds": route.flow_idle_timeout_s} if route.flow_idle_timeout_s else {}
    return {"port": route.port, **timeout}
