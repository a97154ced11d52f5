"""Tests of nexus.routing.decide."""

from __future__ import annotations

import pytest

from nexus.routing.decide import CLAIMABLE, Reject, RejectReason, ToBackend, decide
from nexus.routing.table import RouteTable


@pytest.fixture
def table() -> RouteTable[str]:
    """A name served twice, a wildcard and a port claim."""
    table: RouteTable[str] = RouteTable()
    table.claim("one", ("a.example.com", "tcp:443"))
    table.claim("two", ("a.example.com",))
    table.claim("wide", ("*.example.com",))
    return table


@pytest.mark.parametrize("host", ["b.example.com", "B.Example.COM."])
def test_a_served_name_goes_to_its_backend(table: RouteTable[str], host: str) -> None:
    """The decision carries what the connect message needs, with the name normalised."""
    assert decide(table, host, is_tls=True, local_port=443) == ToBackend("wide", "b.example.com", True, 443)


def test_an_unserved_name_is_refused_even_on_a_claimed_port(table: RouteTable[str]) -> None:
    """A port claim is no second choice for a name."""
    assert decide(table, "Other.test", is_tls=False, local_port=443) == Reject(RejectReason.NO_BACKEND, "other.test")


@pytest.mark.parametrize("host", ["tcp:443", "udp:53", "TCP:443"])
def test_a_name_written_like_a_route_key_reaches_no_port_claim(table: RouteTable[str], host: str) -> None:
    """W18: the user cannot name another port's backend."""
    assert decide(table, host, is_tls=True, local_port=80) == Reject(RejectReason.NO_BACKEND, host.lower())


@pytest.mark.parametrize("host", [None, " "])
@pytest.mark.parametrize("nameless", [reason for reason in RejectReason if reason in CLAIMABLE])
def test_a_connection_without_a_name_goes_to_the_claim_of_its_port(
    table: RouteTable[str], host: str | None, nameless: RejectReason
) -> None:
    """Whatever the reason is why none was read."""
    decision = decide(table, host, is_tls=True, local_port=443, nameless=nameless)
    assert decision == ToBackend("one", "tcp:443", True, 443)


@pytest.mark.parametrize("nameless", [reason for reason in RejectReason if reason not in CLAIMABLE])
def test_what_may_well_have_named_a_host_is_no_claims(table: RouteTable[str], nameless: RejectReason) -> None:
    """As in the original, a hello or head that is too large is refused."""
    assert decide(table, None, is_tls=True, local_port=443, nameless=nameless) == Reject(nameless)


def test_a_claim_whose_backends_all_failed_is_refused_for_its_reason(table: RouteTable[str]) -> None:
    """Nobody is left to try."""
    decision = decide(table, None, is_tls=False, local_port=443, exclude={"one"})
    assert decision == Reject(RejectReason.NO_NAME)


@pytest.mark.parametrize("host", [None, "", " ", "."])
@pytest.mark.parametrize("nameless", [RejectReason.NO_NAME, RejectReason.UNRECOGNISED, RejectReason.TIMEOUT])
def test_a_connection_without_a_name_is_refused_with_the_reason_peeking_gave(
    table: RouteTable[str], host: str | None, nameless: RejectReason
) -> None:
    """Blank is no name either."""
    assert decide(table, host, is_tls=False, local_port=80, nameless=nameless) == Reject(nameless)


def test_no_name_is_the_usual_reason_without_a_name(table: RouteTable[str]) -> None:
    """The listener need not say so."""
    assert decide(table, None, is_tls=True, local_port=80) == Reject(RejectReason.NO_NAME)


def test_retries_try_each_backend_once_and_end(table: RouteTable[str]) -> None:
    """Each decision excludes those that failed, until nobody is left."""
    failed: set[str] = set()
    for _ in range(2):
        decision = decide(table, "a.example.com", is_tls=True, local_port=443, exclude=failed)
        assert isinstance(decision, ToBackend)
        failed.add(decision.member)
    assert failed == {"one", "two"}
    assert decide(table, "a.example.com", is_tls=True, local_port=443, exclude=failed) == Reject(
        RejectReason.NO_BACKEND, "a.example.com"
    )
