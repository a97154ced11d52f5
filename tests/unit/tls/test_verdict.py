"""nexus.tls.verdict: which certificates may vouch for a node, and what is said of the others."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL.SSL import X509VerificationCodes as Codes

from nexus.tls.localca import PemPair
from nexus.tls.verdict import refusal_of
from tests.support.peer_certificates import ANY, CLIENT, CODE_SIGNING, SERVER, SIGNS_CERTIFICATES, Authority, Usages

PURPOSE = Codes.ERR_INVALID_PURPOSE


@pytest.fixture(scope="module")
def root() -> Authority:
    """A CA."""
    return Authority.root()


def leaf(pair: PemPair) -> x509.Certificate:
    """Return the first certificate of a pair."""
    return x509.load_pem_x509_certificates(pair.cert_pem)[0]


@pytest.mark.parametrize("usages", [(), (SERVER,), (CLIENT,), (ANY,), (SERVER, CLIENT), (CODE_SIGNING, CLIENT)])
def test_either_role_will_do(root: Authority, usages: Usages) -> None:
    """For the node's own certificate and for a CA's."""
    assert refusal_of(PURPOSE, leaf(root.issue(usages=usages)), 0) == ""
    assert refusal_of(PURPOSE, root.intermediate(usages=usages).certificate, 1) == ""


def test_another_purpose_will_not_do(root: Authority) -> None:
    """The two say whose certificate it is."""
    said = refusal_of(PURPOSE, leaf(root.issue(usages=(CODE_SIGNING,), common_name="a.mesh.test")), 0)
    assert said.startswith("the node's certificate (CN=a.mesh.test) is for something other than TLS; issue it with")
    said = refusal_of(PURPOSE, root.intermediate(usages=(CODE_SIGNING,)).certificate, 2)
    assert said.startswith("a CA certificate above the node's (CN=Intermediate) is for something other than TLS")


@pytest.mark.parametrize("usage", ["digital_signature", "key_agreement"])
def test_a_node_signs_handshakes(root: Authority, usage: str) -> None:
    """RFC 5280 4.2.1.3; OpenSSL's rule for certificates of clients."""
    assert refusal_of(PURPOSE, leaf(root.issue(key_usage={usage: True})), 0) == ""
    assert "may not sign" in refusal_of(PURPOSE, leaf(root.issue(key_usage={"key_encipherment": True})), 0)
    assert "may not sign" in refusal_of(PURPOSE, leaf(root.issue(key_usage=SIGNS_CERTIFICATES)), 0)


def test_who_signs_others_is_a_ca(root: Authority) -> None:
    """Also where OpenSSL should have found that out already."""
    for issuer in (root.intermediate(is_ca=False).certificate, leaf(root.issue())):
        assert "without being that of a CA" in refusal_of(PURPOSE, issuer, 1)


def test_a_certificate_without_extensions_may_be_used_for_anything(root: Authority) -> None:
    """As the oldest ones are, though not as a CA's."""
    plain = _plain(root)
    assert refusal_of(PURPOSE, plain, 0) == ""
    assert "(without a subject) signed another one" in refusal_of(PURPOSE, plain, 1)


def test_extensions_that_cannot_be_read_are_not_believed(root: Authority) -> None:
    """Whatever OpenSSL makes of them."""
    spoilt = _plain(root, x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\x30\x05spoil"))
    assert "has extensions that cannot be read" in refusal_of(PURPOSE, spoilt, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Codes.ERR_CERT_HAS_EXPIRED, "has expired; renew it"),
        (Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, "add its root to peerCAFile"),
        (Codes.ERR_CERT_SIGNATURE_FAILURE, "is not valid: cert signature failure; issue it anew"),
        (12345, "is not valid: error 12345; issue it anew"),
    ],
)
def test_every_other_verdict_stands(root: Authority, code: int, words: str) -> None:
    """In words where there are some."""
    assert refusal_of(code, leaf(root.issue()), 0).count(words) == 1


def test_a_long_subject_is_cut(root: Authority) -> None:
    """A stranger chose it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 60)] * 20)
    said = refusal_of(Codes.ERR_CERT_HAS_EXPIRED, _plain(root, subject=name), 0)
    assert len(said) < 200


def _plain(
    root: Authority, extension: x509.ExtensionType | None = None, subject: x509.Name | None = None
) -> x509.Certificate:
    model = leaf(root.issue())
    builder = x509.CertificateBuilder().subject_name(subject or x509.Name([])).issuer_name(model.issuer)
    builder = builder.public_key(model.public_key()).serial_number(model.serial_number)
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign(root.key, hashes.SHA256())
    return x509.load_der_x509_certificate(certificate.public_bytes(serialization.Encoding.DER))
