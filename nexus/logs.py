"""Logging to one stream, as lines for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Final, Literal, TextIO

LogFormat = Literal["text", "json"]
_TEXT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_ROOT: Final = "nexus"


# A backend or a client chose parts of some messages; a line break in them must not make a line of its own, nor an
# escape sequence reach a terminal.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _TextFormatter(logging.Formatter):
    """A line for people; control characters of the message are escaped, a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — the library's name
        """Return the line."""
        return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), super().formatMessage(record))


class _JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``error`` with a traceback.

    ``worker`` is the number of the process that writes it, where a node has several.
    """

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(line, ensure_ascii=False))


def configure(level: str, fmt: LogFormat, stream: TextIO, *, worker: int | None = None) -> None:
    """Send what this project logs from ``level`` (``debug`` … ``error``) on to ``stream``; the last call holds.

    ``worker`` is shown with each line.
    """
    handler = logging.StreamHandler(stream)
    text = _TEXT if worker is None else _TEXT.replace("%(name)s", f"%(name)s[{worker}]")
    handler.setFormatter(_JsonFormatter(worker) if fmt == "json" else _TextFormatter(text))
    for name in (_ROOT, "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger(_ROOT).setLevel(level.upper())
    # Every connection is told at INFO by the library; the hub tells of every session itself.
    logging.getLogger("nexus.websocket").setLevel(max(logging.getLogger(_ROOT).level, logging.WARNING))
