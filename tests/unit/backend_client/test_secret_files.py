"""backend_client.secret_files: where a client's secrets are, and who can read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend_client.config_keys import BACKEND_KEYS
from backend_client.secret_files import exposed_secrets, read_secret
from nexus.document import Record, load, read
from nexus.errors import Problem


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a secret, for its owner only."""
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text("hush\n")
    return file


def record_of(path: Path, attestation: str = "{}", socks: str = "") -> Record:
    """Return a backend of a file that has no more than the keys of secrets."""
    path.touch(0o600)
    path.write_text(f"attestation: {attestation}\n{socks}\n")
    return read(load(path), BACKEND_KEYS).record


def test_a_secret_is_what_its_file_says_without_white_space_around_it(secret: Path, tmp_path: Path) -> None:
    """What is wrong with the file is told at the key."""
    problems: list[Problem] = []
    record = record_of(tmp_path / "client.yaml", socks=f"socks5PasswordFile: {secret}")
    assert read_secret(record, "socks5PasswordFile", problems) == "hush"
    assert not problems
    for data, what in ((b" \n", "is empty"), (b"hush\xff", "is not UTF-8 text")):
        secret.write_bytes(data)
        assert read_secret(record, "socks5PasswordFile", problems) == ""
        found = problems.pop()
        assert (found.key, found.what) == ("socks5PasswordFile", f"{secret}: {what}")


def test_a_secret_of_the_owner_alone_is_not_remarked_on(secret: Path, tmp_path: Path) -> None:
    """Wherever it stands, or is missing."""
    path = tmp_path / "client.yaml"
    for attestation in (f"{{hmacSecretFile: {secret}}}", "{hmacSecret: hush}", "{hmacSecretFile: /nonexistent/x}"):
        assert not list(exposed_secrets(record_of(path, attestation), path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_use_is_named_with_its_mend(secret: Path, tmp_path: Path, mode: int) -> None:
    """Once where both keys name it and the configuration is open, too: a secret that is not used is no matter."""
    path = tmp_path / "client.yaml"
    record = record_of(path, f"{{hmacSecretFile: {secret}, hmacSecret: hush}}")
    path.chmod(0o644)
    secret.chmod(mode)
    (found,) = exposed_secrets(record, path)
    assert str(found) == (
        f"{path}:1: attestation.hmacSecretFile: {secret}: holds a secret and is open to other users; "
        f"run: chmod 600 {secret}"
    )


def test_a_secret_in_an_open_configuration_is_named_with_its_mend(tmp_path: Path) -> None:
    """Not repeated."""
    path = tmp_path / "client.yaml"
    record = record_of(path, "{hmacSecret: hush}", "socks5Password: hush")
    path.chmod(0o644)
    found = [str(problem) for problem in exposed_secrets(record, path)]
    assert [text.split(": ")[1] for text in found] == ["attestation.hmacSecret", "socks5Password"]
    assert all(f"open to other users; run: chmod 600 {path}" in text for text in found)
    assert "hush" not in "".join(found)
