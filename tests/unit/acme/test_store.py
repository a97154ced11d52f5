"""The cache directory: the original's files, and ours beside them."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from nexus.acme.store import State, Store, key_to_pem, read_account_secret
from nexus.errors import AcmeError, ConfigError

HOST = "hub.example.com"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    made = Store(tmp_path / "acme", HOST)
    made.prepare()
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_directory_is_the_owners(store: Store) -> None:
    """As the original makes it; nothing is left of the trial."""
    assert mode(store.directory) == 0o700
    assert list(store.directory.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With the key and the mend."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=f"acmeCacheDir: {tmp_path / 'file' / 'acme'}: cannot be written to: .*; name"
    ):
        Store(tmp_path / "file" / "acme", HOST).prepare()


def test_an_account_key_is_made_once(store: Store) -> None:
    """P-256, for the owner alone, in the original's form."""
    made = store.account_key()
    assert isinstance(made, ec.EllipticCurvePrivateKey)
    path = store.directory / "acme_account+key"
    assert mode(path) == 0o600
    assert path.read_text().startswith("-----BEGIN EC PRIVATE KEY-----")
    assert store.account_key().private_numbers() == made.private_numbers()


def test_an_account_key_of_rsa_is_used(store: Store) -> None:
    """Other programs make such."""
    key = rsa.generate_private_key(65_537, 2048)
    (store.directory / "acme_account+key").write_bytes(key_to_pem(key))
    assert store.account_key().private_numbers() == key.private_numbers()


@pytest.mark.parametrize("content", [b"", b"-----BEGIN EC PRIVATE KEY-----\nMHc=\n", None])
def test_a_damaged_account_key_is_kept_aside(
    store: Store, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the only one; a key of a kind that ACME does not know is no better."""
    if content is None:
        pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content = ed25519.Ed25519PrivateKey.generate().private_bytes(*pem)
    path = store.directory / "acme_account+key"
    path.write_bytes(content)
    store.account_key()
    load_pem_private_key(path.read_bytes(), None)
    (aside,) = store.directory.glob("acme_account+key.damaged-*")
    assert aside.read_bytes() == content
    assert "holds no usable key" in caplog.text


def test_pairs_are_found_the_better_one_first(store: Store) -> None:
    """The original has one of each kind of key."""
    assert store.pair_files() == ()
    (store.directory / f"{HOST}+rsa").write_text("x")
    assert [path.name for path in store.pair_files()] == [f"{HOST}+rsa"]
    store.save_pair(b"key\n", b"chain\n")
    assert [path.name for path in store.pair_files()] == [HOST, f"{HOST}+rsa"]
    assert store.pair_file.read_bytes() == b"key\nchain\n"
    assert mode(store.pair_file) == 0o600


def test_what_is_known_is_kept(store: Store) -> None:
    """All of it."""
    assert store.state() == State()
    known = State("https://ca.example.com", 1.5, "https://ca.example.com", 3, "why", 2.5)
    store.save_state(known)
    assert store.state() == known
    assert mode(store.directory / f"{HOST}+nexus") == 0o600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", State()),
        ("[1]", State()),
        ('{"failures": 2', State()),
        ('{"failures": 2, "renew_at": "soon", "error": null, "retry_at": true, "more": 1}', State(failures=2)),
        ('{"renew_at": 7}', State(renew_at=7)),
        ("\x00\xff", State()),
    ],
)
def test_damaged_knowledge_is_none(store: Store, text: str, expected: State) -> None:
    """Part by part."""
    (store.directory / f"{HOST}+nexus").write_text(text)
    assert store.state() == expected


def test_it_is_json_for_people(store: Store) -> None:
    """Operators may look."""
    store.save_state(State(failures=1))
    assert json.loads((store.directory / f"{HOST}+nexus").read_text())["failures"] == 1


def test_a_wish_is_heard_once(store: Store) -> None:
    """And leaves nothing behind."""
    assert not store.hear_wish()
    store.ask_to_renew()
    assert store.hear_wish()
    assert not store.hear_wish()


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"a b", "holds no")]
)
def test_the_key_of_a_web_account_is_checked(tmp_path: Path, content: bytes | None, why: str) -> None:
    """Never repeated."""
    path = tmp_path / "eab"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AcmeError, match=f"{path}: {why}"):
        read_account_secret(path)


def test_the_key_of_a_web_account_is_read_as_the_ca_shows_it(tmp_path: Path) -> None:
    """With or without padding, and a line's end."""
    path = tmp_path / "eab"
    path.write_text(" c2VjcmV0LXNlY3JldA==\n")
    assert read_account_secret(path) == "c2VjcmV0LXNlY3JldA"


def test_no_key_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Not even of a damaged file."""
    caplog.set_level(logging.DEBUG)
    (store.directory / "acme_account+key").write_text("-----BEGIN secret-bytes")
    store.account_key()
    assert "secret-bytes" not in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
def test_what_root_writes_belongs_to_the_nodes_user(tmp_path: Path) -> None:
    """A command of the operator's must not leave files that the node cannot read."""
    os.chown(tmp_path, 12_345, 12_346)
    store = Store(tmp_path / "acme", HOST)
    store.prepare()
    store.save_pair(b"key", b"chain")
    store.save_state(State())
    store.ask_to_renew()
    store.account_key()
    found = [store.directory, *store.directory.iterdir()]
    assert len(found) == 5
    assert {(path.stat().st_uid, path.stat().st_gid) for path in found} == {(12_345, 12_346)}


def test_a_wish_may_be_heard_the_moment_it_is_there(store: Store) -> None:
    """A node that is quick takes the file away; whoever left it sees no error."""
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            store.hear_wish()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        for _ in range(200):
            store.ask_to_renew()
    finally:
        over.set()
        thread.join(10)
