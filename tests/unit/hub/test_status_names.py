"""nexus.hub.status_names: what aiohttp is told of a name in a status URI."""

from __future__ import annotations

import socket

import pytest

from nexus.addresses import parse_network
from nexus.hub.status_names import StatusNames
from nexus.hub.targets import ADDRESSES_MAX
from nexus.resolver import Found, Resolver


def zone(*addresses: str) -> Resolver:
    """Return a resolver whose every name has these addresses."""

    def look_up(_host: str, port: int) -> Found:
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    return Resolver(look_up)


async def test_few_addresses_are_given_and_public_ones_only() -> None:
    """Or those in the networks that are allowed."""
    public = [f"2606::{number:x}" for number in range(100)]
    names = StatusNames(zone("127.0.0.1", *public, "10.1.0.1"), (parse_network("10.1.0.0/16"),))
    found = await names.resolve("status.example", 443)
    assert [one["host"] for one in found] == ["2606::0", "10.1.0.1", "2606::1", "2606::2"]
    assert len(found) == ADDRESSES_MAX
    assert found[1] == {
        "hostname": "status.example",
        "host": "10.1.0.1",
        "port": 443,
        "family": socket.AF_INET,
        "proto": 6,
        "flags": 0,
    }
    await names.close()


async def test_a_name_of_private_addresses_gives_one_to_be_refused() -> None:
    """By the socket, whose words the operator gets."""
    found = await StatusNames(zone("10.0.0.1", "10.0.0.2"), ()).resolve("status.example", 443)
    assert [one["host"] for one in found] == ["10.0.0.1"]


async def test_a_name_without_an_address_is_an_oserror() -> None:
    """As aiohttp expects it."""
    with pytest.raises(OSError, match="no address"):
        await StatusNames(zone(), ()).resolve("status.example", 443)
