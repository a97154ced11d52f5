"""backend_client.service: what a client's file becomes, and running it until a signal."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from backend_client.client import BackendClient, HealthChecks, Identity
from backend_client.config import Attestation, BackendConfig, ClientFile, FlowControl, PortMapping, UdpRoute
from backend_client.config import HealthChecks as HealthSettings
from backend_client.config import UdpRoute as UdpSettings
from backend_client.events import Event, EventKind
from backend_client.mapping import Target, route
from backend_client.service import clients_of, programs_of, run_clients, serve_clients
from backend_client.socks5 import Login
from backend_client.socks5_listener import Socks5Listener
from nexus.auth.claims import UdpRoute as Claimed
from nexus.document.addresses import parse_host_port
from nexus.errors import ConfigError, TlsFileError
from nexus.protocol.constants import CREDITS_BATCH
from tests.support.clients import Events
from tests.support.fake_hub import fake_hub
from tests.support.hub import WAIT_S
from tests.support.ports import free_ports
from tests.support.processes import Pki


def backend(*addresses: str, **settings: object) -> BackendConfig:
    """Return one backend of a file."""
    usual = {
        "name": "b",
        "nexus_addresses": addresses or ("wss://one.example/connect", "wss://two.example/connect"),
        "attestation": Attestation(hmac_secret="s" * 32),
        "port_mappings": {443: PortMapping("127.0.0.1:8443", {"a.example.com": "127.0.0.1:8444"})},
        "hostnames": ("a.example.com",),
        "tcp_ports": (25,),
        "udp_routes": (UdpSettings(53, 60), UdpSettings(123)),
        "weight": 3,
    }
    return BackendConfig(**{**usual, **settings})  # type: ignore[arg-type]


async def one(**settings: object) -> BackendClient:
    """Return the client of one backend with one address."""
    (client,) = clients_of(ClientFile((backend("wss://one.example/connect", **settings),)), None)
    return client


async def test_there_is_one_client_for_each_backend_and_address() -> None:
    """In the order of the file; those of one backend share a provider, so that one cache serves all."""
    first, second, third = clients_of(ClientFile((backend(), backend("wss://three.example/connect"))), None)
    assert [client.hub for client in (first, second, third)] == [
        "wss://one.example/connect",
        "wss://two.example/connect",
        "wss://three.example/connect",
    ]
    assert first._tokens is second._tokens
    assert first._tokens is not third._tokens


async def test_a_backend_may_have_several_sessions_with_each_hub() -> None:
    """A node with several workers spreads them."""
    clients = clients_of(ClientFile((backend(sessions=3),)), None)
    assert [client.hub for client in clients] == ["wss://one.example/connect"] * 3 + ["wss://two.example/connect"] * 3
    assert len({id(client._tokens) for client in clients}) == 1


async def test_all_clients_of_a_file_share_the_descriptors_for_flows() -> None:
    """The limit is one of the process."""
    file = ClientFile((backend("wss://one.example/connect", "wss://two.example/connect"), backend("wss://h/connect")))
    for clients in (clients_of(file, None), programs_of(file, None)):
        tables = {id(cast(BackendClient, client)._forwarder.flows.table) for client in clients}
        assert (len(clients), len(tables)) == (3, 1)


async def test_the_settings_reach_their_places() -> None:
    """Names, ports, weight, outbound rights, targets and health checks."""
    client = await one(
        health_checks=HealthSettings(True, 7, 8),
        udp_routes=(UdpRoute(53), UdpRoute(123, 20)),
        attestation=Attestation(hmac_secret="s" * 32, outbound_allowed=True, allowed_outbound_ports=(587,)),
    )
    ports = client._forwarder.ports
    assert client._identity == Identity(
        "b", ("a.example.com",), (25,), 3, (Claimed(53), Claimed(123, 20)), outbound_allowed=True,
        allowed_outbound_ports=(587,),
    )  # fmt: skip
    assert route(ports, 443, "a.example.com") == Target("127.0.0.1", 8444)
    assert route(ports, 443, "b.example.com") == Target("127.0.0.1", 8443)
    assert client._health == HealthChecks(True, 7, 8)


@pytest.mark.parametrize(("max_buffer", "window"), [(3, 2 * CREDITS_BATCH), (64, 64), (500, 500)])
async def test_the_window_is_never_so_small_that_it_locks(max_buffer: int, window: int) -> None:
    """The original deadlocks below a batch (W10)."""
    client = await one(flow_control=FlowControl(2, 1, max_buffer))
    assert client._forwarder.window == window


async def test_a_ca_file_is_all_that_is_trusted(tmp_path: Path) -> None:
    """One that cannot be used is an error before anything runs."""
    pki = Pki.create(tmp_path)
    client = await one(ca_file=str(pki.ca_file))
    assert client._context is not None
    assert client._context.cert_store_stats()["x509_ca"] == 1
    with pytest.raises(TlsFileError):
        await one(ca_file=str(tmp_path / "missing.pem"))


async def test_clients_are_served_until_each_has_stopped() -> None:
    """Side by side."""
    events = Events()
    async with fake_hub() as first, fake_hub() as second:
        clients = clients_of(ClientFile((backend(first.url, second.url),)), events)
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(serve_clients(clients))
            for client in clients:
                await client.wait_connected()
            clients[0].stop()
            await events.next(EventKind.STOPPED)
            assert not serving.done()
            clients[1].stop()
    assert events.kinds.count(EventKind.STOPPED) == 2


async def test_a_listener_comes_before_the_clients_it_uses() -> None:
    """So it is the first to be stopped; each backend has its own, in front of all its addresses."""
    events = Events()
    async with fake_hub() as hub:
        login = Login("alice", "s3cret")
        backends = (
            backend(hub.url, hub.url, socks5_listen_addr="127.0.0.1:0", socks5_login=login),
            backend("ws://127.0.0.1:1/connect"),
        )
        listener, *clients = programs_of(ClientFile(backends), events)
        assert isinstance(listener, Socks5Listener)
        assert listener.login == login
        assert listener._clients == clients[:2]
        assert [client.hub for client in clients if isinstance(client, BackendClient)] == [
            hub.url,
            hub.url,
            "ws://127.0.0.1:1/connect",
        ]
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_clients((listener, *clients)))
            await events.next(EventKind.CONNECTED)
            port = parse_host_port(listener.address)[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x05\x01\x02")
            assert await reader.readexactly(2) == b"\x05\x02"
            for program in (listener, *clients):
                program.stop()
            assert await reader.read() == b""
            writer.close()


async def test_an_address_that_is_taken_stops_the_start() -> None:
    """Every other listener is closed again; the original only logs it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = free_ports(1)[0]
        backends = tuple(backend(socks5_listen_addr=f"127.0.0.1:{number}") for number in (free, port))
        with pytest.raises(ConfigError, match=f"socks5ListenAddr: cannot listen on 127.0.0.1:{port}"):
            programs_of(ClientFile(backends), None)
        socket.create_server(("127.0.0.1", free)).close()


@pytest.fixture
def _collector_is_restored() -> Iterator[None]:
    """Running sets the collector for the whole process."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("_collector_is_restored")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_client(number: signal.Signals) -> None:
    """They drain, and the call returns."""
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if event.kind is EventKind.FAILED and len(events) == 2:
            os.kill(os.getpid(), number)

    def make() -> Sequence[BackendClient]:
        addresses = ("ws://127.0.0.1:1/connect", "ws://127.0.0.1:2/connect")
        return clients_of(ClientFile((backend(*addresses),)), note)

    run_clients(make)
    assert [event.kind for event in events].count(EventKind.STOPPED) == 2
