"""Files that others rely on: written whole or not at all, with exact permissions.

Used for private keys, certificates, token secrets and generated configuration. A reader, or a crash, sees the old
content or the new, never half of one; a private file is private from the instant it has a name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

PRIVATE_MODE = 0o600
"""Permission bits of secrets: the owner reads and writes, nobody else."""

PUBLIC_MODE = 0o644
"""Permission bits of certificates and configuration: everybody reads."""

_TEMPORARY_NAME_BYTES = 8
"""Random bytes in a temporary name: enough that two writers in one directory never meet."""


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, readable and writable by the owner only (0600), in one step.

    The bytes are on the disk when this returns. The directory must exist; a symbolic link at ``path`` is replaced, not
    followed. Raises OSError, and then leaves the old file as it was and no temporary file behind.
    """
    _write(path, data, PRIVATE_MODE)


def write_public(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, readable by everybody (0644), whatever the umask; else as ``write_private``."""
    _write(path, data, PUBLIC_MODE)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TEMPORARY_NAME_BYTES)}.tmp")
    # O_EXCL: a name prepared by somebody else, link or file, is an error rather than a place to put a secret.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask took its part of the mode above
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Put the new name on the disk too; POSIX leaves a rename in memory until its directory is synchronised."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
