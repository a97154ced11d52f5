"""What a client tells about itself: events as they happen, and figures on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What happened."""

    CONNECTED = "connected"
    """The hub accepted the session."""
    DISCONNECTED = "disconnected"
    """A session that was connected ended."""
    FAILED = "failed"
    """An attempt failed; ``retry_s`` says when the next one comes."""
    REJECTED = "rejected"
    """The hub refused the token, at once or after the handshake; ``retry_s`` says when the next attempt comes."""
    REAUTH_STARTED = "reauth_started"
    """The hub asks for a fresh token in the session."""
    REAUTH_COMPLETED = "reauth_completed"
    """That token was sent. The protocol has no answer to it: a hub that refuses it ends the session (``rejected``)."""
    STREAM_OPENED = "stream_opened"
    STREAM_CLOSED = "stream_closed"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the client for one hub."""

    kind: EventKind
    hub: str
    detail: str = ""
    retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures since the client was made; ``streams`` and ``connected`` are of now."""

    connected: bool
    streams: int
    streams_total: int
    dial_failures: int
    bytes_from_hub: int
    bytes_to_hub: int
    sessions_total: int
    failures: int
    connected_for_s: float
    last_error: str
    datagrams_dropped: int = 0
    """Of UDP flows, in either direction, for whatever reason."""


EventHandler = Callable[[Event], None]
"""Called from the event loop; must not block or raise."""
