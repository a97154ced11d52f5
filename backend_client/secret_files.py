"""The secrets of a client's configuration: read from files of their own, and remarked on where others can read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nexus.document import Record, read_file
from nexus.errors import ConfigError, Problem
from nexus.files import is_exposed


def read_secret(record: Record, key: str, problems: list[Problem]) -> str:
    """Return the secret in the file that ``key`` names; ``problems`` receives why there is none."""
    path = record.text(key).strip()
    try:
        secret = read_file(Path(path)).strip()
    except ConfigError as error:
        problems += [record.problem(key, f"{path}: {found.what}", found.mend) for found in error.problems]
        return ""
    if not secret:
        problems.append(record.problem(key, f"{path}: is empty", "write the secret into it"))
    return secret


def exposed_secrets(backend: Record, path: Path) -> Iterator[Problem]:
    """Yield the secrets of one backend that users besides the owner can reach, in their files or in ``path`` itself."""
    for record, key in ((backend.table("attestation"), "hmacSecret"), (backend, "socks5Password")):
        file_key = f"{key}File"
        file = record.text(file_key).strip()
        if file and is_exposed(Path(file)):
            what = f"{file}: holds a secret and is open to other users"
            yield record.problem(file_key, what, f"run: chmod 600 {file}")
        elif not file and record.text(key) and is_exposed(path):
            what = "is written here, and the file is open to other users"
            yield record.problem(key, what, f"run: chmod 600 {path}")
