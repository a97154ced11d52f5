"""What this node shows other nodes, and whom it takes for one: the certificates and the trust of its links."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from nexus.config.model import NodeConfig
from nexus.errors import TlsFileError
from nexus.mesh.trust import NOBODY, PeerIdentity, identity_of, refusal_of
from nexus.tls.certificates import Certificate
from nexus.tls.peer_contexts import PeerContexts, peer_certificate, peer_refusal


class PeerCredentials:
    """``nexus.mesh.links.Credentials`` of a node: new handshakes use the certificate that is in service then."""

    def __init__(self, config: NodeConfig, certificate: Callable[[], Certificate | None]) -> None:
        """Read ``peerCAFile``.

        Raises:
            TlsFileError: it cannot be used.
        """
        self._certificate = certificate
        self._suffixes = config.peer_authentication.trusted_domain_suffixes
        self._loose = config.peer_authentication.suffix_matching == "loose"
        self._contexts = PeerContexts(certificate, Path(config.peer_ca_file) if config.peer_ca_file else None)

    def check(self) -> None:
        """See at the start whether this system lets nodes be accepted, with a certificate or before there is one.

        Raises:
            TlsFileError: it does not, or OpenSSL refuses the certificate.
        """
        self._contexts.accepting()

    def server_context(self) -> ssl.SSLContext:
        """Return the context that accepts nodes.

        Raises:
            TlsFileError: there is no certificate to show yet.
        """
        self._require_certificate()
        return self._contexts.accepting()

    def client_context(self) -> ssl.SSLContext:
        """Return the context that dials nodes.

        Raises:
            TlsFileError: there is no certificate to show yet.
        """
        self._require_certificate()
        return self._contexts.dialling()

    def identity(self, transport: asyncio.BaseTransport) -> PeerIdentity:
        """Return who is at the other end."""
        certificate = peer_certificate(transport)
        return identity_of(certificate) if certificate else NOBODY

    def judge(self, transport: asyncio.BaseTransport) -> tuple[PeerIdentity, str]:
        """Return who dialled and why it may not be a peer, "" where it may: what its certificate is for, its names."""
        identity = self.identity(transport)
        return identity, peer_refusal(transport) or self._refusal(identity)

    def covers(self, name: str) -> bool:
        """Tell whether a node of this name may be a peer."""
        return not self._refusal(PeerIdentity((name,)))

    def _refusal(self, identity: PeerIdentity) -> str:
        return refusal_of(identity, self._suffixes, loose=self._loose)

    def _require_certificate(self) -> None:
        if self._certificate() is None:
            raise TlsFileError("this node has no certificate yet")
