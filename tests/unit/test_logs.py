"""nexus.logs: one line a record, whatever a stranger wrote into it."""

from __future__ import annotations

import io
import json
import logging
import sys
import time

import pytest

from nexus.logs import LogFormat, configure

HOSTILE = "bye\n2026-01-01 ERROR nexus: forged\x1b[2J\x9b31m\u2028end\x7f"
_log = logging.getLogger("nexus.test")


def logged(level: str, fmt: LogFormat, text: str = "%s says %d", *args: object) -> str:
    """Log one record at INFO and return what was written."""
    stream = io.StringIO()
    configure(level, fmt, stream)
    _log.info(text, *(args or ("it", 7)))
    return stream.getvalue()


def test_text_is_one_line_with_time_level_and_origin() -> None:
    """In this order."""
    line = logged("info", "text")
    assert line.endswith(" INFO    nexus.test: it says 7\n")
    assert time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_json_is_one_object_a_line() -> None:
    """With the time in UTC (RFC 3339)."""
    line = logged("info", "json")
    record = json.loads(line)
    assert line.count("\n") == 1
    assert {key: record[key] for key in ("level", "logger", "message")} == {
        "level": "info",
        "logger": "nexus.test",
        "message": "it says 7",
    }
    assert time.strptime(record["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert record["time"].endswith("Z")


@pytest.mark.parametrize(("fmt", "shown"), [("text", " nexus.test[2]: it"), ("json", '"worker": 2')])
def test_a_worker_is_named(fmt: LogFormat, shown: str) -> None:
    """Lines of several processes meet in one log."""
    stream = io.StringIO()
    configure("info", fmt, stream, worker=2)
    _log.info("it")
    assert shown in stream.getvalue()
    assert "worker" not in logged("info", fmt)


def test_nothing_below_the_level_is_written() -> None:
    """The configured level is the least."""
    assert logged("warning", "text") == ""


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_control_characters_never_reach_a_terminal(fmt: LogFormat) -> None:
    """Nobody writes log lines of his own or moves a cursor."""
    line = logged("info", fmt, "closed with %s", HOSTILE)
    assert line.count("\n") == 1
    assert not [character for character in line.rstrip("\n") if not character.isprintable()]
    if fmt == "json":
        assert json.loads(line)["message"] == f"closed with {HOSTILE}"


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_traceback_is_kept(fmt: LogFormat) -> None:
    """Over lines of its own in text, as one value in JSON."""
    stream = io.StringIO()
    configure("info", fmt, stream)
    try:
        int("a bug")
    except ValueError:
        _log.exception("failed")
    written = stream.getvalue()
    text = json.loads(written)["error"] if fmt == "json" else written
    assert "Traceback (most recent call last):\n" in text
    assert "ValueError: invalid literal" in text


def test_the_last_configuration_holds() -> None:
    """No record is written twice, none to a stream that is no longer wanted."""
    first = io.StringIO()
    configure("debug", "json", first)
    assert logged("info", "text").count("\n") == 1
    assert first.getvalue() == ""
    assert not logging.getLogger("nexus").propagate


@pytest.mark.parametrize(
    ("level", "expected"), [("debug", logging.WARNING), ("info", logging.WARNING), ("error", logging.ERROR)]
)
def test_the_websocket_library_never_tells_of_frames(level: str, expected: int) -> None:
    """At DEBUG it would log tokens."""
    configure(level, "text", sys.stderr)
    assert logging.getLogger("nexus.websocket").getEffectiveLevel() == expected


def test_complaints_of_the_event_loop_are_shown_too() -> None:
    """In the same format."""
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("asyncio").error("a callback failed")
    assert json.loads(stream.getvalue())["logger"] == "asyncio"
