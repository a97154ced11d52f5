"""Tests of nexus.auth.explain: what it says, and that it never disagrees with the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.auth.checks import Finding, Outcome
from nexus.auth.claims import Claims, parse_claims
from nexus.auth.explain import _MENDS, Explanation, Node, Question, Remote, Verdict, explain
from nexus.auth.grants import Policy, check_reauth, check_stage0, check_stage1
from nexus.auth.jws import JWS
from nexus.auth.keys import parse_key_set
from nexus.auth.mint import Stage, TokenSpec, build_claims, mint_token
from nexus.auth.revocation import parse_revocations
from nexus.auth.tokens import ENVELOPE_CHECKS, verify_token
from nexus.auth.trial import REAUTH_CHECKS, STAGE0_CHECKS, STAGE1_CHECKS
from nexus.auth.verdict import VerifierDown
from nexus.errors import AuthError, TokenUnverified
from tests.support.signing import jwk, key_set, private_key, signed

SECRET = b"the secret of this test, 32 bytes"
NONCE = "the-nonce"
NOW = 1000.0
NODE = Node(
    Policy(frozenset({25, 26}), frozenset({53}), allow_outbound=True),
    parse_revocations("sub mallory", "list"),
    relay_ports=(443, 25),
    udp_relay_ports=(53,),
)
SPEC = TokenSpec("shop", hostnames=("a.example",), tcp_ports=(25,), weight=2)
FIRST = build_claims("handshake", "", SPEC, NOW)


def _question(stage: Stage = "handshake", secret: bytes = SECRET, **terms: Any) -> Question:
    claims = build_claims(stage, NONCE, replace(SPEC, **terms), NOW)
    token = mint_token(claims, secret)
    later: dict[str, Any] = {} if stage == "handshake" else {"nonce": NONCE, "first": FIRST}
    return Question(token, NOW, stage, secrets=(b"another", SECRET), node=NODE, **later)


def _found(explained: Explanation) -> dict[str, Finding]:
    found = {finding.name: finding for finding in explained.findings}
    assert len(found) == len(explained.findings)
    return found


@pytest.mark.parametrize("stage", ["handshake", "attest", "reauth"])
def test_a_good_token_passes_every_check_in_the_node_s_order(stage: Stage) -> None:
    """Envelope, claims, revocation, then the row of the stage."""
    explained = explain(_question(stage))
    assert explained.verdict is Verdict.ACCEPTED
    assert explained.refusal() is None
    row = {"handshake": STAGE0_CHECKS, "attest": STAGE1_CHECKS, "reauth": REAUTH_CHECKS}[stage]
    assert [finding.name for finding in explained.findings] == [
        *(check.name for check in ENVELOPE_CHECKS),
        "claims",
        "revocation",
        *([] if stage == "handshake" else ["first token"]),
        *(check.name for check in row),
    ]
    assert _found(explained)["signature"].detail == "by secret 2 of 2"
    assert not any(finding.mend for finding in explained.findings)
    assert explained.passed("signature")
    assert not explained.passed("no such check")


def test_the_key_is_named() -> None:
    """By its id and source."""
    keys = parse_key_set(key_set(jwk(private_key("EdDSA"), kid="k1")), "keys.json").keys
    question = replace(_question(), token=signed(FIRST, "EdDSA", kid="k1"), public_keys=keys)
    assert _found(explain(question))["signature"].detail == "by key 'k1' of keys.json"


FAILURES: dict[str, tuple[Question, str]] = {
    "no keys": (replace(_question(), secrets=()), "keys of the node"),
    "no token": (replace(_question(), token="x"), "form"),
    "algorithm": (replace(_question(), token=signed(FIRST, "EdDSA")), "algorithm"),
    "signature": (_question(secret=b"x" * 32), "signature"),
    "payload": (replace(_question(), token=JWS.encode(b"[]", SECRET, "HS256")), "payload"),
    "issuer": (replace(_question(), token=mint_token({**FIRST, "iss": "x"}, SECRET)), "issuer"),
    "audience": (replace(_question(), token=mint_token({**FIRST, "aud": "x"}, SECRET)), "audience"),
    "expired": (replace(_question(), now=5000), "expiry"),
    "not yet": (_question(not_before=2000), "beginning"),
    "claims": (replace(_question(), token=mint_token({**FIRST, "weight": "2"}, SECRET)), "claims"),
    "revoked": (_question(subject="mallory"), "revocation"),
    "required expiry": (
        replace(_question(ttl_s=0), node=replace(NODE, policy=replace(NODE.policy, require_expiry=True))),
        "required expiry",
    ),
    "hostnames": (_question(hostnames=("tcp:1",)), "hostnames"),
    "TCP port": (_question(tcp_ports=(27,)), "TCP ports"),
    "UDP port": (replace(_question(), token=mint_token({**FIRST, "udp_routes": [{"port": 54}]}, SECRET)), "UDP ports"),
    "nothing": (_question(hostnames=(), tcp_ports=()), "something to serve"),
    "outbound": (
        replace(
            _question(outbound_allowed=True), node=replace(NODE, policy=replace(NODE.policy, allow_outbound=False))
        ),
        "outbound",
    ),
    "age": (replace(_question(handshake_max_age_s=5), now=1010), "age"),
    "nonce": (replace(_question("attest"), nonce="another"), "nonce"),
    "other hostnames": (_question("attest", hostnames=("b.example",)), "same hostnames"),
    "other TCP ports": (_question("attest", tcp_ports=(26,)), "same TCP ports"),
    "other UDP ports": (
        replace(_question("attest"), first={**FIRST, "udp_routes": [{"port": 53}]}),
        "same UDP ports",
    ),
    "other outbound": (_question("attest", outbound_allowed=True), "same outbound"),
    "other outbound ports": (
        replace(
            _question("attest", outbound_allowed=True, allowed_outbound_ports=(80,)),
            first={**FIRST, "outbound_allowed": True},
        ),
        "same outbound ports",
    ),
    "other weight": (_question("attest", weight=3), "same weight"),
    "negative weight": (_question("reauth", weight=-1), "same weight"),
    "maintenance cap": (_question("attest", maintenance_grace_cap_s=-1), "maintenance cap"),
    "status URI": (_question("reauth", authorizer_status_uri="http://a.example/"), "status URI"),
    "first token": (replace(_question("attest"), first={**FIRST, "tcp_ports": [1]}), "first token"),
    "verifier": (replace(_question(), remote=Remote(refusal=AuthError("invalid token: no"))), "verifier"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_named_with_its_mend(case: str) -> None:
    """The verdict's reason is the one a hub would give first."""
    question, name = FAILURES[case]
    explained = explain(question)
    assert explained.verdict is Verdict.REFUSED
    finding = _found(explained)[name]
    assert finding.outcome is Outcome.FAIL
    assert finding.mend
    assert explained.refusal() == finding.detail
    assert NONCE not in "".join(found.detail for found in explained.findings)


def test_every_check_that_can_refuse_has_a_mend() -> None:
    """The rows are the hub's, so a new check must be given one."""
    names = {check.name for row in (ENVELOPE_CHECKS, STAGE0_CHECKS, STAGE1_CHECKS, REAUTH_CHECKS) for check in row}
    assert names - set(_MENDS) == {"weight", "re-authentication"}  # these say something, and refuse nothing


def test_all_failures_are_told_not_only_the_first() -> None:
    """Of a token with a bad signature too: its claims are looked at, if not believed."""
    question = replace(_question(secret=b"x" * 32, hostnames=("tcp:1",), tcp_ports=(1,)), now=5000)
    failed = [finding.name for finding in explain(question).findings if finding.outcome is Outcome.FAIL]
    assert failed == ["signature", "expiry", "hostnames", "TCP ports"]


def test_without_a_node_the_envelope_is_all() -> None:
    """And the types of the claims."""
    explained = explain(replace(_question(tcp_ports=(1,)), node=None))
    assert explained.verdict is Verdict.ACCEPTED
    assert [finding.name for finding in explained.findings] == [*(check.name for check in ENVELOPE_CHECKS), "claims"]


def test_what_nobody_gave_is_skipped() -> None:
    """The nonce, the first token, or both: not refused, but not accepted either."""
    question = _question("attest")
    for change, skipped in (
        ({"nonce": None}, {"nonce"}),
        ({"first": None}, {check.name for check in STAGE1_CHECKS if check.name.startswith("same ")}),
    ):
        explained = explain(replace(question, **change))  # type: ignore[arg-type]
        assert explained.verdict is Verdict.INCOMPLETE
        assert {f.name for f in explained.findings if f.outcome is Outcome.SKIP} == skipped


def test_what_depends_on_something_unreadable_is_skipped() -> None:
    """From the first check that failed on."""
    found = _found(explain(replace(_question(), token="x")))
    assert {name for name, finding in found.items() if finding.outcome is Outcome.SKIP} == {
        "algorithm", "signature", "payload", "issuer", "audience", "expiry", "beginning", "claims", "revocation",
        "stage",
    }  # fmt: skip


def test_ports_that_no_client_can_reach_are_warned_of() -> None:
    """They refuse nothing."""
    udp = mint_token({**FIRST, "tcp_ports": [26], "udp_routes": [{"port": 53}]}, SECRET)
    explained = explain(replace(_question(), token=udp, node=replace(NODE, udp_relay_ports=())))
    assert explained.verdict is Verdict.ACCEPTED
    warnings = [finding for finding in explained.findings if finding.outcome is Outcome.WARN]
    assert [finding.detail for finding in warnings] == [
        "no client can reach 26: not in relayPorts",
        "no client can reach 53: not in udpRelayPorts",
    ]
    assert all(finding.mend for finding in warnings)


# -- A verifier, and keys that nobody fetched -------------------------------------------------------------------------


def test_a_verifier_stands_in_the_place_of_the_envelope() -> None:
    """Its claims count, not those of the token."""
    question = replace(_question(secret=b"x"), remote=Remote(parse_json({**FIRST, "tcp_ports": [26]})))
    found = _found(explain(question))
    assert "signature" not in found
    assert (found["verifier"].outcome, found["TCP ports"].detail) == (Outcome.PASS, "26")


def parse_json(document: dict[str, object]) -> dict[str, object]:
    """Return a document as it comes over the wire."""
    parsed: dict[str, object] = json.loads(json.dumps(document))
    return parsed


def test_a_verifier_that_was_not_asked_leaves_it_open() -> None:
    """The rest is told by what the token says; junk says nothing."""
    explained = explain(replace(_question(), remote=Remote()))
    assert explained.verdict is Verdict.INCOMPLETE
    assert _found(explained)["hostnames"].detail == "a.example"
    assert explain(replace(_question(), token="x", remote=Remote())).verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize("falls_back", [False, True])
def test_a_verifier_that_is_down(falls_back: bool) -> None:
    """With the fallback local keys judge, after a warning."""
    down = Remote(refusal=VerifierDown("it is down"), falls_back=falls_back)
    found = _found(explain(replace(_question(), remote=down)))
    assert ("signature" in found) == falls_back
    assert found["verifier"].outcome is (Outcome.WARN if falls_back else Outcome.FAIL)
    assert "it is down" in found["verifier"].detail
    lies = Remote(refusal=TokenUnverified("it lies"), falls_back=falls_back)
    assert _found(explain(replace(_question(), remote=lies)))["verifier"].outcome is Outcome.FAIL


def test_keys_that_nobody_fetched_leave_it_open() -> None:
    """For tokens that could be theirs; a secret needs none of them."""
    assert explain(replace(_question(), keys_missing=True)).verdict is Verdict.ACCEPTED
    for secrets in ((), (SECRET,)):
        question = replace(_question(), token=signed(FIRST, "EdDSA"), secrets=secrets, keys_missing=True)
        assert explain(question).verdict is Verdict.INCOMPLETE
    assert explain(replace(_question(), token="x", keys_missing=True)).verdict is Verdict.REFUSED


def test_a_token_of_no_form_we_know_may_be_good_for_a_verifier() -> None:
    """It has no key id, then."""
    assert explain(replace(_question(), token="any", remote=Remote(FIRST))).verdict is Verdict.ACCEPTED


# -- Never in disagreement --------------------------------------------------------------------------------------------

_DURATIONS = st.none() | st.sampled_from([-1, 0, 5, 60])
_PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "iss": st.sampled_from(["authorizer", "x"]),
        "aud": st.sampled_from(["nexus", ["nexus", "x"], "x"]),
        "exp": st.sampled_from([500, 1030, 1030.5, "x"]),
        "nbf": st.sampled_from([500, 1030]),
        "iat": st.sampled_from([990, 1000]),
        "sub": st.sampled_from(["shop", "mallory", 5]),
        "hostnames": st.lists(st.sampled_from(["a.example", "A.example.", " ", "tcp:1", "b.example"]), max_size=2),
        "tcp_ports": st.lists(st.sampled_from([25, 26, 27, 0]), max_size=2),
        "udp_routes": st.lists(st.fixed_dictionaries({"port": st.sampled_from([53, 54])}), max_size=2),
        "weight": st.sampled_from([-1, 0, 1, 2]),
        "session_nonce": st.sampled_from([NONCE, "x", ""]),
        "handshake_max_age_seconds": _DURATIONS,
        "reauth_interval_seconds": _DURATIONS,
        "maintenance_grace_cap_seconds": _DURATIONS,
        "authorizer_status_uri": st.sampled_from(["", "https://a.example/", "http://a.example/"]),
        "outbound_allowed": st.booleans(),
        "allowed_outbound_ports": st.lists(st.sampled_from([80, 443, 0]), max_size=2),
    },
)
_POLICIES = st.builds(
    Policy,
    st.sampled_from([frozenset(), frozenset({25, 26})]),
    st.sampled_from([frozenset(), frozenset({53})]),
    st.booleans(),
    st.sampled_from([frozenset(), frozenset({443})]),
    require_expiry=st.booleans(),
)


def _hub(question: Question, policy: Policy, first: Claims | None) -> bool:
    """Judge as the hub does (nexus.auth.authenticator, nexus.hub.server)."""
    try:
        payload = verify_token(question.token, question.secrets, question.now, require_expiry=policy.require_expiry)
        claims = parse_claims(payload)
        NODE.revocations.check(claims.identity, question.now)
        if first is None:
            check_stage0(claims, policy, question.now)
        else:
            grant = check_stage0(first, policy, first.issued_at or question.now)
            check = check_stage1 if question.stage == "attest" else check_reauth
            check(claims, grant, NONCE, policy)
    except AuthError:
        return False
    return True


@settings(max_examples=400)
@given(
    st.sampled_from(["handshake", "attest", "reauth"]),
    _PAYLOADS,
    _PAYLOADS,
    _POLICIES,
    st.sampled_from([SECRET, SECRET, SECRET, b"x"]),
    st.booleans(),
)
def test_it_says_accepted_exactly_when_the_hub_accepts(
    stage: Stage, payload: dict[str, object], first: dict[str, object], policy: Policy, secret: bytes, alike: bool
) -> None:
    """Stage 0, stage 1 and re-authentication; the first reason is the hub's."""
    payload = {"iss": "authorizer", "aud": "nexus", "session_nonce": NONCE, "hostnames": ["a.example"], **payload}
    first = payload if alike else {"hostnames": ["a.example"], **first}
    later: dict[str, Any] = {} if stage == "handshake" else {"nonce": NONCE, "first": first}
    question = Question(
        mint_token(payload, secret), NOW, stage, secrets=(SECRET,), node=replace(NODE, policy=policy), **later
    )
    try:
        first_claims = None if stage == "handshake" else parse_claims(first)
    except AuthError:
        return
    accepted = explain(question).verdict is Verdict.ACCEPTED
    assert accepted == _hub(question, policy, first_claims)


@given(st.text(max_size=60), st.sampled_from(["handshake", "attest", "reauth"]))
def test_hostile_text_is_explained(token: str, stage: Stage) -> None:
    """Nothing is raised, whatever it is."""
    question = Question(token, NOW, stage, secrets=(SECRET,), node=NODE, nonce=NONCE, first=FIRST)
    assert explain(question).verdict is Verdict.REFUSED
