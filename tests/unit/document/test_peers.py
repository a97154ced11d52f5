"""Entries of ``peers``: what each stands for, one value for one node, and words for those that stand for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.document.peers import (
    HostEntry,
    PeerAddress,
    PeerEntry,
    PeerEntryError,
    SrvEntry,
    is_dns_entry,
    is_host_name,
    parse_peer,
    usable_entries,
)

NODE = PeerAddress("node.example.com", 8444, "/mesh", "node.example.com", is_secure=True)


def node(host: str, port: int = 443, path: str = "/mesh", *, is_secure: bool = True) -> PeerAddress:
    """Return an address whose host is its server name."""
    return PeerAddress(host, port, path, host, is_secure)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wss://node.example.com:8444/mesh", NODE),
        ("WSS://Node.Example.COM.:8444/mesh", NODE),
        ("wss://a/mesh", node("a")),
        ("wss://a:/mesh", node("a")),
        ("ws://a/mesh", node("a", 80, is_secure=False)),
        ("wss://a", node("a", path="/")),
        ("wss://a/x/mesh?token=1#part", node("a", path="/x/mesh?token=1")),
        ("wss://a/ü/%C3%BC", node("a", path="/%C3%BC/%C3%BC")),
        ("wss://bücher.example/mesh", node("xn--bcher-kva.example")),
        ("wss://192.0.2.1:1/mesh", node("192.0.2.1", 1)),
        ("wss://[2001:DB8:0::1]:8444/mesh", node("2001:db8::1", 8444)),
        ("wss://my_node/mesh", node("my_node")),
        ("dns+srv:_nexus._tcp.example.com", SrvEntry("_nexus._tcp.example.com")),
        ("DNS+SRV:_Nexus._tcp.nodes.", SrvEntry("_nexus._tcp.nodes.")),
        ("dns+a:nodes:8444", HostEntry("nodes", 8444)),
        ("dns+a:Nodes.Prod.svc.cluster.local.:8444", HostEntry("nodes.prod.svc.cluster.local.", 8444)),
    ],
)
def test_every_form_of_an_entry(text: str, expected: PeerEntry) -> None:
    """URLs of the original with their default ports, and both names in the DNS."""
    assert parse_peer(text) == expected
    assert parse_peer(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not a WebSocket URL"),
        ("node:8444", "is not a WebSocket URL"),
        ("https://node/mesh", "is not a WebSocket URL"),
        ("wss:///mesh", "is not a WebSocket URL"),
        ("wss://a:0/mesh", "is not a WebSocket URL"),
        ("wss://a:65536/mesh", "is not a WebSocket URL"),
        ("wss://[::1/mesh", "is not a WebSocket URL"),
        ("wss://[fe80::1%25eth0]/mesh", "is not a WebSocket URL"),
        ("wss://a..b/mesh", "is not a WebSocket URL"),
        ("wss://-a/mesh", "is not a WebSocket URL"),
        (f"wss://{'a' * 64}/mesh", "is not a WebSocket URL"),
        ("wss://a/me\tsh", "has a space or control character"),
        (" wss://a/mesh", "has a space or control character"),
        ("wss://u:secret@a/mesh", "has a user name"),
        ("dns+srv:", "has no name"),
        ("dns+srv://_nexus._tcp.example.com", "has '//_nexus._tcp.example.com' in place of a name"),
        ("dns+srv:_nexus._tcp.example.com:8444", "has '_nexus._tcp.example.com:8444' in place of a name"),
        ("dns+srv:nodes.example.com", "does not begin with the service and the protocol"),
        ("dns+srv:_nexus._tcp", "does not begin with the service and the protocol"),
        ("dns+srv: _nexus._tcp.example.com", "has ' _nexus._tcp.example.com' in place of a name"),
        ("dns+a:nodes", "has no port"),
        ("dns+a:nodes:0", "has the port 0"),
        ("dns+a:nodes:65536", "has the port 65536; ports end at 65535"),
        ("dns+a:nodes:http", "has the port 'http', which is no service"),
        ("dns+a::8444", "has no name"),
        ("dns+a://nodes:8444", "has '//nodes' in place of a name"),
        ("dns+a:[::1]:8444", "has an address in place of a name"),
        ("dns+a:192.0.2.1:8444", "has an address in place of a name"),
        ("dns+txt:nodes", "has the unknown scheme 'dns+txt:'"),
    ],
)
def test_an_entry_that_stands_for_nothing_is_explained(text: str, what: str) -> None:
    """The words follow the key in a message, and come with a mend."""
    with pytest.raises(PeerEntryError) as caught:
        parse_peer(text)
    assert str(caught.value).startswith(what)
    assert caught.value.mend.startswith("write ")
    assert "secret" not in str(caught.value)


@given(
    st.text(st.characters(exclude_categories=())) | st.from_regex(r"(?i)(wss?://|dns\+(a|srv):)[^\n]*", fullmatch=True)
)
def test_no_text_does_anything_else(text: str) -> None:
    """Whatever an operator writes is an entry that can be written back, or explained."""
    try:
        entry = parse_peer(text)
    except PeerEntryError:
        entry = None
    assert usable_entries([text]) == (() if entry is None else (entry,))
    assert entry is None or parse_peer(str(entry)) == entry
    assert entry is None or is_dns_entry(text) is not isinstance(entry, PeerAddress)


def test_a_node_that_is_listed_twice_is_one_entry() -> None:
    """Two spellings are one value; what cannot be dialled is left out."""
    texts = ["wss://b/mesh", "nonsense", "wss://a:443/mesh", "dns+a:n:1", "wss://B./mesh", "dns+a:N:1"]
    assert usable_entries(texts) == (node("b"), node("a"), HostEntry("n", 1))


def test_an_address_found_by_name_is_dialled_there_and_checked_by_the_name() -> None:
    """In the log both are seen, and IPv6 has its brackets."""
    address = HostEntry("nodes.example.com.", 8444).address("2001:db8::1")
    assert address == PeerAddress("2001:db8::1", 8444, "/mesh", "nodes.example.com", is_secure=True)
    assert address.url == "wss://[2001:db8::1]:8444/mesh"
    assert str(address) == "wss://[2001:db8::1]:8444/mesh (nodes.example.com)"


def test_a_target_is_dialled_and_checked_by_its_own_name() -> None:
    """As it stands in the record, with a last dot and in any case."""
    assert SrvEntry("_nexus._tcp.example.com").address("Node.Example.com.", 8444) == NODE
    assert str(NODE) == NODE.url == "wss://node.example.com:8444/mesh"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a", True), ("_a.b-c", True), ("", False), (".", False), ("a.", False), ("a b", False), ("a-", False)],
)
def test_names_that_can_be_looked_up(name: str, expected: bool) -> None:
    """Those of hosts and services; a root or an escape is none."""
    assert is_host_name(name) is expected


def test_a_name_is_no_longer_than_the_dns_allows() -> None:
    """253 characters in labels of 63 at most."""
    assert is_host_name(".".join(["a" * 49] * 5) + ".bcd")
    assert not is_host_name(".".join(["a" * 49] * 5) + ".bcde")
