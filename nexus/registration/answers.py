"""What an orchestrator's answer means, and how long to wait before it is asked again. Times are seconds.

Sources: spec node-and-mesh 11; weak point W25; RFC 9110 sections 10.2.3 (Retry-After), 15.4 (redirects).
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

from nexus.masking import mask_echo

INTERVAL_MIN_S: Final = 5.0  # original
INTERVAL_MAX_S: Final = 86_400.0  # ours: a day; an orchestrator that says more has made a mistake
RETRY_FIRST_S: Final = 5.0  # original
RETRY_MAX_S: Final = 120.0  # original
RETRY_JITTER: Final = 0.2  # original: either way
# Ours: the original gives up for good. Whoever corrects the orchestrator need not restart every node.
REFUSED_S: Final = 600.0
RETRY_AFTER_MAX_S: Final = 3600.0  # ours
BODY_SHOWN_CHARACTERS: Final = 120
_DOUBLINGS_MAX: Final = 16

_OK, _TOO_MANY = 200, 429
_REFUSALS: Final = frozenset({400, 401})  # those that end the original's heartbeats; it takes 403 for a failure
_FORBIDDEN: Final = 403
_REDIRECTS: Final = frozenset({307, 308})  # those that repeat a POST


class Verdict(enum.Enum):
    """What became of one registration."""

    REGISTERED = "registered"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: ``wait_s`` is what the orchestrator asks for, None where it asks for nothing.

    ``why``, with the mend, is the same for all failures of a kind; ``said`` is what the orchestrator wrote of this one.
    """

    verdict: Verdict
    wait_s: float | None = None
    why: str = ""
    said: str = ""


def judge(status: int, body: bytes, retry_after: str, now: float, asked: Iterable[str]) -> Outcome:
    """Return what an answer means. Never raises.

    ``now`` in unix seconds is for a date in ``retry_after``; ``asked`` are the URLs whose secrets ``body`` may repeat.
    """
    if status == _OK:
        interval_s = _interval_s(body)
        if interval_s is None:
            return Outcome(Verdict.FAILED, why="it answered 200 without a JSON object; check registrationURL")
        return Outcome(Verdict.REGISTERED, max(interval_s, INTERVAL_MIN_S))
    said = _shown(body, asked)
    if status in _REFUSALS:
        return Outcome(Verdict.REFUSED, None, f"it refuses this node with HTTP {status}; {_mend(status)}", said)
    wait_s = _retry_after_s(retry_after, now) if status in (_TOO_MANY, 503) else None
    return Outcome(Verdict.FAILED, wait_s, f"it answered HTTP {status}; {_mend(status)}", said)


def _mend(status: int) -> str:
    """Return what an operator may do about an answer."""
    if status in _REFUSALS or status == _FORBIDDEN:
        return "see what it expects of region, ports and the node's certificate"
    if 300 <= status < 400:
        return "a redirect that loses the request or its secrecy; write in registrationURL where it leads, with https"
    return "see its own log"


def redirected(status: int, location: str, url: str) -> str:
    """Return where an answer sends a POST, "" where it sends it nowhere, or nowhere encrypted."""
    if status not in _REDIRECTS or not location:
        return ""
    try:
        target = urljoin(url, location)
        return target if urlsplit(target).scheme == "https" and urlsplit(target).hostname else ""
    except ValueError:
        return ""


def wait_after(outcome: Outcome, failures: int, random: float) -> float:
    """Return how long to wait behind the ``failures``-th failure in a row (0: none), with ``random`` from [0, 1)."""
    if outcome.verdict is Verdict.REGISTERED:
        return outcome.wait_s or INTERVAL_MIN_S
    if outcome.wait_s is not None:
        return outcome.wait_s
    jitter = 1 + RETRY_JITTER * (2 * random - 1)
    if outcome.verdict is Verdict.REFUSED:
        return REFUSED_S * jitter
    doublings = min(max(failures - 1, 0), _DOUBLINGS_MAX)
    return min(RETRY_FIRST_S * 2.0**doublings, RETRY_MAX_S) * jitter


def _interval_s(body: bytes) -> float | None:
    """Return the seconds that an answer asks for, 0 for none, None where it is no JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    found = document.get("heartbeat_interval")
    if (
        not isinstance(found, int | float)
        or isinstance(found, bool)
        or (isinstance(found, float) and math.isnan(found))
    ):
        return 0.0
    return float(max(0, min(found, INTERVAL_MAX_S)))  # Python's integers may be longer than a float can be, either way


def _retry_after_s(text: str, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` asks for, as a number or a date; None where it asks for none."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, RETRY_AFTER_MAX_S) if seconds > 0 else None


def _shown(body: bytes, asked: Iterable[str]) -> str:
    """Return the beginning of an answer as one printable line without secrets, "" where it says nothing."""
    text = body.decode("utf-8", "replace")
    for url in asked:
        text = mask_echo(text, url)
    text = text[: 4 * BODY_SHOWN_CHARACTERS]
    line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()
    return line[:BODY_SHOWN_CHARACTERS]
