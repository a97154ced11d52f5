"""``nexus config``: check a file, show what is in effect, print the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from backend_client.config_keys import CLIENT_KEYS
from cli import render
from cli.checks import FileKind, check_node, kind_of
from cli.client_checks import check_client, effective_client
from cli.node_file import effective_node
from cli.options import EPILOG, EXIT_CONFIGURATION, Json
from nexus.config.schema import json_schema, node_schema
from nexus.errors import ConfigError, Problem

app = typer.Typer(no_args_is_help=True, help="Check, show and describe configuration files.", epilog=EPILOG)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A node's or a backend client's configuration file.")]
Kind = Annotated[
    FileKind | None,
    typer.Option("--kind", help="Whose file it is. Without it the key backends tells a client's file."),
]


@app.command(epilog=EPILOG)
def check(
    file: File,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings, such as unknown keys, for errors.")] = False,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Name every mistake in a configuration file, and whether this version can serve it."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    try:
        kind = kind or kind_of(file)
        warnings = _warnings(file, kind)
    except ConfigError as error:
        problems = error.problems
    if strict:
        problems, warnings = (*problems, *warnings), ()
    if as_json:
        _check_document(file, kind, problems, warnings)
    else:
        _check_lines(file, problems, warnings)
    if problems:
        raise typer.Exit(EXIT_CONFIGURATION)


@app.command("show", epilog=EPILOG)
def show_config(file: File, kind: Kind = None, as_json: Json = False) -> None:
    """Print every key with its value in effect: file, environment and defaults; secrets are masked."""
    kind = kind or kind_of(file)
    values = effective_node(file) if kind is FileKind.NODE else effective_client(file)
    if as_json:
        render.document({"file": str(file), "kind": kind.value, "config": values})
    else:
        render.data(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip("\n"))


@app.command(epilog=EPILOG)
def schema(
    kind: Annotated[FileKind, typer.Argument(metavar="node|client", help="Whose file.")] = FileKind.NODE,
) -> None:
    """Print the JSON Schema (draft 2020-12) of a configuration file, for editors."""
    content = (
        node_schema() if kind is FileKind.NODE else json_schema(CLIENT_KEYS, "Nexus Proxy backend client configuration")
    )
    render.data(json.dumps(content, indent=2))


def _warnings(file: Path, kind: FileKind) -> tuple[Problem, ...]:
    return check_node(file).warnings if kind is FileKind.NODE else check_client(file)[1]


def _check_document(
    file: Path, kind: FileKind | None, problems: tuple[Problem, ...], warnings: tuple[Problem, ...]
) -> None:
    render.document(
        {
            "file": str(file),
            "kind": kind.value if kind else None,
            "ok": not problems,
            "problems": render.problem_objects(problems),
            "warnings": render.problem_objects(warnings),
        }
    )


def _check_lines(file: Path, problems: tuple[Problem, ...], warnings: tuple[Problem, ...]) -> None:
    for warning in warnings:
        render.warn(warning)
    for problem in problems:
        render.fail(problem)
    if not problems:
        render.data(f"{file}: ok")
