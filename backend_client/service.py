"""Runs the backends of a client file: one session for each backend and hub address, or several, until a signal.

A backend's SOCKS5 listener is bound before anything runs: a port that is taken is a mistake to mend, not a line in a
log. It is stopped before the sessions, so that nothing new begins while they drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from backend_client.client import BackendClient, HealthChecks, Identity
from backend_client.config import BackendConfig, ClientFile
from backend_client.datagrams import LocalFlow
from backend_client.events import EventHandler
from backend_client.flow_table import FlowTable
from backend_client.mapping import PortMap
from backend_client.providers import provider_for
from backend_client.session import Forwarder
from backend_client.socks5_listener import Socks5Listener
from nexus.auth.claims import UdpRoute
from nexus.document.addresses import parse_host_port
from nexus.eventloop import descriptor_limit, on_stop_signal, run
from nexus.link.endpoint import reset_undelivered
from nexus.protocol.constants import WINDOW_MIN
from nexus.sockets import listen
from nexus.tls.contexts import hub_client_context


class Program(Protocol):
    """What runs until it is stopped: a client or a listener."""

    async def run(self) -> None:
        """Serve until ``stop``."""

    def stop(self) -> None:
        """End ``run``, in bounded time."""


def programs_of(file: ClientFile, on_event: EventHandler | None) -> tuple[Program, ...]:
    """Return everything that a file asks for, listeners first; call inside a running event loop.

    Raises:
        ConfigError: a listener's address cannot be listened on.
        TlsFileError: a ``caFile`` cannot be used.
    """
    listeners: list[Program] = []
    clients: list[Program] = []
    table: FlowTable[LocalFlow] = FlowTable(descriptor_limit())
    with contextlib.ExitStack() as stack:
        for backend in file.backends:
            own = _clients(backend, on_event, table)
            clients += own
            if backend.socks5_listen_addr:
                host, port = parse_host_port(backend.socks5_listen_addr, socket.getservbyname)
                sock = stack.enter_context(contextlib.closing(listen(host, port, "socks5ListenAddr")))
                listeners.append(Socks5Listener(sock, own, backend.socks5_login))
        stack.pop_all()
    return (*listeners, *clients)


def clients_of(file: ClientFile, on_event: EventHandler | None) -> tuple[BackendClient, ...]:
    """Return the clients of every backend and address, without listeners; call inside a running event loop.

    Raises:
        TlsFileError: a ``caFile`` cannot be used.
    """
    table: FlowTable[LocalFlow] = FlowTable(descriptor_limit())
    return tuple(client for backend in file.backends for client in _clients(backend, on_event, table))


def run_clients(make_clients: Callable[[], Sequence[Program]]) -> None:
    """Make the programs inside an event loop and run them until SIGINT or SIGTERM, then drain."""

    async def main() -> None:
        clients = make_clients()
        on_stop_signal(lambda: _stop(clients))
        await serve_clients(clients)
        reset_undelivered()

    run(main)


async def serve_clients(clients: Sequence[Program]) -> None:
    """Run programs until each has stopped."""
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run())


def _stop(clients: Sequence[Program]) -> None:
    for client in clients:
        client.stop()


def _clients(backend: BackendConfig, on_event: EventHandler | None, table: FlowTable[LocalFlow]) -> list[BackendClient]:
    identity = _identity(backend)
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
            Forwarder(ports, None, max(backend.flow_control.max_buffer, WINDOW_MIN), table),
            context=context,
            on_event=on_event,
            health=health,
        )
        for address in backend.nexus_addresses
        for _ in range(backend.sessions)
    ]


def _identity(backend: BackendConfig) -> Identity:
    attestation = backend.attestation
    return Identity(
        backend.name,
        backend.hostnames,
        backend.tcp_ports,
        backend.weight,
        tuple(UdpRoute(route.port, route.flow_idle_timeout_s or None) for route in backend.udp_routes),
        attestation.outbound_allowed,
        attestation.allowed_outbound_ports,
    )
