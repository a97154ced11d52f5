"""Registers the node with an orchestrator, and repeats it as a heartbeat for as long as the node runs.

Source: spec node-and-mesh 11: one request for both, with the hub's certificate as the node's identity.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nexus.errors import WebError
from nexus.masking import mask_url
from nexus.registration.answers import Outcome, Verdict, judge, redirected, wait_after
from nexus.web import WebClient

_log = logging.getLogger("nexus.registration")

REQUEST_TIMEOUT_S: Final = 15.0  # original
ANSWER_MAX_BYTES: Final = 4096  # original
REDIRECTS_MAX: Final = 3  # ours
_IDENTITY_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Registration:
    """What an orchestrator is told, and where; ``stun_port`` 0 and an empty ``region`` are left out."""

    url: str
    backend_port: int
    region: str = ""
    stun_port: int = 0

    def document(self) -> dict[str, object]:
        """Return the body of the request."""
        told: dict[str, object] = {"region": self.region} if self.region else {}
        told["backendPort"] = self.backend_port
        if self.stun_port:
            told["services"] = {"stunPort": self.stun_port}
        return told


class Heartbeat:
    """Asks until cancelled."""

    def __init__(self, registration: Registration, web: WebClient, has_identity: Callable[[], bool]) -> None:
        """Ask through ``web``, once ``has_identity`` says that there is a certificate to show."""
        self.outcomes: Counter[str] = Counter()
        self.registered_at: float | None = None  # unix seconds
        self.next_at: float | None = None  # unix seconds; None before the first
        self.failures = 0  # since the orchestrator last took the node
        self.problem = ""  # of the last registration, "" where it succeeded
        self._registration = registration
        self._web = web
        self._has_identity = has_identity
        self._why = ""
        self._shown_url = mask_url(registration.url)

    async def run(self) -> None:
        """Register, and repeat it."""
        rng = random.Random()  # noqa: S311 — spreads load, guards nothing
        while not self._has_identity():  # noqa: ASYNC110 — a certificate is looked for every few seconds, too
            await asyncio.sleep(_IDENTITY_POLL_S)
        while True:
            outcome = await self._ask()
            self._note(outcome)
            wait_s = wait_after(outcome, self.failures, rng.random())
            self.next_at = time.time() + wait_s
            await asyncio.sleep(wait_s)

    async def _ask(self) -> Outcome:
        url = self._registration.url
        asked: list[str] = []
        try:
            for _ in range(REDIRECTS_MAX + 1):
                asked.append(url)
                answer = await self._web.post_json(
                    url,
                    self._registration.document(),
                    max_bytes=ANSWER_MAX_BYTES,
                    timeout_s=REQUEST_TIMEOUT_S,
                    is_cut=True,  # an error page may be long, and its status counts all the same
                )
                target = redirected(answer.status, answer.location, url)
                if not target:
                    return judge(answer.status, answer.body, answer.retry_after, time.time(), asked)
                url = target
        except WebError as error:
            end = f"redirected to {mask_url(url)}: " if len(asked) > 1 else ""
            return Outcome(Verdict.FAILED, why=f"{end}{error}; check the URL, and that this machine may connect there")
        return Outcome(Verdict.FAILED, why=f"it redirects more than {REDIRECTS_MAX} times; correct registrationURL")

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[outcome.verdict.value] += 1
        if outcome.verdict is Verdict.REGISTERED:
            if self.registered_at is None or self.failures:
                _log.info("registered with %s", self._shown_url)
            self.registered_at, self.failures, self._why, self.problem = time.time(), 0, "", ""
            return
        self.failures += 1
        level = logging.DEBUG if outcome.why == self._why else logging.WARNING
        self._why = outcome.why
        said = f"; it said: {outcome.said}" if outcome.said else ""
        self.problem = f"{self._shown_url}: not registered: {outcome.why}{said}"
        _log.log(level, "%s", self.problem)
