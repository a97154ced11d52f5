"""TLS contexts: the hub's, that of those who dial it, and a certificate that is renewed under a running hub.

Both ends speak TLS 1.2 or newer and ``http/1.1`` only: the hub protocol is an HTTP/1.1 upgrade, and a side that
agreed on ``h2`` could not make it. Neither context honours ``SSLKEYLOGFILE``: session keys go to no file.
Sources: spec backend-protocol 1; RFC 7301; RFC 8996 (no TLS before 1.2).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from nexus.errors import TlsFileError
from nexus.files import FileSignature, file_signature
from nexus.tls.certificates import Certificate, CertificateFiles, load_into, load_pem_into, read_certificate

ALPN = ("http/1.1",)
"""The only application protocol: RFC 6455 upgrades HTTP/1.1 (spec backend-protocol 1, ALPN hazard)."""

WATCH_INTERVAL_S = 60.0
"""Seconds between two looks at the certificate files: renewals run days ahead, and a look costs two stat calls."""

_logger = logging.getLogger("nexus.tls")

_Signature = tuple[FileSignature, ...]


def context_from_pem(pem: bytes, alpn: Sequence[str]) -> ssl.SSLContext:
    """Return the context of a server with this key and chain that speaks ``alpn`` alone. Raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(alpn)
    load_pem_into(context, pem)
    return context


def hub_server_context(certificate: Certificate | None = None) -> ssl.SSLContext:
    """Return the hub's context: TLS 1.2 or newer, OpenSSL's default ciphers, no client certificate asked for.

    Without ``certificate`` every handshake fails until one is loaded. Raises TlsFileError when OpenSSL refuses the
    certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A TLS 1.2 client could otherwise make the hub redo handshakes within one connection as often as it likes.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    if certificate is not None:
        load_into(context, certificate)
    return context


def hub_client_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return the context of a program that dials a hub: verified chain, verified hostname, TLS 1.2 or newer.

    Trust is the system's; with ``ca_file`` (PEM, one or more CA certificates) it is these alone, so that no public CA
    can vouch for a hub with a private one. Raises TlsFileError when ``ca_file`` cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # sets check_hostname and CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    trust(context, ca_file)
    return context


def trust(context: ssl.SSLContext, ca_file: Path | None) -> None:
    """Have ``context`` believe the CAs of ``ca_file`` (PEM) alone, without it those of the system for servers.

    Raises TlsFileError when ``ca_file`` cannot be used.
    """
    if ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise unusable_roots(ca_file, error) from None


def unusable_roots(ca_file: Path, error: Exception) -> TlsFileError:
    """Return the error for a file of roots: what the system says of it, or that there is no certificate in it."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return TlsFileError(f"{ca_file}: cannot be read: {error.strerror}; correct the path or its owner")
    return TlsFileError(f"{ca_file}: holds no CA certificate; expected PEM text")


def identified_client_context(certificate: Certificate | None, ca_file: Path | None = None) -> ssl.SSLContext:
    """Return ``hub_client_context(ca_file)`` that shows ``certificate``, if there is one, where one is asked for.

    Raises TlsFileError when ``ca_file`` cannot be used or OpenSSL refuses the certificate.
    """
    context = hub_client_context(ca_file)
    if certificate is not None:
        load_into(context, certificate)
    return context


class CertificateSource(Protocol):
    """Where the hub's certificate comes from: files of the operator's, or a certificate authority."""

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in service, None while there is none."""

    @property
    def context(self) -> ssl.SSLContext:
        """The hub's context; another object after a renewal. Without a certificate its handshakes fail."""

    def unready(self) -> tuple[str, ...]:
        """Return why the hub cannot serve; nothing where it can."""

    def look(self) -> None:
        """Look for a new certificate at once."""

    async def watch(self, interval_s: float) -> None:
        """Follow the certificate until cancelled; what may change is looked at every ``interval_s`` seconds."""


class ReloadingCertificate:
    """A hub context whose certificate follows its files.

    ``context`` is another object after a renewal, so listeners ask for it at each handshake: new ones see the renewed
    certificate, running sessions notice nothing.

    Use from one thread only, that of the event loop. Raises TlsFileError when the pair cannot
    be used at the start; later a bad pair keeps the old one in service.
    """

    def __init__(self, files: CertificateFiles, *, clock: Callable[[], float] = time.time) -> None:
        """Load ``files``; ``clock`` tells unix seconds and is only used for warnings."""
        self.files = files
        self._clock = clock
        self._signature = _signature(files)  # before the read: a change during it shows at the next look
        self._certificate = read_certificate(files)
        self._failure = ""
        self._warned: tuple[str, ...] = ()
        self._context = hub_server_context(self._certificate)

    @property
    def certificate(self) -> Certificate:
        """The certificate in service."""
        return self._certificate

    @property
    def context(self) -> ssl.SSLContext:
        """The hub's context, with the certificate in service."""
        return self._context

    def unready(self) -> tuple[str, ...]:
        """Return why the hub cannot serve: its certificate has expired."""
        return ("the hub's certificate has expired",) if self._certificate.expires_at <= self._clock() else ()

    def reload_if_changed(self) -> bool:
        """Take over a changed pair; return whether a new one is in service now.

        A pair that cannot be used, such as one that is half written, leaves the old one in service, is tried again at
        the next call, and raises TlsFileError the first time only: the same failure again just returns False.
        """
        signature = _signature(self.files)
        if signature == self._signature:
            self._failure = ""
            return False
        try:
            self._take_over(read_certificate(self.files))
        except TlsFileError as error:
            if str(error) == self._failure:
                return False
            self._failure = str(error)
            raise
        self._signature = signature
        self._failure = ""
        return True

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look at the files now and every ``interval_s`` seconds until cancelled; a bad pair never ends it.

        Logs renewals, each failure once, and ``Certificate.warnings`` whenever they change.
        """
        while True:
            self.look()
            await asyncio.sleep(interval_s)

    def look(self) -> None:
        """Look at the files once, as ``watch`` does."""
        try:
            if self.reload_if_changed():
                names = ", ".join(self._certificate.names) or self._certificate.subject
                _logger.info("%s: renewed, %s", self.files.cert_file, names)
        except TlsFileError as error:
            _logger.error("%s (the old certificate stays in service)", error)  # noqa: TRY400 — it names file and mend
        warnings = self._certificate.warnings(self._clock())
        if warnings != self._warned:
            self._warned = warnings
            for warning in warnings:
                _logger.warning("%s", warning)

    def _take_over(self, certificate: Certificate) -> None:
        # A new context, not a new pair in the old one: OpenSSL keeps one pair per kind of key and has no call to drop
        # one, so next to a new RSA pair an old ECDSA pair would go on being served until it expires.
        self._context = hub_server_context(certificate)
        self._certificate = certificate


class FollowingContext:
    """A context made from the certificate in service: calling it returns that of now, another one after a renewal.

    A certificate that cannot be loaded leaves the last one in use and is logged once. Use from one thread only.
    """

    def __init__(
        self,
        certificate: Callable[[], Certificate | None],
        make: Callable[[Certificate | None], ssl.SSLContext],
        others: str,
    ) -> None:
        """Make the first one, of the certificate that is in service now, if there is one; raises what ``make`` raises.

        ``others`` names those at the other end in a log line.
        """
        self._certificate = certificate
        self._make = make
        self._others = others
        self._shown = certificate()
        self._context = make(self._shown)

    def __call__(self) -> ssl.SSLContext:
        """Return the context of now."""
        certificate = self._certificate()
        if certificate is not self._shown and certificate is not None:
            try:
                self._context = self._make(certificate)
            except TlsFileError as error:
                _logger.error("%s (the old one stays in use towards %s)", error, self._others)  # noqa: TRY400
            self._shown = certificate
        return self._context


class WebContext:
    """The context in which a node asks web servers: its own certificate is shown where one is asked for.

    Roots are the system's, or with ``ca_file`` those alone. The certificate is that in service when a request is made,
    None while there is none.
    """

    def __init__(self, certificate: Callable[[], Certificate | None], ca_file: Path | None = None) -> None:
        """Read ``ca_file``; raises TlsFileError when it, or the certificate, cannot be used."""
        self._context = FollowingContext(
            certificate, lambda shown: identified_client_context(shown, ca_file), "web servers"
        )

    def __call__(self) -> ssl.SSLContext:
        """Return the context of now."""
        return self._context()


def _signature(files: CertificateFiles) -> _Signature:
    return tuple(file_signature(path) for path in (files.cert_file, files.key_file))
