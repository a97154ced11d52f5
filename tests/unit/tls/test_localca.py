"""nexus.tls.localca: certificates that strict verifiers accept."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.errors import ConfigError, TlsFileError
from nexus.tls.localca import BACKDATE, CA_LIFETIME_DAYS, LEAF_MAX_DAYS, PemPair, create_ca, issue

NOW = 1_800_000_000.0
DAY_S = 86_400
NAMES = ("hub.example.com", "*.apps.example.com", "192.0.2.7", "2001:db8::7", "localhost")

UNUSABLE_NAMES = [
    *("", " ", "-a.example", "a..example", ".example", "a b.example", "*", "*.", "a.*.example", "**.example"),
    *("192.0.2.999", "10", "a" * 64 + ".example", ".".join(["a" * 60] * 5), "tcp:25", "https://a.example", "a/b"),
]


@pytest.fixture(scope="module")
def ca() -> PemPair:
    """A CA made at NOW."""
    return create_ca("Test CA", NOW)


def load(pem: bytes) -> x509.Certificate:
    """Parse a chain that must be one certificate long."""
    (certificate,) = x509.load_pem_x509_certificates(pem)
    return certificate


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """Return all alternative names as text."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def test_the_ca_may_sign_certificates_and_nothing_else(ca: PemPair) -> None:
    """Critical basicConstraints and keyUsage of a root whose leaves cannot sign in turn."""
    certificate = load(ca.cert_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert certificate.subject == certificate.issuer


def test_the_ca_lives_ten_years_from_now(ca: PemPair) -> None:
    """The clock is the argument, minus an allowance for clocks that are behind."""
    certificate = load(ca.cert_pem)
    assert certificate.not_valid_before_utc.timestamp() == NOW - BACKDATE.total_seconds()
    assert certificate.not_valid_after_utc.timestamp() == NOW + CA_LIFETIME_DAYS * DAY_S


def test_a_leaf_has_what_verifiers_look_for(ca: PemPair) -> None:
    """P-256, both purposes, no CA, and key identifiers that point at the CA."""
    leaf = load(issue(ca, NAMES, NOW, 90).cert_pem)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    get = leaf.extensions.get_extension_for_class
    assert set(get(x509.ExtendedKeyUsage).value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert get(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert get(x509.BasicConstraints).critical
    assert get(x509.KeyUsage).value.digital_signature
    assert not get(x509.KeyUsage).value.key_cert_sign
    assert get(x509.KeyUsage).critical
    ca_identifier = load(ca.cert_pem).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == ca_identifier.digest
    assert get(x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(key)


def test_a_leaf_carries_each_name_once_in_order_and_in_its_kind(ca: PemPair) -> None:
    """DNS names are normalised, addresses stay addresses."""
    names = ["Hub.Example.COM.", "hub.example.com", "*.bücher.example", "[2001:DB8::7]", "192.0.2.7", "_acme.example"]
    leaf = load(issue(ca, names, NOW, 1).cert_pem)
    found = ["hub.example.com", "*.xn--bcher-kva.example", "2001:db8::7", "192.0.2.7", "_acme.example"]
    assert alternative_names(leaf) == found
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert extension.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("2001:db8::7"),
        ipaddress.ip_address("192.0.2.7"),
    ]


def test_a_leaf_is_named_after_its_first_name_when_that_fits(ca: PemPair) -> None:
    """A common name has at most 64 characters, a DNS name 253."""
    long_name = ".".join(["a" * 60, "b" * 60, "example"])
    short = load(issue(ca, ["a.example", "b.example"], NOW, 1).cert_pem)
    long = load(issue(ca, [long_name], NOW, 1).cert_pem)
    assert short.subject.rfc4514_string() == "CN=a.example"
    assert long_name not in long.subject.rfc4514_string()
    assert alternative_names(long) == [long_name]


def test_a_leaf_lives_as_long_as_asked_but_never_longer_than_its_ca(ca: PemPair) -> None:
    """A leaf beyond its CA would fail all the same, only later and harder to explain."""
    end_of_ca = load(ca.cert_pem).not_valid_after_utc.timestamp()
    late = end_of_ca - 2 * DAY_S
    assert load(issue(ca, ["a.example"], NOW, 90).cert_pem).not_valid_after_utc.timestamp() == NOW + 90 * DAY_S
    assert load(issue(ca, ["a.example"], late, 90).cert_pem).not_valid_after_utc.timestamp() == end_of_ca


def test_key_and_certificate_belong_together_and_differ_every_time(ca: PemPair) -> None:
    """Two issues for one name share neither key nor serial number."""
    first, second = issue(ca, ["a.example"], NOW, 1), issue(ca, ["a.example"], NOW, 1)
    for pair in (first, second, ca):
        key = serialization.load_pem_private_key(pair.key_pem, None)
        assert key.public_key() == load(pair.cert_pem).public_key()
    assert load(first.cert_pem).serial_number != load(second.cert_pem).serial_number
    assert first.key_pem != second.key_pem


def test_the_repr_of_a_pair_shows_no_key(ca: PemPair) -> None:
    """A pair may end up in a traceback."""
    assert "PRIVATE" not in repr(ca)
    assert "-----" not in f"{ca!r} {ca}"


@pytest.mark.parametrize("name", UNUSABLE_NAMES)
def test_a_name_no_certificate_can_carry_is_refused(name: str, ca: PemPair) -> None:
    """The error names the name."""
    with pytest.raises(ConfigError) as caught:
        issue(ca, ["good.example", name], NOW, 1)
    assert caught.value.problems[0].key == name


@pytest.mark.parametrize("days", [0, -1, LEAF_MAX_DAYS + 1])
def test_a_lifetime_out_of_range_is_refused(days: int, ca: PemPair) -> None:
    """Longer than 825 days is refused by Apple's platforms."""
    with pytest.raises(ConfigError, match=str(LEAF_MAX_DAYS)):
        issue(ca, ["a.example"], NOW, days)


def test_a_certificate_for_no_name_is_refused(ca: PemPair) -> None:
    """Verifiers ignore the common name, so such a certificate would be good for nothing."""
    with pytest.raises(ConfigError, match="at least one name"):
        issue(ca, [], NOW, 1)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_ca_name_out_of_bounds_is_refused(name: str) -> None:
    """RFC 5280 allows 64 characters."""
    with pytest.raises(ConfigError, match="1 to 64"):
        create_ca(name, NOW)


def test_an_expired_ca_issues_nothing(ca: PemPair) -> None:
    """The mend is a new CA."""
    with pytest.raises(TlsFileError, match="expired"):
        issue(ca, ["a.example"], NOW + (CA_LIFETIME_DAYS + 1) * DAY_S, 1)


def test_what_is_no_ca_issues_nothing(ca: PemPair) -> None:
    """Not a leaf, not a stranger's key, not junk."""
    leaf = issue(ca, ["a.example"], NOW, 1)
    stranger = create_ca("Stranger", NOW)
    encrypted = serialization.load_pem_private_key(ca.key_pem, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    bad = [leaf, (ca.cert_pem, stranger.key_pem), (b"junk", ca.key_pem), (ca.cert_pem, b""), (ca.cert_pem, encrypted)]
    for pair in bad:
        with pytest.raises(TlsFileError, match="create_ca"):
            issue(pair, ["a.example"], NOW, 1)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(max_size=70), min_size=1, max_size=3))
def test_any_text_is_issued_or_refused_by_a_documented_error(names: Sequence[str], ca: PemPair) -> None:
    """Operators type anything; a refusal is a ConfigError and an issued certificate can be parsed."""
    try:
        pair = issue(ca, names, NOW, 1)
    except ConfigError:
        return
    assert alternative_names(load(pair.cert_pem))


@pytest.mark.parametrize("name", ["hub.example.com", "one.apps.example.com"])
def test_the_webpki_verifier_of_cryptography_accepts_a_leaf(name: str, ca: PemPair) -> None:
    """It checks the CA/Browser Forum profile, as browsers do."""
    leaf = load(issue(ca, NAMES, NOW, 90).cert_pem)
    root = load(ca.cert_pem)
    verifier = (
        PolicyBuilder().store(Store([root])).time(leaf.not_valid_before_utc).build_server_verifier(x509.DNSName(name))
    )
    assert verifier.verify(leaf, []) == [leaf, root]


@pytest.mark.parametrize("name", ["hub.example.com", "one.apps.example.com", "192.0.2.7", "2001:db8::7", "localhost"])
def test_strict_openssl_completes_a_mutual_handshake(name: str, tmp_path: Path) -> None:
    """Both sides present leaves of the CA and verify with X509_STRICT, Python's default since 3.13."""
    now = time.time()  # OpenSSL judges by the machine's clock
    ca = create_ca("Test CA", now)
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem)
    (tmp_path / "leaf.pem").write_bytes(b"".join(issue(ca, NAMES, now, 1)))
    ends = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(tmp_path / "leaf.pem")
        context.load_verify_locations(tmp_path / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        ends.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ends[0].wrap_bio(to_server, to_client, server_side=True)
    client = ends[1].wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(3):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.getpeercert() == server.getpeercert() != {}


@pytest.mark.programs
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_verify_accepts_the_chain(purpose: str, ca: PemPair, tmp_path: Path) -> None:
    """The strictest settings of the program, for both purposes."""
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem)
    (tmp_path / "leaf.pem").write_bytes(issue(ca, NAMES, NOW, 90).cert_pem)
    strict = ["-x509_strict", "-check_ss_sig", "-policy_check", "-purpose", purpose, "-attime", str(int(NOW))]
    name = ["-verify_hostname", "hub.example.com"]
    command = ["openssl", "verify", *strict, *name, "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
