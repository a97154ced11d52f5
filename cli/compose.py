"""Docker Compose as the lab uses it: where the lab's file is, one command run, and how its services are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus.errors import NexusError

LAB_FILE: Final = Path("lab") / "docker-compose.yml"
_QUESTION_TIMEOUT_S: Final = 60.0


class LabError(NexusError):
    """The lab cannot be asked or does not do what it should; the message says what and the mend."""


@dataclass(frozen=True, slots=True)
class Service:
    """One container of the lab; ``health`` is empty where nobody checks it."""

    name: str
    state: str
    health: str
    exit_code: int

    @property
    def is_well(self) -> bool:
        """Whether it does what it should: runs and is healthy, or was a job and has ended well."""
        if self.state == "exited":
            return self.exit_code == 0
        return self.state == "running" and self.health in {"", "healthy"}

    @property
    def summary(self) -> str:
        """How it is, in a word or two."""
        if self.state == "exited":
            return "done" if self.exit_code == 0 else f"failed with {self.exit_code}"
        return self.health or self.state

    def as_object(self) -> dict[str, object]:
        """Return the service for JSON."""
        found = {"name": self.name, "state": self.state, "health": self.health, "exitCode": self.exit_code}
        return {**found, "well": self.is_well}


def find_lab(given: Path | None, here: Path) -> Path:
    """Return the lab's compose file: the one given, or that of the checkout around ``here`` or around this program.

    Raises:
        LabError: there is none.
    """
    if given is not None:
        candidates = [given]
    else:
        candidates = [parent / LAB_FILE for parent in (here, *here.parents, Path(__file__).resolve().parents[1])]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    what = f"{given}: no such file" if given else f"there is no {LAB_FILE} here"
    raise LabError(f"{what}; the lab is a part of the source: run this in a checkout, or name its file with --file")


@dataclass(frozen=True, slots=True)
class Compose:
    """Runs ``docker compose`` on one file."""

    file: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that let a plain ``docker compose`` find the lab."""
        return {**os.environ, "COMPOSE_FILE": str(self.file)}

    @property
    def checkout(self) -> Path:
        """The directory that the lab's commands are written for."""
        return self.file.parents[1]

    def command(self, *arguments: str) -> list[str]:
        """Return a command line."""
        return ["docker", "compose", "--file", str(self.file), *arguments]

    def check(self) -> None:
        """See whether there is an engine and Compose v2.

        Raises:
            LabError: there is not.
        """
        if shutil.which("docker") is None:
            raise LabError("the lab needs Docker with Compose v2: docker is not on the PATH")
        for command, mend in (
            (("docker", "compose", "version"), "install Compose v2 (docker-compose-plugin)"),
            (("docker", "info"), "start the engine, or set DOCKER_HOST to where it listens"),
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_QUESTION_TIMEOUT_S)
            if done.returncode != 0:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                raise LabError(f"{' '.join(command)}: {said[-1] if said else 'failed'}; {mend}")

    def services(self) -> tuple[Service, ...]:
        """Return all that have a container, running or ended, by name.

        Raises:
            LabError: Compose does not tell.
        """
        done = self._ask("ps", "--all", "--format", "json")
        return tuple(sorted(parse_services(done.stdout), key=lambda service: service.name))

    def ask(self, *arguments: str) -> str:
        """Return what a command prints, "" where it fails."""
        try:
            return self._ask(*arguments).stdout
        except LabError:
            return ""

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_QUESTION_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise LabError(f"docker compose {arguments[0]}: {(done.stderr or done.stdout).strip()}")
        return done


def parse_services(text: str) -> Iterator[Service]:
    """Read the JSON of ``docker compose ps``: one object a line, or one list as before version 2.21."""
    for line in text.splitlines():
        found = json.loads(line)
        for entry in found if isinstance(found, list) else [found]:
            yield Service(entry["Service"], entry["State"], entry.get("Health", ""), int(entry.get("ExitCode", 0)))
