"""What one stream may do to itself and to others: heads, uploads, tails, ends, credits, routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend_client.client import BackendClient
from nexus.link.stream import Stream
from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.protocol.messages import simple_message
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    HOST,
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
from tests.support.processes import Client, Node, Pki

MIB = 1024 * 1024


@dataclass(frozen=True)
class Loop:
    """client -> node -> backend client -> service, all in the test's event loop."""

    node: LocalNode
    client: BackendClient
    pki: Pki

    @property
    def port(self) -> int:
        """The public port."""
        return self.node.port

    def streams(self) -> tuple[int, int]:
        """Return how many streams the hub's and the client's side hold."""
        return self.node.node.stats().streams, self.client.stats.streams


@pytest.fixture
async def loop(pki: Pki) -> AsyncIterator[Loop]:
    """The whole chain with the standard service."""
    async with (
        serve(standard) as target,
        local_node(pki) as node,
        local_client(node.hub_url, pki, {node.port: target}) as client,
    ):
        yield Loop(node, client, pki)


# -- Heads and routes -------------------------------------------------------------------------------------------------


async def test_a_head_of_40_kb_ends_neither_its_stream_nor_the_session(loop: Loop) -> None:
    """W1, node W5: such a head in one message was more than a client takes: the session and all its streams died."""
    received: list[bytes] = []

    async def keep_head(reader: Reader, writer: Writer) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"seen")

    large = head("GET", "/", "large.example.com", X_Padding="x" * 40_000)
    async with (
        serve(keep_head) as target,
        local_client(loop.node.hub_url, loop.pki, {loop.port: target}, "large.example.com", name="large") as client,
        connection(loop.port) as (reader, writer),
    ):
        writer.write(head("GET", "/hold", "large.example.com"))
        assert await reader.read(100) == b"seen"
        assert await exchange(loop.port, large) == b"seen"
        assert received[1] == large
        assert client.stats.sessions_total == 1


async def test_an_exact_name_without_backends_no_longer_hides_the_wildcard(loop: Loop) -> None:
    """W9, node W12: the emptied pool of app.example.com answered for it, though *.example.com was served."""

    def says(what: bytes) -> contextlib.AbstractAsyncContextManager[int]:
        async def answer(reader: Reader, writer: Writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(what)

        return serve(answer)

    async with says(b"wildcard") as wild, says(b"exact") as exact:
        hub, pki, request = loop.node.hub_url, loop.pki, head("GET", "/", "x.wild.example.com")
        async with local_client(hub, pki, {loop.port: wild}, "*.wild.example.com", name="b"):
            async with local_client(hub, pki, {loop.port: exact}, "x.wild.example.com", name="a"):
                assert await exchange(loop.port, request) == b"exact"
            await eventually(lambda: len(loop.node.node.registry.sessions) == 2, "the end of the session")
            assert await exchange(loop.port, request) == b"wildcard"
        await eventually(lambda: loop.node.node.stats().routes == 1, "names that left leave nothing behind")


# -- Loads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(8, 8 * MIB), (40, 2 * MIB)])
async def test_parallel_fast_uploads_all_complete(loop: Loop, count: int, size: int) -> None:
    """W5, node W13: a full session queue broke streams instead of slowing them; `connect` was lost the same way."""
    async with asyncio.TaskGroup() as tasks:
        uploads = [tasks.create_task(upload(loop.port, size)) for _ in range(count)]
    assert {each.result() for each in uploads} == {digest(pattern(size))}
    assert not loop.node.node.stats().streams_reset_total


@pytest.mark.parametrize(("low", "high", "most"), [(1, 2, 3), (48, 96, 128), (48, 1000, 1024)])
async def test_any_flow_control_setting_completes_a_slow_upload(
    directory: Path, pki: Pki, low: int, high: int, most: int
) -> None:
    """W10: maxBuffer 128 overran a fixed queue of 64, and below 8 both sides waited for ever."""
    flow = {"lowWaterMark": low, "highWaterMark": high, "maxBuffer": most}
    async with serve(standard) as target:
        with (
            Node(directory, pki) as node,
            Client(directory, node, {node.http_port: target}, HOST, flowControl=flow),
        ):
            assert await upload(node.http_port, 8 * MIB, "/slow-sink") == digest(pattern(8 * MIB))


async def test_a_slow_service_does_not_stop_other_streams_whatever_its_window(pki: Pki) -> None:
    """W10, W13: a window above the bound of a stream's buffer must not stop the whole session."""
    released = asyncio.Event()

    async def service(reader: Reader, writer: Writer) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/stuck" in request:
            await released.wait()
            writer.write(digest(await reader.readexactly(32 * MIB)).encode())
        else:
            writer.write(b"free")

    async with (
        serve(service) as target,
        local_node(pki) as node,
        local_client(node.hub_url, pki, {node.port: target}, window=1024),
        asyncio.TaskGroup() as tasks,
    ):
        stuck = tasks.create_task(exchange(node.port, head("PUT", "/stuck") + pattern(32 * MIB)))
        await eventually(lambda: node.node.stats().bytes_to_backends_total > 12 * MIB, "a window well in use")
        assert await exchange(node.port, head("GET", "/")) == b"free"
        released.set()
        assert (await stuck).decode() == digest(pattern(32 * MIB))


# -- Tails ------------------------------------------------------------------------------------------------------------


async def test_slow_readers_get_the_last_byte_of_an_answer_that_ends_the_connection(loop: Loop) -> None:
    """W2, node W4: at the backend's end the rest got 50 ms, then a clean FIN cut it off."""
    body = await exchange(loop.port, head("GET", f"/bytes/{8 * MIB}"), paced=True)
    assert digest(body) == digest(pattern(8 * MIB))


async def test_a_slow_service_gets_the_last_byte_of_an_upload_whose_client_is_gone(loop: Loop) -> None:
    """W2: the client's side cut uploads in the same way."""
    got: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def sink(reader: Reader, writer: Writer) -> None:
        del writer
        await reader.readuntil(b"\r\n\r\n")
        got.set_result(digest(await drain_eof(reader, paced=True)))

    async with (
        serve(sink, slow=True) as target,
        local_client(loop.node.hub_url, loop.pki, {loop.port: target}, "sink.example.com", name="sink"),
    ):
        async with connection(loop.port) as (_, writer):
            writer.write(head("PUT", "/", "sink.example.com") + pattern(8 * MIB))
            await writer.drain()
        async with asyncio.timeout(WAIT_S):
            assert await got == digest(pattern(8 * MIB))


async def test_a_half_close_reaches_the_service_and_its_answer_the_user(loop: Loop) -> None:
    """W20, node W9: FIN from either side ended the whole stream."""
    async with asyncio.timeout(WAIT_S), connection(loop.port) as (reader, writer):
        writer.write(head("PUT", "/until-eof") + pattern(MIB))
        writer.write_eof()
        assert (await drain_eof(reader)).decode() == digest(pattern(MIB))


async def test_nothing_that_a_service_says_first_is_lost(loop: Loop) -> None:
    """W17: the first bytes of a quick service met a hub that did not know the stream yet."""

    async def greets(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 ready\r\n" + pattern(MIB))
        await reader.readuntil(b"\r\n\r\n")

    async with (
        serve(greets) as target,
        local_client(loop.node.hub_url, loop.pki, {loop.port: target}, "smtp.example.com", name="smtp"),
        asyncio.TaskGroup() as tasks,
    ):
        request = head("GET", "/", "smtp.example.com")
        greetings = [tasks.create_task(exchange(loop.port, request)) for _ in range(30)]
    assert {digest(each.result()) for each in greetings} == {digest(b"220 ready\r\n" + pattern(MIB))}


# -- What is left -----------------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_500_streams(loop: Loop) -> None:
    """W16, W31: each ended stream left a credit counter behind, and nothing told of it."""
    for _ in range(10):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(exchange(loop.port, head("GET", "/bytes/100")))
    await eventually(lambda: loop.streams() == (0, 0), "the end of all streams")
    stats = loop.node.node.stats()
    assert (stats.streams_total, stats.buffered_bytes, stats.paused_streams, stats.peeking) == (500, 0, 0, 0)
    (backend,) = loop.node.node.registry.sessions
    kept = (getattr(backend.session, name) for name in dir(backend.session) if not name.startswith("__"))
    left = [len(value) for value in kept if isinstance(value, dict | set | list)]
    assert sum(left) == 0
    assert not backend._untold_fins


async def test_users_who_leave_a_download_leave_no_memory_behind(loop: Loop) -> None:
    """W33: 100 aborted downloads held 549 MB in the client for half a minute."""
    gone: list[int] = []

    async def endless(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while True:
                writer.write(pattern(MIB))
                await writer.drain()
        finally:
            gone.append(1)

    async with (
        serve(endless) as target,
        local_client(loop.node.hub_url, loop.pki, {loop.port: target}, "big.example.com", name="big") as client,
    ):
        async with contextlib.AsyncExitStack() as users:
            for _ in range(100):
                reader, writer = await users.enter_async_context(connection(loop.port, slow=True))
                writer.write(head("GET", "/", "big.example.com"))
                assert await reader.readexactly(1000)
        await eventually(lambda: client.stats.streams == 0 and loop.streams() == (0, 0), "the end of the streams")
        await eventually(lambda: len(gone) == 100, "the end of the local connections")
        assert loop.node.node.stats().buffered_bytes == 0


# -- Credits and time -------------------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_a_bounded_number_of_bytes(loop: Loop) -> None:
    """W22: credits count messages; what they let wait is bounded in bytes, and one-byte messages do not stall."""
    async with asyncio.timeout(WAIT_S), connection(loop.port, slow=True) as (reader, writer):
        writer.write(head("GET", f"/bytes/{16 * MIB}"))
        (stream,) = await _streams(loop, 1)
        window = stream.receive_window  # it may have grown by what the kernel took at once
        await eventually(lambda: window.held >= window.size, "all credits are spent")
        assert 0 < loop.node.node.stats().buffered_bytes <= window.size * PAYLOAD_MAX_BYTES
        assert digest(await drain_eof(reader)) == digest(pattern(16 * MIB))


async def test_messages_of_one_byte_flow(loop: Loop) -> None:
    """W22: 64 messages of one byte used up the window as 2 MB do, in both directions."""

    async def echo(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while byte := await reader.read(1):
            writer.write(byte)
            await writer.drain()

    data = pattern(1000)
    async with (
        serve(echo) as target,
        local_client(loop.node.hub_url, loop.pki, {loop.port: target}, "echo.example.com", name="echo"),
        asyncio.timeout(WAIT_S),
        connection(loop.port) as (reader, writer),
    ):
        writer.write(head("GET", "/", "echo.example.com"))
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            assert await reader.readexactly(1) == data[at : at + 1]


async def test_a_stream_that_must_wait_outlives_the_idle_timeout(pki: Pki) -> None:
    """W18: the deadline of an upload ran on while its service took nothing, and cut it on resume."""
    released = asyncio.Event()

    async def stubborn(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await released.wait()
        writer.write(digest(await reader.readexactly(16 * MIB)).encode())

    async with (
        serve(stubborn, slow=True) as target,
        local_node(pki, idleTimeoutSeconds=1) as node,
        local_client(node.hub_url, pki, {node.port: target}),
        asyncio.TaskGroup() as tasks,
    ):
        uploading = tasks.create_task(exchange(node.port, head("PUT", "/") + pattern(16 * MIB)))
        await eventually(lambda: node.node.stats().paused_streams, "the stream waits")
        await asyncio.sleep(3)  # three idle timeouts: the time itself is under test
        released.set()
        assert (await uploading).decode() == digest(pattern(16 * MIB))


async def test_a_stream_with_nothing_to_do_ends_after_the_idle_timeout(pki: Pki) -> None:
    """W18: what waits is spared, what idles is not."""
    async with (
        serve(standard) as target,
        local_node(pki, idleTimeoutSeconds=1) as node,
        local_client(node.hub_url, pki, {node.port: target}),
        asyncio.timeout(WAIT_S),
        connection(node.port) as (reader, writer),
    ):
        writer.write(head("GET", "/hold"))
        with pytest.raises(ConnectionResetError):
            await drain_eof(reader)


async def _streams(loop: Loop, count: int) -> list[Stream]:
    await eventually(lambda: loop.streams()[0] == count, f"{count} streams")
    return list(loop.node.node.registry.streams())


# -- Others -----------------------------------------------------------------------------------------------------------


async def test_users_who_stop_reading_delay_nobody_else_of_their_backend(loop: Loop) -> None:
    """W13, W15: one stream could hold up the session's reader; with fifty at a standstill others still answer."""
    async with contextlib.AsyncExitStack() as users:
        for _ in range(50):
            _, writer = await users.enter_async_context(connection(loop.port, slow=True))
            writer.write(head("GET", f"/bytes/{8 * MIB}"))
        await eventually(lambda: loop.streams()[0] == 50, "fifty streams")
        for _ in range(50):
            assert digest(await exchange(loop.port, head("GET", "/bytes/100000"))) == digest(pattern(100_000))
        assert loop.streams()[0] == 50


async def test_a_backend_that_asks_without_end_is_answered_and_bounded(loop: Loop) -> None:
    """W13: 64 control messages that could not be queued blocked the reader, and all streams, for 5 s each."""
    async with connection(loop.port) as (reader, writer):
        writer.write(head("GET", "/hold"))
        assert await reader.readexactly(4) == b"held"
        session = loop.client._session
        assert session is not None
        (stream,) = session.session.streams.values()
        for _ in range(20_000):
            session.session.send_control(simple_message("ping_client", stream.id))
        assert await upload(loop.port, MIB) == digest(pattern(MIB))
        await eventually(lambda: loop.streams() == (1, 1), "the end of the upload")
