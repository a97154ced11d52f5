"""The TLS context of a listener that accepts other nodes by their certificates.

Strategy: the certificate of a node is that of its hub, issued for servers. OpenSSL, on the accepting side, wants one
for clients, and Python's ``ssl`` can neither change that purpose nor look at a certificate that failed. So this context
runs OpenSSL through pyOpenSSL, whose verify callback may overrule one verdict: that of the purpose. All others stand
(chain, dates, signatures). The event loops drive TLS through ``SSLContext.wrap_bio``; the object that ours returns has
the methods of ``ssl.SSLObject`` that they use, and moves bytes between their memory buffers and the connection.

No session is ever resumed, so the certificate is looked at in every handshake.

Sources: spec node-and-mesh 7.2, 18.1; RFC 5280 4.2.1.12 (extended key usage).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from nexus.errors import TlsFileError
from nexus.tls.certificates import Certificate

# One TLS record and what TLS adds to it, four times: what the loops write in one go mostly comes out in one read.
_READ_BYTES: Final = 4 * (16 * 1024 + 256)
_INVALID_PURPOSE: Final = 26  # X509_V_ERR_INVALID_PURPOSE, openssl verify(1)
_PURPOSES: Final = frozenset(
    {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)


def is_for_tls(usages: Iterable[x509.ObjectIdentifier] | None) -> bool:
    """Tell whether extended key usages (None: the certificate has none, so any) allow a TLS server or client."""
    return usages is None or not _PURPOSES.isdisjoint(usages)


class MutualContext(ssl.SSLContext):
    """A server context that asks for a certificate and accepts one of a server or of a client.

    Its own pair is ``certificate``; it trusts ``ca_file`` alone (PEM), else the system's roots.
    """

    def __new__(cls, certificate: Certificate | None, ca_file: Path | None = None) -> MutualContext:
        """Make the base, which only carries the type that event loops ask for."""
        del certificate, ca_file
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: Certificate | None, ca_file: Path | None = None) -> None:
        """Load the pair and the roots; without a pair every handshake fails.

        Raises:
            TlsFileError: OpenSSL refuses the pair, or ``ca_file`` cannot be used.
        """
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _judge)
        _trust(context, ca_file)
        if certificate is not None:
            _load(context, certificate)
        self._context = context

    def wrap_bio(  # type: ignore[override]  # the loops use what ``_TlsObject`` has
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> _TlsObject:
        """Return the object that an event loop drives the handshake and the records of one connection with."""
        del server_side, server_hostname, session
        return _TlsObject(SSL.Connection(self._context, None), incoming, outgoing)


class _TlsObject:
    """What event loops use of ``ssl.SSLObject``, raising what that raises."""

    def __init__(self, connection: SSL.Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        connection.set_accept_state()
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._may_hold_records = False  # of what was fed

    def do_handshake(self) -> None:
        self._feed()
        try:
            self._connection.do_handshake()
        except SSL.Error as error:
            raise _as_ssl(error, self._connection) from None
        finally:
            self._drain()

    def read(self, length: int = 1024, buffer: bytearray | memoryview | None = None) -> int | bytes:
        """Read into ``buffer`` and return how much, or return bytes; 0 or b"" after the other side's goodbye."""
        self._feed()
        try:
            return self._connection.recv(length) if buffer is None else self._connection.recv_into(buffer, length)
        except SSL.WantReadError:
            self._may_hold_records = False
            raise ssl.SSLWantReadError from None
        except SSL.ZeroReturnError:
            return b"" if buffer is None else 0
        except SSL.Error as error:
            raise _as_ssl(error, self._connection) from None
        finally:
            self._drain()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._connection.send(bytes(data) if isinstance(data, bytearray) else data)
        except SSL.Error as error:
            raise _as_ssl(error, self._connection) from None
        finally:
            self._drain()

    def unwrap(self) -> None:
        """Say goodbye; complete once the other side has said it, too."""
        self._feed()
        try:
            done = self._connection.shutdown() or self._connection.shutdown()
        except SSL.ZeroReturnError:
            done = True
        except SSL.Error as error:
            raise _as_ssl(error, self._connection) from None
        finally:
            self._drain()
        if not done:
            raise ssl.SSLWantReadError

    def pending(self) -> int:
        """Return how many bytes can be read; uvloop reads on only while this, or the incoming buffer, is not 0."""
        return self._connection.pending() or int(self._may_hold_records)

    def getpeercert(self, binary_form: bool = False) -> dict[str, str] | bytes | None:
        """Return the certificate as DER; the dictionary of ``ssl.SSLObject`` is not made."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return None
        return certificate.public_bytes(serialization.Encoding.DER) if binary_form else {}

    def cipher(self) -> tuple[str, str, int] | None:
        name, version, bits = (
            self._connection.get_cipher_name(),
            self._connection.get_cipher_version(),
            self._connection.get_cipher_bits(),
        )
        return None if name is None or version is None or bits is None else (name, version, bits)

    def compression(self) -> None:
        """There is none."""

    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    def _feed(self) -> None:
        if self._incoming.pending:
            self._connection.bio_write(self._incoming.read())
            self._may_hold_records = True

    def _drain(self) -> None:
        """Hand on what is to be sent, also where the call failed: an alert is the answer to a bad certificate."""
        try:
            while True:
                records = self._connection.bio_read(_READ_BYTES)
                self._outgoing.write(records)
                if len(records) < _READ_BYTES:
                    return
        except SSL.WantReadError:
            return


def _judge(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """Overrule OpenSSL's verdict of the purpose by ``is_for_tls``; note why a certificate is refused."""
    if ok or (error == _INVALID_PURPOSE and is_for_tls(_usages(certificate.to_cryptography()))):
        return True
    text = crypto.X509StoreContextError(_ERRORS.get(error, f"OpenSSL error {error}"), [error, depth], certificate)
    connection.set_app_data(str(text))
    return False


_ERRORS: Final = {  # openssl verify(1), "Diagnostics"
    9: "it is not yet valid",
    10: "it has expired",
    18: "it is self-signed and not trusted",
    19: "its chain ends in a root that is not trusted",
    20: "it was not issued by a trusted CA, or its chain is incomplete",
    21: "it was not issued by a trusted CA, or its chain is incomplete",
    23: "it is revoked",
    24: "it was issued by a certificate that is none of a CA",
    _INVALID_PURPOSE: "it is meant for something other than TLS",
}


def _usages(certificate: x509.Certificate) -> Iterable[x509.ObjectIdentifier] | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    except ValueError:  # extensions that cannot be parsed
        return ()


def _as_ssl(error: SSL.Error, connection: SSL.Connection) -> ssl.SSLError:
    """Return the exception that ``ssl`` raises in the same place."""
    if isinstance(error, SSL.WantReadError):
        return ssl.SSLWantReadError()
    if isinstance(error, SSL.WantWriteError):  # pragma: no cover — memory takes all
        return ssl.SSLWantWriteError()
    if isinstance(error, SSL.SysCallError):
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection was closed without a goodbye")
    refusal = connection.get_app_data()
    if refusal:
        verdict = ssl.SSLCertVerificationError(1, f"the certificate is refused: {refusal}")
        verdict.verify_message = refusal
        return verdict
    reasons = [str(entry[-1]) for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return ssl.SSLError(ssl.SSL_ERROR_SSL, "; ".join(reasons) or "TLS failed")


def _trust(context: SSL.Context, ca_file: Path | None) -> None:
    if ca_file is None:
        paths = ssl.get_default_verify_paths()  # SSL_CERT_FILE and SSL_CERT_DIR, as everywhere else
        context.load_verify_locations(paths.cafile, paths.capath)
        return
    try:
        context.load_verify_locations(str(ca_file))
    except SSL.Error:
        what = "holds no CA certificate; expected PEM text" if ca_file.is_file() else "cannot be read; correct the path"
        raise TlsFileError(f"{ca_file}: {what}") from None


def _load(context: SSL.Context, certificate: Certificate) -> None:
    chain = x509.load_pem_x509_certificates(certificate.pem)
    key = serialization.load_pem_private_key(certificate.pem, None, unsafe_skip_rsa_key_validation=True)
    try:
        context.use_certificate(chain[0])
        for issuer in chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(key)  # type: ignore[arg-type]  # of the kinds that a certificate can have
    except SSL.Error as error:
        raise TlsFileError(
            f"{certificate.files.cert_file}: OpenSSL refuses the certificate or its key: {error}; issue a new pair"
        ) from None
