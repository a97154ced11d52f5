"""The reference backend client: serve names of a Nexus node from behind any NAT.

>>> hub, names = "wss://node.example.net:8443/connect", ["app.example.com"]
>>> async with connect(hub, names, tokens=Path("secret"), forward={443: "127.0.0.1:8443"}) as client:
...     await client.wait_connected()
"""

from backend_client.api import connect
from backend_client.client import BackendClient, HealthChecks, Identity
from backend_client.connection import Connection, StreamInfo
from backend_client.events import Event, EventKind, Stats
from backend_client.session import Forwarder, Handler
from backend_client.tokens import CommandTokenProvider, HmacTokenProvider, TokenProvider, TokenRequest

__all__ = [
    "BackendClient",
    "CommandTokenProvider",
    "Connection",
    "Event",
    "EventKind",
    "Forwarder",
    "Handler",
    "HealthChecks",
    "HmacTokenProvider",
    "Identity",
    "Stats",
    "StreamInfo",
    "TokenProvider",
    "TokenRequest",
    "connect",
]
