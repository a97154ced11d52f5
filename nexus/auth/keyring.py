"""The keys and the revocation list that a node has in files, followed while it runs.

Strategy: every file is read at construction, and every mistake in any of them raised together, so that a node does not
start on half of its keys. Later each ``look`` takes over what changed; a file that cannot be used keeps its old content
in force and is logged once. Nothing here is ever shown: secrets have no ``repr``.

Source: spec backend-protocol 3.1; RFC 8725 section 2.1 for secrets that are none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from nexus.auth.keys import KeySet, PublicKey, check_secret, parse_key_set, secret_fault
from nexus.auth.revocation import Revocations, parse_revocations
from nexus.errors import ConfigError, Problem
from nexus.files import FollowedFile

SECRET_MIN_BYTES: Final = 32  # RFC 7518 section 3.2: a key of HS256 is at least as long as its hash

_log = logging.getLogger("nexus.auth")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeySources:
    """Where a node's keys are: a secret as written in the configuration, and files; None and empty for none."""

    secret: str = field(default="", repr=False)
    secret_files: tuple[Path, ...] = ()
    key_file: Path | None = None
    revocation_file: Path | None = None


class Keyring:
    """The content of the sources, as of the last look."""

    def __init__(self, sources: KeySources) -> None:
        """Read every file.

        Raises:
            ConfigError: with every mistake in them, and in the secret as written.
        """
        problems: list[Problem] = []
        self._secret = sources.secret
        if sources.secret and (fault := secret_fault(sources.secret)):
            problems.append(Problem("the shared secret", 0, "", *fault))
        self._secrets = [_follow(path, parse_secret, problems) for path in sources.secret_files]
        self._key_set = _follow(sources.key_file, parse_key_set, problems)
        self._revocations = _follow(sources.revocation_file, parse_revocations, problems)
        if problems:
            raise ConfigError(*problems)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Shared secrets, in the order of the configuration."""
        texts = [self._secret, *(file.value for file in self._secrets if file is not None)]
        return tuple(text.encode("utf-8", "surrogatepass") for text in texts if text)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Public keys of the key file."""
        return self._key_set.value.keys if self._key_set is not None else ()

    @property
    def revocations(self) -> Revocations:
        """The revocation list."""
        return self._revocations.value if self._revocations is not None else Revocations()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the files, though usable; never repeats a secret."""
        weak = [file.path for file in self._secrets if file is not None and len(file.value.encode()) < SECRET_MIN_BYTES]
        skipped = self._key_set.value.skipped if self._key_set is not None else ()
        where = self._key_set.path if self._key_set is not None else ""
        return (
            *(f"{path}: is shorter than {SECRET_MIN_BYTES} bytes and can be guessed from one token" for path in weak),
            *(f"{where}: {what}: skipped" for what in skipped),
        )

    def look(self) -> bool:
        """Take over what changed in the files; tell whether the revocation list is another one now."""
        before = self.warnings
        for file in (*self._secrets, self._key_set):
            if file is not None:
                _look(file)
        for warning in self.warnings:
            if warning not in before:
                _log.warning("%s", warning)
        return self._revocations is not None and _look_at_list(self._revocations)


def parse_secret(text: str, source: str) -> str:
    """Return the secret in a file's text, without the one newline that editors add.

    Raises:
        ConfigError: there is none, or it is a public key.
    """
    secret = text.removesuffix("\n").removesuffix("\r")
    check_secret(secret, source)
    return secret


def _follow(path: Path | None, parse: Callable[[str, str], T], problems: list[Problem]) -> FollowedFile[T] | None:
    if path is None:
        return None
    try:
        return FollowedFile(path, parse)
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _look_at_list(file: FollowedFile[Revocations]) -> bool:
    before = file.value
    changed = _look(file)
    if gone := before.narrowed(file.value):
        what = "%s: %d of %d entries are gone or narrower: tokens that they revoked are believed again"
        _log.warning(what, file.path, gone, len(before.entries))
    return changed


def _look(file: FollowedFile[str] | FollowedFile[KeySet] | FollowedFile[Revocations]) -> bool:
    try:
        changed = file.reload_if_changed()
    except ConfigError as error:
        _log.error("%s (the old content stays in force)", error)
        return False
    if changed:
        _log.info("%s: read again", file.path)
    return changed
