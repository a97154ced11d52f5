"""The context that accepts nodes where Python's OpenSSL cannot be told to leave the purpose to us: by pyOpenSSL.

That has an OpenSSL of its own, and its verify callback, which may replace one verdict, that of the purpose
(``verdict``). The context is an ``ssl.SSLContext`` because event loops ask for one, and drives connections through
``TlsObject``. Sources: as ``nexus.tls.peer_contexts``; SSL_CTX_set_verify(3).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from nexus.errors import TlsFileError
from nexus.tls.certificates import Certificate, refused_by_openssl
from nexus.tls.contexts import ALPN, unusable_roots
from nexus.tls.tls_object import TlsObject
from nexus.tls.verdict import UNREADABLE, refusal_of

TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What TLS 1.2 may use between nodes (RFC 9325 4.2); the ciphers of TLS 1.3 are all of that kind."""

_MODE_ENABLE_PARTIAL_WRITE: Final = 1  # openssl/ssl.h; pyOpenSSL sets it and exports no name
_ALPN: Final = tuple(name.encode() for name in ALPN)


class PeerServerContext(ssl.SSLContext):
    """``accepting_context`` by pyOpenSSL, which judges the purpose during the handshake.

    Use it with event loops only, as ``loop.connect_accepted_socket(ssl=...)`` and ``loop.start_tls`` do.
    """

    def __new__(cls, certificate: Certificate | None, ca_file: Path | None = None) -> PeerServerContext:
        """Make the base, which carries the type that event loops ask for and, as it has no certificate, no traffic."""
        del certificate, ca_file
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: Certificate | None, ca_file: Path | None = None) -> None:
        """Take what ``accepting_context`` takes, and raise what it raises."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(TLS12_CIPHERS.encode())
        context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)  # one call writes all, as with ssl
        try:
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
            context.set_alpn_select_callback(_select_alpn)
        except MemoryError:  # cffi's callbacks are written at run time
            raise TlsFileError(
                "peerListenAddress: this system lets no program run memory that it wrote, which judging other nodes "
                "needs; lift MemoryDenyWriteExecute (systemd) or execmem (SELinux), or delete the key"
            ) from None
        _trust(context, ca_file)
        if certificate is not None:
            _show(context, certificate)
        self._context = context

    def wrap_bio(  # type: ignore[override]  # event loops use what TlsObject has
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> TlsObject:
        """Return the server's end of a connection between two memory buffers."""
        del server_side, server_hostname, session  # a listener's, by the loops: True, None, None
        return TlsObject(SSL.Connection(self._context, None), incoming, outgoing)


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    """Take OpenSSL's verdict, but for the purpose; an error of this callback would end as a stack trace."""
    if ok:
        return True
    try:
        refusal = refusal_of(code, certificate.to_cryptography(), depth)
    except (ValueError, x509.InvalidVersion):  # OpenSSL reads more than the library does
        refusal = UNREADABLE
    if refusal:
        connection.set_app_data(refusal)
    return not refusal


def _select_alpn(connection: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    """Agree on ours where it is offered, else on nothing, as ``ssl`` does."""
    del connection
    agreed = next((name for name in _ALPN if name in offered), None)
    return agreed or SSL.NO_OVERLAPPING_PROTOCOLS  # type: ignore[return-value]  # its type has no public name


def _trust(context: SSL.Context, ca_file: Path | None) -> None:
    if ca_file is None:
        _trust_system(context)
        return
    try:
        with ca_file.open("rb"):  # OpenSSL does not say why it cannot read a file
            context.load_verify_locations(ca_file)
    except (OSError, SSL.Error) as error:
        raise unusable_roots(ca_file, error) from None


def _trust_system(context: SSL.Context) -> None:
    """Take the roots that ``ssl`` takes on the dialling side: pyOpenSSL has an OpenSSL of its own with other paths."""
    paths = ssl.get_default_verify_paths()
    cafile = os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile)
    capath = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)  # may be a list
    context.load_verify_locations(cafile if Path(cafile).is_file() else None, capath)


def _show(context: SSL.Context, certificate: Certificate) -> None:
    leaf, *issuers = x509.load_pem_x509_certificates(certificate.chain_pem)
    key = serialization.load_pem_private_key(certificate.key_pem, None, unsafe_skip_rsa_key_validation=True)
    try:
        context.use_certificate(leaf)
        for issuer in issuers:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(key)  # type: ignore[arg-type]  # of the kinds that a certificate can have
    except SSL.Error as error:
        reason = error.args[0][0][-1] if error.args and error.args[0] else "no reason given"
        raise refused_by_openssl(certificate, reason) from None
