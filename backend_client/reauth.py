"""Answers the hub's re-authentication challenges in a session, while its streams flow on.

The token comes from a provider that may take long (a command, a remote service), so it is fetched in a task of its own
and nothing waits for it. There is one task at most: a newer challenge, and the end of the session, cancel it. The
protocol acknowledges no answer: a hub that refuses one closes the session.

Source: spec backend-protocol 4, 25 (W8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from backend_client.events import EventKind
from nexus.errors import TokenProviderError
from nexus.link.connection import Link

FetchToken = Callable[[str], Awaitable[str]]
"""Returns a token of the stage ``reauth`` for a nonce, or raises TokenProviderError."""

Tell = Callable[[EventKind], None]


class Reauthentication:
    """The answers to one hub, one at a time."""

    def __init__(self, tasks: asyncio.TaskGroup, fetch: FetchToken, tell: Tell) -> None:
        """Fetch tokens by ``fetch`` in ``tasks``; ``tell`` is told when one is asked for and when it is sent."""
        self._tasks = tasks
        self._fetch = fetch
        self._tell = tell
        self._answering: asyncio.Task[None] | None = None

    def challenge(self, link: Link, nonce: str) -> None:
        """Answer a challenge instead of the one before; the link is cut where there is no token."""
        self.cancel()
        self._tell(EventKind.REAUTH_STARTED)
        self._answering = self._tasks.create_task(self._answer(link, nonce))

    def cancel(self) -> None:
        """Stop answering: the session is over; idempotent."""
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None

    async def _answer(self, link: Link, nonce: str) -> None:
        try:
            token = await self._fetch(nonce)
        except TokenProviderError as error:
            link.abort(f"no token to re-authenticate with: {error}; mend the source of tokens (attestation)")
            return
        link.send_text(token)
        self._tell(EventKind.REAUTH_COMPLETED)
