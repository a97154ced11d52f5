"""Files and environments as node configurations."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from nexus.config.keys import NODE_KEYS, scalar_paths, variable_name
from nexus.config.load import LoadedConfig, load_node_config
from nexus.config.model import PeekTimeouts, PeerAuthentication
from nexus.errors import ConfigError
from nexus.masking import MASK
from nexus.protocol.constants import PAYLOAD_MAX_BYTES

SAMPLE = Path(__file__).parent / "samples" / "node.yaml"
SECRET = "0123456789abcdef0123456789abcdef"
LEAST = f"""\
backendListenAddress: ":8443"
relayPorts: [443]
backendsJWTSecret: {SECRET}
hubTlsCertFile: c.pem
hubTlsKeyFile: k.pem
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.yaml"


def loaded(path: Path, text: str, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    path.write_text(text)
    return load_node_config(path, environ=environ or {})


def refused(path: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(path, text, environ)
    return [str(problem).removeprefix(f"{path}:").removeprefix(" ") for problem in caught.value.problems]


def test_the_least_file_resolves_every_default(path: Path) -> None:
    """Defaults are those of the table of spec node-and-mesh 2, and our own."""
    result = loaded(path, LEAST)
    config = result.config
    assert not result.warnings
    assert config.backend_listen_address == ":8443"
    assert config.relay_ports == (443,)
    assert config.backends_jwt_secret == SECRET
    assert config.peek_timeouts == PeekTimeouts(15, 5, 30)
    assert config.peer_authentication == PeerAuthentication((), "labels")
    assert (config.maintenance_grace_default_s, config.idle_timeout_s) == (1800, 0)
    assert (config.udp_max_flows, config.udp_max_datagram_bytes) == (200_000, 2048)
    assert config.udp_flow_idle_timeout_default_s == 30
    assert (config.udp_flow_idle_timeout_min_s, config.udp_flow_idle_timeout_max_s) == (5, 300)
    assert (config.max_outbound_conns_per_backend, config.outbound_dial_timeout_s) == (100, 10)
    assert (config.max_concurrent_peeks, config.max_concurrent_peeks_per_source) == (256, 32)
    assert (config.max_unauthenticated_sessions, config.max_unauthenticated_sessions_per_source) == (256, 32)
    assert (config.acme_cache_dir, config.unrouted_close) == ("acme_certs", "answer")
    assert (config.log_level, config.log_format, config.shutdown_grace_s) == ("info", "text", 10)
    assert not config.require_token_expiry


def test_zero_means_the_default_except_for_the_shutdown_grace(path: Path) -> None:
    """A 0 that operators write to keep the default keeps it."""
    config = loaded(path, LEAST + "udpMaxFlows: 0\nshutdownGraceSeconds: 0\nmaxConcurrentPeeks: 0\n").config
    assert (config.udp_max_flows, config.shutdown_grace_s, config.max_concurrent_peeks) == (200_000, 0, 256)


def test_a_full_file_of_the_original_loads() -> None:
    """Every key of the original in one file, with the spellings its YAML allows."""
    result = load_node_config(SAMPLE, environ={})
    config = result.config
    assert [problem.key for problem in result.warnings] == ["backendsJWTSecret"]  # beside a verifier: decision 0010
    assert config.relay_ports == (443, 80, 25)
    assert config.udp_relay_ports == (53,)
    assert config.maintenance_grace_default_s == 1800
    assert config.total_bandwidth_mbps == 1000
    assert config.udp_max_flows == 4096
    assert config.allow_outbound is True
    assert config.outbound_idle_timeout_s == 60
    assert config.peek_timeouts == PeekTimeouts(10, 3, 20)
    assert config.max_concurrent_peeks == -1
    assert config.peer_authentication.trusted_domain_suffixes == (".example.com",)


def test_json_is_a_configuration_file(path: Path) -> None:
    """A file made by a program loads as well."""
    values = {
        "backendListenAddress": ":1",
        "relayPorts": [1],
        "backendsJWTSecret": SECRET,
        "hubPublicHostname": "hub.example.com",
        "peers": None,
    }
    assert loaded(path, json.dumps(values, indent="\t")).config.hub_public_hostname == "hub.example.com"


def test_every_mistake_is_reported_at_once_in_file_order(path: Path) -> None:
    """Types, ranges and rules in one run; no rule complains about a key that is broken already."""
    problems = refused(path, "relayPorts: 443\nidleTimeoutSeconds: -1\nlogLevel: loud\npeers: [wss://a/]\n")
    assert [problem.split(": ")[1] if problem[0].isdigit() else problem.split(": ")[0] for problem in problems] == [
        "relayPorts",
        "idleTimeoutSeconds",
        "logLevel",
        "backendListenAddress",
        "backendsJWTSecret",
        "hubTlsCertFile",
        "peerListenAddress",
        "peerAuthentication.trustedDomainSuffixes",
    ]


def test_an_empty_file_lists_what_is_required(path: Path) -> None:
    """Each missing key comes with its mend."""
    problems = refused(path, "")
    assert [problem.split(": ")[0] for problem in problems] == [
        "backendListenAddress",
        "relayPorts",
        "backendsJWTSecret",
        "hubTlsCertFile",
    ]
    assert all("; " in problem for problem in problems)


def test_unknown_keys_only_warn(path: Path) -> None:
    """Any version's file loads in any other."""
    (warning,) = loaded(path, LEAST + "relayPort: [1]\n").warnings
    assert str(warning) == f"{path}:6: relayPort: unknown key; did you mean 'relayPorts'?"


def test_a_misspelt_required_key_is_shown_beside_its_absence(path: Path) -> None:
    """An unknown key never stops the node, yet explains what does."""
    assert refused(path, LEAST.replace("relayPorts", "relayPort")) == [
        "2: relayPort: unknown key; did you mean 'relayPorts'?",
        "relayPorts: is required; list the public TCP ports, such as [443, 80]",
    ]


def test_the_environment_sets_any_scalar(path: Path) -> None:
    """Values are read as unquoted YAML, nested keys included, and win over the file."""
    environ = {
        "NEXUS_BACKENDS_JWT_SECRET": "x" * 40,
        "NEXUS_IDLE_TIMEOUT_SECONDS": " 1_000 ",
        "NEXUS_ALLOW_OUTBOUND": "no",
        "NEXUS_PEEK_TIMEOUTS_FIRST_BYTE_SECONDS": "7",
        "NEXUS_REGION": "0123",
        "NEXUS_LOG_LEVEL": "",
        "NEXUS_UNRELATED": "x",
    }
    config = loaded(path, LEAST + "region: eu\nlogLevel: debug\n", environ).config
    assert config.backends_jwt_secret == "x" * 40
    assert config.idle_timeout_s == 1000
    assert config.peek_timeouts.first_byte_s == 7
    assert (config.region, config.log_level) == ("0123", "info")


def test_mistakes_in_the_environment_name_the_variable(path: Path) -> None:
    """Both a wrong type and a broken rule say where the value came from."""
    environ = {"NEXUS_IDLE_TIMEOUT_SECONDS": "soon", "NEXUS_STUN_PORT": "53"}
    problems = refused(path, LEAST + "udpRelayPorts: [53]\nallowedUDPPortClaims: [53]\n", environ)
    assert problems == [
        "NEXUS_IDLE_TIMEOUT_SECONDS: idleTimeoutSeconds: must be an integer, found 'soon'",
        "NEXUS_STUN_PORT: stunPort: is also in udpRelayPorts; choose another port",
    ]


def test_every_scalar_key_can_come_from_the_environment(path: Path) -> None:
    """The table drives it: a null in each variable resets each key."""
    environ = {variable_name(name): "" for name in scalar_paths()}
    problems = refused(path, LEAST, environ)
    assert all(problem.startswith(("NEXUS_", "relayPorts")) for problem in problems)


@pytest.mark.parametrize(("content", "secret"), [("s3\n", "s3"), ("s3\r\n", "s3"), ("s3\n\n", "s3\n"), (" s3", " s3")])
def test_the_secret_may_come_from_a_file(path: Path, content: str, secret: str) -> None:
    """One trailing newline is the editor's, everything else is the key."""
    (path.parent / "secret").write_bytes(content.encode())
    text = LEAST.replace(f"backendsJWTSecret: {SECRET}", f"backendsJWTSecretFile: {path.parent / 'secret'}")
    result = loaded(path, text)
    assert result.config.backends_jwt_secret == secret
    assert result.effective["backendsJWTSecret"] == MASK
    (warning,) = result.warnings
    assert warning.key == "backendsJWTSecretFile"
    assert "shorter than 32 bytes" in warning.what


def test_an_unusable_secret_file_is_reported_at_its_key(path: Path) -> None:
    """The message names the configuration's line and the secret's file."""
    (path.parent / "empty").write_text("\n")
    text = LEAST.replace(f"backendsJWTSecret: {SECRET}", "backendsJWTSecretFile: {}")
    for name, what in [("absent", "no such file; check the path"), ("empty", "is empty; write the key into it")]:
        file = path.parent / name
        expected = f"3: backendsJWTSecretFile: {file}: {what}"
        assert refused(path, text.format(file)) == [expected]


@pytest.mark.parametrize("text", ["-----BEGIN PUBLIC KEY----- MCow", '{"keys": []}', '{"kty": "OKP"}'])
def test_a_secret_that_everybody_may_know_is_refused_wherever_it_is_written(path: Path, text: str) -> None:
    """In the file, in the environment, and in a file of its own; no message repeats it."""
    own = path.parent / "own"
    own.write_text(text)
    in_own = LEAST.replace(f"backendsJWTSecret: {SECRET}", f"backendsJWTSecretFile: {own}")
    for document, environ, where in [
        (LEAST.replace(SECRET, f"'{text}'"), {}, "3: backendsJWTSecret: is a "),
        (LEAST, {"NEXUS_BACKENDS_JWT_SECRET": text}, "NEXUS_BACKENDS_JWT_SECRET: backendsJWTSecret: is a "),
        (in_own, {}, f"3: backendsJWTSecretFile: {own}: is a "),
    ]:
        (problem,) = refused(path, document, environ)
        assert problem.startswith(where)
        assert "not a secret; name it in backendsJWKSFile" in problem
        assert text not in problem


def test_a_secret_and_its_file_exclude_each_other(path: Path) -> None:
    """Which of the two counts must never be a guess."""
    (problem,) = refused(path, LEAST + "backendsJWTSecretFile: /nonexistent\n")
    assert problem == "6: backendsJWTSecretFile: is set together with backendsJWTSecret; delete one of them"


def test_datagrams_longer_than_a_message_are_lowered_to_it(path: Path) -> None:
    """The original takes such a file, and then loses the session by the first datagram of that length."""
    result = loaded(path, LEAST + "udpMaxDatagramBytes: 65507\n")
    assert result.config.udp_max_datagram_bytes == result.effective["udpMaxDatagramBytes"] == PAYLOAD_MAX_BYTES
    assert [problem.key for problem in result.warnings] == ["udpMaxDatagramBytes"]


def test_a_short_secret_warns_without_showing_it(path: Path) -> None:
    """A guessable key is worth a word."""
    (warning,) = loaded(path, LEAST.replace(SECRET, "hunter2")).warnings
    assert warning.key == "backendsJWTSecret"
    assert "hunter2" not in str(warning)


def test_the_effective_values_are_the_files_keys_with_secrets_masked(path: Path) -> None:
    """What ``config show`` prints is a configuration file again, but for the secret."""
    effective = loaded(path, LEAST + "peekTimeouts: {firstByteSeconds: 3}\n").effective
    assert list(effective) == [spec.key for spec in NODE_KEYS]
    assert effective["backendsJWTSecret"] == MASK
    assert effective["relayPorts"] == [443]
    assert effective["peekTimeouts"] == {"firstByteSeconds": 3, "idleExtensionSeconds": 5, "absoluteMaxSeconds": 30}
    assert SECRET not in json.dumps(effective)
    again = loaded(path, json.dumps(dict(effective)))
    assert dict(again.effective) == dict(effective)


def test_the_effective_values_give_no_password_of_a_url_away(path: Path) -> None:
    """Of no key; the values that are used have it."""
    text = LEAST + "remoteVerifierURL: https://u:hunter2@verify.example.com/v?key=hunter2\n"
    text += "peers: ['wss://u:hunter2@node.example.com/mesh']\n"
    text += "peerListenAddress: ':8444'\npeerAuthentication: {trustedDomainSuffixes: [example.com]}\n"
    result = loaded(path, text)
    assert "hunter2" not in json.dumps(result.effective)
    assert result.effective["remoteVerifierURL"] == f"https://{MASK}@verify.example.com/v?{MASK}"
    assert result.effective["peers"] == [f"wss://{MASK}@node.example.com/mesh"]
    assert result.config.remote_verifier_url.count("hunter2") == 2


def test_without_a_secret_none_is_shown(path: Path) -> None:
    """The mask says that there is a secret."""
    text = LEAST.replace(f"backendsJWTSecret: {SECRET}", "remoteVerifierURL: https://verify.example.com/")
    assert loaded(path, text).effective["backendsJWTSecret"] == ""


def test_service_names_are_looked_up_if_they_can_be(path: Path) -> None:
    """With a resolver an unknown service is a mistake, without one its form is enough."""

    def resolve(name: str) -> int:
        raise OSError(name)

    text = LEAST.replace(":8443", ":http-alt")
    assert loaded(path, text).config.backend_listen_address == ":http-alt"
    with pytest.raises(ConfigError, match=r"http-alt.*no service known"):
        load_node_config(path, environ={}, resolve_service=resolve)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    """The path may be text."""
    with pytest.raises(ConfigError, match="no such file"):
        load_node_config(str(tmp_path / "absent.yaml"), environ={})
