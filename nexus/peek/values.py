"""What both readers share: their shape of bytes, their answers, and what a host name may look like.

Strategy: a client chooses every byte that is read here, and the name it gives is looked up among route keys. So a
name is taken from the wire only when it is written like one in the DNS: ASCII labels of letters, digits, hyphens and
underscores, joined by single dots, within the DNS's lengths. A colon is never among them, hence no client can name a
port key (``tcp:25``); neither are ``*``, ``/``, ``%``, NUL, white space and bytes above 127, hence no later mapping,
folding or printing of the name can make another name of it.

Underscores and hyphens at the edge of a label are let through: they are refused by the rules for registered host
names only, occur in private zones, and are harmless.
"""

from __future__ import annotations

import enum
import re
from typing import Final

Buffer = bytes | bytearray | memoryview
"""Bytes as they lie in a connection's buffer; a memoryview must be contiguous and of format ``B``."""

NAME_MAX_BYTES: Final = 253  # RFC 1035 2.3.4: 255 octets on the wire, which is 253 written with dots
LABEL_MAX_BYTES: Final = 63  # RFC 1035 2.3.4

_NAME: Final = re.compile(rb"(?:[A-Za-z0-9_-]{1,%d}(?:\.(?!\Z)|\Z))+" % LABEL_MAX_BYTES)


class PeekStatus(enum.Enum):
    """Why there is no answer: every reader gives one of these or its value, and never raises."""

    NEED_MORE = "need_more"
    """All that was seen fits; call again with the same bytes and those that follow."""
    NOT_THIS = "not_this"
    """Whatever follows, these bytes are not what the reader reads; asking again is pointless."""
    TOO_LARGE = "too_large"
    """It may be what the reader reads but exceeds the bytes or pieces allowed; asking again is pointless."""


def read_dns_name(raw: bytes) -> str | None:
    """Return ``raw`` in lower case if it is written like a DNS name without a trailing dot, else None.

    IPv4 addresses are written like names and pass. Source: RFC 1035 sections 2.3.1 and 2.3.4.
    """
    if len(raw) > NAME_MAX_BYTES or _NAME.fullmatch(raw) is None:
        return None
    return raw.decode("ascii").lower()
