"""``nexus client``: the backend client."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from backend_client.service import programs_of, run_clients
from cli import render
from cli.client_checks import check_client
from cli.events import log_event
from cli.options import EPILOG, LogFormat, LogLevel
from nexus import logs

app = typer.Typer(no_args_is_help=True, help="Connect services of this machine or network to a node.", epilog=EPILOG)


@app.callback()
def client() -> None:
    """Connect services of this machine or network to a node."""


@app.command(epilog=EPILOG)
def run(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The client's configuration file.")],
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Run the backends of a file until SIGINT or SIGTERM, then let their streams end. Logs go to stderr."""
    file, warnings = check_client(config)
    for warning in warnings:
        render.warn(warning)
    logs.configure(log_level, log_format, sys.stderr)
    run_clients(lambda: programs_of(file, log_event))
