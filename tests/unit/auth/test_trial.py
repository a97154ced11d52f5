"""Tests of nexus.auth.trial: the rows as such, and what a check says when it passes. Refusals are in test_grants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexus.auth.checks import Check, Outcome, examine
from nexus.auth.claims import Claims, UdpRoute
from nexus.auth.grants import Grant, Policy, check_stage0
from nexus.auth.trial import REAUTH_CHECKS, STAGE0_CHECKS, STAGE1_CHECKS, Trial

POLICY = Policy(frozenset({25}), frozenset({53}), allow_outbound=True)
CLAIMS = Claims(hostnames=("a.example",), tcp_ports=(25,), udp_routes=(UdpRoute(53),), session_nonce="n")


@pytest.mark.parametrize("row", [STAGE0_CHECKS, STAGE1_CHECKS, REAUTH_CHECKS])
def test_a_row_names_its_checks_once_and_needs_earlier_ones(row: tuple[Check[Trial], ...]) -> None:
    """Else an explanation would skip what it need not, or nothing."""
    names = [check.name for check in row]
    assert len(set(names)) == len(names)
    for position, check in enumerate(row):
        assert set(check.needs) <= set(names[:position])


def _found(row: tuple[Check[Trial], ...], claims: Claims, before: Grant, policy: Policy = POLICY) -> dict[str, str]:
    findings = examine(row, Trial(claims, policy, before, now=1000, nonce="n"))
    assert {finding.outcome for finding in findings} == {Outcome.PASS}
    return {finding.name: finding.detail for finding in findings}


def test_what_the_checks_of_stage_0_say() -> None:
    """In a few words, for people."""
    assert _found(STAGE0_CHECKS, CLAIMS, Grant()) == {
        "required expiry": "not required",
        "hostnames": "a.example",
        "TCP ports": "25",
        "UDP ports": "53 (30 s)",
        "something to serve": "1 hostnames, 1 TCP ports, 1 UDP ports",
        "outbound": "none claimed",
        "weight": "counts as 1",
        "age": "no handshake_max_age_seconds",
    }
    rich = replace(
        CLAIMS,
        hostnames=tuple(f"h{number}.example" for number in range(11)),
        outbound_allowed=True,
        handshake_max_age_s=60,
        issued_at=990,
        expires_at=1,
        tcp_ports=(),
    )
    found = _found(STAGE0_CHECKS, rich, Grant())
    assert found["hostnames"].endswith("h9.example …")
    assert (found["outbound"], found["age"]) == ("to every port this node allows", "issued 10 s ago, at most 60 s")
    assert (found["required expiry"], found["TCP ports"]) == ("present", "none claimed")
    narrow = _found(STAGE0_CHECKS, replace(rich, allowed_outbound_ports=(443, 80)), Grant())
    assert narrow["outbound"] == "to 80, 443"


@pytest.mark.parametrize("row", [STAGE1_CHECKS, REAUTH_CHECKS])
def test_what_the_checks_of_the_later_stages_say(row: tuple[Check[Trial], ...]) -> None:
    """The nonce itself never."""
    before = check_stage0(CLAIMS, POLICY, 1000)
    found = _found(row, CLAIMS, before)
    assert found["nonce"] == "that of the session"
    assert found["same hostnames"] == "as in the first token"
    assert (found["same weight"], found["re-authentication"]) == ("stays 1", "never asked again")
    assert (found["maintenance cap"], found["status URI"]) == ("left to the node", "none")
    terms = replace(
        CLAIMS,
        reauth_interval_s=60,
        maintenance_grace_cap_s=0,
        authorizer_status_uri="https://a.example/secret",
    )
    found = _found(row, terms, before)
    assert found["re-authentication"] == "asked every 60 s, 10 s to answer"
    assert (found["maintenance cap"], found["status URI"]) == ("0 s", "https")
