"""Original peers, new and old, against ours: slow readers, half-closes and slow dials, in both roles."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from nexus.link import hold
from nexus.tls.contexts import hub_client_context
from tests.support.go_client import GoClient, go_client
from tests.support.go_hub import GoHub, go_hub
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    LocalNode,
    Reader,
    Writer,
    connection,
    digest,
    drain_eof,
    exchange,
    head,
    local_client,
    local_node,
    pattern,
    serve,
    standard,
    upload,
)
from tests.support.processes import Pki

SIZE = 16 * 1024 * 1024
both_ages = pytest.mark.parametrize("knows_credits", [True, False], ids=["v0.3.14", "v0.2.3"])


def _go_client(hub_url: str, pki: Pki, target: int, *, knows_credits: bool) -> GoClient:
    async def dial() -> tuple[Reader, Writer]:
        return await asyncio.open_connection("127.0.0.1", target)

    return GoClient(hub_url, hub_client_context(pki.ca_file), dial, knows_credits=knows_credits)


def _hub_context(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("gohub", "localhost"))
    return context


@both_ages
async def test_a_slow_download_from_a_go_client_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: a slow reader of a v0.2.3 client's unlimited download was cut at about 4 MB."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki) as node,
        go_client(_go_client(node.hub_url, pki, target, knows_credits=knows_credits)) as client,
    ):
        body = await exchange(node.port, head("GET", f"/bytes/{SIZE}"), paced=True)
        assert digest(body) == digest(pattern(SIZE))
        assert not client.kills


async def test_a_head_of_40_kb_does_not_end_a_go_clients_session(pki: Pki) -> None:
    """W1, node W5: more than 32,785 bytes in one message make the original close its session with 1009."""
    async with (
        serve(standard) as target,
        local_node(pki) as node,
        go_client(_go_client(node.hub_url, pki, target, knows_credits=True)),
    ):
        for _ in range(2):
            assert await exchange(node.port, head("GET", "/bytes/9", X_Padding="x" * 40_000)) == pattern(9)
        assert node.node.stats().sessions_total == 1


@both_ages
async def test_a_slow_upload_to_a_go_client_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: an upload overran the 64 messages that a v0.2.3 client holds for a slow service."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki) as node,
        go_client(_go_client(node.hub_url, pki, target, knows_credits=knows_credits)) as client,
    ):
        assert await upload(node.port, SIZE, "/slow-sink") == digest(pattern(SIZE))
        assert not client.kills


@both_ages
async def test_a_slow_download_through_a_go_hub_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11: our client keeps within the 128 messages of a hub, and sends all of them before its `disconnect`."""
    async with (
        serve(standard, slow=True) as target,
        go_hub(GoHub(_hub_context(pki), knows_credits=knows_credits)) as hub,
        local_client(hub.url, pki, {hub.port: target}),
    ):
        body = await exchange(hub.port, head("GET", f"/bytes/{SIZE}"), paced=True)
        assert digest(body) == digest(pattern(SIZE))
        await eventually(lambda: hub.reasons, "the client's disconnect")
        assert (hub.kills, hub.late_messages, hub.reasons) == ([], 0, ["normal"])


@both_ages
async def test_a_slow_upload_through_a_go_hub_is_complete(pki: Pki, *, knows_credits: bool) -> None:
    """W11, W24: a hub without credits is paused and, whatever happened, let go on."""
    async with (
        serve(standard, slow=True) as target,
        go_hub(GoHub(_hub_context(pki), knows_credits=knows_credits)) as hub,
        local_client(hub.url, pki, {hub.port: target}),
    ):
        assert await upload(hub.port, SIZE, "/slow-sink") == digest(pattern(SIZE))
        assert not hub.kills
        if knows_credits:
            assert "pause_stream" not in hub.events
        else:
            assert hub.events.count("pause_stream") == hub.events.count("resume_stream") > 0


@both_ages
async def test_a_users_fin_leaves_it_the_whole_answer_of_a_go_client(pki: Pki, *, knows_credits: bool) -> None:
    """W20: a half-close that cannot be told to the backend must not end the stream."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki) as node,
        go_client(_go_client(node.hub_url, pki, target, knows_credits=knows_credits)),
        asyncio.timeout(WAIT_S),
        connection(node.port) as (reader, writer),
    ):
        writer.write(head("GET", f"/bytes/{SIZE}"))
        writer.write_eof()
        assert digest(await drain_eof(reader)) == digest(pattern(SIZE))


async def test_a_service_that_is_dialled_slowly_never_overflows_a_go_client(pki: Pki) -> None:
    """W5, W10: messages sent before the first grant count against it, or 64 slots would have to hold 72."""
    dialled = asyncio.Event()
    async with serve(standard, slow=True) as target, local_node(pki) as node:

        async def dial() -> tuple[Reader, Writer]:
            await dialled.wait()
            return await asyncio.open_connection("127.0.0.1", target)

        client = GoClient(node.hub_url, hub_client_context(pki.ca_file), dial)
        client.heeds_level = False  # its pause is on its way while the hub spends all it was granted
        async with go_client(client), asyncio.TaskGroup() as tasks:
            uploading = tasks.create_task(upload(node.port, SIZE))
            await eventually(lambda: _credits_left(node) == 0, "the hub has spent its credits")
            dialled.set()
            assert await uploading == digest(pattern(SIZE))
        assert not client.kills


async def test_a_user_that_stops_reading_does_not_end_the_session_of_an_old_client(pki: Pki) -> None:
    """W11, W18: towards a client without credits the hub stops reading; that is no silence of the client."""
    async with (
        serve(standard, slow=True) as target,
        local_node(pki, idleTimeoutSeconds=1) as node,
        go_client(_go_client(node.hub_url, pki, target, knows_credits=False)),
    ):
        with pytest.raises(ConnectionResetError):
            await _never_reads(node)
        assert digest(await exchange(node.port, head("GET", "/bytes/1000"))) == digest(pattern(1000))


async def _never_reads(node: LocalNode) -> None:
    """Ask for much and read nothing until the node gives this user up."""
    async with asyncio.timeout(WAIT_S), connection(node.port, slow=True) as (reader, writer):
        writer.write(head("GET", f"/bytes/{2 * SIZE}"))
        await eventually(lambda: node.node.stats().streams_total, "the stream")
        await eventually(lambda: not node.node.stats().streams, "the end of the stream")
        await drain_eof(reader)


async def test_an_old_client_stays_while_its_link_is_held(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pings are not read meanwhile, and it leaves after 10 s (here 1 s) without a message or a pong."""
    monkeypatch.setattr(hold, "SIGN_OF_LIFE_S", 0.1)
    async with serve(standard, slow=True) as target, local_node(pki) as node:
        client = _go_client(node.hub_url, pki, target, knows_credits=False)
        client.ping_s, client.deadline_s = 0.5, 1.0
        async with go_client(client), connection(node.port, slow=True) as (reader, writer):
            writer.write(head("GET", f"/bytes/{2 * SIZE}"))
            (backend,) = node.node.registry.sessions
            await eventually(lambda: backend.session.link.held, "the user's stream holds up the link")
            before = client.pongs
            await eventually(lambda: client.pongs >= before + 20 or client.kills, "twice the deadline has passed")
            assert not client.kills
            assert backend.session.link.held
            async with asyncio.timeout(WAIT_S):
                assert digest(await drain_eof(reader)) == digest(pattern(2 * SIZE))


def _credits_left(node: LocalNode) -> int | None:
    streams = list(node.node.registry.streams())
    return streams[0].send_window.available if streams and streams[0].send_window.limited else None
