"""The words in which a stream's events travel on a link: one alphabet between hub and backend, another between nodes.

Strategy: streams, their credits and their ends are the same on every link; only the bytes of their messages differ.
A ``Wire`` is the table of these, so that a session knows nothing of JSON or of codes. All of them start with one octet
that tells data from the rest, and a data message is that octet, the 16 octets of the stream's id, and the payload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from nexus.protocol.constants import KIND_DATA, WINDOW_MAX
from nexus.protocol.messages import Control, credit_message, parse_control_message, simple_message


@dataclass(frozen=True, slots=True)
class Wire:
    """How one kind of link writes the events of streams. Every function returns a whole binary message.

    ``parse`` reads any message that is not data, and raises RemoteProtocolError for one to be dropped. A window may
    grow to ``window_max`` messages. Datagrams are credited only where the other side knows that (``grants_flows``).
    """

    data_kind: int
    parse: Callable[[bytes], Control]
    disconnect: Callable[[bytes, str], bytes]
    credits: Callable[[bytes, int], bytes]
    pause: Callable[[bytes, str], bytes]
    resume: Callable[[bytes], bytes]
    half_close: Callable[[bytes], bytes]
    window_max: int = WINDOW_MAX
    grants_flows: bool = True


SESSION_WIRE: Final = Wire(
    data_kind=KIND_DATA,
    parse=parse_control_message,
    disconnect=partial(simple_message, "disconnect"),
    credits=credit_message,
    pause=partial(simple_message, "pause_stream"),
    resume=partial(simple_message, "resume_stream"),
    half_close=partial(simple_message, "half_close"),
)
"""Between a hub and a backend: JSON after the octet 0x02 (spec backend-protocol 6)."""
