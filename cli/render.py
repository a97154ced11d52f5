"""What commands print: data on stdout, messages on stderr, JSON with a stable schema.

Colours and layout are rich's, which honours ``NO_COLOR``, ``TERM=dumb`` and whether the stream is a terminal. Long
lines are never folded, so that paths and commands can be copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from nexus.errors import Problem

SCHEMA = 1
"""Version of every JSON document printed; it rises when a key changes its meaning or goes away (docs/cli.md)."""

_BYTES_PER_STEP = 1024
_UNITS = ("B", "KiB", "MiB", "GiB")


def show(what: RenderableType) -> None:
    """Print something rich to stdout."""
    Console(highlight=False).print(what, soft_wrap=isinstance(what, (str, Text)))


def data(text: str) -> None:
    """Print one line of data to stdout, exactly as it is."""
    typer.echo(text)


def document(content: Mapping[str, object]) -> None:
    """Print a JSON document to stdout, led by its ``schema``."""
    typer.echo(json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print a message to stderr."""
    _message(Text(text))


def warn(text: object) -> None:
    """Print a warning to stderr."""
    _message(Text.assemble(("warning", "bold yellow"), ": ", str(text)))


def fail(text: object) -> None:
    """Print what went wrong to stderr, one line per mistake."""
    for line in str(text).splitlines() or [""]:
        _message(Text.assemble(("error", "bold red"), ": ", line))


def problem_objects(problems: Iterable[Problem]) -> list[dict[str, object]]:
    """Return problems as JSON objects."""
    return [
        {"source": found.source, "line": found.line, "key": found.key, "what": found.what, "mend": found.mend}
        for found in problems
    ]


def moment(unix_s: float) -> str:
    """Return a time of day for people, in UTC; a number that is no date is shown as it is."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return str(unix_s)


def size(count: float) -> str:
    """Return a number of bytes for people: ``812 B``, ``1.5 MiB``."""
    for unit in _UNITS[:-1]:
        if count < _BYTES_PER_STEP:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= _BYTES_PER_STEP
    return f"{count:.1f} {_UNITS[-1]}"


def _message(text: Text) -> None:
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
