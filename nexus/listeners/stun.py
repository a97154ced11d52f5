"""The STUN server: tells whoever asks by UDP from which address and port the question came.

Strategy: one datagram in, at most one out, straight from the event loop's readiness callback. The answer leaves from
the address that was asked. A forged source address would make the node send to somebody else, so what one source and
what all together get in a second is bounded: forging gains nobody more than a trickle.

Sources: RFC 8489 sections 6.3.1, 16.2.3 (reflection); spec node-and-mesh 12; weak point W20.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Final

from nexus.limits import RateLimit
from nexus.listeners.origin import ANCILLARY_BYTES, ask_for_origin, origin_of, reply_from
from nexus.listeners.stun_messages import binding_success, transaction_of
from nexus.sockets import source_key

_log = logging.getLogger("nexus.listeners")

DATAGRAM_MAX_BYTES: Final = 1500  # original
BATCH_DATAGRAMS: Final = 64  # as on other UDP ports
# Ours. A client asks a few times when it starts (RFC 8489 6.2.1: seven tries in 40 s), a household behind one address
# has some; 20 answers are 1,040 octets a second at most towards whoever did not ask.
ANSWERS_PER_SOURCE_S: Final = 20.0
ANSWERS_S: Final = 5000.0


class StunServer:
    """All sockets of ``stunPort``."""

    def __init__(self) -> None:
        """Start without sockets."""
        self.requests: Counter[str] = Counter()
        self._rate = RateLimit(ANSWERS_S, ANSWERS_PER_SOURCE_S)
        self._sockets: list[socket.socket] = []

    def listen(self, sockets: Iterable[socket.socket]) -> None:
        """Start to read bound sockets; their owner closes them behind ``close``."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            ask_for_origin(sock)
            loop.add_reader(sock.fileno(), self._readable, sock)
            self._sockets.append(sock)

    def close(self) -> None:
        """Answer nobody any more."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        self._sockets.clear()

    def _readable(self, sock: socket.socket) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(BATCH_DATAGRAMS):
            try:
                datagram, ancillary, _, client = sock.recvmsg(DATAGRAM_MAX_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # of one datagram that went out before; the socket lives on
                _log.debug("STUN: %s", error)
                continue
            self.requests[self._answer(sock, datagram, origin_of(ancillary), client, now)] += 1

    def _answer(self, sock: socket.socket, datagram: bytes, local: bytes, client: tuple[str, int], now: float) -> str:
        """Answer one datagram, or drop it in silence; return what became of it."""
        transaction = transaction_of(datagram)
        if transaction is None or client[1] == 0:
            return "ignored"
        if not self._rate.admit(source_key(client[0]), now):
            return "limited"
        try:
            sock.sendmsg((binding_success(transaction, client[0], client[1]),), reply_from(local), 0, client)
        except OSError:  # no route, a firewall, or a socket that is full
            return "unsent"
        return "answered"
