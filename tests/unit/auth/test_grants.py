"""Tests of nexus.auth.grants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.claims import Claims, UdpRoute
from nexus.auth.grants import Grant, Policy, check_reauth, check_stage0, check_stage1
from nexus.auth.revocation import TokenIdentity
from nexus.auth.trial import DURATION_MAX_S, REAUTH_GRACE_DEFAULT_S
from nexus.errors import AuthError

_NONCE = "the-nonce-of-this-session"
_NOW = 1_000_000.5
_POLICY = Policy(
    allowed_tcp_ports=frozenset({25, 587}),
    allowed_udp_ports=frozenset({53, 67}),
    allow_outbound=True,
    allowed_outbound_ports=frozenset({443, 8443}),
)
_CLAIMS = Claims(
    hostnames=("B.example.com.", "a.example.com", "*.Bücher.example", " ", "b.example.com"),
    tcp_ports=(587, 25, 587),
    udp_routes=(UdpRoute(67), UdpRoute(53, 20)),
    weight=2,
    session_nonce=_NONCE,
    outbound_allowed=True,
    allowed_outbound_ports=(8443, 443, 443),
    subject="shop",
)


def _grant(claims: Claims = _CLAIMS) -> Grant:
    return check_stage0(claims, _POLICY, _NOW)


def test_stage_0_makes_the_grant() -> None:
    """Names are normalised in the order claimed, duplicates and blanks are dropped, ports ascend."""
    grant = _grant()
    assert grant == Grant(
        hostnames=("b.example.com", "a.example.com", "*.xn--bcher-kva.example"),
        tcp_ports=(25, 587),
        udp_routes={53: 20, 67: 30},
        weight=2,
        outbound_allowed=True,
        outbound_ports=frozenset({443, 8443}),
        subject="shop",
    )
    assert grant.route_keys == (
        "b.example.com", "a.example.com", "*.xn--bcher-kva.example", "tcp:25", "tcp:587", "udp:53", "udp:67",
    )  # fmt: skip
    assert hash(grant) == hash(_grant())


def test_stage_0_ignores_what_concerns_the_running_session() -> None:
    """Even values that stage 1 would refuse."""
    odd = replace(
        _CLAIMS,
        session_nonce="",
        reauth_interval_s=5,
        reauth_grace_s=5,
        maintenance_grace_cap_s=-1,
        authorizer_status_uri="http://status.example",
    )
    assert _grant(odd) == _grant()


@pytest.mark.parametrize("weight", [-(2**63), -1, 0, 1])
def test_a_weight_below_one_is_one(weight: int) -> None:
    """Absent, zero and negative weights mean the same."""
    assert _grant(replace(_CLAIMS, weight=weight)).weight == 1


@pytest.mark.parametrize(
    ("asked", "effective"), [(None, 30), (0, 30), (-5, 30), (1, 5), (5, 5), (60, 60), (2**62, 300)]
)
def test_the_flow_idle_timeout_is_the_claim_or_the_default_clamped(asked: int | None, effective: int) -> None:
    """Between the node's smallest and largest."""
    claims = Claims(udp_routes=(UdpRoute(53, asked),))
    assert check_stage0(claims, _POLICY, _NOW).udp_routes == {53: effective}


def test_the_default_flow_idle_timeout_is_clamped_too() -> None:
    """The node's own default obeys its bounds."""
    policy = replace(_POLICY, udp_flow_idle_default_s=1)
    assert check_stage0(Claims(udp_routes=(UdpRoute(53),)), policy, _NOW).udp_routes == {53: 5}


def test_one_udp_port_twice_is_merged_when_the_timeouts_agree() -> None:
    """Timeouts are compared after clamping."""
    claims = Claims(udp_routes=(UdpRoute(53, 1), UdpRoute(53, 5)))
    assert check_stage0(claims, _POLICY, _NOW).udp_routes == {53: 5}


def test_an_empty_outbound_allowlist_allows_every_port() -> None:
    """Unlike the allowlists of port claims."""
    policy = replace(_POLICY, allowed_outbound_ports=frozenset())
    claims = replace(_CLAIMS, allowed_outbound_ports=(1, 65_535))
    assert check_stage0(claims, policy, _NOW).outbound_ports == {1, 65_535}


@pytest.mark.parametrize(
    ("change", "policy_change", "text"),
    [
        ({"hostnames": (" ", ".", "*.")}, {}, "token claims only blank hostnames"),
        ({"hostnames": ("tcp:25",)}, {}, "token claims the hostname 'tcp:25', which is written like a port claim"),
        ({"hostnames": (" UDP:53. ",)}, {}, "token claims the hostname 'udp:53', which is written like a port claim"),
        ({"tcp_ports": (26,)}, {}, "token claims port 26, which is not in allowedTCPPortClaims"),
        ({"tcp_ports": (0,)}, {}, "token claims port 0, which is not between 1 and 65535"),
        ({"tcp_ports": (25, 65_536)}, {}, "token claims port 65536, which is not between 1 and 65535"),
        ({}, {"allowed_tcp_ports": frozenset()}, "token claims port 25, which is not in allowedTCPPortClaims"),
        ({"udp_routes": (UdpRoute(54),)}, {}, "token claims port 54, which is not in allowedUDPPortClaims"),
        ({"udp_routes": (UdpRoute(-1),)}, {}, "token claims port -1, which is not between 1 and 65535"),
        (
            {"udp_routes": (UdpRoute(53), UdpRoute(53, 31))},
            {},
            "token claims UDP port 53 twice, with different idle timeouts",
        ),
        (
            {},
            {"udp_flow_idle_max_s": 4},
            "this node's udpFlowIdleTimeoutMaxSeconds is below its udpFlowIdleTimeoutMinSeconds",
        ),
        (
            {"hostnames": (), "tcp_ports": (), "udp_routes": ()},
            {},
            "token claims no hostname, no TCP port and no UDP port",
        ),
        ({}, {"allow_outbound": False}, "token claims outbound_allowed, but allowOutbound is off on this node"),
        ({"outbound_allowed": False}, {}, "token claims allowed_outbound_ports without outbound_allowed"),
        ({"allowed_outbound_ports": (80,)}, {}, "token claims port 80, which is not in allowedOutboundPorts"),
        (
            {"allowed_outbound_ports": (0,)},
            {"allowed_outbound_ports": frozenset()},
            "token claims port 0, which is not between 1 and 65535",
        ),
        ({"handshake_max_age_s": 5}, {}, "token claims handshake_max_age_seconds, but has no iat"),
        (
            {"handshake_max_age_s": 5, "issued_at": 999_994},
            {},
            "token was issued 6 s ago, but its handshake_max_age_seconds is 5",
        ),
        (
            {"handshake_max_age_s": 5, "issued_at": 1_000_090},
            {},
            "token claims handshake_max_age_seconds, but its iat is 90 s ahead; check the clocks",
        ),
        ({}, {"require_expiry": True}, "invalid token: this node requires the claim exp"),
    ],
)
def test_stage_0_refuses(change: dict[str, object], policy_change: dict[str, object], text: str) -> None:
    """Each refusal says what the operator can change."""
    claims, policy = replace(_CLAIMS, **change), replace(_POLICY, **policy_change)  # type: ignore[arg-type]
    with pytest.raises(AuthError) as caught:
        check_stage0(claims, policy, _NOW)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("limit", "issued_at"), [(None, None), (None, 2_000_000), (0, None), (-1, None), (5, 999_996), (5, 1_000_060)]
)
def test_a_token_that_is_young_enough_passes(limit: int | None, issued_at: int | None) -> None:
    """No positive limit, no question; clocks may differ a little."""
    assert _grant(replace(_CLAIMS, handshake_max_age_s=limit, issued_at=issued_at)) == _grant()


def test_a_token_with_expiry_satisfies_a_node_that_requires_it() -> None:
    """Whether it has expired was the verifier's question."""
    assert check_stage0(replace(_CLAIMS, expires_at=1), replace(_POLICY, require_expiry=True), _NOW) == _grant()


def test_checks_run_in_the_order_of_the_spec() -> None:
    """Mending the first mistake uncovers the next one."""
    wrong: dict[str, object] = {
        "hostnames": ("tcp:1",),
        "tcp_ports": (1,),
        "udp_routes": (UdpRoute(1),),
        "allowed_outbound_ports": (1,),
        "handshake_max_age_s": 1,
    }
    marks = ["hostname", "allowedTCPPortClaims", "allowedUDPPortClaims", "allowedOutboundPorts", "no iat"]
    for mend, mark in zip(list(wrong), marks, strict=True):
        with pytest.raises(AuthError, match=mark):
            _grant(replace(_CLAIMS, **wrong))  # type: ignore[arg-type]
        del wrong[mend]


def test_stage_1_adds_the_terms_of_the_session() -> None:
    """Hostnames and ports may come in another order and spelling."""
    second = replace(
        _CLAIMS,
        hostnames=("a.EXAMPLE.com", "*.bücher.example", "b.example.com"),
        tcp_ports=(25, 587),
        udp_routes=(UdpRoute(53, 20), UdpRoute(67, 30)),
        reauth_interval_s=300,
        reauth_grace_s=20,
        maintenance_grace_cap_s=60,
        authorizer_status_uri="https://status.example:8443/healthz?x=1",
        policy_version="7",
    )
    assert check_stage1(second, _grant(), _NONCE, _POLICY) == replace(
        _grant(),
        reauth_interval_s=300,
        reauth_grace_s=20,
        maintenance_grace_cap_s=60,
        authorizer_status_uri="https://status.example:8443/healthz?x=1",
        policy_version="7",
    )


@pytest.mark.parametrize(
    ("interval", "grace", "expected"),
    [
        (None, None, (0, REAUTH_GRACE_DEFAULT_S)),
        (0, 20, (0, REAUTH_GRACE_DEFAULT_S)),
        (-5, 20, (0, REAUTH_GRACE_DEFAULT_S)),
        (60, None, (60, REAUTH_GRACE_DEFAULT_S)),
        (60, 0, (60, REAUTH_GRACE_DEFAULT_S)),
        (60, -1, (60, REAUTH_GRACE_DEFAULT_S)),
        (60, 1, (60, 1)),
        (2**62, 2**62, (DURATION_MAX_S, DURATION_MAX_S)),
    ],
)
def test_grace_counts_only_with_an_interval(interval: int | None, grace: int | None, expected: tuple[int, int]) -> None:
    """Ten seconds otherwise, and never more than a timer can hold."""
    second = replace(_CLAIMS, reauth_interval_s=interval, reauth_grace_s=grace)
    granted = check_stage1(second, _grant(), _NONCE, _POLICY)
    assert (granted.reauth_interval_s, granted.reauth_grace_s) == expected


@pytest.mark.parametrize(("claimed", "expected"), [(None, 1800), (0, 0), (7, 7), (2**62, DURATION_MAX_S)])
def test_the_maintenance_cap_defaults_to_the_nodes(claimed: int | None, expected: int) -> None:
    """Zero means never to defer, which is not the same as absent."""
    second = replace(_CLAIMS, maintenance_grace_cap_s=claimed)
    assert check_stage1(second, _grant(), _NONCE, _POLICY).maintenance_grace_cap_s == expected


_SAME_FOR_BOTH: list[tuple[dict[str, object], str]] = [
    ({"session_nonce": ""}, "nonce"),
    ({"session_nonce": _NONCE + "x"}, "nonce"),
    ({"session_nonce": _NONCE.upper()}, "nonce"),
    ({"session_nonce": "é\ud800"}, "nonce"),
    ({"hostnames": ("a.example.com", "b.example.com")}, "other hostnames"),
    ({"hostnames": (*_CLAIMS.hostnames, "c.example.com")}, "other hostnames"),
    ({"hostnames": ("udp:53",)}, "written like a port claim"),
    ({"tcp_ports": (25,)}, "other tcp_ports"),
    ({"tcp_ports": (1,)}, "allowedTCPPortClaims"),
    ({"udp_routes": (UdpRoute(53, 20),)}, "other udp_routes"),
    ({"udp_routes": (UdpRoute(53, 21), UdpRoute(67))}, "other udp_routes"),
    ({"udp_routes": (UdpRoute(1),)}, "allowedUDPPortClaims"),
    ({"hostnames": (), "tcp_ports": (), "udp_routes": ()}, "no hostname"),
    ({"outbound_allowed": False}, "other outbound_allowed"),
    ({"allowed_outbound_ports": (443,)}, "other allowed_outbound_ports"),
    ({"weight": 3}, "weight 3"),
    ({"maintenance_grace_cap_s": -1}, "negative maintenance_grace_cap_seconds"),
    ({"authorizer_status_uri": "http://status.example/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https:///path"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://:443/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://a.example:x/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://a.example:0/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://[::1/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "ht\ntps://a.example/"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": "https://a.example/\x7f"}, "authorizer_status_uri"),
    ({"authorizer_status_uri": " "}, "authorizer_status_uri"),
]


@pytest.mark.parametrize("check", [check_stage1, check_reauth])
@pytest.mark.parametrize(("change", "text"), _SAME_FOR_BOTH)
def test_stage_1_and_reauth_refuse_what_differs(
    check: Callable[[Claims, Grant, str, Policy], Grant], change: dict[str, object], text: str
) -> None:
    """The refusal never holds the nonce or the URI."""
    grant = _grant()
    with pytest.raises(AuthError, match=text) as caught:
        check(replace(_CLAIMS, **change), grant, _NONCE, _POLICY)  # type: ignore[arg-type]
    assert _NONCE not in str(caught.value)
    assert "example/" not in str(caught.value)


def test_an_empty_nonce_matches_nothing() -> None:
    """Not even an empty one."""
    with pytest.raises(AuthError, match="nonce"):
        check_stage1(replace(_CLAIMS, session_nonce=""), _grant(), "", _POLICY)


def test_expiry_is_required_of_every_token() -> None:
    """The second token and those of re-authentication too."""
    with pytest.raises(AuthError, match="invalid token"):
        check_stage1(_CLAIMS, _grant(), _NONCE, replace(_POLICY, require_expiry=True))


def test_the_nonce_is_checked_before_anything_is_compared() -> None:
    """Spec backend-protocol 3.3: nonce first, then routes, then equality, then weight, cap and URI."""
    wrong: dict[str, object] = {
        "session_nonce": "x",
        "tcp_ports": (1,),
        "hostnames": ("z.example",),
        "weight": 9,
        "maintenance_grace_cap_s": -1,
        "authorizer_status_uri": "x",
    }
    marks = ["nonce", "allowedTCPPortClaims", "other hostnames", "weight", "maintenance", "status_uri"]
    for mend, mark in zip(list(wrong), marks, strict=True):
        with pytest.raises(AuthError, match=mark):
            check_stage1(replace(_CLAIMS, **wrong), _grant(), _NONCE, _POLICY)  # type: ignore[arg-type]
        del wrong[mend]


@pytest.mark.parametrize("weight", [-1, 0, 2])
def test_stage_1_takes_a_weight_that_says_nothing_else(weight: int) -> None:
    """Zero and below are unspecified."""
    assert check_stage1(replace(_CLAIMS, weight=weight), _grant(), _NONCE, _POLICY).weight == 2


def test_reauth_takes_no_negative_weight() -> None:
    """Any weight but zero must be the registered one."""
    with pytest.raises(AuthError, match="weight -1"):
        check_reauth(replace(_CLAIMS, weight=-1), _grant(), _NONCE, _POLICY)
    assert check_reauth(replace(_CLAIMS, weight=0), _grant(), _NONCE, _POLICY).weight == 2


def test_reauth_replaces_the_terms() -> None:
    """What the new token leaves out ends, except the maintenance cap, which stays."""
    first = replace(
        _CLAIMS,
        reauth_interval_s=60,
        reauth_grace_s=5,
        maintenance_grace_cap_s=7,
        authorizer_status_uri="https://status.example/",
        policy_version="1",
    )
    grant = check_stage1(first, _grant(), _NONCE, _POLICY)
    assert check_reauth(_CLAIMS, grant, _NONCE, _POLICY) == replace(_grant(), maintenance_grace_cap_s=7)
    again = check_reauth(replace(first, maintenance_grace_cap_s=0, policy_version="2"), grant, _NONCE, _POLICY)
    assert again == replace(grant, maintenance_grace_cap_s=0, policy_version="2")


def test_the_status_uri_stays_out_of_the_repr() -> None:
    """It may hold a password; grants may be logged."""
    assert "status.example" not in repr(Grant(authorizer_status_uri="https://user:secret@status.example/"))


_NAMES = st.lists(st.text(max_size=12), max_size=4).map(tuple)
_PORTS = st.lists(st.integers(-1, 70_000) | st.sampled_from([25, 443, 587]), max_size=3).map(tuple)
_DURATIONS = st.none() | st.integers(-(2**63), 2**63 - 1)


@given(
    st.builds(
        Claims,
        hostnames=_NAMES,
        tcp_ports=_PORTS,
        udp_routes=st.lists(st.builds(UdpRoute, st.sampled_from([53, 67, 0]), _DURATIONS), max_size=3).map(tuple),
        weight=st.integers(-(2**63), 2**63 - 1),
        session_nonce=st.sampled_from([_NONCE, ""]),
        handshake_max_age_s=_DURATIONS,
        reauth_interval_s=_DURATIONS,
        reauth_grace_s=_DURATIONS,
        maintenance_grace_cap_s=_DURATIONS,
        authorizer_status_uri=st.just("") | st.text(max_size=20).map("https://".__add__),
        allowed_outbound_ports=_PORTS,
        outbound_allowed=st.booleans(),
        issued_at=_DURATIONS,
    )
)
def test_any_claims_are_granted_or_refused(claims: Claims) -> None:
    """What stage 0 grants, stage 1 and re-authentication with the same token can only refuse for their own reasons."""
    try:
        grant = check_stage0(claims, _POLICY, _NOW)
        assert grant.route_keys
        check_reauth(claims, check_stage1(claims, grant, _NONCE, _POLICY), _NONCE, _POLICY)
    except AuthError as error:
        assert "other" not in str(error)  # noqa: PT017 — both outcomes are right, a difference to itself is not


def test_a_grant_stands_on_the_tokens_it_came_from() -> None:
    """Both of the handshake; after a re-authentication on that token alone. Grants are compared by what they allow."""
    first, second, third = (replace(_CLAIMS, token_id=str(n), key_id=f"k{n}", issued_at=n) for n in range(3))
    grant = check_stage1(second, _grant(first), _NONCE, _POLICY)
    assert grant.tokens == (TokenIdentity("shop", "0", "k0", 0), TokenIdentity("shop", "1", "k1", 1))
    assert check_reauth(third, grant, _NONCE, _POLICY).tokens == (TokenIdentity("shop", "2", "k2", 2),)
    assert _grant(first) == _grant(second)
