"""Why a stream ended, as the ``reason`` of ``disconnect`` says it; any other string is legal on the wire."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Reasons of the original, and ``reset``, which ours adds in the direction hub to backend."""

    NORMAL = "normal"
    BUFFER_FULL = "buffer_full"
    DIAL_FAILED = "dial_failed"
    TIMEOUT = "timeout"
    LOCAL_ERROR = "local_error"
    SHUTDOWN = "shutdown"
    SESSION_ENDED = "session_ended"
    UNKNOWN = "unknown"
    RESET = "reset"


# An absent reason (every ``disconnect`` of an original hub) cannot be told from a clean end.
_CLEAN: Final = frozenset({"", Reason.NORMAL})


def is_clean(reason: str) -> bool:
    """Tell whether all bytes of the stream were delivered before it ended: a FIN, else an RST, tells the far end."""
    return reason in _CLEAN
