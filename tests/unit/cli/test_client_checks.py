"""What stops a client's file from being used; more of it is tested through the commands, in test_config.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.client_checks import check_client, effective_client
from nexus.errors import ConfigError
from tests.support.command_line import nexus


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One that ``nexus init`` wrote."""
    nexus("init", str(tmp_path), "--dev")
    return tmp_path / "client.yaml"


def test_a_good_file_is_returned_with_its_warnings(file: Path) -> None:
    """There are none for what ``nexus init`` writes."""
    found, warnings = check_client(file)
    assert [backend.name for backend in found.backends] == ["app"]
    assert warnings == ()


def test_roots_that_cannot_be_used_are_named_by_their_backend(file: Path) -> None:
    """Before anything is dialled."""
    file.write_text(file.read_text().replace("ca.pem", "none.pem"))
    with pytest.raises(ConfigError, match=r"backends\[0\].caFile: .*none.pem: cannot be read"):
        check_client(file)


def test_effective_values_show_no_secret(file: Path) -> None:
    """But that there is one, and every default."""
    file.write_text(
        file.read_text().replace(
            "hmacSecretFile:", "hmacSecret: a-secret-of-thirty-two-characters\n      hmacSecretFile:"
        )
    )
    shown = effective_client(file)
    assert "a-secret" not in str(shown)
    backends = shown["backends"]
    assert isinstance(backends, list)
    assert backends[0]["weight"] == 1
    assert backends[0]["attestation"]["hmacSecret"]
