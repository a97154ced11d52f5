"""Certificates as other nodes may show them: any extended key usage, chain, lifetime, and what no CA should issue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nexus.tls.certificates import Certificate, CertificateFiles, read_certificate
from nexus.tls.localca import PemPair

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
CODE_SIGNING = ExtendedKeyUsageOID.CODE_SIGNING
DAY_S = 86_400.0
NODE = "a.mesh.test"

Usages = Sequence[x509.ObjectIdentifier]
SIGNS = {"digital_signature": True}
SIGNS_CERTIFICATES = {"key_cert_sign": True}


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate, its key, and the certificates between it and the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @classmethod
    def root(cls, name: str = "Root") -> Authority:
        """Make one that nobody has signed."""
        return _authority(name, None, (), is_ca=True)

    def intermediate(self, name: str = "Intermediate", usages: Usages = (), *, is_ca: bool = True) -> Authority:
        """Make one below this one."""
        return _authority(name, self, usages, is_ca=is_ca)

    def issue(
        self,
        names: Sequence[str] = (NODE,),
        usages: Usages = (SERVER,),
        *,
        from_s: float = -DAY_S,
        until_s: float = DAY_S,
        key_usage: dict[str, bool] | None = None,
        common_name: str = "",
        with_chain: bool = True,
    ) -> PemPair:
        """Issue a certificate; ``from_s`` and ``until_s`` count from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(common_name, self.certificate.subject, key, from_s, until_s)
        if names:
            san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(san, critical=False)
        builder = _with_usages(builder, usages, key_usage or SIGNS)
        leaf = builder.sign(self.key, hashes.SHA256())
        return _pem((leaf, *(self.chain if with_chain else ())), key)

    def save(self, path: Path) -> Path:
        """Write the certificate as PEM; return ``path``."""
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path


def store(directory: Path, name: str, pair: PemPair) -> Certificate:
    """Write a pair into two files, replacing what is there, and read it as a node does."""
    files = CertificateFiles(directory / f"{name}.pem", directory / f"{name}.key")
    files.cert_file.write_bytes(pair.cert_pem)
    files.key_file.touch(mode=0o600)
    files.key_file.write_bytes(pair.key_pem)
    return read_certificate(files)


def der(pair: PemPair) -> bytes:
    """Return the leaf as DER."""
    return x509.load_pem_x509_certificates(pair.cert_pem)[0].public_bytes(serialization.Encoding.DER)


def _authority(name: str, parent: Authority | None, usages: Usages, *, is_ca: bool) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = subject if parent is None else parent.certificate.subject
    builder = _builder(name, issuer, key, -2 * DAY_S, 100 * DAY_S)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    builder = _with_usages(builder, usages, SIGNS_CERTIFICATES if is_ca else SIGNS)
    certificate = builder.sign(key if parent is None else parent.key, hashes.SHA256())
    return Authority(certificate, key, () if parent is None else (certificate, *parent.chain))


def _builder(
    common_name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, from_s: float, until_s: float
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(time.time(), UTC)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(seconds=from_s))
        .not_valid_after(now + timedelta(seconds=until_s))
    )


def _with_usages(
    builder: x509.CertificateBuilder, usages: Usages, key_usage: dict[str, bool]
) -> x509.CertificateBuilder:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign "
    names += "crl_sign encipher_only decipher_only"
    allowed = x509.KeyUsage(**{name: key_usage.get(name, False) for name in names.split()})
    builder = builder.add_extension(allowed, critical=True)
    return builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False) if usages else builder


def _pem(chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> PemPair:
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    certificates = b"".join(certificate.public_bytes(pem) for certificate in chain)
    return PemPair(certificates, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
