"""What this node shows other nodes, and whom it takes for one: the certificates and the trust of its links."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from nexus.config.model import NodeConfig
from nexus.errors import TlsFileError
from nexus.mesh.trust import NOBODY, PeerIdentity, identity_of, refusal_of
from nexus.tls.certificates import Certificate
from nexus.tls.contexts import WebContext
from nexus.tls.mutual import MutualContext

_log = logging.getLogger("nexus.mesh")


class PeerCredentials:
    """``nexus.mesh.links.Credentials`` of a node: new handshakes use the certificate that is in service then."""

    def __init__(self, config: NodeConfig, certificate: Callable[[], Certificate | None]) -> None:
        """Read ``peerCAFile``.

        Raises:
            TlsFileError: it cannot be used.
        """
        self._certificate = certificate
        self._ca_file = Path(config.peer_ca_file) if config.peer_ca_file else None
        self._suffixes = config.peer_authentication.trusted_domain_suffixes
        self._loose = config.peer_authentication.suffix_matching == "loose"
        self._dialling = WebContext(certificate, self._ca_file)
        self._shown = certificate()
        self._accepting = MutualContext(self._shown, self._ca_file)

    def server_context(self) -> ssl.SSLContext:
        """Return the context that accepts nodes."""
        certificate = self._certificate()
        if certificate is not self._shown:
            try:
                self._accepting = MutualContext(certificate, self._ca_file)
            except TlsFileError as error:
                _log.error("%s (the old one stays in use towards nodes)", error)
            self._shown = certificate
        return self._accepting

    def client_context(self) -> ssl.SSLContext:
        """Return the context that dials nodes.

        Raises:
            TlsFileError: there is no certificate to show yet.
        """
        if self._certificate() is None:
            raise TlsFileError("this node has no certificate yet")
        return self._dialling()

    def identity(self, transport: asyncio.BaseTransport) -> PeerIdentity:
        """Return who is at the other end."""
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(True) if tls is not None else None
        return identity_of(certificate) if certificate else NOBODY

    def covers(self, name: str) -> bool:
        """Tell whether a node of this name may be a peer."""
        return not self.refusal(PeerIdentity((name,)))

    def refusal(self, identity: PeerIdentity) -> str:
        """Return why a node that dialled may not be a peer."""
        return refusal_of(identity, self._suffixes, loose=self._loose)
