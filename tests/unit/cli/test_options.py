"""Shapes of values that options take, and where secrets come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from cli import options
from nexus.auth.claims import UdpRoute
from nexus.errors import ConfigError


def test_lists_are_repeated_or_comma_separated() -> None:
    """A token command gets comma lists in its environment; people repeat options."""
    assert options.split_list(["a,b", "c", " d , ,e "]) == ("a", "b", "c", "d", "e")
    assert options.split_list(None) == ()


def test_ports_are_read_in_order() -> None:
    """All of them."""
    assert options.parse_ports(["443,80", "22"], "--tcp-port") == (443, 80, 22)


@pytest.mark.parametrize("text", ["0", "65536", "x", "-1", "²", "9" * 30])
def test_odd_ports_are_usage_errors(text: str) -> None:
    """Named by their option."""
    with pytest.raises(typer.BadParameter, match="is not a port"):
        options.parse_ports([text], "--tcp-port")


def test_udp_routes_have_optional_seconds() -> None:
    """As in ``NEXUS_UDP_ROUTES``."""
    assert options.parse_udp_routes(["53:30,67"], "--udp-port") == (UdpRoute(53, 30), UdpRoute(67, None))


@pytest.mark.parametrize("text", ["53:", "53:x", "53:-1", ":30"])
def test_odd_udp_routes_are_usage_errors(text: str) -> None:
    """Half a route is none."""
    with pytest.raises(typer.BadParameter):
        options.parse_udp_routes([text], "--udp-port")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8443", "127.0.0.1:8443"),
        (":8443", "127.0.0.1:8443"),
        ("127.0.0.2:8443", "127.0.0.2:8443"),
        ("web:8443", "web:8443"),
        ("[::1]:8443", "[::1]:8443"),
    ],
)
def test_addresses_may_be_a_port_alone(text: str, address: str) -> None:
    """A port alone is one of this machine."""
    assert options.parse_address(text, "--to") == address


@pytest.mark.parametrize("text", ["", "web", "::1:8443", "0", "99999", "web:x"])
def test_odd_addresses_are_usage_errors(text: str) -> None:
    """With the reason."""
    with pytest.raises(typer.BadParameter):
        options.parse_address(text, "--to")


def test_secret_file_loses_one_newline_only(tmp_path: Path) -> None:
    """As the node reads it: other white space is part of the secret."""
    file = tmp_path / "secret"
    file.write_text(" key \r\n")
    assert options.read_secret(str(file)) == " key "


def test_empty_secret_file_is_a_configuration_error(tmp_path: Path) -> None:
    """Nothing can be signed with it."""
    file = tmp_path / "secret"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no secret"):
        options.read_secret(str(file))


def test_secret_is_asked_for_without_echo_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--secret-file -`` prompts on stderr."""
    asked: dict[str, object] = {}

    def prompt(text: str, **how: object) -> str:
        asked.update(how, text=text)
        return "typed"

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", prompt)
    assert options.read_secret("-") == "typed"
    assert asked == {"text": "Secret", "hide_input": True, "err": True}
