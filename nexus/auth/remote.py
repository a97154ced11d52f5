"""The remote verifier: a web service that judges tokens in the place of this node's keys.

Strategy: the token is posted, the answer judged by ``nexus.auth.verdict``. The time for everything together is the
original's 10 s, also where many tokens wait for one of the few requests that may be under way. What a backend is told
never says more than that verdict; the rest goes to the log, a few lines at a time, and is counted.

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
VERIFICATIONS_MAX: Final = 16  # ours: under way at once; half of the web client's connections

_log = logging.getLogger("nexus.auth")


class RemoteVerifier:
    """Asks the verifier at one URL."""

    def __init__(self, url: str, web: WebClient, *, timeout_s: float = VERIFY_TIMEOUT_S) -> None:
        """Ask by ``web``."""
        self._url = url
        self._web = web
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(VERIFICATIONS_MAX)
        self._lines = LineBudget()
        self.answers: Counter[str] = Counter()

    async def verify(self, token: str) -> Mapping[str, object]:
        """Return the claims of a token that the verifier accepts.

        Raises:
            VerifierDown: it cannot be reached in time, or is out of order.
            TokenUnverified: what it answered is no verdict.
            AuthError: it refuses the token.
        """
        try:
            claims = await self._ask(token)
        except VerifierDown as error:
            self._note("down", error)
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
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                answer = await self._web.post_json(
                    self._url, {"token": token}, max_bytes=VERDICT_MAX_BYTES, timeout_s=self._timeout_s
                )
        except TimeoutError:
            raise VerifierDown(f"the verifier did not answer within {self._timeout_s:g} s") from None
        except WebError as error:
            raise (TokenUnverified if error.answered else VerifierDown)(f"the verifier: {error}") from None
        return parse_verdict(answer.status, answer.body)

    def _note(self, what: str, error: TokenUnverified) -> None:
        self.answers[what] += 1
        level = logging.WARNING if self._lines.admit(asyncio.get_running_loop().time()) else logging.DEBUG
        _log.log(level, "remoteVerifierURL: %s", error.detail)
