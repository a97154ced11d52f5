"""The remote verifier: a web service that judges tokens in the place of this node's keys.

Strategy: the token is posted, the answer judged by ``nexus.auth.verdict``, within the original's 10 s. Few requests may
be under way, so a token may wait for a place first. If it waits in vain nothing is known of the verifier: strangers who
send many tokens must not make it look as if it were out of reach, or they would choose the fallback. Only where nothing
but failures came back meanwhile does it count as down for those who waited as well. What a backend is told never says
more than the verdict; the rest goes to the log, a few lines at a time, and is counted.

Source: spec backend-protocol 3.5.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from nexus.auth.verdict import VERDICT_MAX_BYTES, VerifierDown, parse_verdict
from nexus.errors import AuthError, TokenUnverified, WebError
from nexus.limits import LineBudget
from nexus.web import REQUEST_TIMEOUT_S, WebClient

VERIFY_TIMEOUT_S: Final = REQUEST_TIMEOUT_S  # original
PLACE_WAIT_S: Final = VERIFY_TIMEOUT_S + 2  # ours: longer than the requests in front may take
VERIFICATIONS_MAX: Final = 16  # ours: under way at once; half of the web client's connections

_log = logging.getLogger("nexus.auth")


class VerifierBusy(TokenUnverified):
    """Other tokens had all the places; it says nothing of the verifier."""


class RemoteVerifier:
    """Asks the verifier at one URL."""

    def __init__(
        self, url: str, web: WebClient, *, timeout_s: float = VERIFY_TIMEOUT_S, place_wait_s: float = PLACE_WAIT_S
    ) -> None:
        """Ask by ``web``."""
        self._url = url
        self._web = web
        self._timeout_s = timeout_s
        self._place_wait_s = place_wait_s
        self._places = asyncio.Semaphore(VERIFICATIONS_MAX)
        self._lines = LineBudget()
        self.answers: Counter[str] = Counter()

    async def verify(self, token: str) -> Mapping[str, object]:
        """Return the claims of a token that the verifier accepts.

        Raises:
            VerifierDown: it cannot be reached in time, or is out of order.
            TokenUnverified: what it answered is no verdict, or it was not asked for want of a place.
            AuthError: it refuses the token.
        """
        try:
            claims = await self._ask(token)
        except VerifierDown as error:
            self._note("down", error)
            raise
        except VerifierBusy as error:
            self._note("busy", error)
            raise
        except TokenUnverified as error:
            self._note("no_verdict", error)
            raise
        except AuthError:
            self.answers["refused"] += 1
            raise
        self.answers["accepted"] += 1
        return claims

    async def _ask(self, token: str) -> Mapping[str, object]:
        await self._take_place()
        try:
            answer = await self._web.post_json(
                self._url, {"token": token}, max_bytes=VERDICT_MAX_BYTES, timeout_s=self._timeout_s
            )
        except WebError as error:
            raise (TokenUnverified if error.answered else VerifierDown)(f"the verifier: {error}") from None
        finally:
            self._places.release()
        return parse_verdict(answer.status, answer.body)

    async def _take_place(self) -> None:
        answered, failed = self._answered, self.answers["down"]
        try:
            async with asyncio.timeout(self._place_wait_s):
                await self._places.acquire()
        except TimeoutError:
            if self._answered == answered and self.answers["down"] > failed:
                raise VerifierDown("the verifier did not answer others either") from None
            why = f"{VERIFICATIONS_MAX} tokens were before it at the verifier for {self._place_wait_s:g} s"
            raise VerifierBusy(why) from None

    @property
    def _answered(self) -> int:
        return sum(self.answers[result] for result in ("accepted", "refused", "no_verdict"))

    def _note(self, what: str, error: TokenUnverified) -> None:
        self.answers[what] += 1
        level = logging.WARNING if self._lines.admit(asyncio.get_running_loop().time()) else logging.DEBUG
        _log.log(level, "remoteVerifierURL: %s", error.detail)
