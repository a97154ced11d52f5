"""``nexus cert``: what the disk says, a wish to a node, and a pair from elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cli import cert
from nexus.acme.store import State, Store
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.localca import PemPair, create_ca, issue
from tests.support.command_line import nexus

HOST = "hub.example.com"
CA = create_ca("Test CA", time.time())


def pair(name: str = HOST, ago_days: int = 0) -> PemPair:
    return issue(CA, [name], time.time() - ago_days * 86_400, 90)


def config(directory: Path, **settings: object) -> str:
    file = directory / "server.yaml"
    node = {"backendListenAddress": ":8443", "relayPorts": [443, 80], "backendsJWTSecret": "x" * 32, **settings}
    file.write_text(yaml.safe_dump(node))
    return str(file)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The cache of a node with ACME."""
    made = Store(tmp_path / "acme", HOST)
    made.prepare()
    return made


@pytest.fixture
def acme(tmp_path: Path, store: Store) -> str:
    """The file of that node."""
    return config(tmp_path, hubPublicHostname=HOST, acmeCacheDir=str(store.directory))


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    """A pair of an operator's."""
    made = CertificateFiles(tmp_path / "hub.pem", tmp_path / "hub.key")
    write(made, pair())
    return made


def write(files: CertificateFiles, found: PemPair) -> None:
    files.cert_file.write_bytes(found.cert_pem)
    files.key_file.touch(mode=0o600)
    files.key_file.write_bytes(found.key_pem)


@contextmanager
def node(store: Store, does: Callable[[], None]) -> Iterator[None]:
    """Play a node that hears a wish, and what it does then."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.01):
            if store.hear_wish():
                does()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    over.set()
    thread.join(10)


def test_the_status_of_an_obtained_one(store: Store, acme: str) -> None:
    """Names, dates, and when it is renewed."""
    found = pair()
    store.save_pair(found.key_pem, found.cert_pem)
    store.save_state(State(renew_at=1_900_000_000))
    outcome = nexus("cert", "status", "-c", acme)
    assert outcome.code == 0
    assert f"file      {store.pair_file}" in outcome.stdout
    assert f"names     {HOST}" in outcome.stdout
    assert "89 days left" in outcome.stdout or "90 days left" in outcome.stdout
    assert "renewal   2030-03-17" in outcome.stdout
    document = nexus("cert", "status", "--json", "-c", acme).document()
    assert (document["isValid"], document["names"], document["key"]) == (True, [HOST], "EC")
    assert document["renewAt"] == 1_900_000_000
    assert document["error"] == ""


def test_the_status_while_there_is_none(store: Store, acme: str) -> None:
    """What failed, and what to do."""
    store.save_state(State(failures=2, error="the port is closed; open it", retry_at=1_900_000_000))
    outcome = nexus("cert", "status", "-c", acme)
    assert outcome.code == 1
    assert "valid     no: there is none yet" in outcome.stdout
    assert "failed    2 times, last: the port is closed; open it" in outcome.stdout
    assert "next try  2030-03-17" in outcome.stdout
    document = nexus("cert", "status", "--json", "-c", acme).document()
    assert (document["isValid"], document["expiresAt"], document["failures"]) == (False, None, 2)


def test_the_status_of_files(tmp_path: Path, files: CertificateFiles) -> None:
    """Also of an expired or a broken one, which is no success."""
    file = config(tmp_path, hubTlsCertFile=str(files.cert_file), hubTlsKeyFile=str(files.key_file))
    assert nexus("cert", "status", "-c", file).code == 0
    write(files, pair(ago_days=100))
    expired = nexus("cert", "status", "-c", file)
    assert expired.code == 1
    assert "expired" in expired.stdout
    files.cert_file.write_text("nothing")
    broken = nexus("cert", "status", "-c", file)
    assert broken.code == 1
    assert f"{files.cert_file}: holds no readable certificate" in broken.stdout


def test_a_node_that_renews_is_waited_for(store: Store, acme: str) -> None:
    """And the new dates are printed."""
    found = pair()
    with node(store, lambda: store.save_pair(found.key_pem, found.cert_pem)):
        outcome = nexus("cert", "renew", "-c", acme)
    assert outcome.code == 0
    assert outcome.stdout.startswith(f"{HOST}: valid until ")


def test_a_node_that_fails_says_why(store: Store, acme: str) -> None:
    """In the words of its log."""
    with node(store, lambda: store.save_state(State(failures=1, error="the port is closed; open it"))):
        outcome = nexus("cert", "renew", "-c", acme)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "error: the port is closed; open it" in outcome.stderr


def test_a_node_that_takes_too_long_is_left_to_it(store: Store, acme: str) -> None:
    """It goes on by itself."""
    with node(store, lambda: None):
        outcome = nexus("cert", "renew", "-c", acme, "--timeout", "1")
    assert outcome.code == 1
    assert "no outcome within 1 s; see `nexus cert status`" in outcome.stderr


def test_without_a_node_the_wish_stays(store: Store, acme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one that starts later."""
    monkeypatch.setattr(cert, "HEARD_WITHIN_S", 0.05)
    outcome = nexus("cert", "renew", "-c", acme)
    assert outcome.code == 1
    assert "is `nexus serve` running with this acmeCacheDir?" in outcome.stderr
    assert store.hear_wish()


def test_files_are_not_renewed_here(tmp_path: Path, files: CertificateFiles) -> None:
    """Whoever issued them does that."""
    file = config(tmp_path, hubTlsCertFile=str(files.cert_file), hubTlsKeyFile=str(files.key_file))
    outcome = nexus("cert", "renew", "-c", file)
    assert outcome.code == 3
    assert "is not obtained by the node; renew it where it came from" in outcome.stderr


def test_a_pair_is_imported_into_the_cache(store: Store, acme: str, files: CertificateFiles) -> None:
    """For the owner alone, and what failed before is forgotten."""
    store.save_state(
        State(failures=3, error="why", asked="https://ca.example.com", directory="https://old.example.com")
    )
    outcome = nexus("cert", "import", "-c", acme, "--cert", str(files.cert_file), "--key", str(files.key_file))
    assert (outcome.code, outcome.stdout) == (0, "")
    imported = read_certificate(CertificateFiles(store.pair_file, store.pair_file))
    assert imported.chain_pem == read_certificate(files).chain_pem
    assert store.pair_file.stat().st_mode & 0o777 == 0o600
    assert store.state() == State(asked="https://ca.example.com")


def test_a_pair_is_imported_in_place_of_files(tmp_path: Path, files: CertificateFiles) -> None:
    """Key and chain, each with its mode."""
    target = CertificateFiles(tmp_path / "live.pem", tmp_path / "live.key")
    file = config(tmp_path, hubTlsCertFile=str(target.cert_file), hubTlsKeyFile=str(target.key_file))
    assert nexus("cert", "import", "-c", file, "--cert", str(files.cert_file), "--key", str(files.key_file)).code == 0
    assert read_certificate(target).chain_pem == read_certificate(files).chain_pem
    assert target.key_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (pair("other.example.com"), "is for other.example.com, not for hub.example.com"),
        (pair(ago_days=100), "expired on"),
    ],
)
def test_a_pair_that_would_not_do_is_refused(
    store: Store, acme: str, files: CertificateFiles, found: PemPair, why: str
) -> None:
    """Nothing is replaced."""
    write(files, found)
    outcome = nexus("cert", "import", "-c", acme, "--cert", str(files.cert_file), "--key", str(files.key_file))
    assert outcome.code == 3
    assert why in outcome.stderr
    assert store.pair_files() == ()


def test_two_files_that_do_not_match_are_refused(
    tmp_path: Path, store: Store, acme: str, files: CertificateFiles
) -> None:
    """As everywhere."""
    other = tmp_path / "other.key"
    other.write_bytes(pair().key_pem)
    outcome = nexus("cert", "import", "-c", acme, "--cert", str(files.cert_file), "--key", str(other))
    assert outcome.code == 3
    assert "is not the key of the certificate" in outcome.stderr
    assert store.pair_files() == ()
