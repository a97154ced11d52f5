"""Events of a backend client as log lines."""

from __future__ import annotations

import logging

import pytest

from backend_client.events import Event, EventKind
from cli.events import describe, log_event

HUB = "wss://hub.example.com:8443/connect"


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_has_words(kind: EventKind) -> None:
    """A new kind of event must be given some."""
    assert describe(Event(kind, HUB))


def test_sentence_says_why_and_when_it_goes_on() -> None:
    """What an operator needs to know."""
    event = Event(EventKind.FAILED, HUB, "connection refused", 4.2)
    assert describe(event) == "cannot connect: connection refused; next attempt in 4.2 s"


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (EventKind.CONNECTED, logging.INFO),
        (EventKind.REJECTED, logging.ERROR),
        (EventKind.FAILED, logging.WARNING),
        (EventKind.STREAM_OPENED, logging.DEBUG),
    ],
)
def test_levels_follow_the_kind(caplog: pytest.LogCaptureFixture, kind: EventKind, level: int) -> None:
    """Streams only at DEBUG (design 4), refusals as errors."""
    with caplog.at_level(logging.DEBUG, logger="nexus.client"):
        log_event(Event(kind, HUB))
    assert [record.levelno for record in caplog.records] == [level]
    assert caplog.records[0].getMessage().startswith(HUB)


@pytest.mark.parametrize(("retry_s", "level"), [(0.4, logging.WARNING), (0.0, logging.INFO)])
def test_a_session_that_was_ended_on_purpose_is_no_warning(
    caplog: pytest.LogCaptureFixture, retry_s: float, level: int
) -> None:
    """One that is to be replaced was lost."""
    with caplog.at_level(logging.DEBUG, logger="nexus.client"):
        log_event(Event(EventKind.DISCONNECTED, HUB, "closed with code 1001", retry_s))
    assert [record.levelno for record in caplog.records] == [level]
