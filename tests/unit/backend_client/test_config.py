"""The backend client's configuration file."""

import dataclasses
from pathlib import Path

import pytest

from backend_client.config import (
    Attestation,
    BackendConfig,
    FlowControl,
    HealthChecks,
    LoadedClientFile,
    PortMapping,
    UdpRoute,
    load_client_file,
)
from backend_client.socks5 import Login
from nexus.errors import ConfigError
from nexus.masking import MASK

SAMPLE = Path(__file__).parents[1] / "config" / "samples" / "client.yaml"
LEAST = {
    "name": "web",
    "hostnames": "[app.example.com]",
    "nexusAddresses": "['wss://hub.example.com/connect']",
    "attestation": "{hmacSecret: s}",
    "portMappings": "{443: {default: 'localhost:8443'}}",
}
TOO_LONG = "is longer than the 255 bytes that SOCKS5 allows"
OUTBOUND = "{hmacSecret: s, outboundAllowed: true}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of the owner's own, as one with a secret should be."""
    path = tmp_path / "client.yaml"
    path.touch(0o600)
    return path


def loaded(path: Path, **keys: str | None) -> LoadedClientFile:
    """Load a file of one backend with the least keys, some replaced or (None) left out."""
    lines = [f"{key}: {value}" for key, value in (LEAST | keys).items() if value is not None]
    path.write_text("backends:\n- " + "\n  ".join(lines) + "\n")
    return load_client_file(path)


def backend(path: Path, **keys: str | None) -> BackendConfig:
    (only,) = loaded(path, **keys).file.backends
    return only


def refused(path: Path, **keys: str | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(path, **keys)
    return [f"{problem.key.removeprefix('backends[0].')}: {problem.what}" for problem in caught.value.problems]


def warned(path: Path, **keys: str | None) -> list[str]:
    return [f"{problem.key.removeprefix('backends[0].')}: {problem.what}" for problem in loaded(path, **keys).warnings]


def test_the_least_file_resolves_every_default(path: Path) -> None:
    """Defaults are those of the table of spec backend-protocol 16."""
    result = loaded(path)
    assert not result.warnings
    assert result.file.backends == (
        BackendConfig(
            name="web",
            nexus_addresses=("wss://hub.example.com/connect",),
            attestation=Attestation(hmac_secret="s"),
            port_mappings={443: PortMapping("localhost:8443")},
            hostnames=("app.example.com",),
        ),
    )
    only = result.file.backends[0]
    assert (only.weight, only.health_checks, only.flow_control) == (
        1,
        HealthChecks(False, 60, 5),
        FlowControl(48, 16, 64),
    )
    assert (only.attestation.timeout_s, only.attestation.token_ttl_s) == (15, 30)


def test_a_full_file_loads(path: Path) -> None:
    """Every key of the table, with names normalised and duplicates gone."""
    path.write_bytes(SAMPLE.read_bytes())
    result = load_client_file(path)
    web, legacy = result.file.backends
    assert not result.warnings
    assert web.hostnames == ("app.example.com", "*.apps.example.com")
    assert web.tcp_ports == (25,)
    assert web.udp_routes == (UdpRoute(53, 20),)
    assert web.nexus_addresses == legacy.nexus_addresses
    assert web.weight == 1
    assert web.attestation.hmac_secret == "a-sample-secret"
    assert web.attestation.token_ttl_s == 30
    assert (web.attestation.policy_version, web.attestation.outbound_allowed) == ("7", True)
    assert web.attestation.allowed_outbound_ports == (587,)
    assert web.port_mappings[443].hosts == {"*.apps.example.com": "localhost:8081", "app.example.com": "[::1]:8082"}
    assert web.port_mappings[25].default == "localhost:2525"
    assert web.health_checks == HealthChecks(True, 60, 5)
    assert web.flow_control == FlowControl(40, 16, 64)
    assert (web.socks5_listen_addr, web.ca_file) == ("127.0.0.1:1080", "/etc/nexus/roots.pem")
    assert legacy.hostnames == ("old.example.com",)
    assert legacy.attestation.args == ("--audience", "nexus")
    assert legacy.attestation.env == {"REGION": "eu", "LEVEL": "3"}


def test_hostname_counts_only_without_hostnames(path: Path) -> None:
    """The older key does not add to the newer one."""
    assert backend(path, hostname="old.example.com").hostnames == ("app.example.com",)
    assert backend(path, hostname="Old.example.com", hostnames="[]").hostnames == ("old.example.com",)


def test_unicode_names_become_ascii(path: Path) -> None:
    """A wildcard too, so that tokens and overrides agree with the hub."""
    only = backend(
        path,
        hostnames='["bücher.example", "*.bücher.example"]',
        portMappings="{443: {hosts: {'*.bücher.example': 'a:1'}}}",
    )
    assert only.hostnames == ("xn--bcher-kva.example", "*.xn--bcher-kva.example")
    assert only.port_mappings[443] == PortMapping("", {"*.xn--bcher-kva.example": "a:1"})


def test_unknown_keys_are_mistakes_with_a_suggestion(path: Path) -> None:
    """The client is strict."""
    with pytest.raises(ConfigError) as caught:
        loaded(path, hostNames="[a]", attestation="{hmacSecret: s, zzz: x}")
    assert [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems] == [
        "5: backends[0].attestation.zzz: unknown key",
        "7: backends[0].hostNames: unknown key; did you mean 'hostnames'?",
    ]


def test_an_empty_file_lacks_backends(path: Path) -> None:
    """At least one backend."""
    for text in ("", "backends: []\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="backends: is required; describe at least one backend"):
            load_client_file(path)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"name": None}, ["name: is required"]),
        ({"hostnames": None}, ["hostnames: nothing is claimed"]),
        ({"hostnames": "[' . ']"}, ["hostnames[0]: is empty"]),
        ({"hostnames": "[a, 'TCP:25']"}, ["hostnames[1]: is a port, not a hostname"]),
        ({"hostnames": None, "hostname": "'udp:53'"}, ["hostname: is a port, not a hostname"]),
        ({"tcpPorts": "[0]"}, ["tcpPorts[0]: must be from 1 to 65535, found 0"]),
        ({"hostnames": None, "tcpPorts": "[x]"}, ["tcpPorts[0]: must be an integer, found 'x'"]),
        ({"udpRoutes": "[{port: 1}, {port: 1}]"}, ["udpRoutes[1].port: 1 is claimed twice"]),
        ({"udpRoutes": "[{}]"}, ["udpRoutes[0].port: is required"]),
        ({"nexusAddresses": None}, ["nexusAddresses: is required"]),
        ({"nexusAddresses": "['https://h/connect']"}, ["nexusAddresses[0]: must be a ws:// or wss:// URL with a host"]),
        ({"nexusAddresses": "['wss:///connect']"}, ["nexusAddresses[0]: must be a ws:// or wss:// URL with a host"]),
        ({"nexusAddresses": "['wss://h:0/c']"}, ["nexusAddresses[0]: must have no fragment and no port 0"]),
        ({"nexusAddresses": "['wss://h/c#x']"}, ["nexusAddresses[0]: must have no fragment and no port 0"]),
        (
            {"nexusAddresses": "['wss://user:secret']"},
            ["nexusAddresses[0]: is not a URL: its host or port cannot be read"],
        ),
        ({"nexusAddresses": "['wss://[h/c']"}, ["nexusAddresses[0]: is not a URL: its host or port cannot be read"]),
        ({"attestation": None}, ["attestation: names no source of tokens"]),
        ({"attestation": "{hmacSecret: ' '}"}, ["attestation: names no source of tokens"]),
        (
            {"attestation": "{hmacSecret: s, timeoutSeconds: -1}"},
            ["attestation.timeoutSeconds: must be from 0 to 1000000000, found -1"],
        ),
        ({"attestation": "{hmacSecret: [s]}"}, ["attestation.hmacSecret: must be one string, found a list"]),
        ({"portMappings": "{}"}, ["portMappings: is required"]),
        ({"portMappings": "{0: {default: 'a:1'}}"}, ["portMappings.0: must be from 1 to 65535, found 0"]),
        (
            {"portMappings": "{1: 'a:1'}"},
            ["portMappings.1: must be a map of keys and values"],
        ),
        ({"portMappings": "{1: {}}"}, ["portMappings.1: has no target"]),
        ({"portMappings": "{1: {default: ' '}}"}, ["portMappings.1.default: has an empty target"]),
        (
            {"portMappings": "{1: {default: 'a:0'}}"},
            ["portMappings.1.default: has the port 0; write one from 1 to 65535"],
        ),
        ({"portMappings": "{1: {default: localhost}}"}, ["portMappings.1.default: has no port; write host:port"]),
        ({"portMappings": "{1: {hosts: {a: ''}}}"}, ["portMappings.1.hosts.a: has an empty target"]),
        ({"portMappings": "{1: {hosts: {' ': 'a:1'}}}"}, ["portMappings.1.hosts. : has an empty name"]),
        ({"portMappings": "{1: {hosts: {a: 'a:1', A: 'a:1'}}}"}, ["portMappings.1.hosts.A: is 'a' once more"]),
        (
            {"flowControl": "{highWaterMark: 64}"},
            ["flowControl: must have lowWaterMark < highWaterMark < maxBuffer, found 16, 64, 64"],
        ),
        ({"flowControl": "{maxBuffer: -1}"}, ["flowControl.maxBuffer: must be at least 0, found -1"]),
        (
            {"socks5ListenAddr": "'1080'"},
            ["socks5ListenAddr: has no port; write host:port"],
        ),
        ({"socks5Username": "alice"}, ["socks5Username: has no password"]),
        ({"socks5Password": "s"}, ["socks5Password: belongs to no name"]),
        ({"socks5Username": "a" * 256, "socks5Password": "s"}, [f"socks5Username: {TOO_LONG}"]),
        ({"socks5Username": "a", "socks5Password": "ä" * 128}, [f"socks5Password: {TOO_LONG}"]),
    ],
)
def test_mistakes(path: Path, keys: dict[str, str | None], expected: list[str]) -> None:
    """Each rule of the table, broken."""
    assert refused(path, **keys) == expected


def test_the_mistakes_of_all_backends_are_reported_in_file_order(path: Path) -> None:
    """One run names them all."""
    path.write_text("backends:\n- name: a\n  hostnames: [a]\n- name: b\n  tcpPorts: [1]\n")
    with pytest.raises(ConfigError) as caught:
        load_client_file(path)
    assert {problem.key.split(".")[0] for problem in caught.value.problems} == {"backends[0]", "backends[1]"}
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"tcpPorts": "[25]", "udpRoutes": "[{port: 53}, {port: 443}]"},
            [
                "tcpPorts[0]: the port 25 has no entry in portMappings",
                "udpRoutes[0]: the port 53 has no entry in portMappings",
            ],
        ),
        ({"nexusAddresses": "['ws://h/connect']"}, ["nexusAddresses[0]: sends tokens and data in the clear"]),
        ({"nexusAddresses": "['ws://127.0.0.1/connect', 'ws://[::1]:1/connect']"}, []),
        ({"nexusAddresses": "['wss://h']"}, ["nexusAddresses[0]: has no path"]),
        (
            {"attestation": "{command: c, reauthIntervalSeconds: 60}"},
            [
                "attestation.timeoutSeconds: is 15, but the hub waits 10 s for a fresh token and then ends the session",
            ],
        ),
        (
            {"attestation": "{command: c, timeoutSeconds: 21, reauthIntervalSeconds: 60, reauthGraceSeconds: 20}"},
            [
                "attestation.timeoutSeconds: is 21, but the hub waits 20 s for a fresh token and then ends the session",
            ],
        ),
        ({"attestation": "{command: c, reauthIntervalSeconds: 60, reauthGraceSeconds: 15}"}, []),
        ({"attestation": "{command: c, timeoutSeconds: 10, reauthIntervalSeconds: 60}"}, []),
        ({"attestation": "{command: c}"}, []),
        ({"attestation": "{hmacSecret: s, reauthIntervalSeconds: 60}"}, []),  # no command, no wait
        ({"socks5ListenAddr": "'[::1]:1080'", "attestation": OUTBOUND}, []),
        ({"socks5ListenAddr": "'[::1]:1080'", "attestation": "{command: x}"}, []),
        (
            {"socks5ListenAddr": "localhost:1080"},
            ["socks5ListenAddr: is of no use: the token does not claim outbound connections"],
        ),
        (
            {"socks5ListenAddr": "':1080'", "attestation": OUTBOUND},
            ["socks5ListenAddr: offers the hub's network to others without any login"],
        ),
        (
            {"socks5ListenAddr": "':1080'", "attestation": OUTBOUND, "socks5Username": "a", "socks5Password": "s"},
            [],
        ),
        (
            {"socks5Username": "a", "socks5Password": "s"},
            ["socks5Username: has no effect without socks5ListenAddr"],
        ),
    ],
)
def test_warnings(path: Path, keys: dict[str, str], expected: list[str]) -> None:
    """What works but is probably not meant; a token command may be slower than the hub waits (W8)."""
    assert warned(path, **keys) == expected


def test_a_weight_below_one_counts_as_one(path: Path) -> None:
    """Zero and negative weights are the default."""
    assert [backend(path, weight=weight).weight for weight in ("-3", "0", "1", "5")] == [1, 1, 1, 5]


def test_the_secret_file_wins_over_the_secret_and_is_trimmed(path: Path) -> None:
    """It is read once, here."""
    file = path.parent / "secret"
    file.write_text(" from-file \n")
    attestation = backend(path, attestation=f"{{hmacSecret: inline, hmacSecretFile: {file}}}").attestation
    assert (attestation.hmac_secret, attestation.hmac_secret_file) == ("from-file", str(file))


def test_an_unusable_secret_file_is_reported_at_its_key(path: Path) -> None:
    """Missing and empty files."""
    file = path.parent / "secret"
    assert refused(path, attestation=f"{{hmacSecretFile: {file}}}") == [
        f"attestation.hmacSecretFile: {file}: no such file"
    ]
    file.write_text("\n")
    assert refused(path, attestation=f"{{hmacSecretFile: {file}}}") == [f"attestation.hmacSecretFile: {file}: is empty"]


def test_secrets_that_others_can_read_are_remarked_on(path: Path) -> None:
    """Those in the configuration itself, each at its key."""
    path.chmod(0o644)
    keys = {
        "socks5Username": "a",
        "socks5Password": "s",
        "socks5ListenAddr": "'127.0.0.1:1080'",
        "attestation": OUTBOUND,
    }
    what = "is written here, and the file is open to other users"
    assert warned(path, **keys) == [f"attestation.hmacSecret: {what}", f"socks5Password: {what}"]


def test_repr_masks_secrets(path: Path) -> None:
    """Neither the secret, nor the command's arguments and environment, nor a password in a URL shows in a traceback."""
    sources = "hmacSecret: hunter2, env: {TOKEN: hunter3}, args: [hunter4], authorizerStatusUri: 'https://u:hunter5@a/'"
    result = loaded(path, attestation=f"{{{sources}}}", nexusAddresses="['wss://u:hunter6@h/c']")
    assert "hunter" not in repr(result)
    assert f"hmac_secret='{MASK}'" in repr(result)
    assert f"env={{'TOKEN': '{MASK}'}}" in repr(result)
    assert "hmac_secret=''" in repr(Attestation())


def test_a_configuration_cannot_be_changed(path: Path) -> None:
    """It is read once and shared, maps included."""
    only = backend(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        only.name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        only.port_mappings[1] = PortMapping("a:1")  # type: ignore[index]


def test_the_login_of_the_listener_comes_from_a_file_or_the_key(path: Path, tmp_path: Path) -> None:
    """A file wins over the key; white space around it is not part of the password, which is never shown."""
    assert backend(path).socks5_login is None
    inline = backend(path, socks5Username="alice", socks5Password="'s3cret '")
    assert inline.socks5_login == Login("alice", "s3cret ")
    secret = tmp_path / "password"
    secret.write_text("fr0m-file\n")
    both = backend(path, socks5Username="alice", socks5Password="s3cret", socks5PasswordFile=str(secret))
    assert both.socks5_login == Login("alice", "fr0m-file")
    assert "s3cret" not in repr(inline)


def test_a_password_file_that_cannot_be_used_is_a_mistake(path: Path, tmp_path: Path) -> None:
    """Missing, empty, too long, or of nobody."""
    secret = tmp_path / "password"
    settings = {"socks5Username": "alice", "socks5PasswordFile": str(secret)}
    assert refused(path, **settings) == [f"socks5PasswordFile: {secret}: no such file"]
    secret.write_text("\n")
    assert refused(path, **settings) == [f"socks5PasswordFile: {secret}: is empty"]
    secret.write_text("s" * 256)
    assert refused(path, **settings) == [f"socks5PasswordFile: the password {TOO_LONG}"]
    secret.write_text("s")
    assert refused(path, socks5PasswordFile=str(secret)) == ["socks5PasswordFile: belongs to no name"]
