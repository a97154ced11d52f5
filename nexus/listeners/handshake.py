"""A TLS handshake that the node makes itself, on a connection whose first bytes were peeked: a proof, and no data.

Source: RFC 8737 section 3: the certificate authority closes once the handshake is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from nexus.link.endpoint import OnClosed, finish, reset

HANDSHAKE_TIMEOUT_S: Final = 10.0  # ours: as long as backends have for theirs


class LocalHandshake(asyncio.Protocol):
    """The server's end of a handshake; behind it the connection is closed in order."""

    def __init__(self, context: ssl.SSLContext, transport: asyncio.Transport, on_closed: OnClosed) -> None:
        """Become the protocol of ``transport``; ``on_closed`` is called once when the connection is gone."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._transport = transport
        self._on_closed = on_closed
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, lambda: reset(transport))
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Go on with the handshake."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
            with contextlib.suppress(ssl.SSLWantReadError):  # the other side's goodbye is not waited for
                self._tls.unwrap()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError:  # what remains to be sent is the alert
            self._end()
        else:
            self._end()

    def eof_received(self) -> bool:
        """Nothing more will come."""
        self._end(eof_received=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever counts it."""
        del exc
        self._timer.cancel()
        self._on_closed()

    def _end(self, *, eof_received: bool = False) -> None:
        self._timer.cancel()
        self._flush()
        finish(self._transport, eof_received=eof_received, on_closed=self._on_closed)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())
