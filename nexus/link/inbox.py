"""The owner of a link during the handshake, of either role: text messages, one at a time."""

from __future__ import annotations

import asyncio
from collections import deque

from nexus.errors import NexusError, RejectedError, RemoteProtocolError
from nexus.link.connection import Link, LinkEnd
from nexus.protocol.constants import CLOSE_POLICY


class Inbox:
    """Holds the link behind each message until the next one is wanted.

    What follows a token must not be answered before the token is judged: the pong to a ping that was sent right behind
    it tells the client that it was accepted. Tell ``guard`` the link before anything can arrive.
    """

    def __init__(self) -> None:
        """Start without a link."""
        self._texts: deque[str] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: NexusError | None = None
        self._link: Link | None = None

    def guard(self, link: Link) -> None:
        """Hold ``link`` from its first text message on."""
        self._link = link

    async def next_text(self) -> str:
        """Return the next text message, letting the link go on where none is here yet.

        Raises:
            RejectedError: the other side closed with code 1008.
            RemoteProtocolError: the link ended otherwise, or binary data came.
        """
        if self._link is not None and not self._texts:
            self._link.release()
        while not self._texts:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._texts.popleft()

    def message_received(self, message: bytes) -> None:
        """Binary has no place here; what follows it must not be answered either."""
        if self._link is not None:
            self._link.hold()
        del message
        self._fail(RemoteProtocolError("a binary message came during the handshake"))

    def text_received(self, text: str) -> None:
        """Keep it, and hold the link."""
        self._texts.append(text)
        if self._link is not None:
            self._link.hold()
        self._wake()

    def pong_received(self, payload: bytes) -> None:
        """A sign of life without meaning here."""

    def writable_changed(self) -> None:
        """Nothing is queued during the handshake."""

    def link_lost(self, end: LinkEnd) -> None:
        """Fail whoever waits."""
        text = f"the connection ended during the handshake: {end}"
        self._fail(RejectedError(end.reason or text) if end.code == CLOSE_POLICY else RemoteProtocolError(text))

    def _fail(self, error: NexusError) -> None:
        self._failure = self._failure or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
