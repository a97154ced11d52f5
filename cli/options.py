"""Options and arguments that several commands share, and the shapes of values that options take."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from backend_client.mapping import PORT_MAX, parse_target
from nexus.auth.claims import UdpRoute
from nexus.auth.revocation import parse_moment
from nexus.errors import ConfigError, Problem
from nexus.files import MAX_FILE_BYTES, parse_text, read_file

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CONFIGURATION = 3
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

EPILOG = "Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration."

SECRET_VARIABLE = "NEXUS_BACKENDS_JWT_SECRET"  # noqa: S105 — the variable's name
STDIN = "-"

LogLevelName = Literal["debug", "info", "warning", "error"]
LogFormatName = Literal["text", "json"]

Json = Annotated[
    bool,
    typer.Option("--json", envvar="NEXUS_JSON", help="Print JSON on stdout; its schema is documented in docs/cli.md."),
]
LogLevel = Annotated[
    LogLevelName, typer.Option("--log-level", envvar="NEXUS_LOG_LEVEL", help="Least severe level that is logged.")
]
LogFormat = Annotated[
    LogFormatName, typer.Option("--log-format", envvar="NEXUS_LOG_FORMAT", help="Lines for people, or JSON objects.")
]
SecretFile = Annotated[
    str,
    typer.Option(
        "--secret-file",
        envvar="NEXUS_BACKENDS_JWT_SECRET_FILE",
        metavar="FILE|-",
        help=f"File of the secret shared with the hub; - reads it from stdin. Without it {SECRET_VARIABLE} is used.",
    ),
]

_EPOCH_DIGITS_MAX = 12  # thirty thousand years
_SEPARATORS = re.compile(r"[,\s]+")


def split_list(items: list[str] | None) -> tuple[str, ...]:
    """Return the parts of a repeatable option, each of which may be a comma list, as in a token command's variables."""
    return tuple(part for item in items or () for part in _SEPARATORS.split(item) if part)


def parse_port(text: str, option: str) -> int:
    """Return a port from 1 to 65535, or raise a usage error that names the option."""
    if text.isascii() and text.isdecimal() and len(text) <= len(str(PORT_MAX)) and 1 <= int(text) <= PORT_MAX:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not a port from 1 to {PORT_MAX}", param_hint=option)


def parse_ports(items: list[str] | None, option: str) -> tuple[int, ...]:
    """Return the ports of a repeatable option."""
    return tuple(parse_port(part, option) for part in split_list(items))


def parse_udp_routes(items: list[str] | None, option: str) -> tuple[UdpRoute, ...]:
    """Return ``PORT`` or ``PORT:SECONDS`` of a repeatable option."""
    return tuple(_udp_route(part, option) for part in split_list(items))


def parse_address(text: str, option: str) -> str:
    """Return ``host:port`` of ``8443``, ``:8443`` or ``127.0.0.1:8443``; a port alone is one of this machine."""
    written = f"127.0.0.1:{text.strip().removeprefix(':')}" if text.strip().removeprefix(":").isdecimal() else text
    try:
        return str(parse_target(written))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def parse_moment_or_seconds(text: str, option: str) -> float:
    """Return a moment in seconds since the epoch, written so or as RFC 3339 has it."""
    if text.isascii() and text.isdecimal() and len(text) <= _EPOCH_DIGITS_MAX:
        return float(text)
    try:
        return parse_moment(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}", param_hint=option) from None


def shared_secret(path: str) -> str:
    """Return the secret that ``--secret-file`` names, else that of the environment, or raise a usage error.

    Raises:
        ConfigError: the named file cannot be read or is empty.
    """
    secret = read_secret(path) if path else environment_secret()
    if not secret:
        raise typer.BadParameter(
            f"no secret: name its file, give - for stdin, or set {SECRET_VARIABLE}", param_hint="--secret-file"
        )
    return secret


def environment_secret() -> str:
    """Return the secret of the environment, or nothing; white space around it is no part of it, as for the node."""
    return os.environ.get(SECRET_VARIABLE, "").strip()


def read_stdin() -> str:
    """Return what is piped in.

    Raises:
        ConfigError: it is not UTF-8 text, or too long; the text never repeats what was read.
    """
    return parse_text("stdin", sys.stdin.buffer.read(MAX_FILE_BYTES + 1))


def read_secret(path: str) -> str:
    """Return the secret in a file, or typed at a prompt or piped in for ``-``; one trailing newline is dropped.

    Raises:
        ConfigError: there is none; the text never repeats what was read.
    """
    if path == STDIN:
        text = typer.prompt("Secret", hide_input=True, err=True) if sys.stdin.isatty() else read_stdin()
    else:
        text = read_file(Path(path))
    secret: str = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        where = "stdin" if path == STDIN else path
        raise ConfigError(
            Problem(where, 0, "", "holds no secret", "make one with: nexus init, or openssl rand -hex 32")
        )
    return secret


def _udp_route(text: str, option: str) -> UdpRoute:
    port, colon, seconds = text.partition(":")
    if colon and not (seconds.isascii() and seconds.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not PORT or PORT:SECONDS", param_hint=option)
    return UdpRoute(parse_port(port, option), int(seconds) if colon else None)
