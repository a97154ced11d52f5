"""Tests of nexus.auth.mint."""

from __future__ import annotations

import math

import pytest

from nexus.auth.claims import UdpRoute, parse_claims
from nexus.auth.grants import Policy, check_reauth, check_stage0, check_stage1
from nexus.auth.jws import ALGORITHMS, Algorithm
from nexus.auth.keys import parse_key_set, parse_private_key
from nexus.auth.mint import TOKEN_TTL_DEFAULT_S, Stage, TokenSpec, build_claims, mint_token
from nexus.auth.tokens import inspect_token, verify_token
from nexus.errors import AuthError
from tests.support.signing import KINDS, jwk, key_set, private_key, private_pem

_SPEC = TokenSpec(
    subject="shop",
    hostnames=("a.example.com",),
    tcp_ports=(25,),
    udp_routes=(UdpRoute(53, 20), UdpRoute(67), UdpRoute(68, 0)),
    weight=3,
    ttl_s=60,
    handshake_max_age_s=40,
    reauth_interval_s=300,
    reauth_grace_s=20,
    maintenance_grace_cap_s=70,
    authorizer_status_uri="https://status.example/",
    policy_version="7",
    outbound_allowed=True,
    allowed_outbound_ports=(443,),
    token_id="t1",
    not_before=990,
    issued_at_quote="q",
)
_COMMON = {
    "iss": "authorizer",
    "sub": "shop",
    "aud": ["nexus"],
    "iat": 1000,
    "exp": 1060,
    "weight": 3,
    "hostnames": ["a.example.com"],
    "tcp_ports": [25],
    "udp_routes": [{"port": 53, "flow_idle_timeout_seconds": 20}, {"port": 67}, {"port": 68}],
    "reauth_interval_seconds": 300,
    "reauth_grace_seconds": 20,
    "maintenance_grace_cap_seconds": 70,
    "authorizer_status_uri": "https://status.example/",
    "policy_version": "7",
    "outbound_allowed": True,
    "allowed_outbound_ports": [443],
    "jti": "t1",
    "nbf": 990,
    "issued_at_quote": "q",
}


@pytest.mark.parametrize(
    ("stage", "own"),
    [
        ("handshake", {"handshake_max_age_seconds": 40}),
        ("attest", {"session_nonce": "n"}),
        ("reauth", {"session_nonce": "n"}),
    ],
)
def test_the_claims_of_each_stage_are_those_of_the_spec(stage: Stage, own: dict[str, object]) -> None:
    """The age limit goes with the handshake, the nonce with the other stages."""
    assert build_claims(stage, "n", _SPEC, 1000.9) == {**_COMMON, **own}


def test_empty_values_leave_their_claims_out() -> None:
    """Only the weight is always there."""
    spec = TokenSpec("shop", reauth_interval_s=-1, reauth_grace_s=-1, handshake_max_age_s=-1)
    assert build_claims("handshake", "", spec, 1000) == {
        "iss": "authorizer",
        "sub": "shop",
        "aud": ["nexus"],
        "iat": 1000,
        "exp": 1000 + TOKEN_TTL_DEFAULT_S,
        "weight": 1,
    }


def test_outbound_ports_go_with_the_permission_alone() -> None:
    """A hub refuses ports without it."""
    claims = build_claims("handshake", "", TokenSpec("shop", allowed_outbound_ports=(443,)), 1000)
    assert not {"outbound_allowed", "allowed_outbound_ports"} & claims.keys()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_minted_token_says_what_it_is(algorithm: Algorithm) -> None:
    """The header has algorithm and type, the payload the claims."""
    token = mint_token({"sub": "é"}, b"k", algorithm=algorithm)
    shown = inspect_token(token)
    assert shown.header == {"alg": algorithm, "typ": "JWT"}
    assert shown.claims == {"sub": "é"}


def test_an_empty_secret_signs_nothing() -> None:
    """It would verify nowhere, and worse, might."""
    with pytest.raises(AuthError, match="empty"):
        mint_token({}, b"")


@pytest.mark.parametrize("value", [math.nan, {1, 2}])
def test_claims_that_are_no_json_are_refused(value: object) -> None:
    """NaN is none, whatever Python's encoder thinks."""
    with pytest.raises((TypeError, ValueError), match="JSON"):
        mint_token({"exp": value}, b"k")


def test_what_is_minted_passes_every_stage() -> None:
    """Handshake, attestation and re-authentication of one session, end to end."""
    policy = Policy(frozenset({25}), frozenset({53, 67, 68}), allow_outbound=True, require_expiry=True)
    stages: tuple[Stage, ...] = ("handshake", "attest", "reauth")
    first, second, third = (
        parse_claims(verify_token(mint_token(build_claims(stage, "n", _SPEC, 1000), b"k"), [b"k"], 1010))
        for stage in stages
    )
    grant = check_stage1(second, check_stage0(first, policy, 1010), "n", policy)
    assert check_reauth(third, grant, "n", policy) == grant
    assert grant.route_keys == ("a.example.com", "tcp:25", "udp:53", "udp:67", "udp:68")
    assert grant.udp_routes == {53: 20, 67: 30, 68: 30}


@pytest.mark.parametrize("cap", [0, 900])
def test_a_maintenance_cap_of_0_is_a_claim(cap: int) -> None:
    """Never to be deferred is not the same as left to the hub (spec backend-protocol 3.2)."""
    claims = build_claims("attest", "n", TokenSpec("shop", maintenance_grace_cap_s=cap), 1000)
    assert claims["maintenance_grace_cap_seconds"] == cap


def test_a_life_of_0_has_no_end() -> None:
    """For tests of nodes that insist on one."""
    assert "exp" not in build_claims("handshake", "", TokenSpec("shop", ttl_s=0), 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_signs_by_its_algorithm(kind: str) -> None:
    """The key id goes into the header, also with a secret."""
    key = parse_private_key(private_pem(private_key(kind)), "k")
    token = mint_token({"iss": "authorizer", "aud": "nexus"}, key, key_id="k1")
    assert inspect_token(token).header == {"alg": kind, "typ": "JWT", "kid": "k1"}
    public_keys = parse_key_set(key_set(jwk(private_key(kind), kid="k1")), "k").keys
    assert verify_token(token, (), 0, public_keys=public_keys)
    assert inspect_token(mint_token({}, b"k", key_id="k2")).header["kid"] == "k2"
