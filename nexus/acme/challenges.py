"""The answers to a certificate authority's challenges for the hub's own name, on this node's public ports.

Strategy: what the CA asks for is known before it asks: a token and the answer to it, both public. On the port where
the CA looks, a request for the hub's own name with the path of challenges is answered here and never routed, known
token or not: a backend that has the hub's name must not get the hub's certificate. So is a TLS handshake for that name
that offers ``acme-tls/1`` alone. Every other name's challenges pass through to its backend.

Nodes that share a name answer for each other: what this node does not know, its peers may have told (``shared``).

Sources: RFC 8555 section 8.3 (http-01); RFC 8737 section 3 (tls-alpn-01).
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nexus.peek import Peeked
from nexus.tls.contexts import context_from_pem

HTTP_PATH: Final = "/.well-known/acme-challenge/"
ALPN_PROTOCOL: Final = "acme-tls/1"  # RFC 8737 6.2
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 6.1
_CERTIFICATE_VALID: Final = timedelta(days=1)
_OCTET_STRING: Final = b"\x04\x20"  # DER: 32 octets


@dataclass(frozen=True, slots=True)
class ChallengePorts:
    """Where the CA looks, on this node: the local ports of ``http-01`` and ``tls-alpn-01``."""

    http: int
    tls: int


class Challenges:
    """What this node answers for ``hostname`` (normalised)."""

    def __init__(self, hostname: str, ports: ChallengePorts) -> None:
        """Know no token yet."""
        self.hostname = hostname
        self.ports = ports
        self.known: dict[str, str] = {}  # token: key authorization
        self.shared: Callable[[], Mapping[str, str]] = dict  # what nodes of the same name know
        self.changed: Callable[[], None] = lambda: None

    def publish(self, token: str, key_authorization: str) -> None:
        """Answer a challenge from now on."""
        self.known[token] = key_authorization
        self.changed()

    def withdraw(self) -> None:
        """Answer this node's own challenges no more."""
        if self.known:
            self.known.clear()
            self.changed()

    def answer(self, port: int, peeked: Peeked) -> bytes | ssl.SSLContext | None:
        """Return what a client that came to ``port`` gets: an HTTP response, or TLS with a context; None: route it.

        Empty bytes close the connection.
        """
        if peeked.host is None or peeked.host.removesuffix(".") != self.hostname:
            return None
        if peeked.kind == "http":
            if port == self.ports.http and peeked.path.startswith(HTTP_PATH):
                return _response(self._find(peeked.path.removeprefix(HTTP_PATH)))
            return None
        if port == self.ports.tls and ALPN_PROTOCOL in peeked.alpn:
            return self._handshake()
        return None

    def _find(self, token: str) -> str | None:
        return self.known.get(token) or self.shared().get(token)

    def _handshake(self) -> ssl.SSLContext | bytes:
        """Prove the newest challenge: the handshake does not say which one it is about."""
        authorizations = [*self.shared().values(), *self.known.values()]
        return challenge_context(self.hostname, authorizations[-1]) if authorizations else b""


def challenge_context(hostname: str, key_authorization: str) -> ssl.SSLContext:
    """Return the context whose self-signed certificate proves ``tls-alpn-01``: it holds the authorization's digest."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    now = datetime.now(UTC)
    digest = hashlib.sha256(key_authorization.encode()).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CERTIFICATE_VALID)
        .not_valid_after(now + _CERTIFICATE_VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return context_from_pem(key_pem + certificate.public_bytes(pem), (ALPN_PROTOCOL,))


def _response(key_authorization: str | None) -> bytes:
    status = HTTPStatus.OK if key_authorization is not None else HTTPStatus.NOT_FOUND
    body = (key_authorization if key_authorization is not None else "no such challenge\n").encode("ascii")
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {'application/octet-stream' if key_authorization else 'text/plain'}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
