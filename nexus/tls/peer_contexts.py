"""TLS of the links between nodes: the context that accepts nodes, and the one that dials them.

A node shows the certificate of its hub in both roles. Whoever accepts wants the other's certificate and takes one for
servers as well as one for clients; whoever dials verifies the server as every TLS client does. Names are not judged
here: the dialling side has the server's name, the accepting side leaves them to ``nexus.mesh.trust``.

Strategy of the accepting side: OpenSSL wants a certificate for clients there, and a context of Python's ``ssl`` can
neither change that purpose nor take a second look at a certificate. Two ways round that leave every other verdict as it
is: chain, dates, signatures, strength. The fast one is a context of ``ssl`` all the same, where OpenSSL can be told for
the process to leave the purpose to us (``purpose``); it is judged after the handshake (``peer_refusal``). The other is
pyOpenSSL, which has OpenSSL's verify callback; that context is an ``ssl.SSLContext`` because event loops ask for one,
and drives connections through ``TlsObject``.

No session is resumed and nothing is renegotiated, so each connection has its certificate verified once.
Sources: spec node-and-mesh 7.2, 7.3, 18.1-18.3; RFC 8446 4.4.2; RFC 9325 4.2; RFC 9525.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from nexus.errors import TlsFileError
from nexus.tls.certificates import Certificate, refused_by_openssl
from nexus.tls.contexts import (
    ALPN,
    FollowingContext,
    hub_server_context,
    identified_client_context,
    trust,
    unusable_roots,
)
from nexus.tls.links import has_aiofastnet
from nexus.tls.purpose import leave_purpose_to_us
from nexus.tls.tls_object import TlsObject
from nexus.tls.verdict import UNREADABLE, refusal_of, refusal_of_chain

_TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # RFC 9325 4.2; those of TLS 1.3 are all of that kind
_MODE_ENABLE_PARTIAL_WRITE: Final = 1  # openssl/ssl.h; pyOpenSSL sets it and exports no name
_ALPN: Final = tuple(name.encode() for name in ALPN)


def accepting_context(certificate: Certificate | None, ca_file: Path | None = None) -> ssl.SSLContext:
    """Return the context of the listener for nodes: TLS 1.2 or newer, the other's certificate wanted, of either role.

    Ask ``peer_refusal`` about every connection. Without ``certificate`` every handshake fails. Roots are those of
    ``ca_file`` (PEM) alone, without it those of the system. Raises TlsFileError when OpenSSL refuses the certificate,
    when ``ca_file`` cannot be used, or when the system forbids what the verification needs.
    """
    if not (has_aiofastnet() and leave_purpose_to_us()):
        return PeerServerContext(certificate, ca_file)
    context = hub_server_context(certificate)
    context.set_ciphers(_TLS12_CIPHERS)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0  # of TLS 1.3
    context.verify_mode = ssl.CERT_REQUIRED
    trust(context, ca_file)
    return context


class PeerServerContext(ssl.SSLContext):
    """``accepting_context`` where Python's OpenSSL cannot be told anything: by pyOpenSSL, purpose included.

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
        context.set_cipher_list(_TLS12_CIPHERS.encode())
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


class PeerContexts:
    """Both contexts of a node's links, as they are now: ``accepting()`` and ``dialling()``.

    Each returns another object after the certificate was renewed; connections that run keep theirs.
    """

    def __init__(self, certificate: Callable[[], Certificate | None], ca_file: Path | None = None) -> None:
        """Follow ``certificate``, which tells the one in service; trust ``ca_file`` alone, else the system's roots.

        Raises TlsFileError when OpenSSL refuses the certificate, or when ``ca_file`` cannot be used.
        """
        self.dialling = FollowingContext(certificate, lambda shown: identified_client_context(shown, ca_file), "nodes")
        self._certificate = certificate
        self._ca_file = ca_file
        self._accepting: FollowingContext | None = None

    def accepting(self) -> ssl.SSLContext:
        """Return the context that accepts nodes; only whoever asks for it needs what it needs.

        Raises TlsFileError when OpenSSL refuses the certificate, or the system does not let it be verified.
        """
        if self._accepting is None:
            make = accepting_context
            self._accepting = FollowingContext(self._certificate, lambda shown: make(shown, self._ca_file), "nodes")
        return self._accepting()


def peer_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """Return the verified certificate (DER) of the other side of a link whose handshake is over; None without TLS."""
    tls: ssl.SSLObject | TlsObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return None
    certificate = tls.getpeercert(True)  # as DER; ``ssl`` has named this argument differently over time
    return certificate if isinstance(certificate, bytes) else None


def peer_refusal(transport: asyncio.BaseTransport) -> str:
    """Return why whoever connected shows a certificate that is for no node, "" where it is or there is no TLS."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None or isinstance(tls, TlsObject):  # that has been judged during the handshake
        return ""
    chain: list[bytes] = tls.get_verified_chain()  # aiofastnet's
    return refusal_of_chain(chain)


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
