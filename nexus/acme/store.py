"""What is kept between two runs: the directory of the original's cache, and a few files of ours in it.

    acme_account+key    the account's private key (PEM), the original's
    HOST                private key, certificate and chain (PEM), the original's (ECDSA); HOST+rsa is read, too
    HOST+nexus          what this node knows beside them (JSON): when to renew, what failed, when to try again
    HOST+renew          an operator's wish to renew now; gone once it was heard

Files are written whole or not at all, for the owner only. One that cannot be read counts as absent: a damaged account
key is kept aside under another name, since it may be the only one; anything else is simply replaced.

Source: spec node-and-mesh 10 (the cache directory).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nexus.errors import AcmeError, ConfigError, Problem
from nexus.files import file_signature, give_to_owner_of, write_private

_log = logging.getLogger("nexus.acme")

DIRECTORY_MODE: Final = 0o700
_STATE_MAX_BYTES: Final = 64 * 1024
_SECRET_MAX_BYTES: Final = 4096
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{8,}")
AccountKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class State:
    """What a node knows beside the certificate; times are unix seconds, 0 for none.

    ``directory`` is the URL that the certificate in the cache came from, "" where an original obtained it, or an
    operator imported it. ``renew_at`` is when to renew. ``asked`` is the URL of the last attempt; ``failures`` counts
    failed ones in a row, ``error`` says why the last one failed, and ``retry_at`` when the next one may begin.
    """

    directory: str = ""
    renew_at: float = 0.0
    asked: str = ""
    failures: int = 0
    error: str = ""
    retry_at: float = 0.0


class Store:
    """The cache directory, as one node uses it for one name."""

    def __init__(self, directory: Path, hostname: str) -> None:
        """Name files in ``directory``, which ``prepare`` makes; ``hostname`` is normalised."""
        self.directory = directory
        self._host = directory / hostname
        self._renew = directory / f"{hostname}+renew"
        self._state = directory / f"{hostname}+nexus"
        self._account = directory / "acme_account+key"

    def prepare(self) -> None:
        """Make the directory; root makes it for the owner of the one above.

        Raises:
            ConfigError: it cannot be made, or not be written to.
        """
        try:
            if not self.directory.exists():
                self.directory.mkdir(mode=DIRECTORY_MODE, parents=True)
                give_to_owner_of(self.directory, self.directory.parent)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            what = f"{self.directory}: cannot be written to: {error.strerror}"
            raise ConfigError(
                Problem("acmeCacheDir", 0, "", what, "name a directory that this user may write to")
            ) from None

    # -- Pair -------------------------------------------------------------------------------------------------------

    @property
    def pair_file(self) -> Path:
        """Where a certificate and its key are kept."""
        return self._host

    def pair_files(self) -> tuple[Path, ...]:
        """Return the files that may hold a pair, the better one first, those that exist."""
        candidates = (self._host, self._host.with_name(f"{self._host.name}+rsa"))
        return tuple(path for path in candidates if file_signature(path) is not None)

    def save_pair(self, key_pem: bytes, chain_pem: bytes) -> None:
        """Keep a pair. Raises OSError."""
        self._write(self._host, key_pem + chain_pem)

    # -- Account ----------------------------------------------------------------------------------------------------

    def account_key(self) -> AccountKey:
        """Return the account's key, a new one where there is none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            try:
                key = serialization.load_pem_private_key(self._account.read_bytes(), None)
                if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
                    return key
            except (ValueError, TypeError, UnsupportedAlgorithm):
                pass
            aside = self._account.with_name(f"{self._account.name}.damaged-{int(time.time())}")
            self._account.replace(aside)
            _log.warning("%s: holds no usable key; moved to %s, and a new account is made", self._account, aside.name)
        made = ec.generate_private_key(ec.SECP256R1())
        self._write(self._account, key_to_pem(made))
        return made

    # -- State ------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return what is known, nothing where the file is damaged."""
        try:
            with self._state.open("rb") as file:
                document = json.loads(file.read(_STATE_MAX_BYTES))
        except (OSError, ValueError):
            return State()
        return _state_of(document)

    def save_state(self, state: State) -> None:
        """Keep what is known. Raises OSError."""
        self._write(self._state, (json.dumps(asdict(state), indent=2) + "\n").encode())

    # -- Wishes -----------------------------------------------------------------------------------------------------

    def ask_to_renew(self) -> None:
        """Leave an operator's wish for the node. Raises OSError."""
        self._write(self._renew, b"")

    def has_wish(self) -> bool:
        """Tell whether a wish was left that no node has heard."""
        return file_signature(self._renew) is not None

    def hear_wish(self) -> bool:
        """Return whether there was an operator's wish since the last call."""
        try:
            self._renew.unlink()
        except OSError:
            return False
        return True

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file for the directory's owner: root may run the command line, and another user the node."""
        write_private(path, data, owner=self.directory)


def read_account_secret(path: Path) -> str:
    """Return the key of an account at the CA's web site, base64url without padding (RFC 8555 7.3.4).

    Raises:
        AcmeError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_SECRET_MAX_BYTES).decode("ascii").strip().rstrip("=")
    except (OSError, UnicodeError):
        raise AcmeError(f"{path}: cannot be read as text; check the path and its owner", reached=False) from None
    if _BASE64URL.fullmatch(text) is None:
        raise AcmeError(f"{path}: holds no base64url text; write the key as the CA shows it", reached=False)
    return text


def key_to_pem(key: AccountKey) -> bytes:
    """Return a key as the original writes it: ``EC PRIVATE KEY``, ``RSA PRIVATE KEY``."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _state_of(document: object) -> State:
    if not isinstance(document, dict):
        return State()
    defaults = State()
    values: dict[str, Any] = {
        field.name: value
        for field in fields(State)
        if _is_like(value := document.get(field.name), getattr(defaults, field.name))
    }
    return State(**values)


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
