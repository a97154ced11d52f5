"""How a node obtains its certificate: what of the configuration concerns the certificate authority."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nexus.acme.explain import HTTP_01, TLS_ALPN_01

DIRECTORIES: Final = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
"""Short names of directories; any other is a URL. Source: letsencrypt.org, "ACME Protocol Updates"."""


@dataclass(frozen=True, slots=True)
class ExternalAccount:
    """An account at the CA's web site: its key's identifier, and the file of the key (base64url). RFC 8555 7.3.4."""

    key_id: str
    key_file: Path


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """What is asked of whom: ``hostname`` is normalised, ``challenges`` are those that this node's ports allow."""

    hostname: str
    directory_url: str
    challenges: tuple[str, ...] = (HTTP_01, TLS_ALPN_01)
    http_port: int = 80
    tls_port: int = 443
    email: str = ""
    ca_file: Path | None = None
    key_type: str = "ecdsa-p256"
    profile: str = ""
    external_account: ExternalAccount | None = field(default=None, repr=False)

    def local_port(self, challenge: str) -> int:
        """Return the port of this node at which the CA's look arrives."""
        return self.http_port if challenge == HTTP_01 else self.tls_port

    def challenge_for(self, attempt: int) -> str:
        """Return the challenge of an attempt (from 0): the first one, and after each failure the next."""
        return self.challenges[attempt % len(self.challenges)]
