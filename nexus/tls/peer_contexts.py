"""TLS of the links between nodes: the context that accepts nodes, and the one that dials them.

A node shows the certificate of its hub in both roles. Whoever accepts wants the other's certificate and takes one for
servers as well as one for clients; whoever dials verifies the server as every TLS client does. Names are not judged
here: the dialling side has the server's name, the accepting side leaves them to ``nexus.mesh.trust``.

Strategy of the accepting side: OpenSSL wants a certificate for clients there, and a context of Python's ``ssl`` can
neither change that purpose nor take a second look at a certificate. Two ways round that leave every other verdict as it
is: chain, dates, signatures, strength. The fast one is a context of ``ssl`` all the same, where OpenSSL can be told for
the process to leave the purpose to us (``purpose``); it is judged after the handshake (``peer_refusal``). The other is
pyOpenSSL's (``pyopenssl_context``).

Who resumes a session is refused and nothing is renegotiated, so each connection has its certificate verified once.
Sources: spec node-and-mesh 7.2, 7.3, 18.1-18.3; RFC 8446 4.4.2; RFC 9325 4.2; RFC 9525.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from nexus.tls.certificates import Certificate
from nexus.tls.contexts import FollowingContext, hub_server_context, identified_client_context, trust
from nexus.tls.links import has_aiofastnet
from nexus.tls.purpose import leave_purpose_to_us
from nexus.tls.pyopenssl_context import TLS12_CIPHERS, PeerServerContext
from nexus.tls.tls_object import TlsObject
from nexus.tls.verdict import refusal_of_chain


def accepting_context(certificate: Certificate | None, ca_file: Path | None = None) -> ssl.SSLContext:
    """Return the context of the listener for nodes: TLS 1.2 or newer, the other's certificate wanted, of either role.

    Ask ``peer_refusal`` about every connection. Without ``certificate`` every handshake fails. Roots are those of
    ``ca_file`` (PEM) alone, without it those of the system. Raises TlsFileError when OpenSSL refuses the certificate,
    when ``ca_file`` cannot be used, or when the system forbids what the verification needs.
    """
    if not (has_aiofastnet() and leave_purpose_to_us()):
        return PeerServerContext(certificate, ca_file)
    context = hub_server_context(certificate)
    context.set_ciphers(TLS12_CIPHERS)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0  # of TLS 1.3
    context.verify_mode = ssl.CERT_REQUIRED
    trust(context, ca_file)
    return context


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
