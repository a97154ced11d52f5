"""nexus.auth.keyring: keys and lists in files, and what happens to them while a node runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nexus.auth.keyring import Keyring, KeySources, parse_secret
from nexus.auth.revocation import TokenIdentity
from nexus.errors import ConfigError
from nexus.files import write_private
from tests.support.signing import jwk, key_set, private_key, public_pem

NOW = 1000.0
SECRET = "a-secret-of-the-test-with-32-bytes"


def _write(path: Path, text: str) -> Path:
    write_private(path, text.encode())
    return path


def test_without_files_there_is_the_secret_alone() -> None:
    """Or nothing at all."""
    keyring = Keyring(KeySources("written in the configuration"))
    assert (keyring.secrets, keyring.public_keys) == ((b"written in the configuration",), ())
    assert keyring.revocations.reason([TokenIdentity("x")], NOW) == ""
    assert not keyring.warnings
    assert not keyring.look()
    assert Keyring(KeySources()).secrets == ()
    assert "written" not in repr(KeySources("written in the configuration"))


def test_a_written_secret_that_everybody_may_know_is_refused() -> None:
    """As one in a file is."""
    with pytest.raises(ConfigError, match="the shared secret: is a public key or certificate, not a secret"):
        Keyring(KeySources(public_pem(private_key("RS256"))))


def test_secrets_rotate_one_by_one(tmp_path: Path) -> None:
    """The order is that of the configuration; each file is followed."""
    files = tuple(_write(tmp_path / name, f"{SECRET}-{name}\r\n") for name in ("old", "new"))
    keyring = Keyring(KeySources(secret_files=files))
    assert keyring.secrets == (f"{SECRET}-old".encode(), f"{SECRET}-new".encode())
    _write(files[0], "é" * 20)
    assert not keyring.look()
    assert keyring.secrets == (("é" * 20).encode(), f"{SECRET}-new".encode())


def test_public_keys_and_revocations_follow_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``look`` tells of a list that changed; keys that are skipped are told of when they are new."""
    caplog.set_level(logging.INFO)
    keys = _write(tmp_path / "keys", public_pem(private_key("ES256")))
    revoked = _write(tmp_path / "revoked", "sub a\n")
    keyring = Keyring(KeySources(key_file=keys, revocation_file=revoked))
    assert [key.algorithm for key in keyring.public_keys] == ["ES256"]
    assert keyring.revocations.reason([TokenIdentity("a")], NOW)
    assert not keyring.look()
    _write(keys, key_set(jwk(private_key("EdDSA"), kid="e"), {"kty": "oct"}))
    _write(revoked, "sub b\n")
    assert keyring.look()
    assert [key.key_id for key in keyring.public_keys] == ["e"]
    assert not keyring.revocations.reason([TokenIdentity("a")], NOW)
    assert f"{keys}: keys[1] has a kty other than RSA, EC and OKP: skipped" in caplog.text
    assert f"{revoked}: read again" in caplog.text
    assert f"{revoked}: 1 of 1 entries are gone or narrower: tokens that they revoked are believed again" in caplog.text
    caplog.clear()
    _write(revoked, "sub b\nsub c\n")
    assert keyring.look()
    assert "gone" not in caplog.text
    lines = len(caplog.records)
    assert not keyring.look()
    assert len(caplog.records) == lines


def test_a_file_that_spoils_keeps_what_was_in_force_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-written list must not let revoked tokens in, an emptied secret must not lock everybody out."""
    secret, keys, revoked = (tmp_path / name for name in ("secret", "keys", "revoked"))
    _write(secret, SECRET)
    _write(keys, public_pem(private_key("ES256")))
    _write(revoked, "sub a\n")
    keyring = Keyring(KeySources(secret_files=(secret,), key_file=keys, revocation_file=revoked))
    _write(secret, "")
    _write(keys, "{")
    revoked.unlink()
    for _ in range(3):
        assert not keyring.look()
    assert keyring.secrets == (SECRET.encode(),)
    assert len(keyring.public_keys) == 1
    assert keyring.revocations.reason([TokenIdentity("a")], NOW)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.partition(": ")[0] for message in messages] == [str(secret), str(keys), str(revoked)]
    assert all("the old content stays in force" in message for message in messages)
    assert not any(SECRET in message for message in messages)


def test_a_node_does_not_start_on_half_of_its_keys(tmp_path: Path) -> None:
    """Every mistake in every file is named at once."""
    empty, keys, revoked = tmp_path / "empty", _write(tmp_path / "keys", "?"), _write(tmp_path / "revoked", "\nx\ny y")
    _write(empty, "\n")
    public = _write(tmp_path / "public", public_pem(private_key("ES256")))
    with pytest.raises(ConfigError) as caught:
        Keyring(KeySources("x", (empty, tmp_path / "none", public), keys, revoked))
    assert [(problem.source, problem.line) for problem in caught.value.problems] == [
        (str(empty), 0),
        (str(tmp_path / "none"), 0),
        (str(public), 0),
        (str(keys), 0),
        (str(revoked), 2),
        (str(revoked), 3),
    ]


def test_what_is_odd_is_told_of_without_the_secret(tmp_path: Path) -> None:
    """A short secret can be guessed from one token."""
    short = _write(tmp_path / "short", "short secret")
    keys = _write(tmp_path / "keys", key_set({"kty": "oct"}, jwk(private_key("EdDSA"))))
    assert Keyring(KeySources(secret_files=(short,), key_file=keys)).warnings == (
        f"{short}: is shorter than 32 bytes and can be guessed from one token",
        f"{keys}: keys[0] has a kty other than RSA, EC and OKP: skipped",
    )


@pytest.mark.parametrize(("text", "secret"), [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), (" a \n\n", " a \n")])
def test_one_newline_is_no_part_of_a_secret(text: str, secret: str) -> None:
    """Editors add it; the rest counts as it is."""
    assert parse_secret(text, "f") == secret
