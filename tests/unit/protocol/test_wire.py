"""The alphabet between hub and backend; that between nodes is tested in ``test_tunnels``."""

from __future__ import annotations

import pytest

from nexus.errors import RemoteProtocolError
from nexus.protocol.messages import Control, parse_control_message
from nexus.protocol.wire import SESSION_WIRE

ID = bytes(range(16))


@pytest.mark.parametrize(
    ("message", "control"),
    [
        (SESSION_WIRE.disconnect(ID, "timeout"), Control("disconnect", ID, reason="timeout")),
        (SESSION_WIRE.credits(ID, 8), Control("resume_stream", ID, credits=8)),
        (SESSION_WIRE.pause(ID, "buffer_full"), Control("pause_stream", ID, reason="buffer_full")),
        (SESSION_WIRE.resume(ID), Control("resume_stream", ID)),
        (SESSION_WIRE.half_close(ID), Control("half_close", ID)),
    ],
)
def test_each_event_is_read_as_it_was_meant(message: bytes, control: Control) -> None:
    """By the wire's own reader."""
    assert SESSION_WIRE.parse(message) == control


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x11" + ID, b"\x02", b"\x02{", b"\x02[]"])
def test_what_is_no_control_message_is_refused(message: bytes) -> None:
    """With a reason for the log."""
    with pytest.raises(RemoteProtocolError):
        parse_control_message(message)
