"""``nexus token verify``: by a node's file, with what it names, or by a key alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexus.auth.mint import TokenSpec, build_claims, mint_token
from tests.support.command_line import Outcome, nexus
from tests.support.processes import Pki
from tests.support.signing import jwk, key_set, private_key, private_pem, public_pem, signed
from tests.support.web_server import WebServer, reply, reply_json, web_server

SECRET = "a-secret-of-the-test-with-32-bytes"
SPEC = TokenSpec("web", hostnames=("app.example.com",))


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    """A file with the secret."""
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return str(file)


@pytest.fixture
def node(tmp_path: Path, pki: Pki, secret_file: str) -> Any:
    """Write a node's file and return its name."""

    def write(**settings: object) -> str:
        cert_file, key_file = pki.issue("hub", "hub.example.com")
        document = {
            "backendListenAddress": "127.0.0.1:0",
            "relayPorts": [443],
            "backendsJWTSecretFile": secret_file,
            "hubTlsCertFile": str(cert_file),
            "hubTlsKeyFile": str(key_file),
            "authorizerCAFile": str(pki.ca_file),
            **settings,
        }
        file = tmp_path / "server.yaml"
        file.write_text(yaml.safe_dump({name: value for name, value in document.items() if value is not None}))
        return str(file)

    return write


@pytest.fixture
def server(pki: Pki) -> Iterator[WebServer]:
    """A web server in a thread of its own: the command has its own event loop."""
    running: list[WebServer] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def main() -> None:
        async with web_server(pki, reply(404, b"")) as found:
            running.append(found)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait()
    yield running[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


def _token(stage: Any = "handshake", nonce: str = "", secret: str = SECRET, **terms: Any) -> str:
    spec = TokenSpec(**{"subject": "web", "hostnames": ("app.example.com",), **terms})
    return mint_token(build_claims(stage, nonce, spec, time.time()), secret.encode())


def _verify(*arguments: str, **options: Any) -> Outcome:
    return nexus("token", "verify", *arguments, **options)


def _check(outcome: Outcome, name: str) -> dict[str, str]:
    (found,) = [check for check in outcome.document()["checks"] if check["name"] == name]
    assert isinstance(found, dict)
    return found


# -- By a node's file -------------------------------------------------------------------------------------------------


def test_a_token_that_the_node_takes(node: Any) -> None:
    """Exit code 0, a line for each check, and the verdict."""
    outcome = _verify(_token(), "--config", node())
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert ["signature", "ok", "by", "secret", "1", "of", "1"] in lines
    assert lines[-1] == ["verdict", "accepted"]


def test_the_document_has_every_check(node: Any) -> None:
    """In the node's order, with what mends what failed."""
    outcome = _verify(_token(tcp_ports=(25,), hostnames=("tcp:1",)), "-c", node(), "--json")
    document = outcome.document()
    assert outcome.code == 1
    assert list(document) == ["schema", "verdict", "scope", "stage", "at", "checks"]
    assert (document["verdict"], document["scope"], document["stage"]) == ("refused", "node", "handshake")
    assert [check["name"] for check in document["checks"] if check["outcome"] == "fail"] == ["hostnames", "TCP ports"]
    assert _check(outcome, "TCP ports") == {
        "name": "TCP ports",
        "outcome": "fail",
        "detail": "token claims port 25, which is not in allowedTCPPortClaims",
        "mend": "add the port to allowedTCPPortClaims of the node, or do not claim it",
    }
    assert _check(outcome, "TCP ports are relayed")["outcome"] == "warn"


def test_the_mend_stands_below_what_failed(node: Any) -> None:
    """And the hub's reason in the verdict."""
    outcome = _verify(_token(secret="x" * 32), "-c", node())
    assert outcome.code == 1
    assert "FAIL" in outcome.stdout
    assert "sign with the secret or key of this node" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].split(maxsplit=1)[1].startswith("refused: invalid token: its signature")
    assert SECRET not in outcome.stdout


def test_later_stages_are_judged_by_nonce_and_first_token(node: Any) -> None:
    """Without them it stays open."""
    file, first = node(), _token()
    later = _token("attest", "n1")
    assert _verify(later, "-c", file, "--stage", "attest", "--nonce", "n1", "--first", first).code == 0
    assert _verify(later, "-c", file, "--stage", "reauth", "--nonce", "n1", "--first", first).code == 0
    wrong = _verify(later, "-c", file, "--stage", "attest", "--nonce", "n2", "--first", first)
    assert (wrong.code, "does not carry the nonce" in wrong.stdout) == (1, True)
    unlike = _verify(later, "-c", file, "--stage", "attest", "--nonce", "n1", "--first", _token(weight=7))
    assert (unlike.code, "weight" in unlike.stdout) == (1, True)
    half = _verify(later, "-c", file, "--stage", "attest", "--json")
    assert (half.code, half.document()["verdict"]) == (1, "incomplete")
    assert "not all of it could be checked" in _verify(later, "-c", file, "--stage", "attest").stdout
    assert _verify(later, "-c", file, "--stage", "attest", "--first", "junk").code == 1


@pytest.mark.parametrize(("at", "code"), [("1700000010", 0), ("2023-11-14T22:13:30Z", 0), ("1700000030", 1), ("0", 0)])
def test_any_moment_can_be_judged_at(node: Any, at: str, code: int) -> None:
    """In both spellings."""
    token = mint_token(build_claims("handshake", "", SPEC, 1_700_000_000), SECRET.encode())
    outcome = _verify(token, "-c", node(), "--at", at, "--json")
    assert outcome.code == code
    assert outcome.document()["at"].endswith("UTC")


def test_every_source_of_the_node_is_looked_at(node: Any, tmp_path: Path) -> None:
    """Further secrets, public keys, the revocation list, expiry."""
    (tmp_path / "next").write_text("another secret of 32 bytes, or so")
    (tmp_path / "keys").write_text(public_pem(private_key("ES256")))
    (tmp_path / "revoked").write_text("sub mallory\n")
    file = node(
        additionalJWTSecretFiles=[str(tmp_path / "next")],
        backendsJWKSFile=str(tmp_path / "keys"),
        revocationFile=str(tmp_path / "revoked"),
        requireTokenExpiry=True,
    )
    assert "by secret 2 of 2" in _verify(_token(secret="another secret of 32 bytes, or so"), "-c", file).stdout
    claims = build_claims("handshake", "", SPEC, time.time())
    assert "by a key of" in _verify(signed(claims, "ES256"), "-c", file).stdout
    assert "its sub is revoked" in _verify(_token(subject="mallory"), "-c", file).stdout
    assert "requires the claim exp" in _verify(_token(ttl_s=0), "-c", file).stdout


def test_a_file_that_cannot_be_used_is_a_configuration_error(node: Any, tmp_path: Path) -> None:
    """As for the node itself."""
    (tmp_path / "revoked").write_text("\nuser x\n")
    outcome = _verify(_token(), "-c", node(revocationFile=str(tmp_path / "revoked")))
    assert (outcome.code, outcome.stdout) == (3, "")
    assert "revoked:2: begins with none of sub, jti, kid" in outcome.stderr


# -- Others that are asked --------------------------------------------------------------------------------------------


def test_the_verifier_is_asked(node: Any, server: WebServer) -> None:
    """With the hub's certificate; its claims count."""
    server.answer = reply_json({"valid": True, "claims": {"hostnames": ["a.example"], "sub": "web"}})
    file = node(remoteVerifierURL=server.url(), backendsJWTSecretFile=None)
    assert _verify("any text", "-c", file).code == 0
    assert server.asked[0].client_names == ("hub.example.com",)
    server.answer = reply_json({"valid": False, "error": "no such backend"})
    outcome = _verify(_token(), "-c", file, "--json")
    assert outcome.code == 1
    assert _check(outcome, "verifier")["detail"] == "invalid token: the verifier refuses it: no such backend"


def test_a_verifier_that_is_down_is_told_in_detail(node: Any, server: WebServer) -> None:
    """What the backend only knows as a token that could not be verified."""
    server.answer = reply(503, b"")
    outcome = _verify(_token(), "-c", node(remoteVerifierURL=server.url()), "--json")
    assert (outcome.code, outcome.stderr) == (1, "")
    assert "the verifier answered HTTP 503" in _check(outcome, "verifier")["detail"]
    outcome = _verify(_token(), "-c", node(remoteVerifierURL=server.url(), remoteVerifierFallback=True), "--json")
    assert outcome.code == 0
    assert _check(outcome, "verifier")["outcome"] == "warn"
    assert _check(outcome, "signature")["outcome"] == "pass"


def test_the_key_url_is_asked(node: Any, server: WebServer) -> None:
    """And told of where it cannot be fetched."""
    claims = build_claims("handshake", "", SPEC, time.time())
    token = signed(claims, "EdDSA", kid="k1")
    file = node(backendsJWKSURL=server.url("/jwks"))
    outcome = _verify(token, "-c", file, "--json")
    assert (outcome.code, outcome.stderr) == (1, "")
    assert "it answered HTTP 404 instead of 200" in _check(outcome, "key URL")["detail"]
    server.answer = reply(200, key_set(jwk(private_key("EdDSA"), kid="k1")).encode())
    outcome = _verify(token, "-c", file, "--json")
    assert outcome.code == 0
    assert _check(outcome, "key URL")["detail"] == "1 keys fetched"
    assert _check(outcome, "signature")["detail"] == "by key 'k1' of backendsJWKSURL"


@pytest.mark.parametrize("key", ["remoteVerifierURL", "backendsJWKSURL"])
def test_offline_nobody_is_asked(node: Any, server: WebServer, key: str) -> None:
    """What only others know stays open."""
    file = node(**{key: server.url()})
    claims = build_claims("handshake", "", SPEC, time.time())
    outcome = _verify(signed(claims, "EdDSA"), "-c", file, "--offline", "--json")
    assert (outcome.code, outcome.document()["verdict"]) == (1, "incomplete")
    assert not server.asked
    if key == "backendsJWKSURL":
        assert _verify(_token(), "-c", file, "--offline").code == 0


# -- By a key alone ---------------------------------------------------------------------------------------------------


def test_a_secret_suffices_for_the_envelope(secret_file: str) -> None:
    """From its file, from stdin or from the environment; it says that this is not all."""
    outcome = _verify(_token(tcp_ports=(1,)), "--secret-file", secret_file)
    assert (outcome.code, "--config checks the rest" in outcome.stdout) == (0, True)
    outcome = _verify("-", env={"NEXUS_BACKENDS_JWT_SECRET": SECRET}, stdin=_token() + "\n")
    assert outcome.code == 0
    outcome = _verify(_token(ttl_s=1), "--secret-file", "-", "--at", "9999999999", "--json", stdin=SECRET)
    assert (outcome.code, outcome.document()["scope"]) == (1, "envelope")
    assert _check(outcome, "expiry")["outcome"] == "fail"


@pytest.mark.parametrize("form", ["pem", "jwks"])
def test_public_keys_suffice_for_the_envelope(tmp_path: Path, form: str) -> None:
    """In both forms; a private key is named for what it is."""
    key = private_key("RS256")
    (tmp_path / "keys").write_text(public_pem(key) if form == "pem" else key_set(jwk(key, kid="r1")))
    claims = build_claims("handshake", "", SPEC, time.time())
    assert _verify(signed(claims, "RS256"), "--key-file", str(tmp_path / "keys")).code == 0
    assert _verify(signed(claims, "ES256"), "--key-file", str(tmp_path / "keys")).code == 1
    (tmp_path / "keys").write_text(private_pem(key))
    outcome = _verify("x", "--key-file", str(tmp_path / "keys"))
    assert (outcome.code, "is a private key" in outcome.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x",), "--config"),
        (("x", "--secret-file", "SECRET", "--stage", "attest"), "give --config"),
        (("-", "--secret-file", "-"), "stdin"),
        (("x", "--secret-file", "SECRET", "--at", "soon"), "RFC 3339"),
        (("x", "--secret-file", "SECRET", "--at", "9" * 13), "RFC 3339"),
        (("x", "-c", "NODE", "--secret-file", "SECRET"), "--secret-file"),
        (("x", "-c", "NODE", "--key-file", "SECRET"), "--key-file"),
    ],
)
def test_requests_that_make_no_sense_are_usage_errors(
    node: Any, secret_file: str, arguments: tuple[str, ...], says: str
) -> None:
    """Exit code 2, and nothing on stdout."""
    names = {"SECRET": secret_file, "NODE": node()}
    outcome = _verify(*(names.get(part, part) for part in arguments), stdin="x")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert says in outcome.stderr


def test_a_secret_of_the_environment_does_not_disturb_a_node(node: Any, secret_file: str) -> None:
    """Its own file counts, and the variable of that key."""
    outcome = _verify(_token(), "-c", node(), env={"NEXUS_BACKENDS_JWT_SECRET_FILE": secret_file})
    assert outcome.code == 0
