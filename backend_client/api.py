"""The library's front door: one call to become a backend."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from backend_client.client import BackendClient, Identity
from backend_client.events import EventHandler
from backend_client.mapping import PortMap
from backend_client.session import Forwarder, Handler
from backend_client.tokens import HmacTokenProvider, TokenProvider
from nexus.auth.claims import UdpRoute
from nexus.auth.mint import TokenSpec
from nexus.hostnames import normalize_wildcard


@contextlib.asynccontextmanager
async def connect(  # noqa: PLR0913 — every one has a default or a name of its own
    hub: str,
    hostnames: Sequence[str],
    *,
    tokens: TokenProvider | str | Path,
    handler: Handler | None = None,
    forward: Mapping[int, str] | None = None,
    name: str = "backend",
    weight: int = 1,
    tcp_ports: Sequence[int] = (),
    udp_ports: Sequence[int] = (),
    outbound: bool = False,
    context: ssl.SSLContext | None = None,
    on_event: EventHandler | None = None,
) -> AsyncIterator[BackendClient]:
    """Serve ``hostnames`` at a hub for the time of the context; drains at its end.

    Args:
        hub: ``wss://host:port/connect``.
        hostnames: names and ``*.wildcards`` to claim.
        tokens: a provider, or the secret shared with the hub (``str``) or its file (``Path``).
        handler: called with a ``Connection`` for each stream; or
        forward: maps a public port of the node to ``host:port`` of a local service.
        name: who the backend says it is (``sub`` of its tokens).
        weight: its share in the hub's weighted round robin.
        tcp_ports: whole TCP ports of the node to claim, for clients that name no host; the hub must allow them, too.
        udp_ports: UDP ports to claim, likewise; their flows go to ``forward``, a handler takes streams only.
        outbound: claim the right to ``client.open_outbound(host, port)``; the hub must allow it, too.
        context: verifies the hub, by default against the system's roots.
        on_event: is told what happens.

    Returns the client: ``await client.wait_connected()``, ``client.stats``, ``client.stop()``. Losing the hub is an
    event, not an error: the client comes back by itself. An exception in the context is raised again behind the drain.

    Raises:
        ConfigError: ``hub`` is not a WebSocket URL, or a target in ``forward`` is not ``host:port``.
        ValueError: neither or both of ``handler`` and ``forward`` are given.
    """
    if (handler is None) == (forward is None):
        raise ValueError("give either a handler or targets to forward to")
    provider = HmacTokenProvider(tokens, TokenSpec(subject=name)) if isinstance(tokens, str | Path) else tokens
    client = BackendClient(
        hub,
        Identity(
            name,
            tuple(normalize_wildcard(host) for host in hostnames),
            tcp_ports=tuple(tcp_ports),
            weight=weight,
            udp_routes=tuple(map(UdpRoute, udp_ports)),
            outbound_allowed=outbound,
        ),
        provider,
        Forwarder(PortMap.compile({port: (target, {}) for port, target in (forward or {}).items()}), handler),
        context=context,
        on_event=on_event,
    )
    failure: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.run())
        try:
            yield client
        except Exception as error:  # noqa: BLE001 — raised below: in here it would cut the streams, and become a group
            failure = error
        finally:
            client.stop()
    if failure is not None:
        raise failure
