"""Sessions that are asked again: while they work hard, by slow commands, between old and new peers, in maintenance."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections import Counter
from pathlib import Path

import pytest

from backend_client.events import Event, EventKind
from nexus.hub import reauth
from nexus.tls.contexts import hub_client_context
from tests.support.go_client import GoClient, go_client
from tests.support.go_hub import GoHub, go_hub
from tests.support.hub import eventually
from tests.support.loopback import (
    HOST,
    LocalNode,
    Reader,
    Writer,
    connection,
    digest,
    exchange,
    head,
    local_client,
    local_node,
    pattern,
    serve,
    standard,
    tokens,
    upload,
)
from tests.support.processes import SECRET, Client, Node, Pki, client_process

MIB = 1024 * 1024
COMMAND_S = 12
SLOW_TOKENS_S = 60.0
TICK_S = 0.05
TOKEN_COMMAND = f"""
import os, pathlib, sys, time
from nexus.auth.mint import TokenSpec, build_claims, mint_token
stage, marks = os.environ["NEXUS_ATTESTATION_STAGE"], pathlib.Path(sys.argv[1])
print("token:", stage, "is being fetched", file=sys.stderr, flush=True)
(marks / f"{{stage}}-started").touch()
time.sleep({COMMAND_S})
spec = TokenSpec("slow", ("{HOST}",), reauth_interval_s=1, reauth_grace_s=20)
print(mint_token(build_claims(stage, os.environ["NEXUS_SESSION_NONCE"], spec, time.time()), b"{SECRET}"), flush=True)
print("done", file=sys.stderr)
(marks / f"{{stage}}-done").touch()
"""


def _outcome(node: Node, name: str) -> float:
    return node.metric(f'nexus_reauthentications_total{{outcome="{name}"}}')


def _renewed(node: LocalNode) -> int:
    return node.node.stats().reauthentications_total.get("renewed", 0)


# -- Under load ------------------------------------------------------------------------------------------------------


async def test_a_life_of_many_re_authentications_disturbs_no_transfer(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session of five minutes is asked, in seconds, while 8 MiB go up and down again and again."""
    monkeypatch.setattr(reauth, "challenge_delay_s", lambda grant, _draw: grant.reauth_interval_s / 20)
    kinds: Counter[EventKind] = Counter()

    def note(event: Event) -> None:
        kinds[event.kind] += 1

    async with (
        serve(standard) as target,
        local_node(pki) as node,
        local_client(node.hub_url, pki, {node.port: target}, provider=tokens(reauth_interval_s=1), on_event=note),
    ):
        size = 8 * MIB
        while _renewed(node) < 100:
            down, up = await asyncio.gather(exchange(node.port, head("GET", f"/bytes/{size}")), upload(node.port, size))
            assert digest(down) == up == digest(pattern(size))
        stats = node.node.stats()
        assert stats.sessions_total == 1
        assert not stats.session_ends_total
        assert not stats.streams_reset_total
        assert set(stats.reauthentications_total) == {"renewed"}
    assert kinds[EventKind.REAUTH_COMPLETED] >= 100
    assert kinds[EventKind.CONNECTED] == 1


# -- A slow command --------------------------------------------------------------------------------------------------


class Ticker:
    """A service that ticks byte by byte; ``lags`` is how many ticks the client was behind at each."""

    def __init__(self) -> None:
        self.received = 0
        self.lags: list[int] = []

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Tick until the stream ends."""
        await reader.readuntil(b"\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            self.lags.append(len(self.lags) + 1 - self.received)
            await asyncio.sleep(TICK_S)

    async def read(self, reader: Reader) -> None:
        """Take the ticks until the stream ends."""
        while ticks := await reader.read(1024):
            self.received += len(ticks)


async def test_a_command_of_twelve_seconds_logs_in_and_re_authenticates(directory: Path, pki: Pki) -> None:
    """W8, W14, W29: longer than the limit of silence and the original's of a stage, at login and in a live session.

    Fetched before the hub is dialled, or its 10 s for the first token would be over; in a task of its own, or the
    stream would stand still and the session die of silence. What the command says on stderr is no token.
    """
    script = directory / "fetch.py"
    script.write_text(TOKEN_COMMAND)
    attestation = {"command": sys.executable, "args": [str(script), str(directory)], "timeoutSeconds": 20}
    ticker = Ticker()
    async with serve(ticker.serve) as target:
        with (
            Node(directory, pki) as node,
            client_process(directory, node.hub_url, pki, {node.http_port: target}, HOST, attestation=attestation),
        ):
            await eventually(lambda: node.metric("nexus_sessions"), "the session", SLOW_TOKENS_S)
            async with connection(node.http_port) as (reader, writer), asyncio.TaskGroup() as tasks:
                writer.write(head("GET", "/"))
                reading = tasks.create_task(ticker.read(reader))
                await eventually((directory / "reauth-started").exists, "the question", SLOW_TOKENS_S)
                first = len(ticker.lags)
                await eventually((directory / "reauth-done").exists, "the token", SLOW_TOKENS_S)
                lags = ticker.lags[first:]
                await eventually(lambda: _outcome(node, "renewed"), "the renewal", SLOW_TOKENS_S)
                reading.cancel()
            assert max(lags) < len(lags) / 4
            assert node.metric("nexus_sessions_opened_total") == 1
            samples = node.metrics()
    assert not [name for name in samples if name.startswith(("nexus_session_ends", "nexus_auth_failures"))]


# -- Original peers --------------------------------------------------------------------------------------------------


async def test_a_go_client_is_asked_by_our_hub(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers between its data messages, as often as asked, and loses no byte."""
    monkeypatch.setattr(reauth, "challenge_delay_s", lambda grant, _draw: grant.reauth_interval_s / 20)

    async def dial() -> tuple[Reader, Writer]:
        return await asyncio.open_connection("127.0.0.1", target)

    async with serve(standard) as target, local_node(pki) as node:
        client = GoClient(node.hub_url, hub_client_context(pki.ca_file), dial, reauth_interval_s=1)
        async with go_client(client):
            while _renewed(node) < 10:
                assert await upload(node.port, MIB) == digest(pattern(MIB))
                assert await exchange(node.port, head("GET", f"/bytes/{MIB}")) == pattern(MIB)
        assert client.reauthentications >= 10
        assert not client.kills
        assert set(node.node.stats().reauthentications_total) == {"renewed"}
        assert node.node.stats().sessions_total == 1


async def test_a_go_client_that_is_refused_ends_at_once(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets a close frame where the original only hangs up: to it both are the end of a session (spec 17)."""
    monkeypatch.setattr(reauth, "challenge_delay_s", lambda _grant, _draw: 0.0)

    async def dial() -> tuple[Reader, Writer]:
        raise ConnectionRefusedError

    async with local_node(pki) as node:
        client = GoClient(node.hub_url, hub_client_context(pki.ca_file), dial, reauth_interval_s=1)
        client.reauth_weight = 7
        async with go_client(client):
            await eventually(lambda: not node.node.stats().sessions, "the session is gone")
        assert node.node.stats().reauthentications_total == {"refused": 1}
        assert node.node.stats().session_ends_total == {"1008": 1}


def _hub_context(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("gohub", "localhost"))
    return context


async def test_our_client_is_asked_by_a_go_hub(pki: Pki) -> None:
    """Again and again while a download flows; a hub that does not like the answer just hangs up."""
    ends: list[Event] = []

    def note(event: Event) -> None:
        if event.kind is EventKind.DISCONNECTED:
            ends.append(event)

    async with (
        serve(standard) as target,
        go_hub(GoHub(_hub_context(pki))) as hub,
        local_client(hub.url, pki, {hub.port: target}, on_event=note) as client,
        asyncio.TaskGroup() as tasks,
    ):
        download = tasks.create_task(exchange(hub.port, head("GET", f"/bytes/{8 * MIB}"), paced=True))
        for _ in range(10):
            assert await hub.reauthenticate()
        assert digest(await download) == digest(pattern(8 * MIB))
        assert client.stats.sessions_total == 1
        assert not await hub.reauthenticate(hostnames=frozenset({"elsewhere.example.com"}))
        await eventually(lambda: client.stats.sessions_total == 2, "it is back")
        assert "1006" in ends[0].detail
        assert 0 < ends[0].retry_s <= 1


# -- Maintenance -----------------------------------------------------------------------------------------------------


class Authorizer:
    """An authorizer's status page."""

    def __init__(self, pki: Pki) -> None:
        self.status = 503
        self.asked = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*pki.issue("authorizer", "localhost"))

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Answer one request."""
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        writer.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % self.status)
        await writer.drain()


async def test_no_session_is_asked_while_its_authorizer_is_down(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is put off until the status page says 200 again; the session serves all the while."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca_file))
    authorizer = Authorizer(pki)
    async with serve(standard) as target, serve(authorizer.serve, context=authorizer.context) as port:
        attestation = {
            "hmacSecret": SECRET,
            "reauthIntervalSeconds": 1,
            "authorizerStatusUri": f"https://localhost:{port}/status",
        }
        node_of_now = await asyncio.to_thread(Node, directory, pki, statusPrivateNetworks=["127.0.0.0/8", "::1"])
        with (
            node_of_now as node,
            await asyncio.to_thread(Client, directory, node, {node.http_port: target}, HOST, attestation=attestation),
        ):
            await eventually(lambda: _outcome(node, "deferred") >= 2, "deferrals")
            assert _outcome(node, "renewed") == 0
            assert await exchange(node.http_port, head("GET", "/bytes/9")) == pattern(9)
            authorizer.status = 200
            await eventually(lambda: _outcome(node, "renewed") >= 2, "renewals")
            assert authorizer.asked >= 4
            assert node.metric("nexus_sessions_opened_total") == 1


async def test_a_token_cannot_send_the_node_to_its_own_network(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W27: without leave nothing private is connected to; the authorizer counts as down, and the log says why."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca_file))
    authorizer = Authorizer(pki)
    async with serve(authorizer.serve, context=authorizer.context) as port:
        attestation = {
            "hmacSecret": SECRET,
            "reauthIntervalSeconds": 1,
            "authorizerStatusUri": f"https://localhost:{port}/hush-hush",
        }
        with (
            await asyncio.to_thread(Node, directory, pki) as node,
            await asyncio.to_thread(Client, directory, node, {node.http_port: 1}, HOST, attestation=attestation),
        ):
            await eventually(lambda: _outcome(node, "deferred"), "a deferral")
            assert "is not up (its address is not public (statusPrivateNetworks)): re-auth" in node.output()
            assert "hush-hush" not in node.output()
    assert authorizer.asked == 0
