"""Telling files apart; the checks themselves are tested through the commands, in test_config.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.checks import FileKind, check_node, kind_of
from nexus.errors import ConfigError
from tests.support.command_line import nexus


def test_kind_is_told_by_the_key_backends(tmp_path: Path) -> None:
    """In files that ``nexus init`` writes."""
    nexus("init", str(tmp_path))
    assert kind_of(tmp_path / "client.yaml") is FileKind.CLIENT
    assert kind_of(tmp_path / "server.yaml") is FileKind.NODE


@pytest.mark.parametrize("text", ["- 1\n", "? [backends]\n: 1\n", "text\n", ""])
def test_document_without_that_key_is_a_nodes(tmp_path: Path, text: str) -> None:
    """Whatever it is; its check then says what is wrong."""
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    assert kind_of(file) is FileKind.NODE
    with pytest.raises(ConfigError):
        check_node(file)
