"""Tests of the reasons: which end counts as orderly."""

from __future__ import annotations

import pytest

from nexus.protocol.reasons import Reason, is_clean


@pytest.mark.parametrize("reason", ["", "normal", Reason.NORMAL])
def test_no_reason_and_normal_are_clean(reason: str) -> None:
    """An original hub never gives a reason, so none cannot mean a failure."""
    assert is_clean(reason)


@pytest.mark.parametrize(
    "reason", [*(reason for reason in Reason if reason is not Reason.NORMAL), "pause_violated", "Normal", "x" * 99]
)
def test_everything_else_is_not(reason: str) -> None:
    """Any string is legal on the wire, and an unknown one is no orderly end."""
    assert not is_clean(reason)


def test_reasons_are_their_wire_text() -> None:
    """The set of the original without ``pause_violated``, which it never sends, and ``reset``."""
    assert {str(reason) for reason in Reason} == {
        "normal",
        "buffer_full",
        "dial_failed",
        "timeout",
        "local_error",
        "shutdown",
        "session_ended",
        "unknown",
        "reset",
    }
