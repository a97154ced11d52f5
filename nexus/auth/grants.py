"""What a session may do, decided from its tokens and this node's policy.

Strategy: each stage of the handshake is one function from claims to a ``Grant`` or an ``AuthError``, built from small
checks in the order of the spec, so that the first mistake is the one reported. Stage 0 makes the grant: names, ports,
outbound rights and weight, all normalised and inside the policy. Stage 1 proves possession of a fresh token by the
nonce, must claim exactly the same, and adds what concerns the running session. Re-authentication is stage 1 again
with a stricter rule for weight, and replaces the session's terms.

Refusals tell the backend's operator what to change, in the words of the configuration file. They never contain a
nonce or a status URI. Only those that no change on the node can mend say ``invalid token`` (``nexus.auth.claims``).

Durations are clamped to a year: longer than any session, and far from where timers overflow.

Source: spec backend-protocol 3.2, 3.3, 4.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import urlsplit

from nexus.auth.claims import Claims, UdpRoute
from nexus.errors import AuthError
from nexus.hostnames import is_port_key, normalize_wildcard

REAUTH_GRACE_DEFAULT_S = 10
"""Time to answer a re-authentication challenge; spec backend-protocol 3.2."""

FLOW_IDLE_DEFAULT_S = 30
"""Idle time of a UDP flow whose token asks for none; spec backend-protocol 22."""

DURATION_MAX_S = 365 * 24 * 3600
"""Clamp of every duration a token asks for; ours, so that a timer of any event loop can hold it."""

_PORT_MAX = 65_535


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
    _check_expiry(claims, policy)
    routes = _check_routes(claims, policy)
    ports = _check_outbound(claims, policy)
    weight = max(claims.weight, 1)
    _check_age(claims, now)
    return replace(
        routes,
        weight=weight,
        outbound_allowed=claims.outbound_allowed,
        outbound_ports=ports,
        subject=claims.subject,
    )


def check_stage1(claims: Claims, grant: Grant, nonce: str, policy: Policy) -> Grant:
    """Check the second token against the stage-0 ``grant`` and the ``nonce`` the hub sent; return the full grant.

    Raises:
        AuthError: the first check that fails, in the order of spec backend-protocol 3.3.
    """
    _check_same(claims, grant, nonce, policy)
    if claims.weight > 0 and claims.weight != grant.weight:
        raise AuthError(f"token has weight {claims.weight}, but the first token had {grant.weight}")
    return _with_terms(claims, grant, policy.maintenance_grace_default_s)


def check_reauth(claims: Claims, grant: Grant, nonce: str, policy: Policy) -> Grant:
    """Check a re-authentication token against the session's ``grant``; return the grant with the new terms.

    Unlike stage 1, any weight but zero must be the registered one, and an absent maintenance cap keeps the present one.

    Raises:
        AuthError: the first check that fails; the session must then end (spec backend-protocol 4).
    """
    _check_same(claims, grant, nonce, policy)
    if claims.weight not in (0, grant.weight):
        raise AuthError(f"token has weight {claims.weight}, but the session has {grant.weight}")
    return _with_terms(claims, grant, grant.maintenance_grace_cap_s)


def _check_expiry(claims: Claims, policy: Policy) -> None:
    if policy.require_expiry and claims.expires_at is None:
        raise AuthError("invalid token: this node requires the claim exp")


def _check_routes(claims: Claims, policy: Policy) -> Grant:
    """Return a grant of the routes alone."""
    hostnames = _check_hostnames(claims.hostnames)
    tcp_ports = _check_ports(claims.tcp_ports, policy.allowed_tcp_ports, "allowedTCPPortClaims")
    udp_routes = _check_udp_routes(claims.udp_routes, policy)
    if not (hostnames or tcp_ports or udp_routes):
        raise AuthError("token claims no hostname, no TCP port and no UDP port")
    return Grant(hostnames=hostnames, tcp_ports=tcp_ports, udp_routes=MappingProxyType(udp_routes))


def _check_hostnames(claimed: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in map(normalize_wildcard, claimed) if name))
    if claimed and not names:
        raise AuthError("token claims only blank hostnames")
    for name in names:
        if is_port_key(name):
            raise AuthError(f"token claims the hostname {name!r}, which is written like a port claim")
    return names


def _check_ports(claimed: Iterable[int], allowed: frozenset[int], key: str) -> tuple[int, ...]:
    ports = tuple(sorted(set(claimed)))
    for port in ports:
        if not 1 <= port <= _PORT_MAX:
            raise AuthError(f"token claims port {port}, which is not between 1 and {_PORT_MAX}")
        if port not in allowed:
            raise AuthError(f"token claims port {port}, which is not in {key}")
    return ports


def _check_udp_routes(claimed: tuple[UdpRoute, ...], policy: Policy) -> dict[int, int]:
    ports = _check_ports((route.port for route in claimed), policy.allowed_udp_ports, "allowedUDPPortClaims")
    if claimed and policy.udp_flow_idle_max_s < policy.udp_flow_idle_min_s:
        raise AuthError("this node's udpFlowIdleTimeoutMaxSeconds is below its udpFlowIdleTimeoutMinSeconds")
    timeouts: dict[int, int] = {}
    for route in claimed:
        timeout = _flow_idle_timeout(route, policy)
        if timeouts.setdefault(route.port, timeout) != timeout:
            raise AuthError(f"token claims UDP port {route.port} twice, with different idle timeouts")
    return {port: timeouts[port] for port in ports}


def _flow_idle_timeout(route: UdpRoute, policy: Policy) -> int:
    asked = route.flow_idle_timeout_s or 0
    timeout = asked if asked > 0 else policy.udp_flow_idle_default_s
    return min(max(timeout, policy.udp_flow_idle_min_s), policy.udp_flow_idle_max_s)


def _check_outbound(claims: Claims, policy: Policy) -> frozenset[int]:
    if claims.outbound_allowed and not policy.allow_outbound:
        raise AuthError("token claims outbound_allowed, but allowOutbound is off on this node")
    if claims.allowed_outbound_ports and not claims.outbound_allowed:
        raise AuthError("token claims allowed_outbound_ports without outbound_allowed")
    claimed = frozenset(claims.allowed_outbound_ports)
    allowed = policy.allowed_outbound_ports or claimed
    return frozenset(_check_ports(claimed, allowed, "allowedOutboundPorts"))


def _check_age(claims: Claims, now: float) -> None:
    limit = claims.handshake_max_age_s or 0
    if limit <= 0:
        return
    if claims.issued_at is None:
        raise AuthError("token claims handshake_max_age_seconds, but has no iat")
    age = now - claims.issued_at
    if age > limit:
        raise AuthError(f"token was issued {age:.0f} s ago, but its handshake_max_age_seconds is {limit}")


def _check_same(claims: Claims, grant: Grant, nonce: str, policy: Policy) -> None:
    """Check what stage 1 and re-authentication share: the nonce, and the same rights as before."""
    _check_expiry(claims, policy)
    if not _same_text(claims.session_nonce, nonce):
        raise AuthError("token does not carry the nonce of this session")
    routes = _check_routes(claims, policy)
    for what, same in (
        ("hostnames", set(routes.hostnames) == set(grant.hostnames)),
        ("tcp_ports", routes.tcp_ports == grant.tcp_ports),
        ("udp_routes", routes.udp_routes == grant.udp_routes),
        ("outbound_allowed", claims.outbound_allowed == grant.outbound_allowed),
        ("allowed_outbound_ports", frozenset(claims.allowed_outbound_ports) == grant.outbound_ports),
    ):
        if not same:
            raise AuthError(f"token claims other {what} than the first token of this session")


def _same_text(given: str, expected: str) -> bool:
    """Compare in constant time; a blank text equals nothing."""
    pair = [text.encode("utf-8", "surrogatepass") for text in (given, expected)]
    return bool(given) and hmac.compare_digest(*pair)


def _with_terms(claims: Claims, grant: Grant, grace_cap_default_s: int) -> Grant:
    interval = _positive(claims.reauth_interval_s)
    grace = _positive(claims.reauth_grace_s) if interval else 0
    cap = grace_cap_default_s if claims.maintenance_grace_cap_s is None else claims.maintenance_grace_cap_s
    if cap < 0:
        raise AuthError("token has a negative maintenance_grace_cap_seconds")
    _check_status_uri(claims.authorizer_status_uri)
    return replace(
        grant,
        reauth_interval_s=interval,
        reauth_grace_s=grace or REAUTH_GRACE_DEFAULT_S,
        maintenance_grace_cap_s=min(cap, DURATION_MAX_S),
        authorizer_status_uri=claims.authorizer_status_uri,
        policy_version=claims.policy_version,
    )


def _positive(duration_s: int | None) -> int:
    """Return a duration clamped to [0, DURATION_MAX_S]; 0 for one that is absent."""
    return min(max(duration_s or 0, 0), DURATION_MAX_S)


def _check_status_uri(uri: str) -> None:
    if uri and not _is_https_uri(uri):
        raise AuthError("token has an authorizer_status_uri that is not an https URI with a host")


def _is_https_uri(uri: str) -> bool:
    if any(character <= " " or character == "\x7f" for character in uri):  # urlsplit would drop some of these
        return False
    try:
        parts = urlsplit(uri)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # bad brackets, or a port that is no number
        return False
