"""The entry point: exit codes, streams, help, and one place for errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main as entry
from nexus.errors import AuthError, ConfigError, NexusError, Problem, TlsFileError
from tests.support.command_line import nexus


def test_help_names_every_command_and_the_exit_codes() -> None:
    """``nexus --help`` is enough to find everything."""
    shown = nexus("--help")
    assert shown.code == 0
    for name in ("init", "serve", "token", "config", "client", "expose", "demo", "version"):
        assert name in shown.stdout
    assert "0 ok, 1 failure, 2 usage, 3 configuration" in shown.stdout


def test_short_help_option_works_in_sub_commands() -> None:
    """``-h`` is help everywhere."""
    assert nexus("config", "check", "-h").code == 0


def test_unknown_command_is_a_usage_error_on_stderr() -> None:
    """Exit code 2, and nothing on stdout."""
    outcome = nexus("serv")
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "serve" in outcome.stderr  # did you mean


@pytest.mark.parametrize("option", ["--hostname", "--nonce", "--subject", "--kid"])
def test_an_argument_that_is_no_text_is_a_usage_error(option: str) -> None:
    """No token with half a character is minted, and nothing is repeated."""
    outcome = nexus(
        "token", "--hostname", "a.example", option, "hush\udcff", env={"NEXUS_BACKENDS_JWT_SECRET": "x" * 32}
    )
    assert (outcome.code, outcome.stdout, outcome.stderr) == (2, "", "error: argument 5 is not text in UTF-8\n")


@pytest.mark.parametrize("name", ["NEXUS_BACKENDS_JWT_SECRET", "NEXUS_SESSION_NONCE", "NEXUS_REGION"])
def test_a_variable_that_is_no_text_is_a_configuration_error(name: str) -> None:
    """Of those that are ours; the name is told, the value is not."""
    for command in ("token", "serve"):
        outcome = nexus(command, env={name: "hush\udcff"})
        assert (outcome.code, outcome.stdout, outcome.stderr) == (3, "", f"error: {name} is not text in UTF-8\n")
    assert nexus("version", env={"LC_SOMETHING": "\udcff"}).code == 0


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError(Problem("f.yaml", 3, "key", "is wrong", "mend it")), 3, "error: f.yaml:3: key: is wrong; mend it"),
        (ConfigError(Problem("f", 1, "", "one"), Problem("f", 2, "", "two")), 3, "error: f:1: one\nerror: f:2: two"),
        (TlsFileError("hub.pem: cannot be read"), 3, "error: hub.pem: cannot be read"),
        (AuthError("invalid token: it expired"), 1, "error: invalid token: it expired"),
        (NexusError("something"), 1, "error: something"),
        (PermissionError(13, "Permission denied", "/etc/x"), 1, "error: /etc/x: Permission denied"),
        (TimeoutError("no answer"), 1, "error: no answer"),
        (ConnectionResetError(), 1, "error: ConnectionResetError"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, text: str
) -> None:
    """No stack trace for an operator's mistake."""

    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr(entry, "application", lambda _wanted: broken)
    outcome = nexus()
    assert (outcome.code, outcome.stdout, outcome.stderr) == (code, "", text + "\n")


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells report a program that Ctrl-C ended."""

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "application", lambda _wanted: interrupted)
    assert nexus().code == 130


def test_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no operator's mistake is not dressed up as one."""

    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "application", lambda _wanted: broken)
    with pytest.raises(ZeroDivisionError):
        nexus()


def test_no_traceback_shows_local_variables() -> None:
    """Rich tracebacks would print the values of variables, and one may be a secret."""
    assert entry.application().pretty_exceptions_enable is False


def test_no_color_is_honoured_and_asked_for_colour_is_given(tmp_path: Path) -> None:
    """``NO_COLOR`` wins over ``FORCE_COLOR``."""
    missing = str(tmp_path / "no.yaml")
    assert "\x1b[" in nexus("config", "check", missing, env={"NO_COLOR": "", "FORCE_COLOR": "1"}).stderr
    assert "\x1b[1;31m" not in nexus("config", "check", missing, env={"NO_COLOR": "1", "FORCE_COLOR": "1"}).stderr


def test_completion_script_can_be_shown() -> None:
    """Shell completion comes with the program."""
    shown = nexus("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert shown.code == 0
    assert "complete" in shown.stdout


def test_application_runs_under_typers_own_runner() -> None:
    """It is usable on its own."""
    assert CliRunner().invoke(entry.application(), ["version"]).exit_code == 0


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("status", {"nexus.app", "backend_client.client", "cli.scene", "aiohttp", "requests", "dns"}),
        ("client", {"nexus.app", "cli.scene", "rich.markdown", "aiohttp", "requests"}),
        ("serve", {"cli.scene", "cli.lab", "rich.markdown", "aiohttp", "requests"}),
    ],
)
def test_a_command_imports_what_it_needs_alone(command: str, unneeded: set[str]) -> None:
    """A health check that runs every few seconds does not load the node; the others still stand in the help."""
    look = f"import sys; from cli.main import application; application({command!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert not unneeded & {*loaded}
    assert command in nexus("--help").stdout
