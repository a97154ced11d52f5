"""Tests of nexus.auth.claims."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.claims import Claims, UdpRoute, parse_claims, parse_date
from nexus.auth.revocation import TokenIdentity
from nexus.errors import AuthError

_FULL: dict[str, object] = {
    "hostnames": ["a.example.com", "*.example.com"],
    "tcp_ports": [25, 25],
    "udp_routes": [{"port": 53, "flow_idle_timeout_seconds": 20}, {"port": 67}],
    "weight": 3,
    "session_nonce": "n0nce",
    "handshake_max_age_seconds": 60,
    "reauth_interval_seconds": 300,
    "reauth_grace_seconds": 20,
    "maintenance_grace_cap_seconds": 0,
    "authorizer_status_uri": "https://status.example/healthz",
    "policy_version": "7",
    "outbound_allowed": True,
    "allowed_outbound_ports": [443],
    "issued_at_quote": "quote",
    "iat": 1000.9,
    "exp": 1030,
    "sub": "shop",
    "unknown": [{}],
}
_TEXTS = ("session_nonce", "authorizer_status_uri", "policy_version", "issued_at_quote", "hostname")
_INTEGERS = (
    "weight",
    "handshake_max_age_seconds",
    "reauth_interval_seconds",
    "reauth_grace_seconds",
    "maintenance_grace_cap_seconds",
    "iat",
    "exp",
)
_NO_TEXTS: tuple[object, ...] = (1, True, ["a"], {}, "\ud800")
_NO_INTEGERS: tuple[object, ...] = ("1", True, [1], math.nan, math.inf, 2**63, -(2**63) - 1)
_NO_LISTS: tuple[object, ...] = ("a", 1, {}, [None], [["a"]], [True], [1.0])
_LISTS = ("hostnames", "tcp_ports", "udp_routes", "allowed_outbound_ports")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def test_every_claim_is_read() -> None:
    """Known claims land in their fields, fractions of dates are cut, unknown claims are skipped."""
    assert parse_claims(_FULL) == Claims(
        hostnames=("a.example.com", "*.example.com"),
        tcp_ports=(25, 25),
        udp_routes=(UdpRoute(53, 20), UdpRoute(67)),
        weight=3,
        session_nonce="n0nce",
        handshake_max_age_s=60,
        reauth_interval_s=300,
        reauth_grace_s=20,
        maintenance_grace_cap_s=0,
        authorizer_status_uri="https://status.example/healthz",
        policy_version="7",
        outbound_allowed=True,
        allowed_outbound_ports=(443,),
        issued_at_quote="quote",
        issued_at=1000,
        expires_at=1030,
        subject="shop",
    )


def test_an_absent_claim_and_null_read_alike() -> None:
    """None means absent only where zero would mean something else."""
    assert parse_claims({}) == parse_claims(dict.fromkeys(_FULL)) == Claims()


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"hostname": "old.example"}, ("old.example",)),
        ({"hostname": "old.example", "hostnames": []}, ("old.example",)),
        ({"hostname": "old.example", "hostnames": ["new.example"]}, ("new.example",)),
        ({"hostname": ""}, ()),
        ({"hostname": None}, ()),
    ],
)
def test_the_legacy_hostname_counts_when_there_are_no_hostnames(
    payload: dict[str, object], expected: tuple[str, ...]
) -> None:
    """Very old backends claim one name in a claim of its own."""
    assert parse_claims(payload).hostnames == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(_TEXTS, _NO_TEXTS),
        *product(_INTEGERS, _NO_INTEGERS),
        *product(_INTEGERS[:5], (1.0, 0.5)),
        *product(_LISTS, _NO_LISTS),
        ("hostnames", [1]),
        ("hostnames", ["a.example", "\udfff.example"]),
        ("tcp_ports", ["25"]),
        ("tcp_ports", [2**63]),
        ("udp_routes", [53]),
        ("udp_routes", [{}]),
        ("udp_routes", [{"port": None}]),
        ("udp_routes", [{"port": "53"}]),
        ("udp_routes", [{"port": 53, "flow_idle_timeout_seconds": "30"}]),
        ("outbound_allowed", 1),
        ("outbound_allowed", "true"),
    ],
)
def test_a_claim_of_the_wrong_type_makes_the_token_malformed(name: str, value: object) -> None:
    """The text names the claim and holds the words by which original backends class it."""
    with pytest.raises(AuthError, match=rf"^invalid token: the claim {name}[\w\[\].]* must be "):
        parse_claims({**_FULL, name: value})


@pytest.mark.parametrize("subject", [1, None, ["a"], {}, "\ud800"])
def test_a_subject_that_is_no_text_reads_as_none(subject: object) -> None:
    """Nothing depends on it but a label in logs."""
    assert parse_claims({"sub": subject, "jti": subject}).identity == TokenIdentity()


def test_the_nonce_and_the_status_uri_stay_out_of_the_repr() -> None:
    """Claims may be logged."""
    text = repr(parse_claims(_FULL))
    assert "n0nce" not in text
    assert "status.example" not in text


@given(st.dictionaries(st.sampled_from([*_FULL, "hostname"]), _JSON))
def test_hostile_json_raises_auth_errors_alone(payload: dict[str, object]) -> None:
    """Whatever a parser of JSON can return is either read or refused."""
    try:
        claims = parse_claims(payload)
    except AuthError as error:
        str(error).encode()
    else:
        repr(claims).encode()


@pytest.mark.parametrize(("value", "expected"), [(None, None), (5, 5), (5.9, 5), (-5.9, -5), (0, 0)])
def test_fractions_of_dates_are_cut(value: object, expected: int | None) -> None:
    """Dates count whole seconds, cut towards zero."""
    assert parse_date({"nbf": value}, "nbf") == expected


def test_a_token_is_named_by_subject_id_key_and_date() -> None:
    """What a revocation list can name."""
    claims = parse_claims({"sub": "shop", "jti": "4711", "iat": 5.9}, "k1")
    assert claims.identity == TokenIdentity("shop", "4711", "k1", 5)
