"""Files that others rely on: written whole or not at all, with exact permissions; read bounded, and followed.

Writing is for private keys, certificates, token secrets and generated configuration. A reader, or a crash, sees the old
content or the new, never half of one; a private file is private from the instant it has a name.

Reading turns whatever is wrong with a file into a ``ConfigError``. A ``FollowedFile`` keeps what it read last until the
file holds something better.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from nexus.errors import ConfigError, Problem

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Longest file that is read; far above any real configuration, it bounds memory and time."""

PRIVATE_MODE = 0o600
"""Permission bits of secrets: the owner reads and writes, nobody else."""

PUBLIC_MODE = 0o644
"""Permission bits of certificates and configuration: everybody reads."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_TEMPORARY_NAME_BYTES = 8
"""Random bytes in a temporary name: enough that two writers in one directory never meet."""

FileSignature: TypeAlias = tuple[int, int, int] | None

T = TypeVar("T")


def write_private(path: Path, data: bytes, owner: Path | None = None) -> None:
    """Replace ``path`` by ``data``, readable and writable by the owner only (0600), in one step.

    The bytes are on the disk when this returns. The directory must exist; a symbolic link at ``path`` is replaced, not
    followed. What root replaces keeps its owner, or gets that of the file or directory ``owner``. Raises OSError, and
    then leaves the old file as it was and no temporary file behind.
    """
    _write(path, data, PRIVATE_MODE, owner)


def write_public(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, readable by everybody (0644), whatever the umask; else as ``write_private``."""
    _write(path, data, PUBLIC_MODE)


def read_file(path: Path) -> str:
    """Return the text of a UTF-8 file of at most ``MAX_FILE_BYTES``.

    Raises ``ConfigError`` if it is missing, unreadable, a directory, too large or not UTF-8.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _refusal(source, 0, "no such file", "check the path") from None
    except IsADirectoryError:
        raise _refusal(source, 0, "is a directory", "name a file") from None
    except OSError as error:
        raise _refusal(source, 0, f"cannot be read: {error.strerror}", "check its owner and mode") from None
    except ValueError as error:  # a NUL in the path
        raise _refusal(source, 0, f"cannot be read: {error}", "check the path") from None
    return parse_text(source, data)


def parse_text(source: str, data: bytes) -> str:
    """Return UTF-8 text, without a byte order mark, of which up to ``MAX_FILE_BYTES + 1`` were read from ``source``.

    Raises ``ConfigError``, which repeats none of it, if it is longer or no such text.
    """
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(source, 0, f"is larger than {MAX_FILE_BYTES} bytes", "name another file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(source, line, "is not UTF-8 text", "save it as UTF-8") from None


def is_exposed(path: Path) -> bool:
    """Tell whether users besides the owner may do anything with a file; one that cannot be looked at is not."""
    try:
        return bool(path.stat().st_mode & _OTHERS)
    except (OSError, ValueError):
        return False


def file_signature(path: Path) -> FileSignature:
    """Return what changes when a file does: modification time (ns), size and inode, links followed; None if gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class FollowedFile(Generic[T]):
    """What a text file says, read again when it changes; text that cannot be used leaves the old value in place."""

    def __init__(self, path: Path, parse: Callable[[str, str], T]) -> None:
        """Read ``path``; ``parse`` takes its text and its name for messages, and raises ConfigError.

        Raises:
            ConfigError: the file cannot be read, or ``parse`` refuses it.
        """
        self.path = path
        self._parse = parse
        self._failure = ""
        self._signature = file_signature(path)  # before the read: a change during it shows at the next look
        self.value = self._read()

    def reload_if_changed(self) -> bool:
        """Take over a changed file; return whether there is a new value.

        A file that cannot be used, such as one that is half written, is tried again at the next call.

        Raises:
            ConfigError: it cannot be used; the same failure again just returns False.
        """
        signature = file_signature(self.path)
        if signature == self._signature:
            self._failure = ""
            return False
        try:
            value = self._read()
        except ConfigError as error:
            if str(error) == self._failure:
                return False
            self._failure = str(error)
            raise
        changed = value != self.value
        self.value, self._signature, self._failure = value, signature, ""
        return changed

    def _read(self) -> T:
        with contextlib.suppress(OSError, ValueError):  # ``read_file`` tells of these
            if not stat.S_ISREG(self.path.stat().st_mode) and not self.path.is_dir():
                # A pipe could block, a device never end.
                raise _refusal(str(self.path), 0, "is not a regular file", "name a file")
        return self._parse(read_file(self.path), str(self.path))


def _refusal(source: str, line: int, what: str, mend: str) -> ConfigError:
    return ConfigError(Problem(source, line, "", what, mend))


def _write(path: Path, data: bytes, mode: int, owner: Path | None = None) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TEMPORARY_NAME_BYTES)}.tmp")
    # O_EXCL: a name prepared by somebody else, link or file, is an error rather than a place to put a secret.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask took its part of the mode above
            _give_to_owner_of(file.fileno(), owner or path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def give_to_owner_of(path: Path, like: Path) -> None:
    """Let ``path`` belong to whom ``like`` belongs, where root made it; raises OSError."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _give_to_owner_of(descriptor: int, like: Path) -> None:
    """Let a file that root writes belong to whom ``like`` belongs, before it has its name."""
    with contextlib.suppress(FileNotFoundError):  # nothing is replaced
        if os.geteuid() == 0:
            known = like.lstat()
            os.fchown(descriptor, known.st_uid, known.st_gid)


def _sync_directory(directory: Path) -> None:
    """Put the new name on the disk too; POSIX leaves a rename in memory until its directory is synchronised."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
