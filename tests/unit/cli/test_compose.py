"""How the lab's services are told, and how its file is found; the engine itself is asked in the end-to-end tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.compose import LAB_FILE, Compose, LabError, Service, find_lab, parse_services
from tests.support.docker import ROOT

LINES: list[dict[str, str | int]] = [
    {"Service": "node-us", "State": "running", "Health": "healthy", "ExitCode": 0},
    {"Service": "roots", "State": "exited", "Health": "", "ExitCode": 0},
    {"Service": "pebble", "State": "exited", "Health": "", "ExitCode": 2},
    {"Service": "web-eu", "State": "running", "Health": "starting", "ExitCode": 0},
    {"Service": "coredns", "State": "running"},
    {"Service": "tester-us", "State": "created", "Health": "", "ExitCode": 0},
]


@pytest.mark.parametrize("text", ["\n".join(map(json.dumps, LINES)), json.dumps(LINES)], ids=["lines", "one list"])
def test_both_forms_of_the_listing_are_read(text: str) -> None:
    """Compose prints one object a line since 2.21, and one list before."""
    found = list(parse_services(text))
    assert [service.name for service in found] == [str(line["Service"]) for line in LINES]
    assert [service.summary for service in found] == [
        "healthy",
        "done",
        "failed with 2",
        "starting",
        "running",
        "created",
    ]
    assert [service.is_well for service in found] == [True, True, False, False, True, False]
    assert found[2].as_object() == {"name": "pebble", "state": "exited", "health": "", "exitCode": 2, "well": False}


def test_no_service_is_no_mistake() -> None:
    """The lab is not up."""
    assert list(parse_services("")) == []
    assert list(parse_services("[]")) == []


def test_the_lab_is_that_of_the_checkout_around(tmp_path: Path) -> None:
    """From any directory in it; elsewhere that of the program's own checkout."""
    made = tmp_path / LAB_FILE
    made.parent.mkdir()
    made.touch()
    (tmp_path / "deep" / "down").mkdir(parents=True)
    assert find_lab(None, tmp_path / "deep" / "down") == made.resolve()
    assert find_lab(made, tmp_path / "deep") == made.resolve()
    assert find_lab(None, Path("/")) == ROOT / LAB_FILE


def test_without_a_lab_the_mend_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is with an installed program, or with a file that is not there."""
    monkeypatch.setattr("cli.compose.__file__", str(tmp_path / "site-packages" / "cli" / "compose.py"))
    with pytest.raises(LabError, match=r"^there is no lab/docker-compose.yml here; .* name its file with --file$"):
        find_lab(None, tmp_path)
    with pytest.raises(LabError, match=r"other\.yml: no such file; "):
        find_lab(tmp_path / "other.yml", tmp_path)


def test_without_docker_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is tried."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="docker is not on the PATH"):
        Compose(ROOT / LAB_FILE).check()


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker here: nothing to complain of an engine")
def test_without_an_engine_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the client's own last word; a plain question is answered by nothing."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    compose = Compose(ROOT / LAB_FILE)
    with pytest.raises(LabError, match=r"^docker (info|compose version): .*; (start the engine|install Compose)"):
        compose.check()
    assert compose.ask("ps") == ""


def test_commands_name_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of the tour find it by the environment, from the root of the checkout."""
    monkeypatch.setenv("COMPOSE_FILE", "/another.yml")
    compose = Compose(ROOT / LAB_FILE)
    assert compose.command("ps") == ["docker", "compose", "--file", str(ROOT / LAB_FILE), "ps"]
    assert compose.environment["COMPOSE_FILE"] == str(ROOT / LAB_FILE)
    assert compose.checkout == ROOT
    assert Service("a", "running", "", 0).is_well
