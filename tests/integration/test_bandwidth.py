"""A node under a cap, with real sockets: whole transfers, honest ends, equal parts, and never more than the cap.

What is asserted of time is an upper bound, taken from the node's own clock: a slow machine only makes it lower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import pytest

from nexus.link.endpoint import reset, reset_undelivered, undelivered_bytes
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

MIB = 1024 * 1024
PACED_BYTES = 3 * MIB  # more than the burst of any cap here, and more than the windows of a stream


@contextlib.asynccontextmanager
async def capped(pki: Pki, megabits: int, **settings: object) -> AsyncIterator[LocalNode]:
    """Run a node with a cap, and the standard service behind one backend."""
    async with (
        serve(standard) as target,
        local_node(pki, totalBandwidthMbps=megabits, **settings) as node,
        local_client(node.hub_url, pki, {node.port: target}),
    ):
        yield node


# -- Transfers --------------------------------------------------------------------------------------------------------


async def test_transfers_under_a_cap_are_whole_in_both_directions(pki: Pki) -> None:
    """Every byte of parallel uploads and downloads, and every byte is paid for."""
    async with capped(pki, 80) as node, asyncio.TaskGroup() as tasks:
        uploads = [tasks.create_task(upload(node.port, MIB)) for _ in range(4)]
        downloads = [tasks.create_task(exchange(node.port, head("GET", f"/bytes/{MIB}"))) for _ in range(4)]
    assert {each.result() for each in uploads} == {digest(pattern(MIB))}
    assert {digest(each.result()) for each in downloads} == {digest(pattern(MIB))}
    stats = node.node.stats()
    payload = stats.bytes_to_backends_total + stats.bytes_to_clients_total
    assert payload < stats.bandwidth_charged_bytes_total < 1.01 * payload
    assert not stats.streams_reset_total


async def test_slow_readers_get_the_last_byte_under_a_cap(pki: Pki) -> None:
    """W2: the backend ends at once; the rest waits for the cap and for the reader, then comes the FIN."""
    async with capped(pki, 40) as node:
        body = await exchange(node.port, head("GET", f"/bytes/{PACED_BYTES}"), paced=True)
        assert digest(body) == digest(pattern(PACED_BYTES))
        await eventually(lambda: not undelivered_bytes(), "nothing is left")


async def test_a_half_close_follows_an_upload_under_a_cap(pki: Pki) -> None:
    """W20: the client's FIN waits behind its bytes, and the answer still comes."""
    async with capped(pki, 40) as node, asyncio.timeout(WAIT_S), connection(node.port) as (reader, writer):
        writer.write(head("PUT", "/until-eof") + pattern(PACED_BYTES))
        writer.write_eof()
        assert (await drain_eof(reader)).decode() == digest(pattern(PACED_BYTES))


# -- Broken ends ------------------------------------------------------------------------------------------------------


async def test_a_client_that_resets_frees_what_waited_for_it(pki: Pki) -> None:
    """In both directions, at once, and its service sees a broken connection."""
    broken = asyncio.Event()

    async def endless(reader: Reader, writer: Writer) -> None:
        try:
            while True:
                writer.write(pattern(MIB))
                await writer.drain()
        finally:
            broken.set()

    async with (
        serve(endless) as target,
        local_node(pki, totalBandwidthMbps=1) as node,
        local_client(node.hub_url, pki, {node.port: target}),
    ):
        async with connection(node.port) as (reader, writer):
            writer.write(head("PUT", "/") + pattern(MIB))
            assert await reader.readexactly(1000)
            await eventually(lambda: node.node.stats().bandwidth_waiting_bytes, "bytes wait for the cap")
            reset(cast(asyncio.Transport, writer.transport))
        async with asyncio.timeout(WAIT_S):
            await broken.wait()
        await eventually(lambda: not node.node.stats().streams, "the end of the stream")
        stats = node.node.stats()
        assert (stats.bandwidth_waiting_bytes, stats.buffered_bytes, stats.bandwidth_waiting_backends) == (0, 0, 0)


async def test_a_backend_that_is_lost_resets_who_waits_for_the_cap(pki: Pki) -> None:
    """A truncated answer must not look whole."""
    async with serve(standard) as target, local_node(pki, totalBandwidthMbps=1) as node, connection(node.port) as ends:
        reader, writer = ends
        async with local_client(node.hub_url, pki, {node.port: target}):
            writer.write(head("GET", f"/bytes/{PACED_BYTES}"))
            assert await reader.readexactly(1000)
            for backend in tuple(node.node.registry.sessions):
                backend.session.link.abort("the test cuts the cable")
            with pytest.raises(ConnectionResetError):
                await drain_eof(reader)
        assert node.node.stats().bandwidth_waiting_bytes == 0


@pytest.mark.parametrize("size", [MIB, PACED_BYTES], ids=["stream is over", "stream is open"])
async def test_a_stopping_node_waits_for_the_cap_and_resets_what_is_left(pki: Pki, size: int) -> None:
    """W32: within the grace it goes on; what is not delivered then is broken, not cut off as if it were whole."""
    async with capped(pki, 1, shutdownGraceSeconds=1) as node, connection(node.port, slow=True) as (reader, writer):
        writer.write(head("GET", f"/bytes/{size}"))
        writer.write_eof()
        assert await reader.readexactly(1000)
        await eventually(lambda: bool(undelivered_bytes()) is (size == MIB), "the end of the stream, or none")
        node.node.stop()
        await eventually(lambda: not node.node.stats().sessions, "the goodbye to the backend")
        reset_undelivered()  # as the end of the process does
        with pytest.raises(ConnectionResetError):
            await drain_eof(reader)


async def test_a_stopping_node_delivers_what_fits_into_the_grace(pki: Pki) -> None:
    """W32: bytes that wait for the cap are neither idle nor forgotten, though their stream is over."""
    async with capped(pki, 8, shutdownGraceSeconds=60) as node:
        async with asyncio.timeout(WAIT_S), connection(node.port) as (reader, writer):
            writer.write(head("GET", f"/bytes/{PACED_BYTES}"))
            got = await reader.readexactly(1000)
            node.node.stop()
            got += await drain_eof(reader)
        assert digest(got) == digest(pattern(PACED_BYTES))


# -- The cap and the parts --------------------------------------------------------------------------------------------


@dataclass
class Looks:
    """Pairs of a time and what was charged until then, by the node's clock."""

    node: LocalNode
    seen: list[tuple[float, int]]

    def look(self) -> None:
        """Note what is charged now."""
        charged = self.node.node.stats().bandwidth_charged_bytes_total
        self.seen.append((asyncio.get_running_loop().time(), charged))

    def check(self, bytes_per_second: int, window_s: float) -> None:
        """Check every window between two looks that is at least ``window_s`` long against 1.02 times the cap."""
        checked = 0
        for at, (start, before) in enumerate(self.seen):
            for end, after in self.seen[at + 1 :]:
                if end - start >= window_s:
                    assert after - before <= 1.02 * bytes_per_second * (end - start)
                    checked += 1
                    break
        assert checked


@dataclass
class Load:
    """Clients of several backends that move as much as they may; what each backend's have moved, in bytes."""

    port: int
    looks: Looks
    moved: list[int]

    async def download(self, backend: int) -> None:
        """Read an endless answer."""
        async with connection(self.port) as (reader, writer):
            writer.write(head("GET", "/", f"{backend}.example.com"))
            while chunk := await reader.read(65_536):
                self.moved[backend] += len(chunk)
                self.looks.look()

    async def upload(self, backend: int) -> None:
        """Send without end; the service counts."""
        async with connection(self.port) as (_, writer):
            writer.write(head("PUT", "/", f"{backend}.example.com"))
            while True:
                writer.write(pattern(65_536))
                await writer.drain()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Be the service of all backends."""
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        backend = int(request.partition("Host: ")[2].partition(".")[0])
        while request.startswith("GET"):
            writer.write(pattern(65_536))
            await writer.drain()
        while chunk := await reader.read(65_536):
            self.moved[backend] += len(chunk)
            self.looks.look()


@contextlib.asynccontextmanager
async def loaded(pki: Pki, megabits: int, clients: list[str]) -> AsyncIterator[Load]:
    """Run a capped node with a backend for each of ``clients``: a letter for each, U uploads and D downloads."""
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(local_node(pki, totalBandwidthMbps=megabits))
        load = Load(node.port, Looks(node, []), [0] * len(clients))
        target = await stack.enter_async_context(serve(load.serve))
        for number in range(len(clients)):
            names = (f"{number}.example.com",)
            client = local_client(node.hub_url, pki, {node.port: target}, *names, name=f"backend-{number}")
            await stack.enter_async_context(client)
        async with asyncio.TaskGroup() as tasks:
            work = {"U": load.upload, "D": load.download}
            running = [tasks.create_task(work[kind](number)) for number, kinds in enumerate(clients) for kind in kinds]
            yield load
            for task in running:
                task.cancel()


async def test_no_five_seconds_hold_more_than_the_cap(pki: Pki) -> None:
    """Uploads and downloads of three backends press against 20 Mbit/s for a while."""
    async with loaded(pki, 20, ["U", "D", "UD"]) as load:
        enough = load.looks.node.node.stats().bandwidth_limit_bytes_per_second or 0
        await eventually(lambda: sum(load.moved) > 6 * enough, "six seconds' worth", timeout_s=90)
    load.looks.check(enough, 5.0)


@pytest.mark.parametrize("clients", [["D", "D" * 12], ["U", "U" * 12], ["U", "D", "UDUD"]], ids=str)
async def test_backends_move_equal_parts_however_many_streams_they_have(pki: Pki, clients: list[str]) -> None:
    """W25: as a ratio of bytes, so the machine's speed does not matter as long as the cap is what holds them back."""
    async with loaded(pki, 16, clients) as load:
        await eventually(lambda: min(load.moved) > MIB // 4, "everybody has begun", timeout_s=90)
        before = list(load.moved)
        await eventually(
            lambda: sum(load.moved) - sum(before) > 2 * MIB * len(clients), "a while has passed", timeout_s=90
        )
        parts = [after - start for after, start in zip(load.moved, before, strict=True)]
    assert max(parts) / min(parts) < 1.15, parts


async def test_a_backend_that_trickles_leaves_the_rest_to_the_others(pki: Pki) -> None:
    """W25: and its own bytes pass in between."""
    async with loaded(pki, 16, ["D", ""]) as load, connection(load.port) as (_, writer):
        writer.write(head("PUT", "/", "1.example.com"))
        busy = load.moved[0]
        for _ in range(20):
            before = load.moved[1]
            writer.write(b"x" * 100)
            await eventually(lambda before=before: load.moved[1] > before, "the trickle arrives")  # type: ignore[misc]
        await eventually(lambda: load.moved[0] > busy + 2 * MIB, "the other goes on", timeout_s=90)
        assert load.moved[1] == 2_000
