"""nexus.addresses: which addresses a node dials for somebody else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.addresses import is_refused, parse_network

LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))
IPV4 = st.ip_addresses(v=4)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:808:808::1",
        "2a00::5efe:10.0.0.1",
        "2a00::200:5efe:127.0.0.1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_what_is_not_public_is_refused(address: str) -> None:
    """W27: a backend may not reach the node's own network, in whatever form an address says so."""
    assert is_refused(address)
    assert is_refused(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2600::1",
        "2606:4700:4700::1111",
        "2a00::5efe:8.8.8.8",
    ],
)
def test_what_is_public_is_not(address: str) -> None:
    """Neighbours of the special networks, and what carries a public address."""
    assert not is_refused(address)


@pytest.mark.parametrize("text", ["", "localhost", "2130706433", "0x7f000001", "127.1", "[::1]", "1.2.3.4:80"])
def test_text_that_is_no_address_is_refused(text: str) -> None:
    """It was not resolved, so nobody knows where it leads."""
    assert is_refused(text, LOOPBACK)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "8.8.8.8"],
)
def test_an_allowed_network_may_be_dialled(address: str) -> None:
    """The operator names it; public addresses stay allowed beside it."""
    assert not is_refused(address, LOOPBACK)


@pytest.mark.parametrize("address", ["10.0.0.1", "::2", "fe80::1", "64:ff9b::10.0.0.1", "2002:a00:1::"])
def test_an_allowed_network_allows_no_other(address: str) -> None:
    """Networks are looked at one by one."""
    assert is_refused(address, LOOPBACK)


def test_an_address_that_carries_an_allowed_one_is_allowed() -> None:
    """A translator delivers to the IPv4 address, which the operator named; or the whole prefix is named."""
    assert not is_refused("64:ff9b::127.0.0.1", LOOPBACK)
    assert not is_refused("64:ff9b:1::a00:1", (parse_network("64:ff9b:1::/48"),))


@given(IPV4)
def test_every_form_of_an_ipv4_address_is_as_public_as_itself(address: ipaddress.IPv4Address) -> None:
    """W27: mapped, translated or tunnelled, it leads to the same place."""
    bits = int(address)
    for form in (
        ipaddress.IPv6Address(0xFFFF << 32 | bits),
        ipaddress.IPv6Address(0x64FF9B << 96 | bits),
        ipaddress.IPv6Address(0x2A00 << 112 | 0x5EFE << 32 | bits),
    ):
        assert is_refused(form) == is_refused(address)


@given(st.ip_addresses())
def test_no_address_is_dialled_that_the_registries_call_special(address: ipaddress.IPv4Address) -> None:
    """Python's tables are the least of what is refused."""
    if not address.is_global or address.is_multicast:
        assert is_refused(address)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    """Nothing raises, and what is no address is refused."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert is_refused(text)


@pytest.mark.parametrize(("text", "shown"), [("10.0.0.1", "10.0.0.1/32"), ("fd00::/8", "fd00::/8")])
def test_a_network_is_read(text: str, shown: str) -> None:
    """A single address is a network of one."""
    assert str(parse_network(text)) == shown


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0.1/8", "localhost", "::1/129", "10.0.0.0-10.0.0.9"])
def test_what_is_no_network_is_refused(text: str) -> None:
    """The error fits behind the key in a message."""
    with pytest.raises(ValueError, match="is not a network: "):
        parse_network(text)
