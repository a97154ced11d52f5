"""docs/cli.md and the command tree say the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import application
from cli.options import EXIT_CONFIGURATION, EXIT_FAILURE, EXIT_INTERRUPTED
from cli.scene import Report

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
COMPLETION = {"--install-completion", "--show-completion"}
_HEADING = re.compile(r"^### `nexus ([a-z ]*[a-z])[^`]*`$", re.MULTILINE)
_ROW = re.compile(r"^\| (?P<options>`-[^|]*) \| `(?P<variable>[A-Z_]+)` \| (?P<meaning>[^|]+) \|$", re.MULTILINE)
_OPTION = re.compile(r"`(--?[a-z-]+)[^`]*`")


def _walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its name."""
    sub_commands = getattr(command, "commands", {})
    if path and (not sub_commands or command.invoke_without_command):
        yield " ".join(path), command
    for name, sub_command in sub_commands.items():
        yield from _walk(sub_command, (*path, name))


def _sections() -> dict[str, str]:
    parts = _HEADING.split(PAGE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _documented(section: str) -> dict[frozenset[str], str]:
    return {frozenset(_OPTION.findall(row["options"])): row["variable"] for row in _ROW.finditer(section)}


def _existing(name: str, command: Any) -> dict[frozenset[str], str]:
    prefix = "_".join(("NEXUS", *name.upper().split(" ")))
    return {
        frozenset((*option.opts, *option.secondary_opts)): option.envvar or f"{prefix}_{option.name.upper()}"
        for option in command.params
        if option.param_type_name == "option"
    }


COMMANDS = dict(_walk(typer.main.get_command(application())))


def test_every_command_has_a_section() -> None:
    """And every section a command."""
    assert set(_sections()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_its_variable_are_documented(name: str) -> None:
    """No more and no less than there are."""
    assert _documented(_sections()[name]) == _existing(name, COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help_with_its_exit_codes(name: str) -> None:
    """``--help`` alone is enough."""
    command = COMMANDS[name]
    assert command.help
    assert "3 configuration" in command.epilog
    assert all(parameter.help for parameter in command.params)


@pytest.mark.parametrize(
    "name",
    [name for name, command in COMMANDS.items() if any("--json" in parameter.opts for parameter in command.params)],
)
def test_json_is_documented_where_it_exists(name: str) -> None:
    """Its keys are compared by the tests of each command, the longest list here."""
    assert "\nJSON: `" in _sections()[name]
    if name == "demo":
        keys = _sections()[name].partition("\nJSON: ")[2]
        assert all(f"`{spec.name}`" in keys for spec in dataclasses.fields(Report))


def test_no_option_takes_a_secret() -> None:
    """The arguments of a process can be read by every user of the machine."""
    options = {option for command in COMMANDS.values() for names in _existing("x", command) for option in names}
    assert {option for option in options if "secret" in option} == {"--secret-file", "--show-secret"}


def test_exit_codes_are_documented() -> None:
    """By number."""
    for code in (0, EXIT_FAILURE, 2, EXIT_CONFIGURATION, EXIT_INTERRUPTED):
        assert re.search(rf"^\| {code} \| ", PAGE, re.MULTILINE)
