"""What an operator sees and may do while a node runs: metrics, health, draining, new certificates."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path

from nexus.admin.probe import ProbeAnswer, probe
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    HOST,
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


async def test_a_node_tells_what_it_does(directory: Path, pki: Pki) -> None:
    """W31, node W23: nothing was counted, or nothing told of it; and a log line per stream at INFO."""
    async with serve(standard) as target:
        with Node(directory, pki) as node, Client(directory, node, {node.http_port: target}, HOST):
            logged = node.output()
            assert digest(await exchange(node.http_port, head("GET", f"/bytes/{MIB}"))) == digest(pattern(MIB))
            assert await upload(node.http_port, MIB) == digest(pattern(MIB))
            await exchange(node.http_port, head("GET", "/", "nobody.example.com"))
            await eventually(lambda: not node.metric("nexus_streams"), "the end of the streams")
            told = node.metrics()
            assert told["nexus_streams_opened_total"] == 2
            assert told['nexus_relayed_bytes_total{direction="to_clients"}'] > MIB
            assert told['nexus_relayed_bytes_total{direction="to_backends"}'] > MIB
            assert told['nexus_client_connections_rejected_total{reason="no_backend"}'] == 1
            assert told["nexus_sessions"] == told["nexus_routes"] == 1
            assert told["nexus_buffered_bytes"] == told["nexus_streams_paused"] == 0
            assert node.output() == logged


async def test_a_draining_node_is_alive_but_not_ready(pki: Pki) -> None:
    """W32, node W23: there was neither health nor drain."""
    async with (
        serve(standard) as target,
        local_node(pki, adminListenAddress="127.0.0.1:0", shutdownGraceSeconds=30) as node,
        local_client(node.hub_url, pki, {node.port: target}),
        asyncio.timeout(WAIT_S),
        connection(node.port, slow=True) as (reader, writer),
    ):

        async def ask(path: str) -> ProbeAnswer:
            return await asyncio.to_thread(probe, node.addresses.admin, path)

        assert (await ask("/readyz")).status == 200
        writer.write(head("GET", f"/bytes/{16 * MIB}"))
        begun = await reader.readexactly(1000)
        node.node.stop()
        draining = await ask("/readyz")
        assert draining.status == 503
        assert "stopping" in draining.body
        assert (await ask("/healthz")).status == 200
        assert digest(begun + await drain_eof(reader)) == digest(pattern(16 * MIB))


async def test_a_renewed_certificate_is_served_and_no_session_notices(directory: Path, pki: Pki) -> None:
    """Node W22: certificate files were read once."""
    async with serve(standard) as target, asyncio.timeout(WAIT_S):
        with Node(directory, pki) as node, Client(directory, node, {node.http_port: target}, HOST):
            async with connection(node.http_port, slow=True) as (reader, writer):
                writer.write(head("GET", f"/bytes/{16 * MIB}"))
                begun = await reader.readexactly(1000)
                before = await _certificate(node)
                pki.issue("hub", "localhost", "127.0.0.1")
                node.popen.send_signal(signal.SIGHUP)
                while await _certificate(node) == before:  # noqa: ASYNC110 — only a new handshake tells it
                    await asyncio.sleep(0.01)
                assert digest(begun + await drain_eof(reader)) == digest(pattern(16 * MIB))
            assert node.metric("nexus_sessions_opened_total") == 1


async def _certificate(node: Node) -> bytes | None:
    """Return the certificate that the hub's port shows now."""
    context = ssl.create_default_context(cafile=str(node.pki.ca_file))
    _, writer = await asyncio.open_connection("127.0.0.1", node.hub_port, ssl=context, server_hostname="localhost")
    try:
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown
    finally:
        writer.close()
