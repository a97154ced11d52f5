"""nexus.tls.certificates: what an operator's files may look like, and what they are told about them."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from nexus.errors import TlsFileError
from nexus.tls import certificates
from nexus.tls.certificates import (
    EXPIRY_NOTICE_S,
    FILE_MAX_BYTES,
    CertificateFiles,
    load_into,
    read_certificate,
)
from nexus.tls.localca import PemPair, create_ca, issue

NOW = 1_800_000_000.0
DAY_S = 86_400
DAYS = 30
NAMES = ("hub.example.com", "*.apps.example.com", "192.0.2.7")
PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


@pytest.fixture(scope="module")
def ca() -> PemPair:
    """A CA made at NOW."""
    return create_ca("Test CA", NOW)


@pytest.fixture(scope="module")
def pair(ca: PemPair) -> PemPair:
    """A certificate for NAMES."""
    return issue(ca, NAMES, NOW, DAYS)


@pytest.fixture
def files(pair: PemPair, tmp_path: Path) -> CertificateFiles:
    """The pair in two files, as an operator has it."""
    return write(tmp_path, pair)


def write(directory: Path, pair: tuple[bytes, bytes]) -> CertificateFiles:
    """Write a pair into two files, the key with 0600."""
    files = CertificateFiles(directory / "cert.pem", directory / "key.pem")
    files.cert_file.write_bytes(pair[0])
    files.key_file.write_bytes(pair[1])
    files.key_file.chmod(0o600)
    return files


def self_signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> PemPair:
    """Return a certificate without names for any kind of key, valid around NOW."""
    name, day, now = x509.Name([]), timedelta(days=1), datetime.fromtimestamp(NOW, UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    certificate = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return PemPair(certificate.public_bytes(PEM), key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))


def key_of(pair: tuple[bytes, bytes]) -> PrivateKeyTypes:
    """Parse the key of a pair."""
    return serialization.load_pem_private_key(pair[1], None)


def refusal(files: CertificateFiles) -> str:
    """Return what an operator reads when the pair is refused."""
    with pytest.raises(TlsFileError) as caught:
        read_certificate(files)
    return str(caught.value)


def test_a_pair_is_described_by_its_leaf(files: CertificateFiles) -> None:
    """Subject, names, validity and kind of key."""
    found = read_certificate(files)
    assert found.subject == f"CN={NAMES[0]}"
    assert found.names == NAMES
    assert found.expires_at == NOW + DAYS * DAY_S
    assert found.not_before < NOW
    assert found.key_algorithm == "EC"
    assert not found.key_is_exposed
    assert found.warnings(NOW) == ()


def test_a_certificate_that_only_its_readers_refuse_is_an_error(files: CertificateFiles, tmp_path: Path) -> None:
    """The library reads names, dates and public keys late: whatever it says then must not end a running hub."""
    der = x509.load_pem_x509_certificate(files.cert_file.read_bytes()).public_bytes(serialization.Encoding.DER)
    key_pem = files.key_file.read_bytes()
    for old, new, what in (
        (bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0209"), "unknown kind of key"),
        (b"\x17\x0d", b"\x17\x0c", "holds"),  # a date that is too short
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020109"), "holds no readable certificate"),  # X.509 version 10
    ):
        assert old in der
        broken = x509_pem(der.replace(old, new, 1))
        assert what in refusal(write(tmp_path, (broken, key_pem)))


def x509_pem(der: bytes) -> bytes:
    """Write a certificate that no library would write."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_the_repr_shows_no_key(files: CertificateFiles) -> None:
    """A certificate may end up in a log line or a traceback."""
    assert "PRIVATE" not in repr(read_certificate(files))


def test_chains_of_trustme_are_read(tmp_path: Path) -> None:
    """A cross-check with certificates made by others: trustme's have RSA or ECDSA keys and an intermediate."""
    root = trustme.CA()
    leaf = root.create_child_ca().issue_cert("hub.example.com", key_type=trustme.KeyType.RSA)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    found = read_certificate(write(tmp_path, (chain, leaf.private_key_pem.bytes())))
    assert found.names == ("hub.example.com",)
    assert found.key_algorithm == "RSA"
    assert found.pem.count(b"BEGIN CERTIFICATE") == len(leaf.cert_chain_pems)


@pytest.mark.parametrize("key_first", [True, False])
def test_one_file_may_hold_both(key_first: bool, pair: PemPair, tmp_path: Path) -> None:
    """Caches of ACME clients keep the key first, then the chain (spec node-and-mesh 10)."""
    path = tmp_path / "both.pem"
    path.write_bytes(pair.key_pem + pair.cert_pem if key_first else pair.cert_pem + pair.key_pem)
    found = read_certificate(CertificateFiles(path, path))
    assert found.names == NAMES
    assert found.pem.count(b"PRIVATE KEY-----") == found.pem.count(b"-----BEGIN PRIVATE KEY-----") * 2 == 2


def test_a_stray_key_beside_the_chain_is_not_the_one_loaded(files: CertificateFiles, ca: PemPair) -> None:
    """OpenSSL would take the first key of a text; ours is the one that was checked."""
    stray = issue(ca, ["stray.example"], NOW, 1)
    files.cert_file.write_bytes(stray.key_pem + files.cert_file.read_bytes())
    load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), read_certificate(files))


def test_the_elliptic_curve_key_of_openssl_ecparam_is_read(files: CertificateFiles, pair: PemPair) -> None:
    """``openssl ecparam -genkey`` puts a block of parameters in front and uses the older form."""
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    older = key_of(pair).private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, PLAIN)
    files.key_file.write_bytes(parameters + older)
    assert read_certificate(files).key_algorithm == "EC"


def test_text_around_the_pem_blocks_is_ignored(files: CertificateFiles) -> None:
    """``openssl x509 -text`` and some CAs add explanations, and Windows adds carriage returns."""
    text = b"subject=hub\n" + files.cert_file.read_bytes() + b"\nissued by us\n"
    files.cert_file.write_bytes(text.replace(b"\n", b"\r\n"))
    assert read_certificate(files).names == NAMES


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), "RSA"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "EC"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
    ],
)
def test_the_kind_of_key_is_named(
    make: Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey],
    name: str,
    tmp_path: Path,
) -> None:
    """It decides whether a renewal can be taken over by a running hub."""
    assert read_certificate(write(tmp_path, self_signed(make()))).key_algorithm == name


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (NOW + DAYS * DAY_S, "expired on"),
        (NOW + DAYS * DAY_S - 1, "expires on"),
        (NOW + DAYS * DAY_S - EXPIRY_NOTICE_S, "expires on"),
        (NOW - DAY_S, "clock"),
    ],
)
def test_dates_are_warnings_and_never_errors(now: float, said: str, files: CertificateFiles) -> None:
    """A node with an expired certificate still serves; an operator must hear of it, by the file's name."""
    (warning,) = read_certificate(files).warnings(now)
    assert said in warning
    assert warning.startswith(f"{files.cert_file}: ")


def test_there_is_no_warning_a_second_before_the_notice(files: CertificateFiles) -> None:
    """The notice starts exactly ``EXPIRY_NOTICE_S`` before expiry."""
    assert read_certificate(files).warnings(NOW + DAYS * DAY_S - EXPIRY_NOTICE_S - 1) == ()


def test_a_certificate_of_days_is_warned_of_when_its_renewal_is_late(tmp_path: Path) -> None:
    """It renews with a third of its lifetime left, which is less than a week from the beginning."""
    days = 6
    certificate = read_certificate(write(tmp_path, issue(create_ca("CA", NOW), ["hub.example.com"], NOW, days)))
    lifetime_s = certificate.expires_at - certificate.not_before
    assert certificate.warnings(certificate.expires_at - lifetime_s / 3) == ()
    assert "expires on" in certificate.warnings(certificate.expires_at - lifetime_s / 5)[0]


def test_half_a_chain_is_no_chain(pair: PemPair, ca: PemPair, tmp_path: Path) -> None:
    """A file that is being written, or was cut off: clients would miss what is missing."""
    whole = pair.cert_pem + ca.cert_pem
    files = write(tmp_path, (whole[:-100], pair.key_pem))
    with pytest.raises(TlsFileError, match="ends in the middle of a certificate; write the whole file anew"):
        read_certificate(files)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_a_warning(mode: int, files: CertificateFiles) -> None:
    """The warning is the command that mends it."""
    files.key_file.chmod(mode)
    (warning,) = read_certificate(files).warnings(NOW)
    assert f"chmod 600 {files.key_file}" in warning


def test_a_certificate_without_alternative_names_is_a_warning(tmp_path: Path) -> None:
    """Clients have ignored the common name for years."""
    found = read_certificate(write(tmp_path, self_signed(ec.generate_private_key(ec.SECP256R1()))))
    assert found.names == ()
    assert any("subject alternative name" in warning for warning in found.warnings(NOW))


@pytest.mark.parametrize("which", ["cert_file", "key_file"])
def test_a_missing_file_is_named(which: str, files: CertificateFiles) -> None:
    """With what to do about it."""
    path: Path = getattr(files, which)
    path.unlink()
    assert refusal(files).startswith(f"{path}: does not exist; ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_this_user_may_not_read_is_named(files: CertificateFiles) -> None:  # pragma: no cover
    """The mend is the owner, not a wider mode."""
    files.key_file.chmod(0)
    assert refusal(files).startswith(f"{files.key_file}: may not be read by this user; ")


@pytest.mark.parametrize(
    ("error", "said"), [(PermissionError(13, "Permission denied"), "may not be read"), (OSError(5, "EIO"), "EIO")]
)
def test_a_file_that_fails_to_open_is_named(
    error: OSError, said: str, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it exists and is a regular file."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    assert refusal(files).startswith(f"{files.cert_file}: ")
    assert said in refusal(files)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused_without_opening_it(
    make: Callable[[Path], None], files: CertificateFiles
) -> None:
    """Opening a pipe would stop the node until somebody writes to it."""
    files.key_file.unlink()
    make(files.key_file)
    assert "is not a regular file" in refusal(files)


def test_a_file_too_large_is_refused(files: CertificateFiles) -> None:
    """A log file named by mistake is not read whole."""
    files.cert_file.write_bytes(b"\n" * FILE_MAX_BYTES + files.cert_file.read_bytes())
    assert "is larger than" in refusal(files)


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_file_without_certificate_is_refused(content: bytes, files: CertificateFiles) -> None:
    """Empty, not PEM, or PEM around junk."""
    files.cert_file.write_bytes(content)
    assert refusal(files).startswith(f"{files.cert_file}: holds no readable certificate; expected PEM text")


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_file_without_key_is_refused(content: bytes, files: CertificateFiles) -> None:
    """Empty, not PEM, or PEM around junk."""
    files.key_file.write_bytes(content)
    assert refusal(files).startswith(f"{files.key_file}: holds no readable private key; expected PEM text")


def test_every_truncation_of_a_file_is_refused_or_complete(files: CertificateFiles) -> None:
    """A half-written file never passes for a whole one, and never raises anything else."""
    for path in (files.cert_file, files.key_file):
        whole = path.read_bytes()
        for length in range(0, len(whole.rstrip()), 7):
            path.write_bytes(whole[:length])
            assert str(path) in refusal(files)
        path.write_bytes(whole)


def test_swapped_files_are_told_apart(files: CertificateFiles) -> None:
    """A likely slip of the hand gets its own words."""
    swapped = CertificateFiles(files.key_file, files.cert_file)
    assert f"{files.key_file}: is a private key, not a certificate" in refusal(swapped)


def test_the_key_of_another_certificate_is_refused(files: CertificateFiles, ca: PemPair) -> None:
    """Both files are named, as either may be the wrong one."""
    files.key_file.write_bytes(issue(ca, NAMES, NOW, DAYS).key_pem)
    said = refusal(files)
    assert said.startswith(f"{files.key_file}: is not the key of the certificate in {files.cert_file}; ")


def test_a_chain_in_the_wrong_order_is_recognised(files: CertificateFiles, ca: PemPair, pair: PemPair) -> None:
    """The key belongs to a certificate of the file, only not to the first."""
    files.cert_file.write_bytes(ca.cert_pem + pair.cert_pem)
    assert "put the node's own certificate first" in refusal(files)


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL], ids=str
)
def test_an_encrypted_key_is_refused_and_nobody_is_asked(
    form: serialization.PrivateFormat, files: CertificateFiles, pair: PemPair
) -> None:
    """OpenSSL would ask for the passphrase at the terminal and wait."""
    lock = serialization.BestAvailableEncryption(b"passphrase")
    files.key_file.write_bytes(key_of(pair).private_bytes(PEM, form, lock))
    assert refusal(files).startswith(f"{files.key_file}: the private key is encrypted; ")


def test_a_pair_that_openssl_refuses_is_refused_here(tmp_path: Path) -> None:
    """OpenSSL has opinions of its own, such as a lower bound for RSA keys."""
    weak = self_signed(rsa.generate_private_key(65537, 1024))
    said = refusal(write(tmp_path, weak))
    assert "OpenSSL refuses the certificate or its key: ee key too small" in said


def test_loading_without_a_descriptor_left_is_a_documented_error(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal may come at the worst moment; it must not raise anything unforeseen."""
    certificate = read_certificate(files)

    def exhausted(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", exhausted)
    with pytest.raises(TlsFileError, match=r"cert\.pem: cannot be loaded: Too many open files"):
        load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)


def test_systems_without_memory_files_lend_a_private_one(
    files: CertificateFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is 0600 while it is there, and gone afterwards."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(certificates, "_MEMORY_FILES", tmp_path / "absent")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    seen: list[int] = []

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile: str, *_: object) -> None:  # type: ignore[override]
            seen.append(Path(certfile).stat().st_mode & 0o777)
            super().load_cert_chain(certfile)

    load_into(Watched(ssl.PROTOCOL_TLS_SERVER), read_certificate(files))
    assert seen == [0o600]
    assert list(temporary.iterdir()) == []


def test_what_was_read_does_not_change_with_the_files(files: CertificateFiles) -> None:
    """A renewal between check and use cannot slip in: the checked bytes are the ones loaded."""
    certificate = read_certificate(files)
    files.cert_file.write_bytes(b"half writ")
    files.key_file.unlink()
    load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)
