"""nexus.workers.siblings: every worker serves every backend of the node, by its socket or by a tunnel."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from nexus.auth.claims import UdpRoute
from nexus.link.endpoint import reset
from nexus.workers.channel import Channel
from tests.support.hub import HOST, WAIT_S, Backend, eventually
from tests.support.node import Running, port
from tests.support.processes import Pki
from tests.support.workers import introduce, siblings, team

ON_BOTH_LOOPS = True
REQUEST = b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
BODY = bytes(range(256)) * 2048  # half a megabyte: far more than what is read before a client is passed on


async def knows(worker: Running, routes: int) -> None:
    """Wait until a worker routes to so many keys."""
    await eventually(lambda: len(worker.node.registry.table) == routes, f"{routes} routes")


async def streams(backend: Backend) -> bytes:
    """Return the id of the next stream that a backend is told of."""
    return (await backend.control()).stream_id


async def take(backend: Backend, stream_id: bytes, size: int) -> bytes:
    """Return so many bytes that a client sent, granting credits as they come."""
    data = b""
    while len(data) < size:
        message = await backend.receive()
        assert isinstance(message, bytes)
        if message[:1] == b"\x01":
            assert message[1:17] == stream_id
            data += message[17:]
            await backend.send("credits", client_id=_text(stream_id), credits=1)
    return data


async def exchange(backend: Backend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a backend take REQUEST and BODY from a client whose address it is told, and answer."""
    announced = await backend.control()
    assert announced.client_ip == "{}:{}".format(*writer.get_extra_info("sockname"))
    assert await take(backend, announced.stream_id, len(REQUEST + BODY)) == REQUEST + BODY
    await backend.websocket.send(b"\x01" + announced.stream_id + b"answer")
    assert await reader.readexactly(6) == b"answer"


def _text(stream_id: bytes) -> str:
    value = stream_id.hex()
    return "-".join((value[:8], value[8:12], value[12:16], value[16:20], value[20:]))


# -- Passing ----------------------------------------------------------------------------------------------------------


async def test_a_client_is_served_by_another_workers_backend(pki: Pki, tmp_path: Path) -> None:
    """All that it sends arrives, what was not read yet when it was passed on, too, and its address with it."""
    async with team(pki, tmp_path) as (first, second):
        backend = await first.backend()
        await knows(second, 1)
        reader, writer = await second.client(REQUEST + BODY)
        await exchange(backend, reader, writer)
        assert first.node.own_stats().streams == 1
        assert second.node.own_stats().streams == 0
        assert second.node.own_stats().client_connections_total == {port(second.addresses.relay[0]): 1}
        assert second.node._listeners.connections.held == 0
        reset(cast(asyncio.Transport, writer.transport))
        await eventually(lambda: first.node.own_stats().streams == 0, "its reset ends the stream")


async def test_a_clients_end_passes_through(pki: Pki, tmp_path: Path) -> None:
    """Nothing of the first worker's closing reaches the client, and the backend's end does."""
    async with team(pki, tmp_path) as (first, second):
        backend = await first.backend()
        await knows(second, 1)
        reader, _ = await second.client(REQUEST)
        stream_id = await streams(backend)
        await take(backend, stream_id, len(REQUEST))
        await backend.websocket.send(b"\x01" + stream_id + b"all")
        await backend.send("disconnect", client_id=_text(stream_id))
        assert await reader.read() == b"all"


@pytest.mark.parametrize("own", [0, 1])
async def test_what_cannot_be_passed_is_relayed(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    """The kernel may refuse a socket (its queue is full, too many are under way); the bytes then go by the link."""
    monkeypatch.setattr(Channel, "send", lambda *_: False)
    async with team(pki, tmp_path) as workers:
        backend = await workers[own].backend()
        other = workers[1 - own]
        await knows(other, 1)
        reader, writer = await other.client(REQUEST + BODY)
        await exchange(backend, reader, writer)
        await workers[own].stop()
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_who_is_unknown_is_answered_by_the_first_worker(pki: Pki, tmp_path: Path) -> None:
    """It knows peers, too, and the certificate authority's questions; a refusal is counted once."""
    async with team(pki, tmp_path) as (first, second):
        reader, _ = await second.client(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        assert first.node.own_stats().rejected_total == {"no_backend": 1}
        assert second.node.own_stats().rejected_total == {}


async def test_a_backend_that_is_gone_gets_nobody(pki: Pki, tmp_path: Path) -> None:
    """Its worker says so at once; its routes are nobody's then."""
    async with team(pki, tmp_path) as (first, second):
        backend = await first.backend()
        await knows(second, 1)
        await backend.websocket.close()
        await knows(second, 0)


async def test_a_worker_that_is_gone_serves_nobody(pki: Pki, tmp_path: Path) -> None:
    """Its backends go with it, and health says that it is missing; one that takes its place is told everything."""
    async with team(pki, tmp_path) as (first, second):
        await second.backend(hostnames=("other.example.com",))
        backend = await first.backend()
        await knows(first, 2)
        siblings(second)._all[0].line.session.link.abort("cut by the test")
        await knows(first, 1)
        assert first.node.readiness().reasons == ("worker 1 does not serve",)
        introduce(siblings(first), siblings(second))
        await knows(first, 2)
        await knows(second, 2)
        await eventually(lambda: first.node.readiness().ready, "all is well again")
        await second.client(REQUEST)
        await streams(backend)


async def test_of_two_links_one_stays(pki: Pki, tmp_path: Path) -> None:
    """Both workers may have missed each other, each at its time; they agree on the later link, and stop in order."""
    async with team(pki, tmp_path) as (first, second):
        backend = await first.backend()
        await knows(second, 1)
        for _ in range(2):
            introduce(siblings(first), siblings(second))
        await eventually(lambda: all(len(siblings(w)._served) == 1 for w in (first, second)), "one link is left")
        assert [siblings(w).serving for w in (first, second)] == [2, 2]
        await eventually(lambda: _members(second) == 1, "the backend is known once")
        await second.client(REQUEST)
        await streams(backend)


# -- What only the first worker has -----------------------------------------------------------------------------------


async def test_datagrams_reach_a_backend_of_another_worker(pki: Pki, tmp_path: Path) -> None:
    """The first worker has the UDP ports; a flow goes by the link, both ways, and ends with the backend."""
    claims = list(range(1, 65_536))
    async with team(pki, tmp_path, udpRelayPorts=[0], allowedUDPPortClaims=claims) as (first, second):
        number = port(first.addresses.udp[0])
        backend = await second.backend(hostnames=(), udp_routes=(UdpRoute(number, 7),))
        await knows(first, 1)
        assert first.node.registry.flow_idle_s(number) == 7
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", number))
            client.send(b"question")
            announced = await backend.control()
            assert (announced.transport, announced.conn_port) == ("udp", number)
            assert announced.client_ip == "{}:{}".format(*client.getsockname())
            assert await take(backend, announced.stream_id, 8) == b"question"
            await backend.websocket.send(b"\x01" + announced.stream_id + b"answer")
            async with asyncio.timeout(WAIT_S):
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"answer"
        await second.stop()
        await eventually(lambda: first.node.own_stats().udp_flows == 0, "the flow ends with its backend")


async def test_who_asks_for_the_hubs_own_name_gets_the_first_worker(pki: Pki, tmp_path: Path) -> None:
    """Even where a backend has a wildcard that covers it: the certificate authority asks the node."""
    async with team(pki, tmp_path) as (first, second):
        siblings(second)._own_name = HOST
        backend = await second.backend(hostnames=("*.example.com",))
        await knows(first, 1)
        await second.client(REQUEST)
        await streams(backend)
        assert first.node.own_stats().streams == 0  # the first worker had nothing to say to it, and passed it back


async def test_ports_of_peers_are_known_to_all(pki: Pki, tmp_path: Path) -> None:
    """A client that names no host is passed on to where a peer serves its port."""
    async with team(pki, tmp_path) as (first, second):
        siblings(first).peer_ports = lambda: [25]
        await eventually(lambda: siblings(second).claims_port(25), "the port is known")
        siblings(first).peer_ports = tuple
        await eventually(lambda: not siblings(second).claims_port(25), "nobody claims it any more")


async def test_a_new_certificate_is_looked_for_at_once(pki: Pki, tmp_path: Path) -> None:
    """The first worker obtains it for all."""
    async with team(pki, tmp_path) as (first, second):
        before = second.node._certificate.certificate
        pki.issue("hub", "localhost")
        siblings(first).certificate_changed()
        await eventually(lambda: second.node._certificate.certificate is not before, "it is taken up")


# -- Whose turn it is -------------------------------------------------------------------------------------------------


async def count(workers: list[Running], backends: list[Backend], clients: int) -> Counter[int]:
    """Connect clients to both workers in turns; return how many each backend got."""
    for number in range(clients):
        await workers[number % len(workers)].client(REQUEST)

    async def drain(backend: Backend) -> int:
        got = 0
        while got < clients:
            try:
                async with asyncio.timeout(0.5):
                    message = await backend.websocket.recv()
            except TimeoutError:
                return got
            got += isinstance(message, bytes) and b'"connect"' in message
        return got

    return Counter({index: await drain(backend) for index, backend in enumerate(backends)})


async def test_weights_hold_over_all_workers(pki: Pki, tmp_path: Path) -> None:
    """Each worker takes its turns over the backends of all."""
    async with team(pki, tmp_path) as workers:
        backends = [await workers[0].backend(), await workers[1].backend(weight=3)]
        for worker in workers:
            await eventually(lambda worker=worker: _members(worker) == 2, "both are known")  # type: ignore[misc]
        assert await count(workers, backends, 16) == {0: 4, 1: 12}


async def test_a_worker_prefers_its_own_backends_where_all_have_the_same_share(pki: Pki, tmp_path: Path) -> None:
    """Then nobody has to be passed on."""
    async with team(pki, tmp_path) as workers:
        backends = [await worker.backend() for worker in workers]
        for worker in workers:
            await eventually(lambda worker=worker: _members(worker) == 2, "both are known")  # type: ignore[misc]
        assert await count(workers[:1], backends, 4) == {0: 4, 1: 0}


def _members(worker: Running) -> int:
    table = worker.node.registry.table
    return len(table._hosts[HOST].members()) if HOST in table._hosts else 0


# -- Backends ---------------------------------------------------------------------------------------------------------


async def test_sessions_are_spread_over_the_workers(pki: Pki, tmp_path: Path) -> None:
    """Whoever accepts them."""
    async with team(pki, tmp_path, 3) as workers:
        for _ in range(6):
            await workers[0].backend()
        assert [len(worker.node.registry.sessions) for worker in workers] == [2, 2, 2]
        assert workers[1].node.registry.sessions_of("backend-7") == 6


async def test_a_subjects_limit_holds_for_the_node(pki: Pki, tmp_path: Path) -> None:
    """``maxSessionsPerSubject`` counts the sessions of all workers."""
    async with team(pki, tmp_path, maxSessionsPerSubject=2) as workers:
        for _ in range(2):
            await workers[0].backend()
        await eventually(lambda: all(w.node.registry.sessions_of("backend-7") == 2 for w in workers), "all are known")
        with pytest.raises(Exception, match="maxSessionsPerSubject"):
            await workers[0].backend()


# -- One view ---------------------------------------------------------------------------------------------------------


async def test_the_figures_are_those_of_all(pki: Pki, tmp_path: Path) -> None:
    """Sums, as they are now; a worker that ends leaves its counters."""
    async with team(pki, tmp_path) as (first, second):
        backend = await second.backend(hostnames=("b.example.com",))
        await first.backend(hostnames=("a.example.com",))
        await knows(first, 2)
        await first.client(REQUEST.replace(b"app", b"b"))
        await streams(backend)
        await siblings(first).ask_figures()
        stats = first.node.stats()
        assert (stats.workers, stats.sessions, stats.sessions_total, stats.streams, stats.routes) == (2, 2, 2, 1, 2)
        await second.stop()
        await eventually(lambda: first.node.stats().workers == 1, "the second worker is gone")
        stats = first.node.stats()
        assert (stats.sessions, stats.sessions_total, stats.streams, stats.streams_total) == (1, 2, 0, 1)


async def test_a_worker_that_was_only_out_of_sight_counts_once(pki: Pki, tmp_path: Path) -> None:
    """Its counters are not those of another one that has ended."""
    async with team(pki, tmp_path) as (first, second):
        await second.backend()
        await siblings(first).ask_figures()
        siblings(second)._all[0].line.session.link.abort("cut by the test")
        await eventually(lambda: first.node.stats().workers == 1, "it is out of sight")
        assert first.node.stats().sessions_total == 1
        introduce(siblings(first), siblings(second))
        await eventually(lambda: first.node.stats().workers == 2, "it is back")
        await siblings(first).ask_figures()
        assert (first.node.stats().sessions, first.node.stats().sessions_total) == (1, 1)


async def test_two_scrapes_at_once_both_get_figures(pki: Pki, tmp_path: Path) -> None:
    """Neither waits for what the other one has got."""
    async with team(pki, tmp_path) as (first, second):
        await second.backend()
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(siblings(first).ask_figures())
        assert first.node.stats().sessions == 1
        assert siblings(first)._awaited == {}


async def test_a_busy_worker_holds_nobody_up(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown as it last was."""
    monkeypatch.setattr("nexus.workers.siblings.FIGURES_TIMEOUT_S", 0.05)
    async with team(pki, tmp_path) as (first, second):
        await second.backend()
        await siblings(first).ask_figures()
        monkeypatch.setattr(siblings(second), "told", lambda *_: None)
        async with asyncio.timeout(WAIT_S):
            await siblings(first).ask_figures()
        assert first.node.stats().sessions == 1
