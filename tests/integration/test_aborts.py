"""A download that its client breaks off frees at once what the node and the backend client held for it."""

from __future__ import annotations

import socket

import pytest

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.processes import Process, wait_for

pytestmark = pytest.mark.programs

MIB = 1 << 20
FILE_BYTES = 1024 * MIB
ABORTED = 100
FIRST_BYTES = 1000
GROWTH_MAX_BYTES = 40 * MIB


def start_download(chain: Chain, *, tls: bool) -> socket.socket:
    """Ask for the big file, read a little of it, and then no more."""
    sock = wire.connect(chain.node.tls_port if tls else chain.node.http_port)
    if tls:
        sock = wire.trusting(chain.pki.ca_file).wrap_socket(sock, server_hostname=HOST)
    sock.sendall(wire.request(HOST, "/big"))
    assert len(sock.recv(FIRST_BYTES)) > 0
    return sock


def wait_for_memory(process: Process, limit: int) -> None:
    """Wait until a process has less than ``limit`` bytes in memory."""
    wait_for(lambda: process.rss_bytes() < limit, f"{process.log.stem} is small again")


def test_aborted_downloads_free_their_memory(chain: Chain) -> None:
    """100 clients stop reading and then reset: no stream and no byte is left, and both processes shrink again."""
    with (chain.nginx.root / "big").open("wb") as file:
        file.truncate(FILE_BYTES)
    start_download(chain, tls=True).close()  # whatever is loaded only once is loaded now
    chain.wait_until_quiet()
    node_before, client_before = chain.node.rss_bytes(), chain.client.rss_bytes()

    downloads = [start_download(chain, tls=number % 2 == 0) for number in range(ABORTED)]
    wait_for(lambda: chain.node.metric("nexus_streams_paused") == ABORTED, "every stream waits for its client")
    wait_for(lambda: chain.node.metric("nexus_buffered_bytes") > 2 * GROWTH_MAX_BYTES, "the node holds a lot")
    node_full = chain.node.rss_bytes()
    for sock in downloads:
        wire.reset(sock)
    chain.wait_until_quiet()

    assert node_full - node_before > GROWTH_MAX_BYTES  # else what follows shows nothing
    for process, before in ((chain.node, node_before), (chain.client, client_before)):
        wait_for_memory(process, before + GROWTH_MAX_BYTES)
