"""backend_client.events: the words of a client's life."""

from __future__ import annotations

import dataclasses

import pytest

from backend_client.events import Event, EventKind, Stats


def test_kinds_are_their_own_words() -> None:
    """They go into logs and JSON as they are."""
    assert {kind: str(kind) for kind in EventKind} == {kind: kind.name.lower() for kind in EventKind}


def test_an_event_is_a_value() -> None:
    """It may be kept and passed on; what does not apply is empty."""
    event = Event(EventKind.CONNECTED, "wss://hub")
    assert (event.detail, event.retry_s) == ("", 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.detail = "changed"  # type: ignore[misc]


def test_figures_are_a_snapshot() -> None:
    """They do not change behind one's back."""
    stats = Stats(True, 1, 2, 3, 4, 5, 6, 7, 8.0, "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.streams = 9  # type: ignore[misc]
