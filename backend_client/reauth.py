"""Answers the hub's re-authentication challenges in a session, while its streams flow on.

The token comes from a provider that may take long (a command, a remote service), so it is fetched in a task of its own
and nothing waits for it. There is one task at most, and the end of the session cancels it. Each token may start a
program, and the hub says when: so one is fetched at a time and at most one in a second, of the challenges that come
meanwhile only the newest is kept, and a hub that sends many of them is left. The answer to a challenge that was
superseded is not sent, since the hub would take it for the answer to the newer one. The protocol acknowledges no
answer: a hub that refuses one closes the session.

Source: spec backend-protocol 4, 25 (W8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from backend_client.events import EventKind
from nexus.errors import TokenProviderError
from nexus.link.connection import Link

FetchToken = Callable[[str], Awaitable[str]]
"""Returns a token of the stage ``reauth`` for a nonce, or raises TokenProviderError."""

Tell = Callable[[EventKind], None]

FETCH_INTERVAL_S: Final = 1.0  # ours: a hub that means it asks every few seconds at most
# Ours, in a row without an answer: a hub asks again when it has its answer, or ends the session without one.
SUPERSEDED_MAX: Final = 16


class Reauthentication:
    """The answers to one hub, one at a time."""

    def __init__(self, tasks: asyncio.TaskGroup, fetch: FetchToken, tell: Tell) -> None:
        """Fetch tokens by ``fetch`` in ``tasks``; ``tell`` is told when one is asked for and when it is sent."""
        self._tasks = tasks
        self._fetch = fetch
        self._tell = tell
        self._answering: asyncio.Task[None] | None = None
        self._newest: str | None = None
        self._superseded = 0
        self._next_fetch = 0.0

    def challenge(self, link: Link, nonce: str) -> None:
        """Answer a challenge instead of the one before; the link is cut where there is no token, or no end of them."""
        if self._newest is not None:
            self._superseded += 1
            if self._superseded > SUPERSEDED_MAX:
                link.abort(f"the hub asked {self._superseded} times to re-authenticate without waiting for an answer")
                return
        self._newest = nonce
        if self._answering is None:
            self._answering = self._tasks.create_task(self._answer(link))

    def cancel(self) -> None:
        """Stop answering: the session is over; idempotent."""
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None

    async def _answer(self, link: Link) -> None:
        """Answer the newest challenge; start anew where a newer one came meanwhile."""
        loop = asyncio.get_running_loop()
        token: str | None = None
        while token is None:
            await asyncio.sleep(self._next_fetch - loop.time())
            self._next_fetch = loop.time() + FETCH_INTERVAL_S
            nonce = self._newest or ""
            self._tell(EventKind.REAUTH_STARTED)
            try:
                token = await self._fetch(nonce)
            except TokenProviderError as error:
                if nonce == self._newest:
                    link.abort(f"no token to re-authenticate with: {error}; mend the source of tokens (attestation)")
                    return
            if nonce != self._newest:
                token = None
        self._newest, self._superseded, self._answering = None, 0, None
        link.send_text(token)
        self._tell(EventKind.REAUTH_COMPLETED)
