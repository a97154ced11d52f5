"""``nexus version``."""

from __future__ import annotations

from importlib import metadata

import pytest

from nexus import __version__
from nexus.protocol import framing
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
    assert list(document) == [
        "schema", "version", "python", "data_path", "uvloop", "aiofastnet", "websockets", "openssl", "platform",
    ]  # fmt: skip
    assert document["schema"] == 1
    assert document["websockets"] == metadata.version("websockets")


@pytest.mark.parametrize(("file", "said"), [("/x/framing.py", "Python"), ("/x/framing.cpython-313.so", "compiled")])
def test_it_says_whether_the_data_path_is_compiled(monkeypatch: pytest.MonkeyPatch, file: str, said: str) -> None:
    """As in the image; from a checkout it is Python."""
    monkeypatch.setattr(framing, "__file__", file)
    assert nexus("version", "--json").document()["data_path"] == said
    assert f"data path  {said}\n" in nexus("version").stdout


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
