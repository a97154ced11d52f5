"""Tests of the reasons: which end counts as orderly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexus.protocol.reasons import OutboundRefusal, Reason, is_clean

PROTOCOL_PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (.+) \| \d \|$", re.MULTILINE)


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
    """The set of the original without ``pause_violated``, which it never sends, ``reset`` and ``no_backend``."""
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
        "no_backend",
    }


def test_refusals_are_those_of_the_protocol_page() -> None:
    """Other programs compare whole texts; the names are labels of a metric."""
    documented = ROW.findall(PROTOCOL_PAGE.read_text())
    assert documented == [(refusal.name.lower(), refusal.value) for refusal in OutboundRefusal]
