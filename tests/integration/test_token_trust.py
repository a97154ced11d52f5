"""Whose tokens a running node believes: secrets and keys that rotate, a verifier that fails, tokens taken back."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from nexus.auth.tokens import inspect_token
from nexus.files import write_private, write_public
from nexus.protocol.constants import CLIENT_DEAD_AFTER_S
from nexus.tls.contexts import hub_client_context
from tests.support.framing import TEXT, frame
from tests.support.hub import eventually, token
from tests.support.processes import SECRET, Client, Node, Pki, client_process, wait_for
from tests.support.signing import jwk, key_set, private_key, private_pem
from tests.support.web_server import Asked, http, reply, web_server

HOST = "app.example.com"
NEW_SECRET = "the-next-secret-of-32-bytes-or-more"


def _attestation(secret: str) -> dict[str, object]:
    return {"attestation": {"hmacSecret": secret}}


def _signal(node: Node) -> None:
    """Have the node look at its files now, and wait until it has."""
    before = node.output().count("read again")
    node.popen.send_signal(signal.SIGHUP)
    wait_for(lambda: node.output().count("read again") > before, "the node has looked at its files")


def _sessions(node: Node) -> int:
    return int(node.metric("nexus_sessions"))


def _refusals(node: Node) -> int:
    return int(node.metric('nexus_auth_failures_total{stage="stage0"}'))


def test_a_secret_is_replaced_without_an_interruption(directory: Path, pki: Pki) -> None:
    """Old and new tokens are good at once; a session of the old secret goes on when the secret is gone."""
    own, further = directory / "secret", directory / "further"
    write_private(own, SECRET.encode())
    write_private(further, b"nothing yet, but thirty-two bytes long")
    settings = {"backendsJWTSecretFile": str(own), "additionalJWTSecretFiles": [str(further)]}
    with Node(directory, pki, backendsJWTSecret=None, **settings) as node:
        targets = {node.tls_port: 1}
        with Client(directory, node, targets, HOST):
            with client_process(directory, node.hub_url, pki, targets, HOST, **_attestation(NEW_SECRET)):
                wait_for(lambda: _refusals(node) >= 1, "the new secret is not known yet")
                write_private(further, NEW_SECRET.encode())
                _signal(node)
                wait_for(lambda: _sessions(node) == 2, "tokens of both secrets are good")
            write_private(own, NEW_SECRET.encode())
            write_private(further, b"a secret that nobody has any more, ever")
            _signal(node)
            with Client(directory, node, targets, HOST, **_attestation(NEW_SECRET)):
                wait_for(lambda: _sessions(node) == 2, "the old session goes on beside the new one")
                refused = _refusals(node)
                with client_process(directory, node.hub_url, pki, targets, HOST):
                    wait_for(lambda: _refusals(node) > refused, "the old secret is refused")
                assert _sessions(node) == 2
        assert not [secret for secret in (SECRET, NEW_SECRET) if secret in node.output()]


def _token_command(key_file: Path, kid: str) -> dict[str, object]:
    arguments = ["-c", "from cli.main import main; main()", "token", "--key-file", str(key_file), "--kid", kid]
    return {"attestation": {"command": sys.executable, "args": arguments}}


def test_public_keys_are_replaced_while_a_node_runs(directory: Path, pki: Pki) -> None:
    """Backends sign with ``nexus token``; a key set that is broken keeps the old keys in force."""
    old, new = private_key("ES256"), private_key("EdDSA")
    for name, key in (("old", old), ("new", new)):
        write_private(directory / name, private_pem(key).encode())
    keys = directory / "keys.json"
    write_public(keys, key_set(jwk(old, kid="old")).encode())
    with Node(directory, pki, backendsJWTSecret=None, backendsJWKSFile=str(keys)) as node:
        targets = {node.tls_port: 1}
        with (
            Client(directory, node, targets, HOST, **_token_command(directory / "old", "old")),
            client_process(directory, node.hub_url, pki, targets, HOST, **_token_command(directory / "new", "new")),
        ):
            wait_for(lambda: _refusals(node) >= 1, "the new key is not known yet")
            write_public(keys, b'{"keys": [')
            node.popen.send_signal(signal.SIGHUP)
            wait_for(lambda: "the old content stays in force" in node.output(), "the broken set is told of")
            write_public(keys, key_set(jwk(old, kid="old"), jwk(new, kid="new")).encode())
            _signal(node)
            wait_for(lambda: _sessions(node) == 2, "both keys are good")


def test_a_revoked_token_ends_its_session_within_the_poll(directory: Path, pki: Pki) -> None:
    """Nobody sends a signal; the client is told and does not get in again, another goes on."""
    revoked = directory / "revoked"
    write_public(revoked, b"# nobody\n")
    with Node(directory, pki, revocationFile=str(revoked)) as node:
        targets = {node.tls_port: 1}
        with Client(directory, node, targets, HOST) as first, Client(directory, node, targets, "other.example.com"):
            write_public(revoked, f"sub {first.name}\n".encode())
            wait_for(lambda: node.metric('nexus_session_ends_total{reason="1008"}') == 1, "the session is ended")
            wait_for(lambda: _refusals(node) >= 1, "it is refused from then on")
            assert _sessions(node) == 1
            assert "its sub is revoked" in node.output()
            assert "revoked" in first.output()


def _verdict(asked: Asked) -> bytes:
    """Accept the token as it is."""
    claims = inspect_token(json.loads(asked.body)["token"]).claims
    return json.dumps({"valid": True, "claims": dict(claims)}).encode()


async def _accept(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, _verdict(asked)))


@pytest.mark.parametrize("falls_back", [False, True])
async def test_a_verifier_comes_and_goes(directory: Path, pki: Pki, falls_back: bool) -> None:
    """W28: while it is down nobody new gets in, unless the fallback is asked for; who is in stays in."""
    async with web_server(pki, _accept) as verifier:
        settings = {
            "remoteVerifierURL": verifier.url(),
            "remoteVerifierFallback": falls_back,
            "authorizerCAFile": str(pki.ca_file),
        }
        node = await asyncio.to_thread(Node, directory, pki, **settings)
        with node:
            targets = {node.tls_port: 1}
            with await asyncio.to_thread(Client, directory, node, targets, HOST):
                assert verifier.asked[0].client_names == ("localhost",)
                verifier.answer = reply(503, b"")
                with client_process(directory, node.hub_url, pki, targets, HOST) as second:
                    down = 'nexus_verifier_answers_total{result="down"}'
                    await eventually(lambda: node.metric(down) >= 1, "the verifier is down")
                    if falls_back:
                        await eventually(lambda: _sessions(node) == 2, "the secret stands in")
                    else:
                        await eventually(lambda: "try later" in second.output(), "the backend is told to wait")
                        assert _sessions(node) == 1
                        verifier.answer = _accept
                        await eventually(lambda: _sessions(node) == 2, "it gets in when the verifier is back")


async def test_an_original_backend_outlasts_a_slow_verifier(directory: Path, pki: Pki) -> None:
    """It leaves after 10 s without a message or a pong; the hub, which reads nothing meanwhile, gives signs of life."""
    go = asyncio.Event()

    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if "session_nonce" in inspect_token(json.loads(asked.body)["token"]).claims:
            await go.wait()
        await _accept(asked, writer)

    async with web_server(pki, slow) as verifier:
        settings = {"remoteVerifierURL": verifier.url(), "authorizerCAFile": str(pki.ca_file)}
        node = await asyncio.to_thread(Node, directory, pki, **settings)
        with node:
            reader, writer = await _upgraded(node, pki)
            writer.write(frame(TEXT, token().encode(), masked=True))
            challenge = await _frame(reader)
            nonce = json.loads(challenge[1])["nonce"]
            writer.write(frame(TEXT, token("attest", nonce).encode(), masked=True))
            for _ in range(2):
                async with asyncio.timeout(CLIENT_DEAD_AFTER_S):
                    assert await _frame(reader) == (0x8A, b"")
            go.set()
            await eventually(lambda: _sessions(node) == 1, "the session is up")
            writer.close()


async def _upgraded(node: Node, pki: Pki) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = hub_client_context(pki.ca_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.hub_port, ssl=context, server_hostname="localhost")
    writer.write(
        b"GET /connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, size = await reader.readexactly(2)
    length = int.from_bytes(await reader.readexactly(2), "big") if size == 126 else size
    return first, await reader.readexactly(length)
