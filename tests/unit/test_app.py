"""nexus.app: a whole node in this process, from the first socket to the last goodbye."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nexus import app, assembly, sockets
from nexus.admin.probe import probe
from nexus.app import Node, NodeAddresses, run_node
from nexus.errors import ConfigError, TlsFileError
from nexus.link import quiet
from nexus.systemd import ServiceManager
from tests.support.hub import HOST, NAME, WAIT_S, eventually
from tests.support.node import Config, configurations, port, running
from tests.support.ports import free_ports
from tests.support.processes import Pki
from tests.support.web_server import Asked, reply_json, silence, web_server

ON_BOTH_LOOPS = True
REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
YEAR_S = 365 * 86_400


@pytest.fixture
def config(pki: Pki, tmp_path: Path) -> Config:
    """Make configurations."""
    return configurations(pki, tmp_path)


# -- Start ----------------------------------------------------------------------------------------------------------


async def test_a_node_tells_where_it_listens(pki: Pki, config: Config) -> None:
    """Port 0 became a real one, on every address, in the order of the configuration."""
    async with running(pki, config(relayPorts=[0, 0], adminListenAddress="127.0.0.1:0")) as it:
        ports = [port(address) for address in (it.addresses.hub, *it.addresses.relay, it.addresses.admin)]
        assert len(set(ports)) == 4
        assert 0 not in ports
        for number in ports:
            socket.create_connection(("127.0.0.1", number)).close()
        await eventually(lambda: it.node.stats().auth_failures_total == {"upgrade": 1}, "the hub has seen one")
        await eventually(lambda: it.node.stats().rejected_total == {"client_gone": 2}, "each public port has seen one")


async def test_without_an_address_there_is_no_admin_endpoint(pki: Pki, config: Config) -> None:
    """It is off."""
    async with running(pki, config()) as it:
        assert it.addresses.admin == ""


async def test_no_bind_address_means_all_interfaces(pki: Pki, config: Config) -> None:
    """One socket for both families."""
    async with running(pki, config(relayBindAddresses=[])) as it:
        assert it.addresses.relay[0].rpartition(":")[0] in {"[::]", "0.0.0.0"}
        await it.client()


@pytest.mark.parametrize("key", ["backendListenAddress", "relayPorts"])
async def test_an_address_in_use_names_the_key_and_the_mend(config: Config, key: str) -> None:
    """And what was opened before it is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        value: object = [taken] if key == "relayPorts" else f"127.0.0.1:{taken}"
        with pytest.raises(ConfigError) as caught:
            await Node(config(**{key: value})).run()
    (problem,) = caught.value.problems
    assert problem.key == key
    assert str(taken) in problem.what
    assert "choose another port" in problem.mend


async def test_an_admin_address_in_use_closes_what_was_opened(config: Config) -> None:
    """The hub's port is free again."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as free:
        hub = free.getsockname()
        free.close()
        node = Node(config(backendListenAddress=f"{hub[0]}:{hub[1]}", adminListenAddress=f"127.0.0.1:{_port(other)}"))
        with pytest.raises(ConfigError):
            await node.run()
        with pytest.raises(ConnectionError):
            socket.create_connection(hub)


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def test_a_certificate_that_cannot_be_used_is_an_error_at_once(config: Config, tmp_path: Path) -> None:
    """Before anything listens."""
    with pytest.raises(TlsFileError, match="missing"):
        Node(replace(config(), hub_tls_cert_file=str(tmp_path / "missing.pem")))


async def test_on_ready_that_fails_leaves_nothing_behind(config: Config) -> None:
    """Its error is the node's, and every port is free again."""
    addresses: list[NodeAddresses] = []

    def fail(ready: NodeAddresses) -> None:
        addresses.append(ready)
        raise LookupError("no")

    with pytest.raises(ExceptionGroup) as caught:
        await Node(config()).run(fail)
    assert caught.group_contains(LookupError)
    for address in (addresses[0].hub, *addresses[0].relay):
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port(address)))


# -- Service --------------------------------------------------------------------------------------------------------


async def test_bytes_go_from_client_to_backend_and_back(pki: Pki, config: Config) -> None:
    """And the figures are what was seen: sums rise, gauges come back to zero."""
    async with running(pki, config()) as it:
        backend = await it.backend()
        reader, writer = await it.client(REQUEST)
        connect_ = await backend.control()
        assert connect_.hostname == HOST
        assert await backend.receive() == b"\x01" + connect_.stream_id + REQUEST
        await backend.websocket.send(b"\x01" + connect_.stream_id + b"answer")
        assert await reader.readexactly(6) == b"answer"
        stats = it.node.stats()
        assert (stats.sessions, stats.streams, stats.routes, stats.unauthenticated, stats.peeking) == (1, 1, 1, 0, 0)
        assert (stats.bytes_to_backends_total, stats.bytes_to_clients_total) == (len(REQUEST), 6)
        assert stats.client_connections_total == {port(it.addresses.relay[0]): 1}
        await backend.send("disconnect", client_id=_uuid(connect_.stream_id), reason="timeout")
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()
        await backend.websocket.close()
        await eventually(lambda: not it.node.stats().sessions, "the session is gone")
        stats = it.node.stats()
        assert (stats.streams, stats.routes, stats.buffered_bytes, stats.paused_streams) == (0, 0, 0, 0)
        assert (stats.sessions_total, stats.streams_total) == (1, 1)
        assert (stats.bytes_to_backends_total, stats.bytes_to_clients_total) == (len(REQUEST), 6)
        assert stats.streams_reset_total == {"timeout": 1}
        assert stats.session_ends_total == {"1000": 1}


def _uuid(stream_id: bytes) -> str:
    return stream_id.hex()


async def test_a_cap_holds_bytes_and_shows_in_the_figures(pki: Pki, config: Config) -> None:
    """And without one there are none."""
    size = 40_000
    async with running(pki, config(totalBandwidthMbps=1)) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        stream_id = (await backend.control()).stream_id
        for _ in range(2):
            await backend.websocket.send(b"\x01" + stream_id + bytes(size // 2))
        await eventually(lambda: it.node.stats().bandwidth_waiting_bytes, "bytes wait for the cap")
        stats = it.node.stats()
        assert (stats.bandwidth_limit_bytes_per_second, stats.bandwidth_waiting_backends) == (125_000, 1)
        assert stats.buffered_bytes == stats.bandwidth_waiting_bytes
        assert await reader.readexactly(size) == bytes(size)
        stats = it.node.stats()
        assert (stats.bandwidth_waiting_bytes, stats.bandwidth_waiting_backends, stats.buffered_bytes) == (0, 0, 0)
        assert stats.bandwidth_charged_bytes_total == len(REQUEST) + size + 3 * 17
    assert Node(config()).stats().bandwidth_limit_bytes_per_second is None


async def test_refusals_and_waiting_are_in_the_figures(pki: Pki, config: Config) -> None:
    """Of clients and of backends."""
    async with running(pki, config()) as it:
        reader, _ = await it.client(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        await it.client(REQUEST[:9])
        plain = socket.create_connection(("127.0.0.1", port(it.addresses.hub)))
        await eventually(lambda: it.node.stats().peeking == 1, "a client is peeked at")
        await eventually(lambda: it.node.stats().unauthenticated == 1, "a stranger is at the hub")
        plain.close()
        await eventually(lambda: it.node.stats().auth_failures_total == {"upgrade": 1}, "it is counted")
        assert it.node.stats().rejected_total == {"no_backend": 1}


async def test_a_slow_client_shows_as_buffered_bytes(pki: Pki, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were accepted and not delivered are counted, and gone when they are delivered."""
    size = 64

    def listen(host: str, number: int, key: str, *, shared: bool = False) -> socket.socket:
        sock = sockets.listen(host, number, key, shared=shared)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # else the kernel would take all of it
        return sock

    monkeypatch.setattr(assembly, "listen", listen)
    async with running(pki, config()) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        stream_id = (await backend.control()).stream_id
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(size):
            await backend.websocket.send(b"\x01" + stream_id + bytes(32_768))
        await eventually(lambda: it.node.stats().paused_streams == 1, "the stream waits")
        assert it.node.stats().buffered_bytes > 0
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await reader.readexactly(size * 32_768) == bytes(size * 32_768)
        await eventually(lambda: it.node.stats().buffered_bytes == 0, "nothing waits any more")


async def test_idle_streams_are_swept(pki: Pki, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the node's own clock, in a part of the timeout."""
    monkeypatch.setattr(app, "_SWEEP_SHARE", 0.0)
    monkeypatch.setattr(app, "_SWEEP_MIN_S", 0.005)
    made = replace(config(), idle_timeout_s=0.02)  # type: ignore[arg-type]
    async with running(pki, made) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        await backend.control()
        with pytest.raises(ConnectionError):
            await reader.read()
        assert it.node.stats().streams_reset_total == {"timeout": 1}


async def test_outbound_connections_are_counted_and_swept(
    pki: Pki, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timeout of their own; what was refused is counted by its reason."""
    monkeypatch.setattr(app, "_SWEEP_SHARE", 0.0)
    monkeypatch.setattr(app, "_SWEEP_MIN_S", 0.005)
    settings = config(allowOutbound=True, outboundPrivateNetworks=["127.0.0.0/8"])
    made = replace(settings, outbound_idle_timeout_s=0.02)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with running(pki, made) as it:
            backend = await it.backend(outbound_allowed=True)
            stream_id = _uuid(bytes(15) + b"\x01")
            await backend.send("outbound_connect", client_id=stream_id, target_addr="nonsense")
            assert not (await backend.control()).success
            target = f"127.0.0.1:{server.getsockname()[1]}"
            await backend.send("outbound_connect", client_id=stream_id, target_addr=target)
            assert (await backend.control()).success
            assert it.node.stats().outbound_connections == 1
            assert (await backend.control()).reason == "timeout"
            await eventually(lambda: it.node.stats().outbound_connections == 0, "the connection is closed")
            stats = it.node.stats()
            assert (stats.outbound_total, stats.outbound_refusals_total) == (1, {"target": 1})


async def test_the_hub_counts_sessions_of_a_subject(pki: Pki, config: Config) -> None:
    """The limit of the configuration reaches the hub."""
    async with running(pki, config(maxSessionsPerSubject=1)) as it:
        await it.backend()
        with pytest.raises(Exception, match="maxSessionsPerSubject"):
            await it.backend()
        assert it.node.registry.sessions_of(NAME) == 1


# -- Readiness ------------------------------------------------------------------------------------------------------


async def test_a_node_is_ready_while_it_serves(pki: Pki, config: Config) -> None:
    """Not before and not behind; the admin endpoint says the same."""
    node = Node(config())
    assert node.readiness().reasons == ("starting",)
    async with running(pki, config(adminListenAddress="127.0.0.1:0")) as it:
        assert it.node.readiness().ready
        answer = await asyncio.to_thread(probe, it.addresses.admin, "/readyz")
        assert (answer.status, json.loads(answer.body)["ready"]) == (200, True)
        metrics = (await asyncio.to_thread(probe, it.addresses.admin, "/metrics")).body
        assert "nexus_sessions 0.0" in metrics
        await it.stop()
        assert it.node.readiness().reasons == ("stopping",)


async def test_an_expired_certificate_is_a_reason(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends would refuse it."""
    node = Node(config())
    monkeypatch.setattr(node._certificate, "_clock", lambda: time.time() + YEAR_S)
    assert node.readiness().reasons == ("starting", "the hub's certificate has expired")


async def test_a_renewed_certificate_is_taken_over_when_told(pki: Pki, config: Config) -> None:
    """Without waiting for the next look at the files; sessions that run notice nothing."""
    async with running(pki, config()) as it:
        backend = await it.backend()
        before = it.node._certificate.certificate
        assert before is not None
        assert it.node.stats().hub_certificate_expiry_seconds == before.expires_at
        pki.issue("hub", "localhost", "second.example.com")
        it.node.reload()
        renewed = it.node._certificate.certificate
        assert renewed is not None
        assert renewed.names == ("localhost", "second.example.com")
        await backend.pong()
        await it.backend()


# -- Stop -----------------------------------------------------------------------------------------------------------


async def test_stopping_says_goodbye_to_backends_and_closes_every_port(pki: Pki, config: Config) -> None:
    """1001 with a reason, in no time where nothing moves; stopping twice is no different."""
    async with running(pki, config(shutdownGraceSeconds=3600)) as it:
        backend = await it.backend()
        it.node.stop()
        it.node.stop()
        assert await backend.closed() == (1001, "the node stops")
        await it.stop()
        assert it.node.registry.closed
        for address in (it.addresses.hub, it.addresses.relay[0]):
            with pytest.raises(ConnectionError):
                socket.create_connection(("127.0.0.1", port(address)))


async def test_a_node_may_be_stopped_before_it_runs(config: Config) -> None:
    """It starts and ends at once."""
    node = Node(config())
    node.stop()
    async with asyncio.timeout(WAIT_S):
        await node.run()


async def test_a_busy_stream_is_waited_for(pki: Pki, config: Config) -> None:
    """It may end by itself within the grace period; nobody new is served meanwhile."""
    async with running(pki, config(shutdownGraceSeconds=3600)) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        stream_id = (await backend.control()).stream_id
        it.node.stop()
        await eventually(lambda: "stopping" in it.node.readiness().reasons, "it stops")
        for _ in range(3):
            await backend.websocket.send(b"\x01" + stream_id + b"more")
            assert await reader.readexactly(4) == b"more"
        with pytest.raises(ConnectionError):
            await it.client()
        await backend.send("disconnect", client_id=_uuid(stream_id), reason="normal")
        assert await reader.read() == b""
        assert (await backend.closed())[0] == 1001


async def test_a_stream_on_which_nothing_moves_is_not_waited_for(
    pki: Pki, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client sees it broken, not ended (design 6), long before the grace period is over."""
    monkeypatch.setattr(quiet, "IDLE_S", 0.01)
    monkeypatch.setattr(quiet, "POLL_S", 0.005)
    async with running(pki, config(shutdownGraceSeconds=3600)) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        await backend.control()
        await it.stop()
        with pytest.raises(ConnectionError):
            await reader.read()
        assert (await backend.closed())[0] == 1001


async def test_without_grace_nobody_is_waited_for(pki: Pki, config: Config) -> None:
    """A busy stream is broken at once."""
    async with running(pki, config()) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST)
        await backend.control()
        await it.stop()
        with pytest.raises(ConnectionError):
            await reader.read()


async def test_a_node_that_is_cancelled_leaves_nothing_open(pki: Pki, config: Config) -> None:
    """Ports, backends and clients: as if the process had ended."""
    async with running(pki, config()) as it:
        backend = await it.backend()
        reader, _ = await it.client(REQUEST[:9])
        await eventually(lambda: it.node.stats().peeking == 1, "a client is peeked at")
        it.task.cancel()
        await asyncio.wait([it.task])
        assert (await backend.closed())[0] == 1006
        with pytest.raises(ConnectionError):
            await reader.read()
        with pytest.raises(ConnectionError):
            await it.client()


# -- The process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _collector_is_restored() -> Iterator[None]:
    """``run_node`` sets the collector for the whole process."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("_collector_is_restored")
def test_a_process_obeys_signals(config: Config, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    """SIGHUP looks at the certificate, SIGTERM ends the node in order."""
    caplog.set_level(logging.INFO)

    def ready(addresses: NodeAddresses) -> None:
        assert port(addresses.hub)
        pki.issue("hub", "localhost", "second.example.com")
        loop = asyncio.get_running_loop()
        loop.call_soon(os.kill, os.getpid(), signal.SIGHUP)
        loop.call_soon(look_again)

    def look_again() -> None:
        if "renewed" in caplog.text:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            asyncio.get_running_loop().call_later(0.005, look_again)

    run_node(config(), ready)
    assert "stopping" in caplog.text


# -- Beside relaying ------------------------------------------------------------------------------------------------


async def test_stun_and_registration_are_served_and_end_with_the_node(pki: Pki, config: Config) -> None:
    """The orchestrator hears of both ports; a stop waits for neither."""
    async with web_server(pki, reply_json({"heartbeat_interval": 3600})) as orchestrator:
        number, stun_port = free_ports(2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            settings = {
                "registrationURL": orchestrator.url("/nodes"),
                "authorizerCAFile": str(pki.ca_file),
                "backendListenAddress": f"127.0.0.1:{number}",
                "stunPort": stun_port,
            }
            async with running(pki, config(**settings)) as it:
                assert [port(address) for address in it.addresses.stun] == [settings["stunPort"]]
                client.connect(("127.0.0.1", port(it.addresses.stun[0])))
                client.send(bytes.fromhex("000100002112a442") + bytes(12))
                await eventually(lambda: it.node.stats().stun_requests_total == {"answered": 1}, "STUN is answered")
                await eventually(lambda: it.node.stats().registrations_total == {"registered": 1}, "it is registered")
                stats = it.node.stats()
                assert stats.registered_seconds is not None
                assert stats.registration_next_seconds == pytest.approx(stats.registered_seconds + 3600, abs=60)
                assert stats.registration_failures == 0
                assert it.node.readiness().notes == ()
                await it.stop()
        (asked,) = orchestrator.asked
        assert json.loads(asked.body) == {"backendPort": number, "services": {"stunPort": settings["stunPort"]}}


async def test_a_node_that_drains_neither_registers_nor_answers_stun(
    pki: Pki, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks an orchestrator for a node is not sent to one that takes nobody new."""
    monkeypatch.setattr("nexus.registration.heartbeat.REQUEST_TIMEOUT_S", 3600)
    monkeypatch.setattr("nexus.link.quiet.IDLE_S", 3600)
    asking: list[asyncio.StreamWriter] = []

    async def note(asked: Asked, writer: asyncio.StreamWriter) -> None:
        asking.append(writer)
        await silence(asked, writer)

    async with web_server(pki, note) as orchestrator:
        (number,) = free_ports(1)
        settings = {
            "registrationURL": orchestrator.url("/nodes"),
            "authorizerCAFile": str(pki.ca_file),
            "backendListenAddress": f"127.0.0.1:{number}",
            "stunPort": number,
            "shutdownGraceSeconds": 3600,
        }
        async with running(pki, config(**settings)) as it:
            backend = await it.backend()
            reader, _ = await it.client(REQUEST)
            stream_id = (await backend.control()).stream_id
            await eventually(lambda: asking, "it registers")
            it.node.stop()
            await eventually(asking[0].is_closing, "the request is let go of")
            assert not it.node._stun._sockets
            await backend.websocket.send(b"\x01" + stream_id + b"more")
            assert await reader.readexactly(4) == b"more"
            await backend.send("disconnect", client_id=_uuid(stream_id), reason="normal")
            assert await reader.read() == b""
        assert len(asking) == 1


async def test_the_service_manager_hears_how_the_node_is(config: Config, tmp_path: Path) -> None:
    """Ready only once it serves; then every change."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(WAIT_S)
        node = Node(config(), manager=ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}))
        async with asyncio.TaskGroup() as tasks:
            ready = asyncio.Event()
            tasks.create_task(node.run(lambda _: ready.set()))
            await ready.wait()
            assert listening.recv(1000) == b"READY=1\nSTATUS=0 backends, 0 streams, 0 peers"
            node.reload()
            assert listening.recv(1000).startswith(b"RELOADING=1\n")
            assert listening.recv(1000).startswith(b"READY=1\n")
            node.stop()
            assert listening.recv(1000).startswith(b"STOPPING=1\n")


async def test_a_node_without_a_certificate_yet_serves_its_public_ports(
    pki: Pki, config: Config, tmp_path: Path
) -> None:
    """It is alive and not ready, and says why; the hub's handshakes fail until there is one."""
    acme = {
        "hubTlsCertFile": "",
        "hubTlsKeyFile": "",
        "hubPublicHostname": NAME,
        "acmeCacheDir": str(tmp_path / "acme"),
        "acmeDirectoryURL": "http://127.0.0.1:9/dir",
    }
    async with running(pki, config(**acme)) as it:
        _, writer = await it.client(REQUEST)
        await eventually(lambda: it.node.stats().rejected_total == {"no_backend": 1}, "a client is answered")
        assert it.node.stats().hub_certificate_expiry_seconds is None
        assert it.node.readiness().reasons[0].startswith("the hub waits for its certificate")
        await eventually(lambda: it.node.stats().acme_attempts_total == {"unreachable": 1}, "the CA is asked")
        assert "http://127.0.0.1:9/dir: the CA cannot be reached" in it.node.readiness().reasons[0]
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await it.backend()
        writer.close()
        await it.stop()
