"""Why a node would take a token, or would not: every check in the node's order, with what mends those that fail.

Strategy: the same rows of checks that the hub enforces (``nexus.auth.tokens``, ``nexus.auth.trial``) are examined to
the end, so that an explanation cannot disagree with a hub. What a check would look at but nobody gave, such as the
nonce, is skipped; a token with a bad signature is explained by what it says all the same. The verdict is ``accepted``
where every check passed, ``refused`` where one failed, and else ``incomplete``.

The answers of others (a remote verifier, a key URL) come in as values. What depends on the node's present state, such
as ``maxSessionsPerSubject``, is no part of it.

Source: spec backend-protocol 3.1-3.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from nexus.auth.checks import Check, Finding, Outcome, examine
from nexus.auth.claims import Claims, parse_claims
from nexus.auth.grants import Grant, Policy, check_stage0
from nexus.auth.jws import PUBLIC_ALGORITHMS
from nexus.auth.keys import PublicKey
from nexus.auth.mint import Stage
from nexus.auth.revocation import Revocations
from nexus.auth.tokens import ENVELOPE_CHECKS, Envelope, inspect_token, read_header, unverified_payload
from nexus.auth.trial import REAUTH_CHECKS, STAGE0_CHECKS, STAGE1_CHECKS, Trial
from nexus.auth.verdict import VerifierDown
from nexus.errors import AuthError, TokenUnverified


class Verdict(StrEnum):
    """What becomes of the token."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Remote:
    """What a remote verifier said: claims, or why not; neither where it was not asked."""

    claims: Mapping[str, object] | None = None
    refusal: AuthError | None = None
    falls_back: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """What a node holds a token against beyond its signature; ports are those it relays."""

    policy: Policy
    revocations: Revocations = field(default_factory=Revocations)
    relay_ports: tuple[int, ...] = ()
    udp_relay_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A token, and what is known to judge it by.

    ``remote`` is None where this node has no remote verifier. ``keys_missing`` tells that there are keys which nobody
    fetched. Without ``node`` the envelope alone is explained. ``nonce`` and ``first``, the payload of the session's
    first token, are for the later stages.
    """

    token: str = field(repr=False)
    now: float
    stage: Stage = "handshake"
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    public_keys: tuple[PublicKey, ...] = ()
    keys_missing: bool = False
    remote: Remote | None = None
    node: Node | None = None
    nonce: str | None = field(default=None, repr=False)
    first: Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every finding, in the node's order."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """What becomes of the token."""
        outcomes = {finding.outcome for finding in self.findings}
        if Outcome.FAIL in outcomes:
            return Verdict.REFUSED
        return Verdict.INCOMPLETE if Outcome.SKIP in outcomes else Verdict.ACCEPTED

    def refusal(self) -> str | None:
        """Return why it is refused: the first reason, which is the one a hub gives."""
        return next((finding.detail for finding in self.findings if finding.outcome is Outcome.FAIL), None)

    def passed(self, name: str) -> bool:
        """Tell whether a check passed."""
        return any(finding.name == name and finding.outcome is Outcome.PASS for finding in self.findings)


def explain(question: Question) -> Explanation:
    """Examine a token; raises nothing."""
    payload, findings = _believe(question)
    claims, finding = _read_claims(question.token, payload)
    findings.append(finding)
    if question.node is not None:
        findings += _admit(question, question.node, claims)
    return Explanation(tuple(_with_mend(finding) for finding in findings))


# -- Signature or verifier --------------------------------------------------------------------------------------------


def _believe(question: Question) -> tuple[Mapping[str, object] | None, list[Finding]]:
    """Return the payload that the claims are read from, believed or not, None where there is none; and the findings."""
    remote = question.remote
    if remote is None:
        return _open(question)
    if remote.claims is not None:
        return remote.claims, [Finding("verifier", Outcome.PASS, "accepts it")]
    if remote.refusal is None:
        return _unverified(question.token), [Finding("verifier", Outcome.SKIP, "was not asked")]
    if remote.falls_back and isinstance(remote.refusal, VerifierDown):
        detail = f"{remote.refusal.detail}: local keys are used (remoteVerifierFallback)"
        payload, findings = _open(question)
        return payload, [Finding("verifier", Outcome.WARN, detail), *findings]
    detail = str(remote.refusal)
    if isinstance(remote.refusal, TokenUnverified):
        detail += f" ({remote.refusal.detail})"
    return _unverified(question.token), [Finding("verifier", Outcome.FAIL, detail)]


def _open(question: Question) -> tuple[Mapping[str, object] | None, list[Finding]]:
    envelope = Envelope(question.token, question.secrets, question.public_keys, question.now)
    envelope.raw_payload = unverified_payload(question.token)
    findings = examine(ENVELOPE_CHECKS, envelope)
    if question.keys_missing and _algorithm(question.token) in PUBLIC_ALGORITHMS:
        findings = [_without_keys(finding) for finding in findings]
    is_read = any(finding.name == "payload" and finding.outcome is Outcome.PASS for finding in findings)
    return envelope.payload if is_read else None, findings


def _without_keys(finding: Finding) -> Finding:
    """Return that a check cannot be told, where it failed for want of keys that nobody fetched."""
    is_moot = finding.name in {"keys of the node", "algorithm", "signature"} and finding.outcome is Outcome.FAIL
    what = "cannot be told without the keys of backendsJWKSURL"
    return replace(finding, outcome=Outcome.SKIP, detail=what) if is_moot else finding


def _unverified(token: str) -> Mapping[str, object] | None:
    try:
        return inspect_token(token).claims
    except AuthError:
        return None


def _algorithm(token: str) -> str:
    try:
        return read_header(token)[0]
    except AuthError:
        return ""


def _read_claims(token: str, payload: Mapping[str, object] | None) -> tuple[Claims | None, Finding]:
    if payload is None:
        return None, Finding("claims", Outcome.SKIP, "cannot be told without: payload")
    try:
        key_id = read_header(token)[1]
    except AuthError:
        key_id = ""
    try:
        claims = parse_claims(payload, key_id)
    except AuthError as error:
        return None, Finding("claims", Outcome.FAIL, str(error))
    return claims, Finding("claims", Outcome.PASS, "each of its type")


# -- Node -------------------------------------------------------------------------------------------------------------


def _admit(question: Question, node: Node, claims: Claims | None) -> list[Finding]:
    if claims is None:
        return [Finding("revocation", Outcome.SKIP, _NO_CLAIMS), Finding("stage", Outcome.SKIP, _NO_CLAIMS)]
    revocation: Check[Claims] = Check("revocation", lambda found: node.revocations.check(found.identity, question.now))
    findings = examine((revocation,), claims)
    if question.stage == "handshake":
        findings += examine(STAGE0_CHECKS, Trial(claims, node.policy, Grant(), question.now))
    else:
        findings += _later_stage(question, node.policy, claims)
    return findings + list(_unreachable(claims, node))


def _later_stage(question: Question, policy: Policy, claims: Claims) -> list[Finding]:
    row = STAGE1_CHECKS if question.stage == "attest" else REAUTH_CHECKS
    before, findings = _first_grant(question, policy)
    missing = {"nonce"} if question.nonce is None else set()
    if before is None:
        missing |= {check.name for check in row if check.name.startswith("same ")}
    trial = Trial(claims, policy, before or Grant(), nonce=question.nonce or "")
    examined = {
        finding.name: finding for finding in examine([check for check in row if check.name not in missing], trial)
    }
    skipped = {name: Finding(name, Outcome.SKIP, f"cannot be told without: {_source_of(name)}") for name in missing}
    return [*findings, *((examined | skipped)[check.name] for check in row)]


def _source_of(name: str) -> str:
    return "the hub's nonce" if name == "nonce" else "the first token"


def _first_grant(question: Question, policy: Policy) -> tuple[Grant | None, list[Finding]]:
    """Return what the first token of the session was granted, when it was fresh; its signature is not looked at."""
    if question.first is None:
        return None, []
    try:
        claims = parse_claims(question.first)
        issued_at = question.now if claims.issued_at is None else claims.issued_at
        return check_stage0(claims, policy, issued_at), [Finding("first token", Outcome.PASS, "taken as accepted")]
    except AuthError as error:
        return None, [Finding("first token", Outcome.FAIL, str(error))]


def _unreachable(claims: Claims, node: Node) -> Iterable[Finding]:
    """Tell of ports that the node would grant, and no client can reach."""
    for name, key, claimed, relayed in (
        ("TCP ports are relayed", "relayPorts", claims.tcp_ports, node.relay_ports),
        ("UDP ports are relayed", "udpRelayPorts", (route.port for route in claims.udp_routes), node.udp_relay_ports),
    ):
        if dark := sorted(set(claimed) - set(relayed)):
            what = f"no client can reach {', '.join(map(str, dark))}: not in {key}"
            yield Finding(name, Outcome.WARN, what)


_NO_CLAIMS: Final = "cannot be told without: claims"

_MENDS: Final[Mapping[str, str]] = {
    "verifier": "ask whoever runs the verifier; while it is out of reach see remoteVerifierFallback",
    "keys of the node": "set backendsJWTSecretFile, backendsJWKSFile or backendsJWKSURL",
    "form": "send the token alone, in its compact form of three parts, nothing around it",
    "algorithm": "sign with one of these; HS256 for a shared secret",
    "signature": "sign with the secret or key of this node, and name its key by kid",
    "payload": "put a JSON object into the token",
    "issuer": 'claim "iss": "authorizer"',
    "audience": 'claim "aud": ["nexus"]',
    "expiry": "make a fresh token for each connection, and compare the clocks of both machines",
    "beginning": "compare the clocks of both machines, or set nbf earlier",
    "claims": "write the claim with its JSON type, see docs/protocol.md",
    "revocation": "issue a new token under another name, or delete the entry from revocationFile",
    "stage": "mend the claims first",
    "first token": "pass the token that the session began with, and see why it is refused by itself",
    "required expiry": "claim exp, or set requireTokenExpiry to false",
    "hostnames": "claim names such as app.example.com or *.example.com",
    "TCP ports": "add the port to allowedTCPPortClaims of the node, or do not claim it",
    "UDP ports": "add the port to allowedUDPPortClaims of the node, or do not claim it so",
    "something to serve": "claim hostnames, tcp_ports or udp_routes",
    "outbound": "set allowOutbound and allowedOutboundPorts of the node, or do not claim it",
    "age": "make a fresh token for each connection, or claim a greater handshake_max_age_seconds",
    "nonce": "copy the nonce of the hub's challenge into session_nonce, as it is",
    "same hostnames": "claim the same hostnames as in the first token",
    "same TCP ports": "claim the same tcp_ports as in the first token",
    "same UDP ports": "claim the same udp_routes, with the same idle times, as in the first token",
    "same outbound": "claim the same outbound_allowed as in the first token",
    "same outbound ports": "claim the same allowed_outbound_ports as in the first token",
    "same weight": "claim the weight of the first token, or none",
    "maintenance cap": "claim 0 or more, or leave the claim out",
    "status URI": "claim an https URL with a host, or leave the claim out",
    "TCP ports are relayed": "add them to relayPorts of the node",
    "UDP ports are relayed": "add them to udpRelayPorts of the node",
}


def _with_mend(finding: Finding) -> Finding:
    if finding.outcome in {Outcome.FAIL, Outcome.WARN}:
        return replace(finding, mend=_MENDS.get(finding.name, ""))
    return finding
