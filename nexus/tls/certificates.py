"""Certificate and key files: read once, checked in memory, described, and loaded from that same memory.

What was checked is what gets used: OpenSSL is handed the bytes that passed the checks, not the path they came from,
so a renewal that happens in between cannot slip an unchecked or half-written pair into a running hub.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from nexus.errors import TlsFileError

FILE_MAX_BYTES = 1024 * 1024
"""Largest certificate or key file that is read: a chain of four RSA-4096 certificates takes about 10 KiB."""

EXPIRY_NOTICE_S = 7 * 86_400
"""Seconds before expiry from which ``Certificate.warnings`` speaks: 90-day certificates renew 30 days ahead."""

EXPIRY_NOTICE_SHARE = 0.25
"""The same as a share of the lifetime, for certificates of days: those renew with a third of it left."""

_MEMORY_FILES = Path("/proc/self/fd")
"""Where Linux names this process's open descriptors; other systems have no such directory."""

_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate chain (PEM, leaf first) and its private key (PEM, not encrypted) are; may be one file."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A checked pair: what its leaf certificate says, and the bytes to load. ``repr`` shows no key.

    Times are unix seconds. ``names`` are the DNS names and IP addresses of the subject alternative name extension;
    ``key_algorithm`` names the kind of key (``RSA``, ``EC``, ``Ed25519``, ``Ed448``), whatever its size.
    """

    files: CertificateFiles
    subject: str
    names: tuple[str, ...]
    not_before: float
    expires_at: float
    key_algorithm: str
    key_is_exposed: bool
    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)

    @property
    def pem(self) -> bytes:
        """Chain and key in one text."""
        return self.chain_pem + self.key_pem

    def warnings(self, now: float) -> tuple[str, ...]:
        """What an operator should mend soon, at ``now`` (unix seconds); the pair is usable all the same."""
        found = []
        if now >= self.expires_at:
            found.append(
                f"{self.files.cert_file}: expired on {date_text(self.expires_at)}; renew it, clients refuse it"
            )
        elif self.expires_at - now <= min(EXPIRY_NOTICE_S, (self.expires_at - self.not_before) * EXPIRY_NOTICE_SHARE):
            found.append(f"{self.files.cert_file}: expires on {date_text(self.expires_at)}; renew it")
        if now < self.not_before:
            found.append(
                f"{self.files.cert_file}: not valid before {date_text(self.not_before)}; check this machine's clock"
            )
        if not self.names:
            found.append(
                f"{self.files.cert_file}: has no subject alternative name, so no client accepts it; issue it anew"
            )
        if self.key_is_exposed:
            found.append(f"{self.files.key_file}: can be read by other users; run: chmod 600 {self.files.key_file}")
        return tuple(found)


def read_certificate(files: CertificateFiles) -> Certificate:
    """Read, parse and match a pair; return what it says. Dates are not judged here, see ``Certificate.warnings``.

    Raises TlsFileError, which names the file and what mends it: missing, unreadable, not PEM, wrong order, key of
    another certificate, encrypted key, or refused by OpenSSL (for example a key that is too small).
    """
    chain_pem, _ = _read(files.cert_file)
    key_pem, key_mode = _read(files.key_file)
    chain = _parse_chain(files.cert_file, chain_pem)
    key = _parse_key(files.key_file, key_pem)
    try:
        _check_match(files, chain, key)
        certificate = _describe(files, chain, key, key_is_exposed=bool(key_mode & _OTHERS_MAY_READ))
    # The library reads names, dates and public keys only when asked for them.
    except (ValueError, UnsupportedAlgorithm):
        raise TlsFileError(
            f"{files.cert_file}: holds a certificate that cannot be read, or one for an unknown kind of key; "
            "issue a new pair (RSA of 2048 bits or more, or ECDSA P-256)"
        ) from None
    load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)  # scratch: OpenSSL's own opinion
    return certificate


def _describe(
    files: CertificateFiles, chain: Sequence[x509.Certificate], key: PrivateKeyTypes, *, key_is_exposed: bool
) -> Certificate:
    leaf, pem = chain[0], serialization.Encoding.PEM
    return Certificate(
        files=files,
        subject=leaf.subject.rfc4514_string(),
        names=_names(leaf),
        not_before=leaf.not_valid_before_utc.timestamp(),
        expires_at=leaf.not_valid_after_utc.timestamp(),
        key_algorithm=type(key).__name__.removesuffix("PrivateKey"),
        key_is_exposed=key_is_exposed,
        # Exactly what was parsed: the files may hold more, in any order, such as a second key.
        key_pem=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        chain_pem=b"".join(certificate.public_bytes(pem) for certificate in chain),
    )


def load_into(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Give ``context`` the checked pair; new handshakes use it at once, running connections are not touched.

    Raises TlsFileError when OpenSSL refuses the pair or no descriptor is left to hand it over.
    """
    try:
        load_pem_into(context, certificate.pem)
    except ssl.SSLError as error:
        raise refused_by_openssl(certificate, (error.reason or str(error)).lower().replace("_", " ")) from None
    except OSError as error:
        raise TlsFileError(f"{certificate.files.cert_file}: cannot be loaded: {error.strerror}") from error


def load_pem_into(context: ssl.SSLContext, pem: bytes) -> None:
    """Give ``context`` a private key and its chain. Raises ssl.SSLError or OSError."""
    with _as_file(pem) as path:
        context.load_cert_chain(path)


def refused_by_openssl(certificate: Certificate, reason: str) -> TlsFileError:
    """Return the error for a pair that was checked and that OpenSSL does not take all the same."""
    return TlsFileError(
        f"{certificate.files.cert_file}: OpenSSL refuses the certificate or its key: {reason}; "
        "issue a new pair (RSA of 2048 bits or more, or ECDSA P-256)"
    )


@contextlib.contextmanager
def _as_file(pem: bytes) -> Iterator[str]:
    """Lend ``pem`` a path for the time of one load: ssl.SSLContext reads keys from paths only."""
    if _MEMORY_FILES.is_dir():  # Linux: an anonymous file in memory, so the key touches no disk
        descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(pem)
            yield str(_MEMORY_FILES / str(descriptor))
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as named:  # 0600, gone right after
            named.write(pem)
            yield named.name


def _read(path: Path) -> tuple[bytes, int]:
    """Return content and mode of a regular file; a pipe or device could block or never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TlsFileError(f"{path}: is not a regular file; name the PEM file itself")
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise TlsFileError(f"{path}: does not exist; correct the path, or create a pair with nexus init") from None
    except PermissionError:
        raise TlsFileError(f"{path}: may not be read by this user; change its owner or group, not its mode") from None
    except OSError as error:
        raise TlsFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > FILE_MAX_BYTES:
        raise TlsFileError(f"{path}: is larger than {FILE_MAX_BYTES} bytes; name the PEM file itself")
    return data, stat.S_IMODE(status.st_mode)


def _parse_chain(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        what = "is a private key, not a certificate" if b"PRIVATE KEY-----" in pem else "holds no readable certificate"
        raise TlsFileError(
            f"{path}: {what}; expected PEM text with -----BEGIN CERTIFICATE-----, the node's own certificate first"
        ) from None
    if len(chain) < pem.count(b"-----BEGIN CERTIFICATE-----"):
        raise TlsFileError(f"{path}: ends in the middle of a certificate; write the whole file anew")
    return chain


def _parse_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        # The operator's own key: proving its primes again would stop the event loop for tens of milliseconds.
        return serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise TlsFileError(
            f"{path}: the private key is encrypted; store it without a passphrase: openssl pkey -in {path} -out KEYFILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsFileError(f"{path}: holds no readable private key; expected PEM text with a PRIVATE KEY") from None


def _check_match(files: CertificateFiles, chain: Sequence[x509.Certificate], key: PrivateKeyTypes) -> None:
    public = key.public_key()
    if chain[0].public_key() == public:
        return
    if any(certificate.public_key() == public for certificate in chain[1:]):
        raise TlsFileError(
            f"{files.cert_file}: the chain is in the wrong order; put the node's own certificate first, "
            "then the one that signed it"
        )
    raise TlsFileError(
        f"{files.key_file}: is not the key of the certificate in {files.cert_file}; name the two files that were "
        "issued together"
    )


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):  # ValueError: extensions that cannot be parsed
        return ()
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network]
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def date_text(unix_s: float) -> str:
    """Return a time in unix seconds as people write it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
