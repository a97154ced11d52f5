"""A certificate authority of one's own, for development, labs and private meshes.

The profile is what strict verifiers ask for: Go, Chromium and OpenSSL with ``X509_V_FLAG_X509_STRICT`` (Python's
default since 3.13). ECDSA P-256 keys; names in the subject alternative name extension only count; both server and
client purpose, because nodes of a mesh show one certificate in both roles (spec node-and-mesh 18.1).
Source: RFC 5280 section 4.2. Nothing here reads a clock: ``now`` is unix seconds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nexus.errors import ConfigError, Problem, TlsFileError
from nexus.hostnames import normalize_wildcard

CA_LIFETIME_DAYS = 3650
"""Ten years: a development CA is put into trust stores by hand, so it should outlive the machine."""

LEAF_MAX_DAYS = 825
"""Longest lifetime that Apple's platforms accept from a CA added by the user (their rule since 2019)."""

BACKDATE = timedelta(hours=1)
"""How far before ``now`` validity starts, for machines whose clock is behind."""

_COMMON_NAME_MAX_CHARACTERS = 64
"""Upper bound of a common name: RFC 5280 appendix A.1, ub-common-name."""

_ANONYMOUS_COMMON_NAME = "Nexus Proxy node"
_DNS_NAME_MAX_CHARACTERS = 253
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
"""Letters, digits, hyphens inside labels of at most 63 (RFC 1035 2.3.1), underscores as DNS allows, ``*`` in front."""


class PemPair(NamedTuple):
    """A certificate and its private key as PEM text; ``repr`` shows no key."""

    cert_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        """The pair without its contents."""
        return f"PemPair({len(self.cert_pem)} bytes of certificate, key hidden)"


def create_ca(common_name: str, now: float) -> PemPair:
    """Create a root CA that can sign leaf certificates only, valid for ``CA_LIFETIME_DAYS`` from ``now``.

    Raises ConfigError when ``common_name`` is empty or longer than 64 characters.
    """
    if not 0 < len(common_name) <= _COMMON_NAME_MAX_CHARACTERS:
        raise _refused(common_name, "a CA's name has 1 to 64 characters")
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(common_name)
    start = datetime.fromtimestamp(now, UTC)
    builder = (
        _builder(name, name, key.public_key())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + timedelta(days=CA_LIFETIME_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _pem(builder.sign(key, hashes.SHA256()), key)


def issue(ca: tuple[bytes, bytes], names: Sequence[str], now: float, days: int) -> PemPair:
    """Issue a certificate for ``names`` (DNS names, wildcards, IP addresses) from ``now`` for ``days`` (1..825).

    Returns the chain to present, leaf first; the root is not part of it, as clients hold it themselves. The
    certificate never outlives its CA. Raises ConfigError for a name that no certificate can carry, for no names and
    for ``days`` out of range; TlsFileError when ``ca`` is not a CA and its key.
    """
    ca_certificate, ca_key = _load_ca(ca)
    if not 1 <= days <= LEAF_MAX_DAYS:
        raise _refused(str(days), f"a certificate lives 1 to {LEAF_MAX_DAYS} days")
    if not names:
        raise _refused("", "a certificate needs at least one name")
    start = datetime.fromtimestamp(now, UTC)
    if ca_certificate.not_valid_after_utc <= start:
        raise TlsFileError("the CA has expired; create a new one")
    general_names = list(dict.fromkeys(_general_name(name) for name in names))
    key = ec.generate_private_key(ec.SECP256R1())
    ca_key_identifier = ca_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_subject(general_names[0]), ca_certificate.subject, key.public_key())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(min(start + timedelta(days=days), ca_certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(general_names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_identifier), critical=False
        )
    )
    return _pem(builder.sign(ca_key, hashes.SHA256()), key)


def _load_ca(ca: tuple[bytes, bytes]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(ca[0])
        key = serialization.load_pem_private_key(ca[1], None)
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, x509.ExtensionNotFound):
        raise TlsFileError(
            "the CA's certificate or key cannot be read; expected the pair that create_ca wrote"
        ) from None
    if not is_ca or not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise TlsFileError("the CA's certificate and key are not a CA's pair; expected the pair that create_ca wrote")
    return certificate, key


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip().strip("[]")))
    except ValueError:
        host = normalize_wildcard(name)
    # A numeric last label is a mistyped address: no such top-level domain can exist (RFC 3696 section 2).
    is_numeric = host.rpartition(".")[2].isdigit()
    if is_numeric or len(host) > _DNS_NAME_MAX_CHARACTERS or _DNS_NAME.fullmatch(host) is None:
        raise _refused(name, "is neither a DNS name (a wildcard may lead it) nor an IP address")
    return x509.DNSName(host)


def _subject(first: x509.DNSName | x509.IPAddress) -> x509.Name:
    """A name for people to read; verifiers look at the alternative names only (RFC 9525 2)."""
    text = str(first.value)
    return _common_name(text if len(text) <= _COMMON_NAME_MAX_CHARACTERS else _ANONYMOUS_COMMON_NAME)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> PemPair:
    pem = serialization.Encoding.PEM
    return PemPair(
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _refused(value: str, what: str) -> ConfigError:
    return ConfigError(Problem(source="certificate", line=0, key=value, what=what))
