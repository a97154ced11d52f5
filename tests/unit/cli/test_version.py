"""``nexus version``."""

from __future__ import annotations

from importlib import metadata

import pytest

from nexus import __version__
from tests.support.command_line import nexus


def test_version_is_printed_on_stdout() -> None:
    """The first line alone says what most people ask for."""
    outcome = nexus("version")
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[0] == f"nexus-proxy {__version__}"
    assert outcome.stderr == ""


def test_json_has_the_documented_keys() -> None:
    """The schema of docs/cli.md."""
    document = nexus("version", "--json").document()
    assert list(document) == ["schema", "version", "python", "uvloop", "websockets", "openssl", "platform"]
    assert document["schema"] == 1
    assert document["websockets"] == metadata.version("websockets")


def test_json_can_be_asked_for_in_the_environment() -> None:
    """Every option has a variable."""
    assert nexus("version", env={"NEXUS_JSON": "1"}).document()["version"] == __version__


def test_missing_package_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop does not exist everywhere."""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert nexus("version", "--json").document()["uvloop"] is None
    assert "uvloop     not installed" in nexus("version").stdout
