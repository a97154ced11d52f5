"""Runs the command line in this process, through its real entry point, and keeps the two streams apart."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from cli.main import main
from cli.scene import Report, SeenCertificate

GOOD_REPORT = Report(
    hub="127.0.0.1:1",
    backend="127.0.0.1:2",
    hostname="app.nexus.test",
    port=3,
    direct_port=4,
    ca_file="/demo/ca.pem",
    status=200,
    ms=1.5,
    direct_ms=1.0,
    tunnelled=True,
    tls_version="TLSv1.3",
    certificate=SeenCertificate("CN=app.nexus.test", "CN=demo CA", "00ff"),
    sees_backend=True,
    sees_node=False,
    bytes_to_backend=700,
    bytes_to_client=1700,
    unknown_hostname="unknown.nexus.test",
    unknown_outcome="TLS: TLSV1_UNRECOGNIZED_NAME",
    unknown_refused=True,
)
"""What a demo reports when all went well."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        """Return the JSON document on stdout."""
        document = json.loads(self.stdout)
        assert isinstance(document, dict)
        return document


def nexus(*args: str, stdin: str | bytes | None = None, env: Mapping[str, str] | None = None) -> Outcome:
    """Run ``nexus`` with ``args``; ``env`` is added to the environment, which is wide and free of our variables."""
    settings: dict[str, str | None] = {"COLUMNS": "200", "NO_COLOR": "1", "NEXUS_BACKENDS_JWT_SECRET": None}
    runner = CliRunner(env={**settings, **(env or {})})
    with logging_restored(), runner.isolation(input=stdin) as (stdout, stderr, _):
        code = _exit_code(args)
        sys.stdout.flush()
        sys.stderr.flush()
        return Outcome(code, stdout.getvalue().decode(), stderr.getvalue().decode())


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Undo what a command does to the loggers of this process, whose streams are gone with it."""
    loggers = [logging.getLogger(name) for name in ("nexus", "asyncio", "nexus.websocket")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate


def _exit_code(args: tuple[str, ...]) -> int:
    try:
        main(args)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
