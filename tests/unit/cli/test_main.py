"""The entry point: exit codes, streams, help, and one place for errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
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

    monkeypatch.setattr(entry, "app", broken)
    outcome = nexus()
    assert (outcome.code, outcome.stdout, outcome.stderr) == (code, "", text + "\n")


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells report a program that Ctrl-C ended."""

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "app", interrupted)
    assert nexus().code == 130


def test_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no operator's mistake is not dressed up as one."""

    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "app", broken)
    with pytest.raises(ZeroDivisionError):
        nexus()


def test_no_traceback_shows_local_variables() -> None:
    """Rich tracebacks would print the values of variables, and one may be a secret."""
    assert entry.app.pretty_exceptions_enable is False


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


def test_app_runs_under_typers_own_runner() -> None:
    """The application object is usable on its own."""
    assert isinstance(entry.app, typer.Typer)
    assert CliRunner().invoke(entry.app, ["version"]).exit_code == 0
