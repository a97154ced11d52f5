"""What a backend client tells, as log lines."""

from __future__ import annotations

import logging
from typing import Final

from backend_client.events import Event, EventKind

_log = logging.getLogger("nexus.client")

_LEVELS: Final = {
    EventKind.DISCONNECTED: logging.WARNING,
    EventKind.FAILED: logging.WARNING,
    EventKind.REJECTED: logging.ERROR,
    EventKind.REAUTH_STARTED: logging.DEBUG,
    EventKind.REAUTH_COMPLETED: logging.DEBUG,
    EventKind.STREAM_OPENED: logging.DEBUG,
    EventKind.STREAM_CLOSED: logging.DEBUG,
}
_WORDS: Final = {
    EventKind.CONNECTED: "connected",
    EventKind.DISCONNECTED: "disconnected",
    EventKind.FAILED: "cannot connect",
    EventKind.REJECTED: "the hub refuses this backend",
    EventKind.REAUTH_STARTED: "asked to re-authenticate",
    EventKind.REAUTH_COMPLETED: "sent a fresh token",
    EventKind.STREAM_OPENED: "stream opened",
    EventKind.STREAM_CLOSED: "stream closed",
    EventKind.DRAINING: "draining",
    EventKind.STOPPED: "stopped",
}


def summary(event: Event) -> str:
    """Return what happened in a few words, for a status line."""
    return _WORDS[event.kind]


def describe(event: Event) -> str:
    """Return an event as a sentence without its hub: ``cannot connect: …; next attempt in 4.0 s``."""
    detail = f": {event.detail}" if event.detail else ""
    retry = f"; next attempt in {event.retry_s:.1f} s" if event.retry_s else ""
    return f"{summary(event)}{detail}{retry}"


def log_event(event: Event) -> None:
    """Log an event at the level its kind deserves; a session that ends for good was ended on purpose."""
    is_ours = event.kind is EventKind.DISCONNECTED and not event.retry_s
    level = logging.INFO if is_ours else _LEVELS.get(event.kind, logging.INFO)
    if _log.isEnabledFor(level):
        _log.log(level, "%s: %s", event.hub, describe(event))
