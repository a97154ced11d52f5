"""The command ``nexus``: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import typer

from cli import render
from cli.options import EPILOG, EXIT_CONFIGURATION, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from nexus.config.keys import ENVIRONMENT_PREFIX
from nexus.errors import ConfigError, NexusError, TlsFileError

_HELP = """A small public node relays TLS, unread, to backends behind any NAT.

Data goes to stdout, messages to stderr. Every option can also be set in the environment, as shown beside it.
"""

# Where each command is, in the order of the help. One that is asked for is imported alone: a health check need not wait
# for what only the node or the demo needs. A module that has several commands has an ``app``.
_COMMANDS: Final[Mapping[str, str]] = {
    "init": "cli.initialize",
    "serve": "cli.serve",
    "status": "cli.status",
    "token": "cli.token",
    "config": "cli.config",
    "cert": "cli.cert",
    "client": "cli.client",
    "expose": "cli.expose",
    "demo": "cli.demo",
    "lab": "cli.lab",
    "bench": "cli.bench",
    "version": "cli.version",
}


def application(wanted: str = "") -> typer.Typer:
    """Return the command line: with the command ``wanted`` alone, or with all where there is none of that name."""
    # Tracebacks are for bugs of ours only, and never show local variables: one may be a secret.
    app = typer.Typer(
        name="nexus",
        help=_HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"auto_envvar_prefix": "NEXUS", "help_option_names": ["-h", "--help"]},
    )
    app.callback()(_nexus)
    for name in [wanted] if wanted in _COMMANDS else _COMMANDS:
        module = importlib.import_module(_COMMANDS[name])
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, epilog=EPILOG)(getattr(module, name))
    return app


def _nexus() -> None:
    pass


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line with ``args`` (default: those of the process) and exit: 0, 1, 2, 3, or 130 for Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    for code, what in ((EXIT_USAGE, _odd_argument(args)), (EXIT_CONFIGURATION, _odd_variable(os.environ))):
        if what:
            render.fail(f"{what} is not text in UTF-8")
            sys.exit(code)
    try:
        application(args[0] if args else "")(args=args, prog_name="nexus")
    except (ConfigError, TlsFileError) as error:
        render.fail(error)
        sys.exit(EXIT_CONFIGURATION)
    except NexusError as error:
        render.fail(error)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        render.fail(_os_error(error))
        sys.exit(EXIT_FAILURE)
    sys.exit()


def _odd_argument(args: Sequence[str]) -> str:
    """Return which argument is no text, if any, without repeating it: a token of it could not be read by others."""
    return next((f"argument {number}" for number, arg in enumerate(args, 1) if not _is_text(arg)), "")


def _odd_variable(environ: Mapping[str, str]) -> str:
    """Return which of our variables is no text, if any."""
    return next(
        (name for name, value in environ.items() if name.startswith(ENVIRONMENT_PREFIX) and not _is_text(value)), ""
    )


def _is_text(text: str) -> bool:
    """Tell bytes that are not UTF-8, which Python keeps as lone surrogates (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
