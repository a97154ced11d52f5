"""nexus.listeners.origin: packet information in, the source of the answer out; and the kernel's view of it."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.listeners import origin
from nexus.listeners.origin import ANCILLARY_BYTES, ask_for_origin, origin_of, reply_from

IPV4 = (socket.IPPROTO_IP, origin._IP_PKTINFO)
IPV6 = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)


def ipv6_info(address: str, interface: int = 7) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address) + struct.pack("@I", interface)


def test_an_ipv4_answer_leaves_from_the_local_address_on_any_interface() -> None:
    """Not from the destination in the header, which may be a broadcast address."""
    info = struct.pack("@I4s4s", 7, socket.inet_aton("192.0.2.9"), socket.inet_aton("192.0.2.255"))
    ((level, kind, sent),) = reply_from(origin_of([(*IPV4, info)]))
    assert (level, kind) == IPV4
    assert struct.unpack("@I4s", sent[:8]) == (0, socket.inet_aton("192.0.2.9"))


@pytest.mark.parametrize(("address", "interface"), [("2001:db8::9", 0), ("fe80::9", 7)])
def test_an_ipv6_answer_keeps_the_interface_of_a_link_local_address_only(address: str, interface: int) -> None:
    """Another address may have a better way back."""
    ((level, kind, sent),) = reply_from(origin_of([(*IPV6, ipv6_info(address))]))
    assert (level, kind, sent) == (*IPV6, ipv6_info(address, interface))


def test_a_group_is_no_source() -> None:
    """The kernel chooses."""
    assert origin_of([(*IPV6, ipv6_info("ff02::1"))]) == b""


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=40)), max_size=3))
def test_whatever_the_kernel_attaches_is_taken(ancillary: list[tuple[int, int, bytes]]) -> None:
    """Other information is none, and leads to no ancillary data."""
    assert bool(origin_of(ancillary)) == bool(reply_from(origin_of(ancillary)))


def test_the_origins_of_one_address_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 flows share it; when too many are known they are made anew, and stay right."""
    monkeypatch.setattr(origin, "_KNOWN_MAX", 2)
    monkeypatch.setattr(origin, "_known", {})
    infos = [ipv6_info(f"2001:db8::{number}", 0) for number in range(1, 6)]
    assert [origin_of([(*IPV6, info)]) for info in infos] == infos
    assert origin_of([(*IPV6, bytes(bytearray(infos[4])))]) is origin_of([(*IPV6, bytes(bytearray(infos[4])))])
    assert len(origin._known) <= 2


@pytest.mark.parametrize(
    ("bound", "asked"), [("0.0.0.0", "127.0.0.5"), ("127.0.0.6", "127.0.0.6"), ("::", "::1"), ("::1", "::1")]
)
def test_the_answer_leaves_from_the_address_that_was_asked(bound: str, asked: str) -> None:
    """A connected client takes datagrams from nowhere else; a socket of one address needs no information."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as node, socket.socket(family, socket.SOCK_DGRAM) as client:
        node.bind((bound, 0))
        node.settimeout(10)
        client.settimeout(10)
        ask_for_origin(node)
        client.connect((asked, node.getsockname()[1]))
        client.send(b"?")
        _, ancillary, _, address = node.recvmsg(64, ANCILLARY_BYTES)
        local = origin_of(ancillary)
        assert bool(local) == (bound in {"0.0.0.0", "::"})
        node.sendmsg((b"!",), reply_from(local), 0, address)
        assert client.recv(64) == b"!"
