"""Runs the backends of a client file: one session for each backend and hub address, until a signal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from backend_client.client import BackendClient, HealthChecks, Identity
from backend_client.config import BackendConfig, ClientFile
from backend_client.events import EventHandler
from backend_client.mapping import PortMap
from backend_client.providers import provider_for
from backend_client.session import Forwarder
from nexus.auth.claims import UdpRoute
from nexus.eventloop import on_stop_signal, run
from nexus.link.endpoint import reset_undelivered
from nexus.protocol.constants import WINDOW_MIN
from nexus.tls.contexts import hub_client_context


def clients_of(file: ClientFile, on_event: EventHandler | None) -> tuple[BackendClient, ...]:
    """Return the clients of every backend and address; call inside a running event loop.

    Raises:
        TlsFileError: a ``caFile`` cannot be used.
    """
    return tuple(client for backend in file.backends for client in _clients(backend, on_event))


def run_clients(make_clients: Callable[[], Sequence[BackendClient]]) -> None:
    """Make the clients inside an event loop and run them until SIGINT or SIGTERM, then drain."""

    async def main() -> None:
        clients = make_clients()
        on_stop_signal(lambda: _stop(clients))
        await serve_clients(clients)
        reset_undelivered()

    run(main)


async def serve_clients(clients: Sequence[BackendClient]) -> None:
    """Run clients until each has stopped."""
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run())


def _stop(clients: Sequence[BackendClient]) -> None:
    for client in clients:
        client.stop()


def _clients(backend: BackendConfig, on_event: EventHandler | None) -> list[BackendClient]:
    udp_routes = tuple(UdpRoute(route.port, route.flow_idle_timeout_s or None) for route in backend.udp_routes)
    identity = Identity(backend.name, backend.hostnames, backend.tcp_ports, udp_routes, backend.weight)
    provider = provider_for(backend.attestation)
    ports = PortMap.compile(
        {port: (mapping.default, mapping.hosts) for port, mapping in backend.port_mappings.items()}, backend.name
    )
    checks = backend.health_checks
    health = HealthChecks(checks.enabled, checks.inactivity_timeout_s, checks.pong_timeout_s)
    context = hub_client_context(Path(backend.ca_file) if backend.ca_file else None)
    return [
        BackendClient(
            address,
            identity,
            provider,
            Forwarder(ports, None, max(backend.flow_control.max_buffer, WINDOW_MIN)),
            context=context,
            on_event=on_event,
            health=health,
        )
        for address in backend.nexus_addresses
    ]
