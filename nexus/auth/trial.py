"""The checks of a token's claims, stage by stage, as rows that a hub enforces and a command explains.

Strategy: a ``Trial`` holds the claims, what they are held against, and what the checks made of them. Each row has the
order of the spec. A check says in a few words what it found, or refuses in words that tell the backend's operator what
to change.

Source: spec backend-protocol 3.2, 3.3, 4.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nexus.auth.checks import Check
from nexus.auth.claims import Claims, UdpRoute
from nexus.auth.jws import ISSUED_AHEAD_MAX_S
from nexus.errors import AuthError
from nexus.hostnames import is_port_key, normalize_wildcard

if TYPE_CHECKING:
    from nexus.auth.grants import Grant, Policy

REAUTH_GRACE_DEFAULT_S: Final = 10
"""Time to answer a re-authentication challenge; spec backend-protocol 3.2."""

DURATION_MAX_S: Final = 365 * 24 * 3600
"""Clamp of every duration a token asks for; ours, so that a timer of any event loop can hold it."""

_PORT_MAX: Final = 65_535
_NAMES_SHOWN: Final = 10


@dataclass(slots=True)
class Trial:
    """The claims of one token on trial, and what its checks made of them; ``before`` is the grant of the first token.

    ``nonce`` and ``before`` do not matter at stage 0.
    """

    claims: Claims
    policy: Policy
    before: Grant
    now: float = 0.0
    nonce: str = field(default="", repr=False)
    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: Mapping[int, int] = field(default_factory=dict)
    outbound_ports: frozenset[int] = frozenset()


def positive(duration_s: int | None) -> int:
    """Return a duration clamped to [0, DURATION_MAX_S]; 0 for one that is absent."""
    return min(max(duration_s or 0, 0), DURATION_MAX_S)


# -- Checks -----------------------------------------------------------------------------------------------------------


def _check_expiry(trial: Trial) -> str:
    if trial.policy.require_expiry and trial.claims.expires_at is None:
        raise AuthError("invalid token: this node requires the claim exp")
    return "present" if trial.claims.expires_at is not None else "not required"


def _check_hostnames(trial: Trial) -> str:
    claimed = trial.claims.hostnames
    names = tuple(dict.fromkeys(name for name in map(normalize_wildcard, claimed) if name))
    if claimed and not names:
        raise AuthError("token claims only blank hostnames")
    for name in names:
        if is_port_key(name):
            raise AuthError(f"token claims the hostname {name!r}, which is written like a port claim")
    trial.hostnames = names
    return ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "") or "none claimed"


def _check_tcp_ports(trial: Trial) -> str:
    trial.tcp_ports = _check_ports(trial.claims.tcp_ports, trial.policy.allowed_tcp_ports, "allowedTCPPortClaims")
    return _listed(trial.tcp_ports)


def _check_ports(claimed: Iterable[int], allowed: frozenset[int], key: str) -> tuple[int, ...]:
    ports = tuple(sorted(set(claimed)))
    for port in ports:
        if not 1 <= port <= _PORT_MAX:
            raise AuthError(f"token claims port {port}, which is not between 1 and {_PORT_MAX}")
        if port not in allowed:
            raise AuthError(f"token claims port {port}, which is not in {key}")
    return ports


def _check_udp_routes(trial: Trial) -> str:
    claimed, policy = trial.claims.udp_routes, trial.policy
    ports = _check_ports((route.port for route in claimed), policy.allowed_udp_ports, "allowedUDPPortClaims")
    if claimed and policy.udp_flow_idle_max_s < policy.udp_flow_idle_min_s:
        raise AuthError("this node's udpFlowIdleTimeoutMaxSeconds is below its udpFlowIdleTimeoutMinSeconds")
    timeouts: dict[int, int] = {}
    for route in claimed:
        timeout = _flow_idle_timeout(route, policy)
        if timeouts.setdefault(route.port, timeout) != timeout:
            raise AuthError(f"token claims UDP port {route.port} twice, with different idle timeouts")
    trial.udp_routes = MappingProxyType({port: timeouts[port] for port in ports})
    return _listed(f"{port} ({timeouts[port]} s)" for port in ports)


def _flow_idle_timeout(route: UdpRoute, policy: Policy) -> int:
    asked = route.flow_idle_timeout_s or 0
    timeout = asked if asked > 0 else policy.udp_flow_idle_default_s
    return min(max(timeout, policy.udp_flow_idle_min_s), policy.udp_flow_idle_max_s)


def _check_something(trial: Trial) -> str:
    if not (trial.hostnames or trial.tcp_ports or trial.udp_routes):
        raise AuthError("token claims no hostname, no TCP port and no UDP port")
    return f"{len(trial.hostnames)} hostnames, {len(trial.tcp_ports)} TCP ports, {len(trial.udp_routes)} UDP ports"


def _check_outbound(trial: Trial) -> str:
    claims, policy = trial.claims, trial.policy
    if claims.outbound_allowed and not policy.allow_outbound:
        raise AuthError("token claims outbound_allowed, but allowOutbound is off on this node")
    if claims.allowed_outbound_ports and not claims.outbound_allowed:
        raise AuthError("token claims allowed_outbound_ports without outbound_allowed")
    claimed = frozenset(claims.allowed_outbound_ports)
    allowed = policy.allowed_outbound_ports or claimed
    trial.outbound_ports = frozenset(_check_ports(claimed, allowed, "allowedOutboundPorts"))
    if not claims.outbound_allowed:
        return "none claimed"
    return f"to {_listed(sorted(trial.outbound_ports))}" if claimed else "to every port this node allows"


def _check_stage0_weight(trial: Trial) -> str:
    return f"counts as {max(trial.claims.weight, 1)}"


def _check_age(trial: Trial) -> str:
    limit, issued_at = trial.claims.handshake_max_age_s or 0, trial.claims.issued_at
    if limit <= 0:
        return "no handshake_max_age_seconds"
    if issued_at is None:
        raise AuthError("token claims handshake_max_age_seconds, but has no iat")
    age = trial.now - issued_at
    if age < -ISSUED_AHEAD_MAX_S:
        raise AuthError(f"token claims handshake_max_age_seconds, but its iat is {-age:.0f} s ahead; check the clocks")
    if age > limit:
        raise AuthError(f"token was issued {age:.0f} s ago, but its handshake_max_age_seconds is {limit}")
    return f"issued {age:.0f} s ago, at most {limit} s"


def _check_nonce(trial: Trial) -> str:
    if not _same_text(trial.claims.session_nonce, trial.nonce):
        raise AuthError("token does not carry the nonce of this session")
    return "that of the session"


def _same_text(given: str, expected: str) -> bool:
    """Compare in constant time; a blank text equals nothing."""
    pair = [text.encode("utf-8", "surrogatepass") for text in (given, expected)]
    return bool(given) and hmac.compare_digest(*pair)


def _check_same(what: str, is_same: Callable[[Trial], bool]) -> Callable[[Trial], str]:
    def check(trial: Trial) -> str:
        if not is_same(trial):
            raise AuthError(f"token claims other {what} than the first token of this session")
        return "as in the first token"

    return check


def _check_stage1_weight(trial: Trial) -> str:
    weight, first = trial.claims.weight, trial.before.weight
    if weight > 0 and weight != first:
        raise AuthError(f"token has weight {weight}, but the first token had {first}")
    return f"stays {first}"


def _check_reauth_weight(trial: Trial) -> str:
    weight, first = trial.claims.weight, trial.before.weight
    if weight not in (0, first):
        raise AuthError(f"token has weight {weight}, but the session has {first}")
    return f"stays {first}"


def _check_interval(trial: Trial) -> str:
    interval = positive(trial.claims.reauth_interval_s)
    if not interval:
        return "never asked again"
    grace = positive(trial.claims.reauth_grace_s) or REAUTH_GRACE_DEFAULT_S
    return f"asked every {interval} s, {grace} s to answer"


def _check_maintenance_cap(trial: Trial) -> str:
    cap = trial.claims.maintenance_grace_cap_s
    if cap is not None and cap < 0:
        raise AuthError("token has a negative maintenance_grace_cap_seconds")
    return "left to the node" if cap is None else f"{min(cap, DURATION_MAX_S)} s"


def _check_status_uri(trial: Trial) -> str:
    uri = trial.claims.authorizer_status_uri
    if uri and not _is_https_uri(uri):
        raise AuthError("token has an authorizer_status_uri that is not an https URI with a host")
    return "https" if uri else "none"


_ROUTE_CHECKS: Final[tuple[Check[Trial], ...]] = (
    Check("hostnames", _check_hostnames),
    Check("TCP ports", _check_tcp_ports),
    Check("UDP ports", _check_udp_routes),
    Check("something to serve", _check_something, needs=("hostnames", "TCP ports", "UDP ports")),
)
_SAME_CHECKS: Final[tuple[Check[Trial], ...]] = (
    Check("nonce", _check_nonce),
    *_ROUTE_CHECKS,
    Check(
        "same hostnames",
        _check_same("hostnames", lambda trial: set(trial.hostnames) == set(trial.before.hostnames)),
        needs=("hostnames",),
    ),
    Check(
        "same TCP ports",
        _check_same("tcp_ports", lambda trial: trial.tcp_ports == trial.before.tcp_ports),
        needs=("TCP ports",),
    ),
    Check(
        "same UDP ports",
        _check_same("udp_routes", lambda trial: trial.udp_routes == trial.before.udp_routes),
        needs=("UDP ports",),
    ),
    Check(
        "same outbound",
        _check_same("outbound_allowed", lambda trial: trial.claims.outbound_allowed == trial.before.outbound_allowed),
    ),
    Check(
        "same outbound ports",
        _check_same(
            "allowed_outbound_ports",
            lambda trial: frozenset(trial.claims.allowed_outbound_ports) == trial.before.outbound_ports,
        ),
    ),
)
_TERMS_CHECKS: Final[tuple[Check[Trial], ...]] = (
    Check("re-authentication", _check_interval),
    Check("maintenance cap", _check_maintenance_cap),
    Check("status URI", _check_status_uri),
)

_EXPIRY_CHECK: Final[Check[Trial]] = Check("required expiry", _check_expiry)

STAGE0_CHECKS: Final[tuple[Check[Trial], ...]] = (
    _EXPIRY_CHECK,
    *_ROUTE_CHECKS,
    Check("outbound", _check_outbound),
    Check("weight", _check_stage0_weight),
    Check("age", _check_age),
)
STAGE1_CHECKS: Final[tuple[Check[Trial], ...]] = (
    _EXPIRY_CHECK,
    *_SAME_CHECKS,
    Check("same weight", _check_stage1_weight),
    *_TERMS_CHECKS,
)
REAUTH_CHECKS: Final[tuple[Check[Trial], ...]] = (
    _EXPIRY_CHECK,
    *_SAME_CHECKS,
    Check("same weight", _check_reauth_weight),
    *_TERMS_CHECKS,
)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none claimed"


def _is_https_uri(uri: str) -> bool:
    if any(character <= " " or character == "\x7f" for character in uri):  # urlsplit would drop some of these
        return False
    try:
        parts = urlsplit(uri)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # bad brackets, or a port that is no number
        return False
