"""host:port texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.document.addresses import check_host_port, is_ip, is_loopback, is_service_name, parse_host_port


def services(name: str) -> int:
    if name != "http-alt":
        raise OSError("service/proto not found")
    return 8080


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":8443", ("", 8443)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("hub.example.com:00443", ("hub.example.com", 443)),
        (":http-alt", ("", 8080)),
    ],
)
def test_host_and_port_are_parted(text: str, expected: tuple[str, int]) -> None:
    """Empty hosts, brackets, and names of services."""
    assert parse_host_port(text, services) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8443", "has no port"),
        ("[::1]", "has no port"),
        ("", "has no port"),
        ("::1:80", "without brackets"),
        ("[::1:80", "not closed"),
        ("[::1]x:80", "not closed"),
        ("a]:80", "no IPv6 address"),
        ("a:65536", "ports end at 65535"),
        ("a:99999999999", "ports end at 65535"),
        ("a:", "neither a number nor"),
        ("a:-1", "neither a number nor"),
        ("a:٣", "neither a number nor"),
        ("a:this-name-is-too-long", "neither a number nor"),
        ("a:nosuch", "no service known"),
    ],
)
def test_malformed_addresses_are_explained(text: str, words: str) -> None:
    """Each mistake has its words."""
    with pytest.raises(ValueError, match=words):
        parse_host_port(text, services)
    assert words in check_host_port(text, services)


def test_without_a_resolver_a_service_name_passes_the_check_only() -> None:
    """A form check needs no lookup; a number does."""
    assert check_host_port(":nosuch") == ""
    assert check_host_port(":80") == ""
    assert check_host_port(":http-alt", services) == ""
    with pytest.raises(ValueError, match="no service known"):
        parse_host_port(":http-alt")


def test_service_names_have_a_letter_and_no_outer_hyphen() -> None:
    """RFC 6335 5.1."""
    assert is_service_name("http")
    assert not is_service_name("80")
    assert not is_service_name("-http")
    assert not is_service_name("http-")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_hosts(host: str) -> None:
    """Names and addresses that stay on this machine."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "example.com", "localhost.example.com"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    """Everything else is reachable from elsewhere."""
    assert not is_loopback(host)


def test_addresses_are_told_from_names() -> None:
    """Brackets are no part of an address."""
    assert is_ip("2001:db8::1")
    assert not is_ip("[2001:db8::1]")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """The check never fails otherwise."""
    assert isinstance(check_host_port(text), str)
