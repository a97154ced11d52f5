"""``nexus lab`` where there is no lab to be had; with one it is tested in tests/e2e."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cli.compose import Compose, LabError
from cli.lab import read_tour, run_step
from cli.tour import Step
from tests.support.command_line import nexus


@pytest.mark.parametrize("command", ["up", "down", "status", "tour"])
def test_without_docker_or_file_it_is_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mend, and the exit code of a failure."""
    outcome = nexus("lab", command, "--file", str(tmp_path / "no.yml"))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith(f"error: {tmp_path}/no.yml: no such file; ")
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = nexus("lab", command)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == "error: the lab needs Docker with Compose v2: docker is not on the PATH\n"


@pytest.mark.parametrize(
    ("readme", "complaint"),
    [
        (None, "No such file"),
        ("# Nothing\n", "has no numbered step"),
        ("## 1. A step\n\nNo command.\n", "step 1 needs one block"),
    ],
)
def test_a_lab_without_a_tour_is_told(readme: str | None, complaint: str, tmp_path: Path) -> None:
    """By the file's name."""
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    with pytest.raises(LabError, match=complaint) as caught:
        read_tour(Compose(tmp_path / "docker-compose.yml"))
    assert str(tmp_path / "README.md") in str(caught.value)


def test_a_step_runs_in_the_checkout_and_all_it_says_is_kept(tmp_path: Path) -> None:
    """Its complaints are part of what the tour shows, in their place; its exit code is not."""
    (tmp_path / "lab").mkdir()
    compose = Compose(tmp_path / "lab" / "docker-compose.yml")
    command = 'pwd; echo "oh" >&2; echo "$COMPOSE_FILE"; exit 3'
    assert run_step(compose, Step(1, "", "", command, "")) == f"{tmp_path}\noh\n{compose.file}\n"


def test_a_step_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And named."""

    def never(*_arguments: object, **_more: object) -> None:
        raise subprocess.TimeoutExpired("sh", 300)

    monkeypatch.setattr("cli.lab.subprocess.run", never)
    with pytest.raises(LabError, match="step 4 is not over after 300 s"):
        run_step(Compose(tmp_path / "lab" / "docker-compose.yml"), Step(4, "", "", "sleep 1000", ""))
