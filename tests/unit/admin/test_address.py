"""nexus.admin.address: one text for configuration, CLI and health checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.admin.address import (
    UNIX_PATH_MAX_BYTES,
    AdminAddress,
    TcpAddress,
    UnixAddress,
    is_loopback,
    parse_address,
)
from nexus.errors import ConfigError

NO_ADDRESSES = [
    *("", ":", ":9180", "9180", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1"),
    *(
        "localhost:٣",
        "localhost:000080",
        "::1:9180",
        "[]:1",
        "[[0]]:0",
        "[[]]:0",
        "a]:1",
        "[::1]",
        "unix:",
        "unix:admin.sock",
        "unix:/a\0b",
    ),
    *("unix:/" + "x" * UNIX_PATH_MAX_BYTES, "unix:/" + "ü" * (UNIX_PATH_MAX_BYTES // 2 + 1)),
]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9180", TcpAddress("127.0.0.1", 9180)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[localhost]:1", TcpAddress("localhost", 1)),
        ("unix:/run/nexus/admin.sock", UnixAddress("/run/nexus/admin.sock")),
        ("unix:/with:colon", UnixAddress("/with:colon")),
        ("unix:/" + "x" * (UNIX_PATH_MAX_BYTES - 1), UnixAddress("/" + "x" * (UNIX_PATH_MAX_BYTES - 1))),
    ],
)
def test_an_address_is_parsed(text: str, address: AdminAddress) -> None:
    """Both forms, at their limits."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    """Missing host or port, port out of range, IPv6 without brackets, relative or overlong path."""
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9180") as caught:
        parse_address(text)
    assert caught.value.problems[0].key == text


@given(text=st.text(max_size=30) | st.from_regex(r"[\[\]:a0.]{0,8}:[0-9]{1,5}", fullmatch=True))
def test_any_text_is_refused_or_survives_a_round_trip(text: str) -> None:
    """Nothing but ConfigError, and ``str`` is the inverse of ``parse_address``."""
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "unix:/a"])
def test_an_address_within_this_machine_is_loopback(text: str) -> None:
    """All of 127.0.0.0/8 is, and a Unix socket always."""
    assert is_loopback(parse_address(text))


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "localhost.example.com:1", "myhost:1", "1:1"])
def test_an_address_that_others_may_reach_is_not_loopback(text: str) -> None:
    """A name is not resolved: what it means may change."""
    assert not is_loopback(parse_address(text))
