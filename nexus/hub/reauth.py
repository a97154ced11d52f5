"""Asks a session for a fresh token, again and again, while its traffic flows on; ends it where none comes.

One round: wait for the interval; where the token named a status URI, put the question off while the authorizer is down
and the maintenance cap lasts (``nexus.hub.terms`` decides); ask with a fresh nonce; verify the answer as a first token
is verified; replace the session's terms. The first text after the question is the answer; whatever goes wrong with it
ends the session, with close code 1008 and the reason.

Source: spec backend-protocol 4; docs/protocol.md section 3.3.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexus.auth.grants import Grant, Policy, check_reauth
from nexus.errors import NexusError, TokenUnverified
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Totals
from nexus.hub.terms import challenge_delay_s, deferral_s
from nexus.protocol.constants import CLOSE_POLICY
from nexus.protocol.handshake import new_nonce, serialize_reauth_challenge

if TYPE_CHECKING:
    from nexus.hub.server import VerifyToken

_log = logging.getLogger("nexus.hub")

AskStatus = Callable[[str], Awaitable[str]]
"""Asks an authorizer's status URI: returns what is wrong, in words without the URI, or "" when it is up."""


@dataclass(frozen=True, slots=True)
class Reauthenticator:
    """What re-authentication needs besides the session; one for all sessions of a hub."""

    verify: VerifyToken
    policy: Policy
    ask_status: AskStatus
    totals: Totals
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = random.SystemRandom().random

    async def watch(self, backend: BackendSession) -> None:
        """Run the rounds of one session; return when its link is gone."""
        async with asyncio.TaskGroup() as tasks:
            rounds = tasks.create_task(self.run(backend))
            await asyncio.wait([backend.session.link.lost])
            rounds.cancel()

    async def run(self, backend: BackendSession) -> None:
        """Run round after round until the grant asks for no more, or one failed and the link is closing."""
        while backend.grant.reauth_interval_s:
            await self.sleep(challenge_delay_s(backend.grant, self.draw()))
            if backend.grant.authorizer_status_uri:
                await self._wait_for_authorizer(backend)
            try:
                backend.grant = await self._renew(backend)
            except (NexusError, TimeoutError) as error:
                self.totals.reauthentications[_outcome(error)] += 1
                _log.warning("ended the session of %s: re-authentication failed: %s", backend.name, error)
                backend.session.link.close(CLOSE_POLICY, f"re-authentication failed: {error}")
                return
            self.totals.reauthentications["renewed"] += 1
            _log.debug("%s re-authenticated", backend.name)

    async def _wait_for_authorizer(self, backend: BackendSession) -> None:
        """Return once the authorizer is up, or has been down for the whole of the maintenance cap."""
        grant = backend.grant
        used_s = 0.0
        while trouble := await self.ask_status(grant.authorizer_status_uri):
            defer_s = deferral_s(grant, used_s, self.draw())
            if not defer_s:
                what = "the authorizer of %s is not up (%s) and its maintenance grace is used up: asking for a token"
                _log.warning(what, backend.name, trouble)
                return
            self.totals.reauthentications["deferred"] += 1
            what = "the authorizer of %s is not up (%s): re-authentication deferred by %.0f s, %.0f of %d s were used"
            _log.info(what, backend.name, trouble, defer_s, used_s, grant.maintenance_grace_cap_s)
            await self.sleep(defer_s)
            used_s += defer_s

    async def _renew(self, backend: BackendSession) -> Grant:
        nonce = new_nonce()
        text = await backend.ask(serialize_reauth_challenge(nonce), backend.grant.reauth_grace_s)
        return check_reauth(await self.verify(text, time.time()), backend.grant, nonce, self.policy)


def _outcome(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "unverified" if isinstance(error, TokenUnverified) else "refused"
