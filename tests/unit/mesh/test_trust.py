"""Whom a node takes for a peer, by the names in its certificate."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from nexus.mesh.trust import NOBODY, PeerIdentity, covers_labels, identity_of, is_named, refusal_of
from nexus.tls.localca import create_ca, issue


@pytest.mark.parametrize(
    ("suffix", "name", "covered"),
    [
        (".mesh.test", "a.mesh.test", True),
        (".mesh.test", "a.b.mesh.test", True),
        (".mesh.test", "mesh.test", False),
        ("mesh.test", "mesh.test", True),
        ("mesh.test", "a.mesh.test", True),
        ("mesh.test", "evilmesh.test", False),
        (".mesh.test", "evilmesh.test", False),
        ("MESH.test.", "A.Mesh.TEST", True),
        (".p.example.com", "*.p.example.com", True),
        ("p.example.com", "*.example.com", False),
        ("bücher.example", "node.xn--bcher-kva.example", True),
        ("", "a.mesh.test", False),
        (".", "a.mesh.test", False),
        ("*", "a.mesh.test", False),
        ("test", "", False),
    ],
)
def test_a_suffix_covers_whole_labels(suffix: str, name: str, covered: bool) -> None:
    """Whatever the case, with or without the dot in front; never a part of a label."""
    assert covers_labels(suffix, name) is covered


labels = st.lists(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=4)


@given(labels, labels, st.booleans())
def test_a_name_is_covered_exactly_when_its_last_labels_are_those_of_the_suffix(
    name: list[str], suffix: list[str], dot: bool
) -> None:
    """The rule, said by lists instead of texts."""
    ends = name[-len(suffix) :] == suffix and len(name) >= len(suffix) + dot
    assert covers_labels(("." if dot else "") + ".".join(suffix), ".".join(name)) is ends


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_breaks_the_rule(suffix: str, name: str) -> None:
    """It decides, whatever comes."""
    assert covers_labels(suffix, name) in {True, False}


def test_a_refusal_names_what_was_shown_what_is_trusted_and_the_mend() -> None:
    """Both operators read it."""
    identity = PeerIdentity(("a.evil.example", "b.evil.example"))
    assert refusal_of(identity, [".mesh.test"]) == (
        "its certificate has a.evil.example, b.evil.example, which trustedDomainSuffixes (.mesh.test) does not cover; "
        "add a suffix there, or dial with another certificate"
    )
    assert refusal_of(identity, [".mesh.test", "evil.example"]) == ""


@pytest.mark.parametrize(
    ("identity", "suffix", "loose"),
    [
        (PeerIdentity(("evilmesh.test",)), "mesh.test", True),
        (PeerIdentity((), "node.mesh.test"), ".mesh.test", True),
        (PeerIdentity(("anything.example",)), "", True),
        (PeerIdentity(("A.MESH.TEST",)), ".mesh.test", False),
    ],
)
def test_the_originals_rule_must_be_asked_for(identity: PeerIdentity, suffix: str, loose: bool) -> None:
    """It takes ends of texts, common names, and an empty suffix for everybody, and minds the case."""
    assert (refusal_of(identity, [suffix], loose=True) == "") is loose
    assert (refusal_of(identity, [suffix]) == "") is not loose


def test_names_are_compared_in_one_spelling() -> None:
    """A renewed certificate may write them otherwise, and still be that of the same node."""
    first = PeerIdentity(("A.mesh.test", "*.B.mesh.test", "bücher.mesh.test"))
    second = PeerIdentity(("*.b.mesh.test", "a.mesh.test.", "a.mesh.test", "xn--bcher-kva.mesh.test"))
    assert first.hosts == second.hosts == ("*.b.mesh.test", "a.mesh.test", "xn--bcher-kva.mesh.test")


def test_extensions_that_no_ca_should_write_name_nobody() -> None:
    """The same one twice; the library then reads none of them."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(1).not_valid_before(now).not_valid_after(now)
    names = x509.SubjectAlternativeName([x509.DNSName("a.mesh.test")])
    builder = builder.add_extension(names, critical=False)
    twin = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.18"), names.public_bytes())
    made = builder.add_extension(twin, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    # Issuer's names (2.5.29.18) become the subject's (2.5.29.17) once more; nobody verifies the signature here.
    assert identity_of(made.replace(bytes.fromhex("0603551d12"), bytes.fromhex("0603551d11"))) == NOBODY


def test_a_certificate_says_who_a_node_is() -> None:
    """Its DNS names, in an order of their own, so that they can be compared."""
    ca = create_ca("CA", time.time())
    pem = issue(ca, ["b.mesh.test", "a.mesh.test", "192.0.2.1"], time.time(), 1).cert_pem
    identity = identity_of(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    assert identity == PeerIdentity(("a.mesh.test", "b.mesh.test"), "b.mesh.test")
    assert str(identity) == "a.mesh.test, b.mesh.test"
    assert str(PeerIdentity(tuple("abcd"))) == "a, b, c, ..."
    assert str(PeerIdentity((), "cn")) == "cn"
    assert refusal_of(NOBODY, [".mesh.test"]).startswith("its certificate has no DNS name")


@pytest.mark.parametrize(
    ("names", "host", "named"),
    [
        (("hub.example.com",), "hub.example.com", True),
        (("other.example.com", "HUB.Example.com"), "hub.example.com", True),
        (("*.example.com",), "hub.example.com", True),
        (("*.example.com",), "a.hub.example.com", False),
        (("*.example.com",), "example.com", False),
        (("hub.example.com.evil.test",), "hub.example.com", False),
        ((), "hub.example.com", False),
        (("localhost",), "localhost", True),
    ],
)
def test_a_node_is_a_host_by_its_certificate_alone(names: tuple[str, ...], host: str, named: bool) -> None:
    """Only such a node may answer a certificate authority for that host."""
    assert is_named(names, host) is named
