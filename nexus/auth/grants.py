"""What a session may do, decided from its tokens and this node's policy.

Strategy: each stage of the handshake is one function from claims to a ``Grant`` or an ``AuthError``. It enforces a row
of small checks (``nexus.auth.trial``) in the order of the spec, so that the first mistake is the one reported; the same
rows explain a token to people (``nexus.auth.explain``). Stage 0 makes the grant: names, ports, outbound rights and
weight, all normalised and inside the policy. Stage 1 proves possession of a fresh token by the
nonce, must claim exactly the same, and adds what concerns the running session. Re-authentication is stage 1 again
with a stricter rule for weight, and replaces the session's terms.

Refusals tell the backend's operator what to change, in the words of the configuration file. They never contain a
nonce or a status URI. Only those that no change on the node can mend say ``invalid token`` (``nexus.auth.claims``).

Durations are clamped to a year: longer than any session, and far from where timers overflow.

Source: spec backend-protocol 3.2, 3.3, 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from nexus.auth.checks import enforce
from nexus.auth.claims import Claims
from nexus.auth.revocation import TokenIdentity
from nexus.auth.trial import (
    DURATION_MAX_S,
    REAUTH_CHECKS,
    REAUTH_GRACE_DEFAULT_S,
    STAGE0_CHECKS,
    STAGE1_CHECKS,
    Trial,
    positive,
)

FLOW_IDLE_DEFAULT_S = 30
"""Idle time of a UDP flow whose token asks for none; spec backend-protocol 22."""


def _no_udp_routes() -> Mapping[int, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Policy:
    """What this node allows its backends. Durations in seconds; defaults are those of the configuration file.

    A port a backend claims must be in the matching set, so an empty set allows none; an empty
    ``allowed_outbound_ports`` on the contrary allows every port. ``require_expiry`` refuses tokens without ``exp``,
    which the original accepts, whoever verified them.
    """

    allowed_tcp_ports: frozenset[int] = frozenset()
    allowed_udp_ports: frozenset[int] = frozenset()
    allow_outbound: bool = False
    allowed_outbound_ports: frozenset[int] = frozenset()
    udp_flow_idle_default_s: int = FLOW_IDLE_DEFAULT_S
    udp_flow_idle_min_s: int = 5
    udp_flow_idle_max_s: int = 300
    maintenance_grace_default_s: int = 1800
    require_expiry: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What one session may do. Ports ascend; names are normalised, without duplicates, in the order claimed.

    ``udp_routes`` maps a port to the idle timeout of its flows in seconds. An empty ``outbound_ports`` means every port
    the node allows. ``reauth_interval_s`` is 0 when the session is never asked again; ``maintenance_grace_cap_s`` is 0
    when re-authentication is never deferred. The re-authentication fields hold only from stage 1 on.

    ``tokens`` are those that the grant stands on, for their revocation; two grants are equal where they allow the same.
    """

    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: Mapping[int, int] = field(default_factory=_no_udp_routes, hash=False)
    weight: int = 1
    outbound_allowed: bool = False
    outbound_ports: frozenset[int] = frozenset()
    reauth_interval_s: int = 0
    reauth_grace_s: int = REAUTH_GRACE_DEFAULT_S
    maintenance_grace_cap_s: int = 0
    authorizer_status_uri: str = field(default="", repr=False)
    policy_version: str = ""
    subject: str = ""
    tokens: tuple[TokenIdentity, ...] = field(default=(), compare=False)

    @property
    def route_keys(self) -> tuple[str, ...]:
        """Names, then ``tcp:<port>``, then ``udp:<port>``: what the routing table files the session under."""
        ports = [f"tcp:{port}" for port in self.tcp_ports] + [f"udp:{port}" for port in self.udp_routes]
        return (*self.hostnames, *ports)


def check_stage0(claims: Claims, policy: Policy, now: float) -> Grant:
    """Check the first token of a handshake; ``now`` is the time in seconds since the epoch.

    Raises:
        AuthError: the first check that fails, in the order of spec backend-protocol 3.3.
    """
    trial = Trial(claims, policy, Grant(), now)
    enforce(STAGE0_CHECKS, trial)
    return Grant(
        hostnames=trial.hostnames,
        tcp_ports=trial.tcp_ports,
        udp_routes=trial.udp_routes,
        weight=max(claims.weight, 1),
        outbound_allowed=claims.outbound_allowed,
        outbound_ports=trial.outbound_ports,
        subject=claims.subject,
        tokens=(claims.identity,),
    )


def check_stage1(claims: Claims, grant: Grant, nonce: str, policy: Policy) -> Grant:
    """Check the second token against the stage-0 ``grant`` and the ``nonce`` the hub sent; return the full grant.

    Raises:
        AuthError: the first check that fails, in the order of spec backend-protocol 3.3.
    """
    enforce(STAGE1_CHECKS, Trial(claims, policy, grant, nonce=nonce))
    tokens = (*grant.tokens, claims.identity)
    return replace(_with_terms(claims, grant, policy.maintenance_grace_default_s), tokens=tokens)


def check_reauth(claims: Claims, grant: Grant, nonce: str, policy: Policy) -> Grant:
    """Check a re-authentication token against the session's ``grant``; return the grant with the new terms.

    Unlike stage 1, any weight but zero must be the registered one, and an absent maintenance cap keeps the present one.
    The session now stands on this token alone, also for revocation.

    Raises:
        AuthError: the first check that fails; the session must then end (spec backend-protocol 4).
    """
    enforce(REAUTH_CHECKS, Trial(claims, policy, grant, nonce=nonce))
    return replace(_with_terms(claims, grant, grant.maintenance_grace_cap_s), tokens=(claims.identity,))


def _with_terms(claims: Claims, grant: Grant, grace_cap_default_s: int) -> Grant:
    interval = positive(claims.reauth_interval_s)
    grace = positive(claims.reauth_grace_s) if interval else 0
    cap = grace_cap_default_s if claims.maintenance_grace_cap_s is None else claims.maintenance_grace_cap_s
    return replace(
        grant,
        reauth_interval_s=interval,
        reauth_grace_s=grace or REAUTH_GRACE_DEFAULT_S,
        maintenance_grace_cap_s=min(cap, DURATION_MAX_S),
        authorizer_status_uri=claims.authorizer_status_uri,
        policy_version=claims.policy_version,
    )
