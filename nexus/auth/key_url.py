"""A key set that is fetched from a URL and kept fresh.

Strategy: one task fetches at the start, then whenever the last answer's ``max-age`` is over (within bounds), soon after
a failure, and when a token names a key id that nobody has, though for that no more than once in half a minute: whoever
sends tokens with invented ids must not make us ask the issuer for each. Waiting for such a fetch is the matter of that
one token; all others are judged by the last good set, which stays while the URL answers with anything but a set. A set
without a usable key is one: whoever withdraws all keys must be heard, so the old ones go, and the node is not ready.

Source: RFC 7517 section 5; RFC 9111 section 5.2.2.1 (max-age).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import Final

from nexus.auth.keys import KeySet, PublicKey, parse_key_set
from nexus.errors import ConfigError, WebError
from nexus.web import REQUEST_TIMEOUT_S, WebClient

KEY_SET_MAX_BYTES: Final = 1024 * 1024  # ours: a key is below 1 KiB
FRESH_DEFAULT_S: Final = 3600.0  # ours: where the answer does not say
FRESH_MIN_S: Final = 300.0
FRESH_MAX_S: Final = 86_400.0
RETRY_S: Final = 30.0  # ours: after a failure; then twice as long each time, up to FRESH_MIN_S
UNKNOWN_ID_PAUSE_S: Final = 30.0
KEY_NAME: Final = "backendsJWKSURL"  # in messages; a URL may hold a password
_STATUS_OK: Final = 200
_DOUBLINGS_MAX: Final = 8

_log = logging.getLogger("nexus.auth")


class KeyUrl:
    """The keys at one URL; ``run`` keeps them fresh. ``failure`` says why the last fetch failed, if it did."""

    def __init__(self, url: str, web: WebClient) -> None:
        """Fetch by ``web``; nothing is asked yet."""
        self._url = url
        self._web = web
        self._key_set = KeySet()
        self._wanted = asyncio.Event()
        self._round = asyncio.Event()  # set, and replaced, at the end of each fetch
        self._fetching = False
        self._started_at = float("-inf")
        self._failures = 0
        self.failure = ""
        self.fetches: Counter[str] = Counter()
        self.fetched_at: float | None = None

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The last good set; empty before the first, and where the issuer publishes no usable key."""
        return self._key_set.keys

    async def run(self) -> None:
        """Fetch now and whenever it is time, until cancelled."""
        while True:
            wait_s = await self.fetch()
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()

    async def renew(self) -> bool:
        """Have the set fetched because of a key id that nobody has; tell whether it is as new as it can be.

        Returns False, at once, where the last fetch began less than UNKNOWN_ID_PAUSE_S ago and is over, and where the
        fetch fails.
        """
        if not self._fetching and asyncio.get_running_loop().time() - self._started_at < UNKNOWN_ID_PAUSE_S:
            return False
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * REQUEST_TIMEOUT_S):
                await self._round.wait()
                return not self._failures
        return False

    async def fetch(self) -> float:
        """Ask once; return how many seconds the outcome is good for."""
        self._started_at = asyncio.get_running_loop().time()
        self._fetching = True
        try:
            return await self._ask()
        except (WebError, UnicodeDecodeError) as error:
            return self._failed(str(error) if isinstance(error, WebError) else "it is not UTF-8 text")
        except ConfigError as error:
            return self._failed(f"it {error.problems[0].what}")
        finally:
            self._fetching = False
            self._round.set()
            self._round = asyncio.Event()

    async def _ask(self) -> float:
        answer = await self._web.get(self._url, max_bytes=KEY_SET_MAX_BYTES)
        if answer.status != _STATUS_OK:
            return self._failed(f"it answered HTTP {answer.status} instead of 200")
        self._take(parse_key_set(answer.body.decode(), KEY_NAME, may_be_empty=True))
        if not self._key_set.keys:  # perhaps by mistake: ask again soon
            return FRESH_MIN_S
        fresh_s = FRESH_DEFAULT_S if answer.max_age_s is None else float(answer.max_age_s)
        return min(max(fresh_s, FRESH_MIN_S), FRESH_MAX_S)

    def _take(self, key_set: KeySet) -> None:
        if not key_set.keys and (self._key_set.keys or self.fetched_at is None):
            _log.error(
                "%s: the set holds no usable key: no token signed with a key of it is believed any more", KEY_NAME
            )
        elif key_set != self._key_set:
            _log.info("%s: %d keys", KEY_NAME, len(key_set.keys))
        if key_set.skipped != self._key_set.skipped:
            for what in key_set.skipped:
                _log.warning("%s: %s: skipped", KEY_NAME, what)
        self._key_set = key_set
        self._failures, self.failure = 0, ""
        self.fetched_at = time.time()
        self.fetches["ok" if key_set.keys else "empty"] += 1

    def _failed(self, why: str) -> float:
        self._failures += 1
        self.fetches["failed"] += 1
        age = "there is none yet" if self.fetched_at is None else f"it is {time.time() - self.fetched_at:.0f} s old"
        level = logging.DEBUG if why == self.failure else logging.WARNING
        self.failure = why
        _log.log(level, "%s: not fetched: %s (the last good key set stays; %s)", KEY_NAME, why, age)
        return float(min(RETRY_S * 2 ** min(self._failures - 1, _DOUBLINGS_MAX), FRESH_MIN_S))
