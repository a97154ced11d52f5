"""STUN Binding: the test vectors of RFC 5769, and every hostile octet."""

from __future__ import annotations

import pytest
from aioice import stun
from hypothesis import given
from hypothesis import strategies as st

from nexus.listeners.stun_messages import binding_success, transaction_of

# RFC 5769 section 2: the transaction of every sample, and the value of XOR-MAPPED-ADDRESS in 2.2 and 2.3.
TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
IPV4, IPV4_VALUE = ("192.0.2.1", 32_853), "0001a147e112a643"
IPV6 = ("2001:db8:1234:5678:11:2233:4455:6677", 32_853)
IPV6_VALUE = "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
REQUEST = bytes.fromhex("000100002112a442") + TRANSACTION


@pytest.mark.parametrize(("address", "value", "size"), [(IPV4, IPV4_VALUE, 40), (IPV6, IPV6_VALUE, 52)])
def test_the_vectors_of_the_standard(address: tuple[str, int], value: str, size: int) -> None:
    """Address, then fingerprint, nothing else; a library reads it back."""
    answer = binding_success(TRANSACTION, *address)
    assert len(answer) == size
    assert answer[20:24] == bytes.fromhex("0020") + (len(value) // 2).to_bytes(2, "big")
    assert answer[24 : 24 + len(value) // 2].hex() == value
    assert answer[-8:-4].hex() == "80280004"
    read = stun.parse_message(answer)
    assert (read.message_method, read.message_class) == (stun.Method.BINDING, stun.Class.RESPONSE)
    assert read.transaction_id == TRANSACTION
    assert list(read.attributes) == ["XOR-MAPPED-ADDRESS", "FINGERPRINT"]
    assert read.attributes["XOR-MAPPED-ADDRESS"] == address


@pytest.mark.parametrize("host", ["::ffff:192.0.2.1", "192.0.2.1"])
def test_a_mapped_address_is_told_as_the_one_it_stands_for(host: str) -> None:
    """On a socket of both families."""
    assert binding_success(TRANSACTION, host, 1) == binding_success(TRANSACTION, "192.0.2.1", 1)


def test_a_zone_is_no_part_of_an_address() -> None:
    """Only this machine knows it."""
    assert binding_success(TRANSACTION, "fe80::1%eth0", 1) == binding_success(TRANSACTION, "fe80::1", 1)


@pytest.mark.parametrize("behind", [b"", b"\0", bytes(1480)])
def test_a_request_has_a_transaction(behind: bytes) -> None:
    """What follows it is tolerated."""
    assert transaction_of(REQUEST + behind) == TRANSACTION


def test_attributes_are_not_looked_at() -> None:
    """Not even those that a server must understand."""
    attribute = bytes.fromhex("7fff0004deadbeef")
    assert transaction_of(bytes.fromhex("000100082112a442") + TRANSACTION + attribute) == TRANSACTION


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        REQUEST[:19],
        bytes.fromhex("000100012112a442") + TRANSACTION,
        bytes.fromhex("0001ffff2112a442") + TRANSACTION,
        bytes.fromhex("0001000021120000") + TRANSACTION,
        bytes.fromhex("001100002112a442") + TRANSACTION,
        bytes.fromhex("010100002112a442") + TRANSACTION,
        bytes.fromhex("011100002112a442") + TRANSACTION,
        bytes.fromhex("000300002112a442") + TRANSACTION,
        binding_success(TRANSACTION, *IPV4),
    ],
    ids=[
        "empty",
        "short",
        "longer than it is",
        "much longer",
        "RFC 3489",
        "indication",
        "success",
        "error",
        "TURN",
        "own",
    ],
)
def test_nothing_else_is_a_request(datagram: bytes) -> None:
    """Least of all an answer: two servers would go on for ever."""
    assert transaction_of(datagram) is None


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: REQUEST[:8] + tail))
def test_no_octets_break_it(datagram: bytes) -> None:
    """A transaction of twelve octets, or none."""
    found = transaction_of(datagram)
    assert found is None or len(found) == 12
