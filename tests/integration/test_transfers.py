"""Bodies arrive whole, in both directions, many at once, at any pace; what is abandoned costs nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.processes import established, wait_for
from tests.support.programs import require

pytestmark = pytest.mark.programs

MIB = 1 << 20
PAYLOAD = 32_768  # one data message of the protocol
SIZES = (0, 1, 16_383, PAYLOAD, PAYLOAD + 1, MIB + 7, 64 * MIB, 256 * MIB)

STREAMS = 200
BODY_MAX_BYTES = 256 * 1024
DEADLINE_S = 60.0

SLOW_BYTES = 8 * MIB
SLOW_BYTES_PER_S = 1_000_000
SLOW_READ_BYTES = 64 * 1024
SMALL_BUFFER_BYTES = 16 * 1024


# -- Sizes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bodies(chain: Chain) -> Iterator[dict[str, str]]:
    """A random file of every size that nginx serves below /bodies: name and SHA-256."""
    folder = chain.nginx.root / "bodies"
    folder.mkdir()
    yield {str(size): wire.write_random(folder / str(size), size) for size in SIZES}
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture
def arrived(chain: Chain) -> Iterator[Path]:
    """An empty folder that nginx may write into, emptied again afterwards."""
    folder = chain.nginx.root / "arrived"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_downloads_of_all_sizes_at_once_arrive_unchanged(
    chain: Chain, bodies: dict[str, str], arrived: Path, version: str
) -> None:
    """curl downloads everything in parallel: by eight streams with HTTP/1.1, through one with HTTP/2."""
    transfers = [item for name in bodies for item in ("-o", str(arrived / name), chain.url(f"/bodies/{name}"))]
    wire.run_program(require("curl"), *chain.curl_options(), "--fail", version, "--parallel", *transfers)
    assert {name: wire.sha256_of(arrived / name) for name in bodies} == bodies
    chain.wait_until_quiet()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_uploads_of_all_sizes_at_once_arrive_unchanged(
    chain: Chain, bodies: dict[str, str], arrived: Path, version: str
) -> None:
    """curl uploads everything in parallel by PUT, and nginx has every byte."""
    folder = chain.nginx.root / "bodies"
    transfers = [item for name in bodies for item in ("-T", str(folder / name), chain.url(f"/arrived/{name}"))]
    wire.run_program(require("curl"), *chain.curl_options(), "--fail", version, "--parallel", *transfers)
    assert {name: wire.sha256_of(arrived / name) for name in bodies} == bodies
    chain.wait_until_quiet()


# -- Many at once ------------------------------------------------------------------------------------------------------


async def exchange(chain: Chain, context: ssl.SSLContext, path: str, body: bytes, everybody: asyncio.Barrier) -> bytes:
    """Open a connection, wait for all others to have one, upload ``body``, and return what a download then gives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", chain.node.tls_port, ssl=context, server_hostname=HOST)
    try:
        await everybody.wait()
        writer.write(wire.request(HOST, path, "PUT", body=body))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 "), head
        writer.write(wire.request(HOST, path, "GET", "Connection: close"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return await reader.read()
    finally:
        writer.transport.abort()


async def test_200_streams_at_once_carry_their_own_bytes(chain: Chain, arrived: Path) -> None:
    """200 clients are connected at the same moment, each with a body of its own both ways; none is refused."""
    sizes = random.Random(STREAMS).choices(range(1, BODY_MAX_BYTES), k=STREAMS)
    bodies = [os.urandom(size) for size in sizes]
    context = wire.trusting(chain.pki.ca_file)
    before = chain.node.rejected()
    everybody = asyncio.Barrier(STREAMS + 1)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        exchanges = [
            tasks.create_task(exchange(chain, context, f"/arrived/{number}", body, everybody))
            for number, body in enumerate(bodies)
        ]
        await asyncio.to_thread(wait_for, lambda: chain.node.metric("nexus_streams") == STREAMS, "all are connected")
        await everybody.wait()
    assert [task.result() == body for task, body in zip(exchanges, bodies, strict=True)] == [True] * STREAMS
    chain.wait_until_quiet()
    assert chain.node.rejected() == before


# -- Slow readers ------------------------------------------------------------------------------------------------------


def read_slowly(sock: socket.socket, at_three_quarters: Callable[[], None]) -> bytes:
    """Read to the end at SLOW_BYTES_PER_S."""
    started, received, look = time.monotonic(), bytearray(), at_three_quarters
    while chunk := sock.recv(SLOW_READ_BYTES):
        received += chunk
        if len(received) > SLOW_BYTES * 3 // 4:
            look()
            look = _nothing
        time.sleep(max(0.0, started + len(received) / SLOW_BYTES_PER_S - time.monotonic()))
    return bytes(received)


def _nothing() -> None:
    """Do nothing."""


def test_slow_readers_get_everything_after_the_service_has_closed(chain: Chain) -> None:
    """Two clients read 8 MiB at 1 MB/s, by TLS and by HTTP; nginx closed long before, and not a byte is lost."""
    file = chain.nginx.root / "slow"
    digest = wire.write_random(file, SLOW_BYTES)
    ask = wire.request(HOST, "/slow", "GET", "Connection: close")
    closed_early = []

    def note(port: int) -> None:
        closed_early.append(established(port) == 0)

    def by_http() -> bytes:
        with wire.connect(chain.node.http_port, receive_buffer_bytes=SMALL_BUFFER_BYTES) as client:
            client.sendall(ask)
            return read_slowly(client, lambda: note(chain.nginx.http_port))

    def by_tls() -> bytes:
        raw = wire.connect(chain.node.tls_port, receive_buffer_bytes=SMALL_BUFFER_BYTES)
        context = wire.trusting(chain.pki.ca_file)
        with context.wrap_socket(raw, server_hostname=HOST, suppress_ragged_eofs=False) as client:
            client.sendall(ask)
            return read_slowly(client, lambda: note(chain.nginx.tls_port))

    with ThreadPoolExecutor() as pool:
        answers = [task.result() for task in [pool.submit(by_http), pool.submit(by_tls)]]
    for answer in answers:
        assert hashlib.sha256(answer.partition(b"\r\n\r\n")[2]).hexdigest() == digest
    assert closed_early == [True, True]
    chain.wait_until_quiet()
