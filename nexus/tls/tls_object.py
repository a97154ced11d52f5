"""TLS of one accepted connection by pyOpenSSL, in the shape of ``ssl.SSLObject``, for event loops to drive.

Strategy: asyncio and uvloop hand what arrives to a ``ssl.MemoryBIO``, call the object, and send what is in another.
OpenSSL's connection has memory of its own, so bytes are moved in between: in by one record at a time, out after
whatever may have produced some. One record, because both loops take ``incoming.pending`` plus ``pending()`` for all
that is left to read: uvloop stops calling ``read`` when that is 0, and both stop reading the socket when it is much.

Sources: docs.python.org, ssl.SSLObject; asyncio/sslproto.py (3.11 to 3.13); uvloop 0.23 sslproto.pyx; RFC 8446 5.1.
"""

from __future__ import annotations

import ssl
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from nexus.tls.verdict import NO_CERTIFICATE

_HEADER_BYTES: Final = 5  # RFC 8446 5.1: type, version, length in two bytes
_RECORD_DATA_MAX_BYTES: Final = 16 * 1024  # RFC 8446 5.1; OpenSSL reads no more at once, whatever room there is
_DRAIN_BYTES: Final = 4 * (_RECORD_DATA_MAX_BYTES + 256)  # what a loop writes in one go mostly leaves in one piece
_NO_CERTIFICATE: Final = "peer did not return a certificate"  # OpenSSL's words


class TlsObject:
    """The methods of ``ssl.SSLObject`` that event loops use; they raise what those raise.

    The context's verify callback may leave words of its own about a refused certificate by
    ``Connection.set_app_data``; the handshake then fails with them.
    """

    def __init__(self, connection: SSL.Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        """Accept on a connection that was made without a socket."""
        connection.set_accept_state()
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._header = b""
        self._missing_bytes = 0  # of the record whose header is in

    def do_handshake(self) -> None:
        """Go on with the handshake; raises ssl.SSLWantReadError until it is complete, ssl.SSLError where it fails."""
        while True:
            try:
                self._connection.do_handshake()
            except SSL.WantReadError:
                if not self._feed():
                    self._drain()
                    raise _want_read() from None
            except SSL.Error as error:
                self._drain()  # the alert, for loops that still send it
                raise self._translated(error) from None
            else:
                self._drain()
                return

    def read(self, length: int = 1024, buffer: bytearray | memoryview | None = None) -> int | bytes:
        """Read at most ``length`` bytes into ``buffer`` and return how many, or return them; 0 or b"" at the end."""
        wanted = min(length, _RECORD_DATA_MAX_BYTES)
        fed = not self._connection.pending() and self._feed()
        while True:
            try:
                return self._connection.recv(wanted) if buffer is None else self._connection.recv_into(buffer, wanted)
            except SSL.WantReadError:
                if fed:
                    self._drain()  # a record without data may want an answer: a key update, a refused renegotiation
                fed = self._feed()
                if not fed:
                    raise _want_read() from None
            except SSL.ZeroReturnError:
                return b"" if buffer is None else 0
            except SSL.Error as error:
                self._drain()
                raise self._translated(error) from None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt all of ``data``; return its length in bytes."""
        if not data:
            return 0  # SSL_write(3) has no empty writes
        try:
            return self._connection.send(data)
        except SSL.Error as error:
            raise self._translated(error) from None
        finally:
            self._drain()

    def unwrap(self) -> None:
        """Say that nothing more comes; raises ssl.SSLWantReadError until the other side has said so, too."""
        while True:
            try:
                # False: ours is on its way, theirs has not come; the second call looks for it.
                done = self._connection.shutdown() or self._connection.shutdown()
            except SSL.WantReadError:
                if not self._feed():
                    self._drain()
                    raise _want_read() from None
            except SSL.Error as error:
                self._drain()
                raise self._translated(error) from None
            else:
                self._drain()
                if not done:
                    raise _want_read()
                return

    def pending(self) -> int:
        """Return how many bytes are decrypted and not read."""
        return self._connection.pending()

    def getpeercert(self, binary_form: bool = False) -> dict[str, str] | bytes | None:
        """Return the other side's verified certificate as DER; the dictionary of ``ssl.SSLObject`` stays empty."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return None
        return certificate.public_bytes(Encoding.DER) if binary_form else {}

    def cipher(self) -> tuple[str | None, str | None, int | None]:
        """Return the cipher's name, its protocol, and the bits of its key."""
        connection = self._connection
        return connection.get_cipher_name(), connection.get_cipher_version(), connection.get_cipher_bits()

    def compression(self) -> None:
        """Return that there is none."""

    def version(self) -> str:
        """Return the version of TLS, such as ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    def selected_alpn_protocol(self) -> str | None:
        """Return the application protocol that was agreed on, if one was."""
        return self._connection.get_alpn_proto_negotiated().decode() or None

    def _feed(self) -> bool:
        """Hand OpenSSL what has come of the current record; tell whether that was anything."""
        incoming, connection = self._incoming, self._connection
        if not incoming.pending:
            return False
        if not self._missing_bytes:
            part = incoming.read(_HEADER_BYTES - len(self._header))
            # At once, even a part: OpenSSL tells by it that this is no TLS, instead of waiting for its "length".
            connection.bio_write(part)
            self._header += part
            if len(self._header) < _HEADER_BYTES:
                return True
            self._missing_bytes = int.from_bytes(self._header[3:], "big")
            self._header = b""
        if body := incoming.read(self._missing_bytes):
            connection.bio_write(body)
            self._missing_bytes -= len(body)
        return True

    def _drain(self) -> None:
        """Hand on what OpenSSL wants to send."""
        try:
            while True:
                records = self._connection.bio_read(_DRAIN_BYTES)
                self._outgoing.write(records)
                if len(records) < _DRAIN_BYTES:
                    return
        except SSL.WantReadError:
            return

    def _translated(self, error: SSL.Error) -> ssl.SSLError:
        """Return what ``ssl`` would raise, with words for an operator where there are any."""
        refusal = self._connection.get_app_data()
        if refusal is not None:
            return ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, refusal)
        if isinstance(error, SSL.SysCallError):
            return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection ended in the middle of TLS")
        entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
        reasons = [str(entry[-1]) for entry in entries]  # (library, function, reason)
        if _NO_CERTIFICATE in reasons:
            return ssl.SSLError(ssl.SSL_ERROR_SSL, NO_CERTIFICATE)
        return ssl.SSLError(ssl.SSL_ERROR_SSL, "; ".join(reasons) or "TLS failed without a reason")


def _want_read() -> ssl.SSLWantReadError:
    return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "more bytes are needed")
