"""``nexus token`` and ``nexus token inspect``."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nexus.auth.keys import parse_key_set
from nexus.auth.mint import TokenSpec, build_claims, mint_token
from nexus.auth.tokens import inspect_token, verify_token
from tests.support.command_line import nexus
from tests.support.signing import KINDS, jwk, key_set, private_key, private_pem, public_pem

SECRET = "a-secret-of-the-test-with-32-bytes"
CLAIMS_OF_THE_SPEC = (  # backend-protocol 3.1 and 3.2
    "iss", "aud", "exp", "nbf", "iat", "sub", "jti", "hostnames", "tcp_ports", "udp_routes", "weight", "session_nonce",
    "handshake_max_age_seconds", "reauth_interval_seconds", "reauth_grace_seconds", "maintenance_grace_cap_seconds",
    "authorizer_status_uri", "policy_version", "outbound_allowed", "allowed_outbound_ports", "issued_at_quote",
)  # fmt: skip


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    """A file with the secret, as ``nexus init`` writes it."""
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return str(file)


def test_token_stands_alone_on_stdout_and_verifies(secret_file: str) -> None:
    """It can be piped."""
    outcome = nexus("token", "--hostname", "app.example.com", "--subject", "web", "--secret-file", secret_file)
    assert (outcome.code, outcome.stderr) == (0, "")
    claims = verify_token(outcome.stdout.strip(), [SECRET.encode()], time.time(), require_expiry=True)
    assert claims["hostnames"] == ["app.example.com"]
    assert claims["sub"] == "web"


def test_every_claim_has_an_option(secret_file: str) -> None:
    """All of spec 3.2 that the built-in provider writes."""
    options = (
        "--hostname a.example --hostname b.example,c.example --tcp-port 22 --udp-port 53:30 --udp-port 67 --weight 3 "
        "--subject s --ttl 60 --stage attest --nonce n0 --handshake-max-age 5 --reauth-interval 300 --reauth-grace 7 "
        "--maintenance-grace-cap 900 --authorizer-status-uri https://a.example/s --policy-version 2 "
        "--outbound-allowed --allowed-outbound-port 443 --jti t1 --not-before 2026-01-31T00:00:00Z "
        "--issued-at-quote q"
    )
    document = nexus("token", *options.split(), "--secret-file", secret_file, "--json").document()
    claims = document["claims"]
    assert document["schema"] == 1
    assert document["stage"] == "attest"
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {
        "iss": "authorizer",
        "sub": "s",
        "aud": ["nexus"],
        "weight": 3,
        "session_nonce": "n0",
        "hostnames": ["a.example", "b.example", "c.example"],
        "tcp_ports": [22],
        "udp_routes": [{"port": 53, "flow_idle_timeout_seconds": 30}, {"port": 67}],
        "outbound_allowed": True,
        "allowed_outbound_ports": [443],
        "reauth_interval_seconds": 300,
        "reauth_grace_seconds": 7,
        "maintenance_grace_cap_seconds": 900,
        "authorizer_status_uri": "https://a.example/s",
        "policy_version": "2",
        "jti": "t1",
        "nbf": 1_769_817_600,
        "issued_at_quote": "q",
    }
    handshake = nexus("token", "--hostname", "a", "--handshake-max-age", "5", "--secret-file", secret_file, "--json")
    assert {"exp", "iat", *claims, *handshake.document()["claims"]} == set(CLAIMS_OF_THE_SPEC)


def test_claims_that_0_says_something_about(secret_file: str) -> None:
    """Never to be deferred is not the same as left to the hub; a life of 0 has no end."""
    options = ("token", "--hostname", "a", "--secret-file", secret_file, "--json")
    assert "maintenance_grace_cap_seconds" not in nexus(*options).document()["claims"]
    claims = nexus(*options, "--maintenance-grace-cap", "0", "--ttl", "0").document()["claims"]
    assert claims["maintenance_grace_cap_seconds"] == 0
    assert "exp" not in claims


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_signs_in_the_place_of_a_secret(tmp_path: Path, kind: str) -> None:
    """Its kind decides the algorithm; a node with the public part takes the token."""
    file = tmp_path / "key.pem"
    file.write_text(private_pem(private_key(kind)))
    outcome = nexus("token", "--hostname", "a.example", "--key-file", str(file), "--kid", "k1")
    token = outcome.stdout.strip()
    assert inspect_token(token).header == {"alg": kind, "typ": "JWT", "kid": "k1"}
    keys = parse_key_set(key_set(jwk(private_key(kind), kid="k1")), "keys").keys
    assert verify_token(token, (), time.time(), public_keys=keys)["hostnames"] == ["a.example"]


def test_a_key_id_can_stand_beside_a_secret(secret_file: str) -> None:
    """A revocation list can name it."""
    token = nexus("token", "--hostname", "a", "--secret-file", secret_file, "--kid", "2026").stdout
    assert inspect_token(token).header["kid"] == "2026"


def test_a_file_without_a_private_key_is_a_configuration_error(tmp_path: Path) -> None:
    """Exit code 3, the file and the mend named, nothing of what it holds."""
    file = tmp_path / "key.pem"
    file.write_text(public_pem(private_key("RS256")))
    outcome = nexus("token", "--hostname", "a", "--key-file", str(file))
    assert (outcome.code, outcome.stdout) == (3, "")
    assert f"{file}: holds no PEM private key; make one with: openssl genpkey" in outcome.stderr


def test_it_serves_as_a_token_command(secret_file: str) -> None:
    """The variables of spec backend-protocol 18 are all it needs."""
    environment = {
        "NEXUS_ATTESTATION_STAGE": "attest",
        "NEXUS_SESSION_NONCE": "the-nonce",
        "NEXUS_BACKEND_NAME": "web",
        "NEXUS_HOSTNAMES": "a.example,b.example",
        "NEXUS_WEIGHT": "2",
        "NEXUS_TCP_PORTS": "22,443",
        "NEXUS_UDP_ROUTES": "53:30,67",
        "NEXUS_OUTBOUND_ALLOWED": "false",
        "NEXUS_ALLOWED_OUTBOUND_PORTS": "",
    }
    claims = inspect_token(nexus("token", "--secret-file", secret_file, env=environment).stdout).claims
    assert claims["session_nonce"] == "the-nonce"
    assert claims["hostnames"] == ["a.example", "b.example"]
    assert claims["tcp_ports"] == [22, 443]
    assert "outbound_allowed" not in claims


@pytest.mark.parametrize(
    "arguments",
    [
        ("--hostname", "a.example", "--secret-file", "-"),
        ("inspect",),
        ("verify", "--secret-file", "/dev/null"),
    ],
)
def test_stdin_that_is_no_text_is_a_configuration_error(arguments: tuple[str, ...]) -> None:
    """Be it a secret or a token; nothing of it is repeated."""
    outcome = nexus("token", *arguments, stdin=b"hush\xff\xfe")
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.stderr == "error: stdin:1: is not UTF-8 text; save it as UTF-8\n"


@pytest.mark.parametrize("source", ["environment", "stdin", "file variable"])
def test_secret_comes_from_elsewhere(source: str, secret_file: str) -> None:
    """Never from the command line."""
    arguments, environment, stdin = {
        "environment": ((), {"NEXUS_BACKENDS_JWT_SECRET": SECRET}, None),
        "stdin": (("--secret-file", "-"), {}, SECRET + "\n"),
        "file variable": ((), {"NEXUS_BACKENDS_JWT_SECRET_FILE": secret_file}, None),
    }[source]
    outcome = nexus("token", "--hostname", "a.example", *arguments, env=environment, stdin=stdin)
    verify_token(outcome.stdout.strip(), [SECRET.encode()], time.time())
    assert SECRET not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--hostname", "a.example"), "NEXUS_BACKENDS_JWT_SECRET"),
        (("--secret-file", "SECRET"), "nothing is claimed"),
        (("--hostname", "a", "--stage", "attest", "--secret-file", "SECRET"), "nonce"),
        (("--tcp-port", "0", "--secret-file", "SECRET"), "--tcp-port"),
        (("--secret", "x"), "No such option"),
        (("--hostname", "a", "--secret-file", "SECRET", "--key-file", "x"), "--key-file"),
        (("--hostname", "a", "--secret-file", "SECRET", "--not-before", "soon"), "--not-before"),
        (("--hostname", "a", "--secret-file", "SECRET", "--ttl", "-1"), "--ttl"),
        (("--hostname", "a", "--secret-file", "SECRET", "--maintenance-grace-cap", "-1"), "--maintenance-grace-cap"),
    ],
)
def test_incomplete_requests_are_usage_errors(secret_file: str, arguments: tuple[str, ...], says: str) -> None:
    """With what is missing, and nothing on stdout."""
    outcome = nexus("token", *(secret_file if part == "SECRET" else part for part in arguments))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert says in outcome.stderr


def test_missing_secret_file_is_a_configuration_error(tmp_path: Path) -> None:
    """Exit code 3, the file named."""
    outcome = nexus("token", "--hostname", "a.example", "--secret-file", str(tmp_path / "no"))
    assert outcome.code == 3
    assert "no such file" in outcome.stderr


def _mint(now: float, *, secret: str = SECRET, ttl_s: int = 30) -> str:
    spec = TokenSpec("web", hostnames=("app.example.com",), ttl_s=ttl_s)
    return mint_token(build_claims("handshake", "", spec, now), secret.encode())


@pytest.mark.parametrize("given_by", ["argument", "dash", "nothing"])
def test_inspect_reads_argument_or_stdin(given_by: str) -> None:
    """Without a secret nothing is verified, and it says so."""
    token = _mint(1_700_000_000)
    arguments = {"argument": (token,), "dash": ("-",), "nothing": ()}[given_by]
    outcome = nexus("token", "inspect", *arguments, stdin=token + "\n")
    assert outcome.code == 0
    assert "not checked" in outcome.stdout
    assert "2023-11-14 22:13:20 UTC" in outcome.stdout
    assert '["app.example.com"]' in outcome.stdout


def test_inspect_with_the_right_secret_says_valid(secret_file: str) -> None:
    """And what a hub would do."""
    document = nexus("token", "inspect", _mint(time.time()), "--secret-file", secret_file, "--json").document()
    assert list(document) == ["schema", "header", "claims", "times", "signature", "refusal"]
    assert (document["signature"], document["refusal"]) == ("valid", None)
    assert "accepts it" in nexus("token", "inspect", _mint(time.time()), "--secret-file", secret_file).stdout


def test_inspect_with_another_secret_exits_with_1() -> None:
    """The verdict stands on stdout, the secret nowhere."""
    outcome = nexus("token", "inspect", _mint(time.time()), "--json", env={"NEXUS_BACKENDS_JWT_SECRET": "another"})
    assert outcome.code == 1
    assert outcome.document()["signature"] == "invalid"
    assert "another" not in outcome.stdout + outcome.stderr


def test_inspect_tells_an_expired_token_from_a_forged_one(secret_file: str) -> None:
    """Its signature is valid, yet a hub would refuse it."""
    outcome = nexus("token", "inspect", _mint(time.time() - 3600), "--secret-file", secret_file, "--json")
    assert outcome.code == 1
    assert outcome.document()["signature"] == "valid"
    assert "expired" in outcome.document()["refusal"]


def test_inspect_of_something_else_fails_without_a_traceback() -> None:
    """Exit code 1, one line."""
    outcome = nexus("token", "inspect", "not-a-token")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: invalid token")


def test_inspect_cannot_read_token_and_secret_from_stdin() -> None:
    """There is one stdin."""
    assert nexus("token", "inspect", "-", "--secret-file", "-", stdin="x").code == 2


def test_markup_in_a_claim_is_shown_as_it_is(secret_file: str) -> None:
    """A token cannot style its own display."""
    token = nexus("token", "--hostname", "[bold]x[/bold]", "--secret-file", secret_file).stdout.strip()
    assert "[bold]x[/bold]" in nexus("token", "inspect", token).stdout
