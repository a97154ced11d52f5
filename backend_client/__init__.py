"""The reference backend client: serve names of a Nexus node from behind any NAT.

>>> hub, names = "wss://node.example.net:8443/connect", ["app.example.com"]
>>> async with connect(hub, names, tokens=Path("secret"), forward={443: "127.0.0.1:8443"}) as client:
...     await client.wait_connected()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Each is loaded when it is asked for first (PEP 562): who wants one module of the package does not pay for all of it.
_MODULES = {
    "connect": "backend_client.api",
    "BackendClient": "backend_client.client",
    "HealthChecks": "backend_client.client",
    "Identity": "backend_client.client",
    "Connection": "backend_client.connection",
    "StreamInfo": "backend_client.connection",
    "Event": "backend_client.events",
    "EventKind": "backend_client.events",
    "Stats": "backend_client.events",
    "Forwarder": "backend_client.session",
    "Handler": "backend_client.session",
    "CommandTokenProvider": "backend_client.tokens",
    "HmacTokenProvider": "backend_client.tokens",
    "TokenProvider": "backend_client.tokens",
    "TokenRequest": "backend_client.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
