"""nexus.proxies: the environment's choice."""

from __future__ import annotations

import pytest

from nexus.proxies import HTTP, HTTPS, WS, WSS, authority, proxy_for

VARIABLES = [
    variable
    for scheme in ("ws", "wss", "http", "https", "all", "no", "socks")
    for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
]


@pytest.mark.parametrize(
    ("environment", "host", "secure", "proxy"),
    [
        ({}, "hub.example", True, None),
        ({"HTTPS_PROXY": "http://p:1"}, "hub.example", True, "http://p:1"),
        ({"https_proxy": " http://p:1 "}, "hub.example", True, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "hub.example", False, None),
        ({"HTTP_PROXY": "http://p:1"}, "hub.example", True, None),
        ({"HTTP_PROXY": "http://p:1"}, "hub.example", False, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "hub.example", True, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "hub.example", False, "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2"}, "hub.example", True, "http://p:2"),
        ({"HTTPS_PROXY": "http://p:1", "wss_proxy": "http://p:2"}, "hub.example", True, "http://p:2"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.test, .example"}, "hub.example", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "hub.example:8443"}, "hub.example", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "hub.example", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.test"}, "hub.example", True, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8,x/y"}, "11.1.2.3", True, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "hub.example", True, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "2001:db8::/32"}, "2001:db8::5", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "2001:db8::5"}, "2001:db8::5", True, None),
        ({"HTTPS_PROXY": "http://p:1"}, "localhost", True, None),
        ({"HTTPS_PROXY": "http://p:1"}, "127.0.0.2", True, None),
        ({"HTTPS_PROXY": "http://p:1"}, "::1", True, None),
        ({"SOCKS_PROXY": "http://p:1"}, "hub.example", True, None),
    ],
)
def test_the_environment_decides_which_proxy_is_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], host: str, secure: bool, proxy: str | None
) -> None:
    """The variables everybody knows, their exceptions, and never a proxy for loopback."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert proxy_for(host, 8443, WSS if secure else WS) == proxy


@pytest.mark.parametrize(("schemes", "proxy"), [(HTTPS, "http://p:1"), (HTTP, "http://p:2")])
def test_requests_of_the_web_look_at_the_variables_of_the_web(
    monkeypatch: pytest.MonkeyPatch, schemes: tuple[str, ...], proxy: str
) -> None:
    """Those of WebSockets are for WebSockets."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in {"HTTPS_PROXY": "http://p:1", "http_proxy": "http://p:2", "wss_proxy": "http://p:3"}.items():
        monkeypatch.setenv(variable, value)
    assert proxy_for("verifier.example", 443, schemes) == proxy


def test_an_ipv6_address_stands_in_brackets() -> None:
    """RFC 3986 section 3.2.2."""
    assert (authority("h.example", 1), authority("::1", 2)) == ("h.example:1", "[::1]:2")
