"""The list of peers in a file that changes while a node runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus.document.peers import PeerAddress
from nexus.errors import ConfigError, Problem
from nexus.mesh import peers_file
from nexus.mesh.discovery import Discovery
from nexus.mesh.peers_file import PeersFile
from tests.support.hub import eventually

FIRST, SECOND = "wss://one.example.com:8444/mesh", "wss://two.example.com:8444/mesh"


class Setup:
    """A file, what follows it, and every change that was reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changes: list[tuple[list[str], list[str]]] = []
        path.write_text(FIRST)
        self.file = PeersFile(path, self._read)
        self.discovery = Discovery((), self._changed, lambda _name: True)

    def _read(self) -> tuple[str, ...]:
        text = self.path.read_text()
        if "bad" in text:
            raise ConfigError(Problem(str(self.path), 1, "peers[0]", "is bad", "mend it"))
        return tuple(text.split())

    def _changed(self, added: tuple[PeerAddress, ...], removed: tuple[PeerAddress, ...]) -> None:
        self.changes.append(([address.url for address in added], [address.url for address in removed]))


@pytest.fixture
async def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    """Looks come fast."""
    monkeypatch.setattr(peers_file, "WATCH_S", 0.01)
    setup = Setup(tmp_path / "node.yaml")
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(setup.discovery.run()), tasks.create_task(setup.file.follow(setup.discovery))]
        with contextlib.suppress(asyncio.CancelledError):
            yield setup
        for task in running:
            task.cancel()


async def test_a_changed_list_is_followed(setup: Setup) -> None:
    """What is new is reported, and what is gone."""
    setup.path.write_text(f"{FIRST} {SECOND}")
    await eventually(lambda: setup.changes, "the change is seen")
    assert setup.changes == [([FIRST, SECOND], [])]
    setup.path.write_text(SECOND)
    await eventually(lambda: len(setup.changes) == 2, "the next one, too")
    assert setup.changes[1] == ([], [FIRST])


async def test_a_file_that_has_become_bad_changes_nothing(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, with what is wrong and what happens."""
    setup.file.look()
    before = list(setup.changes)
    with caplog.at_level(logging.ERROR):
        setup.path.write_text("bad, and longer than before")
        await eventually(lambda: caplog.records, "the failure is logged")
        setup.path.write_text(f"{FIRST} {SECOND}")
        await eventually(lambda: len(setup.changes) > len(before), "a good one counts again")
    assert len(caplog.records) == 1
    assert "peers[0]: is bad" in caplog.text
    assert "the old list of peers stays in use" in caplog.text


async def test_it_may_be_told_to_look(tmp_path: Path) -> None:
    """On SIGHUP, and before anybody follows it."""
    setup = Setup(tmp_path / "node.yaml")
    setup.file.look()
    assert setup.changes == []
