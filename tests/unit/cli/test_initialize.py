"""``nexus init``: files that work together, private, and never lost."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from backend_client.config import load_client_file
from nexus.auth.tokens import verify_token
from nexus.config.load import load_node_config
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.localca import create_ca, issue
from tests.support.command_line import Outcome, nexus

PRIVATE = {"secret", "server.yaml", "client.yaml", "ca.key", "hub.key", "app.key"}
PUBLIC = {"ca.pem", "hub.pem", "app.pem"}


def _files(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.rglob("*") if path.is_file()}


def _actions(outcome: Outcome) -> set[str]:
    return {entry["action"] for entry in outcome.document()["files"]}


def test_development_files_pass_the_check_and_fit_each_other(tmp_path: Path) -> None:
    """Node and client agree on secret, hub, CA and ports."""
    assert nexus("init", str(tmp_path), "--dev").code == 0
    for name in ("server.yaml", "client.yaml"):
        checked = nexus("config", "check", str(tmp_path / name), "--strict")
        assert (checked.code, checked.stderr) == (0, "")
    node = load_node_config(tmp_path / "server.yaml", environ={}).config
    (backend,) = load_client_file(tmp_path / "client.yaml").file.backends
    assert backend.attestation.hmac_secret == node.backends_jwt_secret
    assert backend.nexus_addresses == ("wss://localhost:8443/connect",)
    assert node.backend_listen_address == "127.0.0.1:8443"
    assert node.relay_ports == (8444, 8080)
    assert list(backend.port_mappings) == [8444]
    assert backend.hostnames == ("app.localhost",)


def test_modes_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Keys, secret and configuration 0600, certificates 0644."""
    before = os.umask(0)
    try:
        nexus("init", str(tmp_path), "--local-ca")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in _files(tmp_path).items()}
    assert modes == dict.fromkeys(PRIVATE, 0o600) | dict.fromkeys(PUBLIC, 0o644)


def test_secret_serves_the_token_command(tmp_path: Path) -> None:
    """The same file signs what the node verifies."""
    nexus("init", str(tmp_path), "--dev")
    token = nexus("token", "--hostname", "app.localhost", "--secret-file", str(tmp_path / "secret")).stdout.strip()
    node = load_node_config(tmp_path / "server.yaml", environ={}).config
    verify_token(token, [node.backends_jwt_secret.encode()], time.time())


def test_every_run_makes_another_secret(tmp_path: Path) -> None:
    """32 random bytes."""
    for name in ("a", "b"):
        nexus("init", str(tmp_path / name))
    secrets = [(tmp_path / name / "secret").read_text().strip() for name in ("a", "b")]
    assert secrets[0] != secrets[1]
    assert [len(bytes.fromhex(secret)) for secret in secrets] == [32, 32]


def test_secret_is_printed_only_on_request(tmp_path: Path) -> None:
    """Neither stream shows it otherwise, nor does any configuration file hold it."""
    outcome = nexus("init", str(tmp_path), "--dev")
    secret = (tmp_path / "secret").read_text().strip()
    assert secret not in outcome.stdout + outcome.stderr
    assert secret not in (tmp_path / "server.yaml").read_text() + (tmp_path / "client.yaml").read_text()
    assert secret in nexus("init", str(tmp_path), "--dev", "--show-secret").stdout
    assert nexus("init", str(tmp_path), "--dev", "--show-secret", "--json").document()["secret"] == secret


def test_a_kept_secret_that_is_no_text_is_explained(tmp_path: Path) -> None:
    """Not by a stack trace."""
    (tmp_path / "secret").write_bytes(b"hush\xff\xfe")
    outcome = nexus("init", str(tmp_path), "--dev", "--show-secret")
    assert outcome.code == 3
    assert f"error: {tmp_path / 'secret'}:1: is not UTF-8 text; save it as UTF-8" in outcome.stderr
    assert "hush" not in outcome.stdout + outcome.stderr


def test_without_a_certificate_the_check_says_what_to_fill_in(tmp_path: Path) -> None:
    """Exit code 3, the keys named, and the file says so too."""
    outcome = nexus("init", str(tmp_path))
    assert outcome.code == 0
    assert "Fill in hubTlsCertFile and hubTlsKeyFile" in outcome.stderr
    checked = nexus("config", "check", str(tmp_path / "server.yaml"))
    assert checked.code == 3
    assert "the hub needs a certificate; set hubTlsCertFile and hubTlsKeyFile" in checked.stderr
    assert "FILL IN" in (tmp_path / "server.yaml").read_text()
    assert nexus("config", "check", str(tmp_path / "client.yaml"), "--strict").code == 0


def test_given_certificate_names_the_hub(tmp_path: Path) -> None:
    """The client's file dials the certificate's first name that is no wildcard."""
    pair = issue(create_ca("Test CA", time.time()), ("*.example.org", "hub.example.org"), time.time(), 30)
    cert, key = tmp_path / "hub.pem", tmp_path / "hub.key"
    cert.write_bytes(pair.cert_pem)
    key.touch(mode=0o600)
    key.write_bytes(pair.key_pem)
    assert nexus("init", str(tmp_path / "node"), "--cert", str(cert), "--key", str(key)).code == 0
    assert nexus("config", "check", str(tmp_path / "node" / "server.yaml"), "--strict").code == 0
    (backend,) = load_client_file(tmp_path / "node" / "client.yaml").file.backends
    assert backend.nexus_addresses == ("wss://hub.example.org:8443/connect",)


def test_unusable_certificate_is_a_configuration_error_before_anything_is_written(tmp_path: Path) -> None:
    """Exit code 3."""
    missing = str(tmp_path / "no.pem")
    assert nexus("init", str(tmp_path / "node"), "--cert", missing, "--key", missing).code == 3
    assert not (tmp_path / "node").exists()


def test_second_run_keeps_and_names_every_file(tmp_path: Path) -> None:
    """Nothing changes, not even a time stamp."""
    nexus("init", str(tmp_path), "--dev")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(tmp_path).values()}
    outcome = nexus("init", str(tmp_path), "--dev", "--json")
    assert _actions(outcome) == {"kept"}
    assert {entry["path"] for entry in outcome.document()["files"]} == set(map(str, before))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(tmp_path).values()} == before
    assert "--force" in nexus("init", str(tmp_path), "--dev").stderr


def test_run_after_a_loss_makes_what_is_missing(tmp_path: Path) -> None:
    """The rest is kept."""
    nexus("init", str(tmp_path), "--dev")
    (tmp_path / "client.yaml").unlink()
    outcome = nexus("init", str(tmp_path), "--dev", "--json")
    created = [entry["path"] for entry in outcome.document()["files"] if entry["action"] == "created"]
    assert created == [str(tmp_path / "client.yaml")]


def test_force_replaces_and_leaves_backups(tmp_path: Path) -> None:
    """Twice within one second too: no backup overwrites another."""
    nexus("init", str(tmp_path), "--dev")
    first = (tmp_path / "secret").read_bytes()
    outcome = nexus("init", str(tmp_path), "--dev", "--force", "--json")
    assert _actions(outcome) == {"replaced"}
    backups = {entry["path"]: Path(entry["backup"]) for entry in outcome.document()["files"]}
    backup = backups[str(tmp_path / "secret")]
    assert backup.name.startswith("secret.bak-")
    assert backup.read_bytes() == first
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    nexus("init", str(tmp_path), "--dev", "--force")
    assert len(list(tmp_path.glob("secret.bak-*"))) == 2
    assert nexus("config", "check", str(tmp_path / "server.yaml"), "--strict").code == 0


def test_backups_do_not_collide_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter tells them apart."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    for _ in range(4):
        nexus("init", str(tmp_path), "--force")
    names = {path.name for path in tmp_path.glob("secret.bak-*")}
    assert names == {"secret.bak-1800000000", "secret.bak-1800000000-1", "secret.bak-1800000000-2"}


@pytest.mark.parametrize("lost", [("ca.key",), ("hub.pem",), ("ca.pem", "ca.key")])
def test_broken_set_of_certificates_is_refused(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """Half a pair, or certificates without the CA that signed them, would not work together."""
    nexus("init", str(tmp_path), "--dev")
    for name in lost:
        (tmp_path / "certs" / name).unlink()
    outcome = nexus("init", str(tmp_path), "--dev")
    assert outcome.code == 3
    assert "--force" in outcome.stderr
    assert nexus("init", str(tmp_path), "--dev", "--force").code == 0
    assert nexus("config", "check", str(tmp_path / "server.yaml")).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cert", "x.pem"),
        ("--key", "x.key"),
        ("--dev", "--cert", "x.pem", "--key", "x.key"),
        ("--hub-port", "443", "--relay-port", "443"),
        ("--relay-port", "443", "--relay-port", "443"),
        ("--hub-port", "0"),
        ("--to", "nowhere"),
    ],
)
def test_contradicting_options_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and nothing is written."""
    assert nexus("init", str(tmp_path / "node"), *arguments).code == 2
    assert not (tmp_path / "node").exists()


def test_options_reach_both_files_and_may_be_variables(tmp_path: Path) -> None:
    """Ports, names and target."""
    environment = {
        "NEXUS_INIT_HOSTNAME": "hub.lan",
        "NEXUS_INIT_RELAY_PORT": "4443 8000",
        "NEXUS_INIT_HUB_PORT": "9000",
        "NEXUS_INIT_TO": ":9999",
        "NEXUS_INIT_BACKEND_HOSTNAME": "www.lan",
    }
    nexus("init", str(tmp_path), "--dev", env=environment)
    node = load_node_config(tmp_path / "server.yaml", environ={}).config
    (backend,) = load_client_file(tmp_path / "client.yaml").file.backends
    assert node.backend_listen_address == ":9000"  # not loopback: the name is not of this machine alone
    assert node.relay_ports == (4443, 8000)
    assert backend.nexus_addresses == ("wss://hub.lan:9000/connect",)
    assert backend.hostnames == ("www.lan",)
    assert {port: mapping.default for port, mapping in backend.port_mappings.items()} == {4443: "127.0.0.1:9999"}


def test_hub_may_be_an_ipv6_address(tmp_path: Path) -> None:
    """In brackets in the URL, and the example backend still has a name."""
    nexus("init", str(tmp_path), "--dev", "--hostname", "2001:db8::1")
    (backend,) = load_client_file(tmp_path / "client.yaml").file.backends
    assert backend.nexus_addresses == ("wss://[2001:db8::1]:8443/connect",)
    assert backend.hostnames == ("app.localhost",)


def test_odd_directory_names_survive_yaml(tmp_path: Path) -> None:
    """Quotes, colons and letters beyond ASCII."""
    directory = tmp_path / "a: 'b' \"c\" #é"
    assert nexus("init", str(directory), "--dev").code == 0
    assert nexus("config", "check", str(directory / "server.yaml")).code == 0
    assert nexus("config", "check", str(directory / "client.yaml")).code == 0


def test_directory_that_is_a_file_fails_with_one_line(tmp_path: Path) -> None:
    """Exit code 1, no traceback."""
    (tmp_path / "x").touch()
    outcome = nexus("init", str(tmp_path / "x"))
    assert outcome.code == 1
    assert len(outcome.stderr.splitlines()) == 1


def test_next_steps_are_messages_not_data(tmp_path: Path) -> None:
    """stdout lists files alone."""
    outcome = nexus("init", str(tmp_path), "--dev")
    assert all(line.split()[0] == "created" for line in outcome.stdout.splitlines())
    assert f"nexus serve -c {tmp_path / 'server.yaml'}" in outcome.stderr


def test_acme_needs_nothing_but_a_name(tmp_path: Path) -> None:
    """The check passes; the cache is where it was wanted, and nothing is to be filled in."""
    outcome = nexus("init", str(tmp_path), "--acme", "--hostname", "hub.example.com", "--acme-cache-dir", "/var/lib/x")
    assert outcome.code == 0
    assert "accept the terms of the CA" in outcome.stderr
    assert "Fill in" not in outcome.stderr
    text = (tmp_path / "server.yaml").read_text()
    assert 'hubPublicHostname: "hub.example.com"\n' in text
    assert 'acmeCacheDir: "/var/lib/x"\n' in text
    assert "hubTlsCertFile" not in text
    assert nexus("config", "check", "--strict", str(tmp_path / "server.yaml")).code == 0
    assert "wss://hub.example.com:8443/connect" in (tmp_path / "client.yaml").read_text()


def test_the_cache_is_beside_the_configuration_by_default(tmp_path: Path) -> None:
    """As an absolute path, wherever the node is started."""
    assert nexus("init", str(tmp_path), "--acme", "--hostname", "hub.example.com").code == 0
    assert f'acmeCacheDir: "{tmp_path / "acme_certs"}"' in (tmp_path / "server.yaml").read_text()


def test_self_signed_is_for_a_real_node(tmp_path: Path) -> None:
    """Public ports on all interfaces; backends trust the CA that was made."""
    outcome = nexus("init", str(tmp_path), "--self-signed", "--hostname", "hub.example.com")
    assert outcome.code == 0
    node, client = (tmp_path / "server.yaml").read_text(), (tmp_path / "client.yaml").read_text()
    assert 'backendListenAddress: ":8443"' in node
    assert "relayPorts: [443, 80]" in node
    assert f'caFile: "{tmp_path / "certs" / "ca.pem"}"' in client
    names = read_certificate(CertificateFiles(tmp_path / "certs" / "hub.pem", tmp_path / "certs" / "hub.key")).names
    assert names[0] == "hub.example.com"
    assert nexus("config", "check", "--strict", str(tmp_path / "server.yaml")).code == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--acme"], "needs --hostname NAME"),
        (["--self-signed"], "needs --hostname NAME"),
        (["--acme", "--hostname", "192.0.2.1"], "must be a name of the DNS"),
        (["--acme", "--dev", "--hostname", "a.example"], "and so does --acme; give one"),
        (["--acme", "--cert", "a", "--key", "b", "--hostname", "a.example"], "and so does --cert; give one"),
        (["--dev", "--self-signed", "--hostname", "a.example"], "and so does --self-signed; give one"),
        (["--acme-cache-dir", "x"], "has no effect without --acme"),
    ],
)
def test_one_source_of_certificates_at_a_time(tmp_path: Path, options: list[str], why: str) -> None:
    """Nothing is written."""
    outcome = nexus("init", str(tmp_path / "new"), *options)
    assert outcome.code == 2
    assert why in " ".join(outcome.stderr.split())
    assert not (tmp_path / "new").exists()
