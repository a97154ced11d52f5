"""Why a stream ended, or was not opened, as the ``reason`` of ``disconnect`` and of ``outbound_result`` says it.

Any other string is legal on the wire.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Reasons of the original, and two of ours: ``reset`` (hub to backend), ``no_backend`` (between nodes)."""

    NORMAL = "normal"
    BUFFER_FULL = "buffer_full"
    DIAL_FAILED = "dial_failed"
    TIMEOUT = "timeout"
    LOCAL_ERROR = "local_error"
    SHUTDOWN = "shutdown"
    SESSION_ENDED = "session_ended"
    UNKNOWN = "unknown"
    RESET = "reset"
    NO_BACKEND = "no_backend"


# An absent reason (every ``disconnect`` of an original hub) cannot be told from a clean end.
_CLEAN: Final = frozenset({"", Reason.NORMAL})


def is_clean(reason: str) -> bool:
    """Tell whether all bytes of the stream were delivered before it ended: a FIN, else an RST, tells the far end."""
    return reason in _CLEAN


class OutboundRefusal(StrEnum):
    """Why a hub of ours opened no outbound connection, in words for a person; a program compares whole texts."""

    HUB = "this hub allows no outbound connections"
    TOKEN = "the token allows no outbound connections"  # noqa: S105 — words
    TARGET = "the target is not host:port"
    HUB_PORT = "this hub does not allow connections to this port"
    TOKEN_PORT = "the token does not allow connections to this port"  # noqa: S105 — words
    LIMIT = "this backend has too many outbound connections"
    ID = "the id of the connection is nil or in use"
    STOPPING = "the hub is stopping"
    PRIVATE = "the target's address is not public"
    NAME = "the target's name was not found"
    LOOKUPS = "the hub has too many names to look up"
    REFUSED = "the target refused the connection"
    UNREACHABLE = "the target is unreachable"
    TIMEOUT = "the target did not answer in time"
    FAILED = "the hub could not dial"
