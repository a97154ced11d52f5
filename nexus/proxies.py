"""Which HTTP proxy the environment names for a dial, if any.

The variables are those that everybody knows, with their exceptions, in lower or upper case, and, where the platform has
them, the system's settings. Loopback is never proxied, as in the original. A ``socks_proxy`` is not looked at.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from typing import Final

WSS: Final = ("wss", "https", "all")
WS: Final = ("ws", "http", "all")
HTTPS: Final = ("https", "all")
HTTP: Final = ("http", "all")


def proxy_for(host: str, port: int, schemes: tuple[str, ...]) -> str | None:
    """Return the URL of the proxy that the environment names, or None for a direct connection.

    Looks at ``<scheme>_proxy`` for each of ``schemes`` in turn (``WSS``, ``WS``, ``HTTPS`` or ``HTTP``). ``no_proxy``
    lists hosts, domain suffixes, addresses and networks in CIDR form.
    """
    if _is_loopback(host):
        return None
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(authority(host, port)) or _in_network(host, proxies.get("no", "")):
        return None
    for scheme in schemes:
        if proxy := proxies.get(scheme, "").strip():
            return proxy
    return None


def authority(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    if host.lower().removesuffix(".") == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _in_network(host: str, no_proxy: str) -> bool:
    address = _address(host)
    if address is None:
        return False
    return any(_contains(entry.strip(), address) for entry in no_proxy.split(",") if "/" in entry or ":" in entry)


def _contains(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
