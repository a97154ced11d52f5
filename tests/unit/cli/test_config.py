"""``nexus config`` and what it shares with ``serve`` and ``client run``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nexus.config.keys import NODE_KEYS
from tests.support.command_line import nexus

SECRET = "a-secret-of-the-test-with-32-bytes"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that ``nexus init --dev`` has filled."""
    nexus("init", str(tmp_path), "--dev")
    return tmp_path


def _node(directory: Path, **changes: object) -> str:
    file = directory / "changed.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((directory / "server.yaml").read_text()) | changes))
    return str(file)


def _client(directory: Path, **changes: object) -> str:
    document = yaml.safe_load((directory / "client.yaml").read_text())
    document["backends"][0] |= changes
    file = directory / "changed-client.yaml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def test_good_file_is_ok(directory: Path) -> None:
    """On stdout, with nothing on stderr."""
    outcome = nexus("config", "check", str(directory / "server.yaml"))
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, f"{directory / 'server.yaml'}: ok\n", "")


def test_kind_can_be_given(directory: Path) -> None:
    """A client's file read as a node's has mistakes."""
    outcome = nexus("config", "check", str(directory / "client.yaml"), "--kind", "node", "--json")
    assert outcome.code == 3
    assert outcome.document()["kind"] == "node"


def test_mistakes_name_file_line_and_mend(directory: Path) -> None:
    """All at once, exit code 3."""
    file = _node(directory, relayPorts=[443, 443], idleTimeoutSeconds="soon")
    outcome = nexus("config", "check", file)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert f"{file}:" in outcome.stderr
    assert "idleTimeoutSeconds" in outcome.stderr
    assert "relayPorts[1]" in outcome.stderr


def test_unknown_key_warns_and_fails_when_strict(directory: Path) -> None:
    """With a guess at what was meant."""
    file = _node(directory, relayPort=[443])
    lenient = nexus("config", "check", file)
    assert lenient.code == 0
    assert "warning: " in lenient.stderr
    assert "relayPorts" in lenient.stderr
    strict = nexus("config", "check", file, "--strict")
    assert (strict.code, strict.stdout) == (3, "")
    assert "error: " in strict.stderr


def test_check_json_has_the_documented_keys(directory: Path) -> None:
    """Also when it fails."""
    outcome = nexus("config", "check", _node(directory, relayPorts=[]), "--json")
    document = outcome.document()
    assert outcome.code == 3
    assert list(document) == ["schema", "file", "kind", "ok", "problems", "warnings"]
    assert document["ok"] is False
    assert set(document["problems"][0]) == {"source", "line", "key", "what", "mend"}
    assert nexus("config", "check", str(directory / "client.yaml"), "--json").document()["ok"] is True


def test_unreadable_file_is_a_problem_of_unknown_kind(tmp_path: Path) -> None:
    """JSON says so too."""
    outcome = nexus("config", "check", str(tmp_path / "no.yaml"), "--json")
    assert outcome.code == 3
    assert outcome.document()["kind"] is None


def test_what_the_original_has_is_served(directory: Path) -> None:
    """No key of its files stops the check."""
    file = _node(directory, registrationURL="https://registry.example.com/nodes", stunPort=3478)
    assert nexus("config", "check", file).code == 0


def test_certificate_by_acme_needs_no_files(directory: Path) -> None:
    """The name is enough; what else is named for it must be usable."""
    acme = {"hubTlsCertFile": "", "hubTlsKeyFile": "", "hubPublicHostname": "hub.example.com", "relayPorts": [443, 80]}
    assert nexus("config", "check", _node(directory, **acme)).code == 0
    key_file = directory / "eab.key"
    account = {"acmeEABKeyID": "kid-1", "acmeEABKeyFile": str(key_file)}
    missing = nexus("config", "check", _node(directory, **acme, **account))
    assert missing.code == 3
    assert f"acmeEABKeyFile: {key_file}: cannot be read" in missing.stderr
    key_file.write_text("c2VjcmV0LXNlY3JldA\n")
    key_file.chmod(0o644)
    exposed = nexus("config", "check", _node(directory, **acme, **account))
    assert exposed.code == 0
    assert f"run: chmod 600 {key_file}" in exposed.stderr
    roots = nexus("config", "check", _node(directory, **acme, acmeCAFile="/nonexistent/ca.pem"))
    assert roots.code == 3
    assert "acmeCAFile: /nonexistent/ca.pem: cannot be read" in roots.stderr


def test_certificate_files_are_part_of_the_check(directory: Path) -> None:
    """Missing ones are mistakes, a key that others can read is a warning."""
    missing = nexus("config", "check", _node(directory, hubTlsCertFile="/nonexistent/hub.pem"))
    assert missing.code == 3
    assert "hubTlsCertFile: /nonexistent/hub.pem: does not exist" in missing.stderr
    (directory / "certs" / "hub.key").chmod(0o644)
    exposed = nexus("config", "check", str(directory / "server.yaml"))
    assert exposed.code == 0
    assert "chmod 600" in exposed.stderr


def test_files_of_keys_are_part_of_the_check(directory: Path) -> None:
    """What the node could not start with is a mistake; what is odd is a warning, told once and without the secret."""
    for key, what in (
        ("additionalJWTSecretFiles", "/nonexistent/x: no such file"),
        ("backendsJWKSFile", "/nonexistent/x: no such file"),
        ("revocationFile", "/nonexistent/x: no such file"),
        ("authorizerCAFile", "authorizerCAFile: /nonexistent/x: cannot be read"),
        ("peerCAFile", "peerCAFile: /nonexistent/x: cannot be read"),
    ):
        value = ["/nonexistent/x"] if key == "additionalJWTSecretFiles" else "/nonexistent/x"
        outcome = nexus("config", "check", _node(directory, **{key: value}))
        assert (outcome.code, what in outcome.stderr) == (3, True)
    for name in ("next", "own"):
        (directory / name).write_text("short-secret")
    file = _node(
        directory,
        backendsJWTSecretFile=str(directory / "own"),
        additionalJWTSecretFiles=[str(directory / "next")],
    )
    outcome = nexus("config", "check", file)
    assert outcome.code == 0
    assert f"{directory / 'next'}: is shorter than 32 bytes" in outcome.stderr
    assert outcome.stderr.count("shorter than 32 bytes") == 2
    assert "short-secret" not in outcome.stderr


def test_secrets_that_others_may_read_are_warned_of(directory: Path) -> None:
    """In a file of their own or in the configuration; one from the environment is in neither."""
    (directory / "secret").chmod(0o640)
    outcome = nexus("config", "check", str(directory / "server.yaml"))
    assert outcome.code == 0
    assert f"{directory / 'secret'}: holds a secret and is open to other users; run: chmod 600" in outcome.stderr
    document = yaml.safe_load((directory / "server.yaml").read_text())
    del document["backendsJWTSecretFile"]
    file = directory / "inline.yaml"
    file.write_text(yaml.safe_dump(document | {"backendsJWTSecret": "s" * 32}))
    what = f"{file}: backendsJWTSecret: is written here, and the file is open to other users"
    file.chmod(0o644)
    assert what in nexus("config", "check", str(file)).stderr
    file.chmod(0o600)
    assert "other users" not in nexus("config", "check", str(file)).stderr
    file.chmod(0o644)
    environ = {"NEXUS_BACKENDS_JWT_SECRET": "t" * 32}
    assert "other users" not in nexus("config", "check", str(file), env=environ).stderr


def test_serve_check_is_config_check(directory: Path) -> None:
    """Same words, same exit code, also for warnings."""
    (directory / "certs" / "hub.key").chmod(0o644)
    file = str(directory / "server.yaml")
    assert nexus("serve", "-c", file, "--check") == nexus("config", "check", file)


def test_clients_ca_file_is_part_of_the_check(directory: Path) -> None:
    """For ``client run`` too."""
    file = _client(directory, caFile="/nonexistent/ca.pem")
    for outcome in (nexus("config", "check", file), nexus("client", "run", "-c", file)):
        assert outcome.code == 3
        assert "backends[0].caFile: /nonexistent/ca.pem" in outcome.stderr


def test_clients_warnings_are_shown(directory: Path) -> None:
    """A claimed port that leads nowhere."""
    outcome = nexus("config", "check", _client(directory, tcpPorts=[22]))
    assert outcome.code == 0
    assert "tcpPorts[0]" in outcome.stderr


def test_show_prints_every_key_of_a_node_as_yaml(directory: Path) -> None:
    """Defaults resolved, the secret masked."""
    outcome = nexus("config", "show", str(directory / "server.yaml"))
    values = yaml.safe_load(outcome.stdout)
    assert list(values) == [spec.key for spec in NODE_KEYS]
    assert values["relayPorts"] == [8444, 8080]
    assert values["peekTimeouts"]["firstByteSeconds"] == 15
    assert (directory / "secret").read_text().strip() not in outcome.stdout


def test_show_takes_the_environment_into_account(directory: Path) -> None:
    """And says it in JSON."""
    document = nexus(
        "config", "show", str(directory / "server.yaml"), "--json", env={"NEXUS_IDLE_TIMEOUT_SECONDS": "7"}
    ).document()
    assert list(document) == ["schema", "file", "kind", "config"]
    assert document["config"]["idleTimeoutSeconds"] == 7


def test_show_works_for_features_that_are_not_served(directory: Path) -> None:
    """It says what is in effect, not whether it can be served."""
    assert yaml.safe_load(nexus("config", "show", _node(directory, stunPort=3478)).stdout)["stunPort"] == 3478


def test_show_masks_every_secret_of_a_client(directory: Path) -> None:
    """The secret itself, the arguments and the environment of a token command, and passwords in URLs."""
    attestation = {
        "hmacSecret": SECRET,
        "command": "mint",
        "args": ["--key", "hidden-value"],
        "env": {"API_KEY": "hidden-value"},
    }
    udp = [{"port": 53, "flowIdleTimeoutSeconds": 9}]
    hubs = ["wss://user:hidden-value@hub.example.com/connect?key=hidden-value"]
    file = _client(directory, attestation=attestation, udpRoutes=udp, nexusAddresses=hubs)
    outcome = nexus("config", "show", file)
    assert SECRET not in outcome.stdout
    assert "hidden-value" not in outcome.stdout
    (backend,) = yaml.safe_load(outcome.stdout)["backends"]
    assert backend["nexusAddresses"] == ["wss://********@hub.example.com/connect?********"]
    assert backend["attestation"]["args"] == ["********", "********"]
    assert backend["attestation"]["env"] == {"API_KEY": "********"}
    assert backend["attestation"]["hmacSecret"] == "********"
    assert backend["udpRoutes"] == udp
    assert backend["portMappings"] == {8444: {"default": "127.0.0.1:9443", "hosts": {}}}
    assert nexus("config", "show", file, "--json").document()["kind"] == "client"


def test_show_of_a_broken_file_fails(directory: Path) -> None:
    """Nothing is shown that is not in effect."""
    assert nexus("config", "show", _client(directory, nonsense=1)).code == 3


@pytest.mark.parametrize(("kind", "key"), [((), "backendListenAddress"), (("client",), "backends")])
def test_schema_is_json(kind: tuple[str, ...], key: str) -> None:
    """For the node unless asked otherwise."""
    schema = json.loads(nexus("config", "schema", *kind).stdout)
    assert key in schema["properties"]
    assert schema["$schema"].startswith("https://json-schema.org/")
