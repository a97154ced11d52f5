"""Tests of what nodes say to each other: the specification's vectors, what is refused, what comes back."""

from __future__ import annotations

import contextlib
import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import RemoteProtocolError
from nexus.protocol.constants import CREDITS_MAX, MESH_FEATURES, NIL_STREAM_ID
from nexus.protocol.messages import Control
from nexus.protocol.reasons import Reason
from nexus.protocol.tunnels import (
    ORIGINAL_TUNNEL_WIRE,
    TUNNEL_WIRE,
    Announce,
    TunnelRequest,
    parse_message,
    parse_text,
    serialize_announce,
    serialize_request,
)

ID = uuid.UUID("d2b67ca7-8f78-4a35-af72-98f0b2cba427").bytes
NIL = "00000000-0000-0000-0000-000000000000"
both_wires = pytest.mark.parametrize("wire", [TUNNEL_WIRE, ORIGINAL_TUNNEL_WIRE], ids=["ours", "original"])

# Captured from original nodes: spec node-and-mesh 15.
FIRST_ANNOUNCE = f'{{"version":1,"type":"announce","client_id":"{NIL}"}}'
ANNOUNCE = (
    '{"version":6,"type":"announce","hostnames":["tcp:20025","udp:20053","app.example.com","*.wild.example.com"],'
    f'"client_id":"{NIL}"}}'
)
TLS_REQUEST = (
    '{"type":"tunnel_request","client_id":"d2b67ca7-8f78-4a35-af72-98f0b2cba427","conn_port":20443,'
    '"client_ip":"127.0.0.1:48660","hostname":"peer1.example.com","transport":"tcp","is_tls":true}'
)
UDP_REQUEST = (
    '{"type":"tunnel_request","client_id":"d2b67ca7-8f78-4a35-af72-98f0b2cba427","conn_port":20053,'
    '"client_ip":"127.0.0.1:55485","hostname":"udp:20053","transport":"udp"}'
)
ROUTES = ("tcp:20025", "udp:20053", "app.example.com", "*.wild.example.com")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FIRST_ANNOUNCE, Announce(1, ())),
        (ANNOUNCE, Announce(6, ROUTES)),
        (
            TLS_REQUEST,
            TunnelRequest(ID, "peer1.example.com", "127.0.0.1:48660", 20443, "tcp", is_tls=True),
        ),
        (
            TLS_REQUEST.replace(',"is_tls":true', ""),
            TunnelRequest(ID, "peer1.example.com", "127.0.0.1:48660", 20443, "tcp"),
        ),
        (UDP_REQUEST, TunnelRequest(ID, "udp:20053", "127.0.0.1:55485", 20053, "udp")),
    ],
)
def test_the_vectors_of_the_specification_are_read_and_written(text: str, said: Announce | TunnelRequest) -> None:
    """Character by character as an original node writes them."""
    assert parse_text(text) == said
    written = serialize_announce(said) if isinstance(said, Announce) else serialize_request(said)
    assert written == text


def test_an_announcement_of_ours_says_more_to_whoever_knows() -> None:
    """Who sends it, and what that node understands."""
    announce = Announce(2, ("a.example",), ID, MESH_FEATURES)
    text = serialize_announce(announce)
    assert parse_text(text) == announce
    document = json.loads(text)
    assert document["node_id"] == str(uuid.UUID(bytes=ID))
    assert document["features"] == list(MESH_FEATURES)
    assert document["client_id"] == NIL


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"type":"announce","version":"1"}', "version"),
        ('{"type":"announce","version":1,"hostnames":"a.example"}', "hostnames"),
        ('{"type":"announce","version":1,"hostnames":["a.example",1]}', "hostnames"),
        ('{"type":"announce","version":1,"client_id":""}', "client_id"),
        ('{"type":"tunnel_request","client_id":"x"}', "client_id"),
        ('{"type":"tunnel_request","conn_port":"443"}', "conn_port"),
        ('{"type":"tunnel_request","is_tls":1}', "is_tls"),
    ],
)
def test_a_broken_text_is_refused_and_named(text: str, why: str) -> None:
    """A known key of another type makes the whole message worthless, as in the original."""
    with pytest.raises(RemoteProtocolError, match=why):
        parse_text(text)


@pytest.mark.parametrize("text", ["{}", '{"type":"gossip"}', '{"type":null}'])
def test_an_unknown_type_means_nothing(text: str) -> None:
    """A newer node may say more than this one knows."""
    assert parse_text(text) is None


def test_names_of_keys_match_in_any_case_and_unknown_ones_are_skipped() -> None:
    """As the original's decoder does."""
    text = '{"Type":"announce","VERSION":3,"hostNames":["a.example"],"more":{"x":1},"hostnames":null}'
    assert parse_text(text) == Announce(3, ("a.example",))


@both_wires
def test_binary_vectors_of_the_specification(wire: object) -> None:
    """Credits, close, pause and resume, byte by byte."""
    assert wire in {TUNNEL_WIRE, ORIGINAL_TUNNEL_WIRE}
    assert TUNNEL_WIRE.credits(ID, 64).hex() == "15d2b67ca78f784a35af7298f0b2cba4270000000000000040"
    assert ORIGINAL_TUNNEL_WIRE.credits(ID, 8).hex() == "15d2b67ca78f784a35af7298f0b2cba4270000000000000008"
    assert TUNNEL_WIRE.disconnect(ID, Reason.NORMAL) == b"\x12" + ID
    assert TUNNEL_WIRE.pause(ID, Reason.BUFFER_FULL) == b"\x13" + ID
    assert TUNNEL_WIRE.resume(ID) == b"\x14" + ID


def test_only_ours_hears_why_a_tunnel_ends() -> None:
    """To an original a close is bare."""
    assert TUNNEL_WIRE.disconnect(ID, Reason.RESET) == b"\x12" + ID + b"reset"
    assert ORIGINAL_TUNNEL_WIRE.disconnect(ID, Reason.RESET) == b"\x12" + ID


@both_wires
@pytest.mark.parametrize(
    ("message", "control"),
    [
        (b"\x12" + ID, Control("disconnect", ID)),
        (b"\x12" + ID + b"timeout", Control("disconnect", ID, reason="timeout")),
        (b"\x13" + ID, Control("pause_stream", ID)),
        (b"\x14" + ID, Control("resume_stream", ID)),
        (b"\x15" + ID + (8).to_bytes(8, "big"), Control("credits", ID, credits=8)),
        (b"\x15" + ID + (8).to_bytes(8, "big") + b"tail", Control("credits", ID, credits=8)),
        (b"\x15" + ID + b"\xff" * 8, Control("credits", ID, credits=CREDITS_MAX)),
        (b"\x16" + ID, Control("half_close", ID)),
    ],
)
def test_binary_messages_become_the_events_of_streams(wire: object, message: bytes, control: Control) -> None:
    """So that a tunnel is a stream like any other."""
    assert wire in {TUNNEL_WIRE, ORIGINAL_TUNNEL_WIRE}
    assert parse_message(message) == control


@pytest.mark.parametrize(
    "message", [b"", b"\x12", b"\x12" + ID[:-1], b"\x15" + ID, b"\x15" + ID + b"\0" * 7, b"\x01" + ID]
)
def test_a_short_or_unknown_message_is_refused(message: bytes) -> None:
    """The original ignores it; so does the session, with a line in the log."""
    with pytest.raises(RemoteProtocolError):
        parse_message(message)


@given(st.binary(max_size=60))
def test_hostile_messages_raise_only_what_is_documented(message: bytes) -> None:
    """Whatever comes, it is an event or a RemoteProtocolError."""
    with contextlib.suppress(RemoteProtocolError):
        assert parse_message(message).stream_id == message[1:17]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = [
    "type",
    "version",
    "hostnames",
    "client_id",
    "node_id",
    "features",
    "conn_port",
    "client_ip",
    "hostname",
    "is_tls",
]


@given(st.dictionaries(st.sampled_from(KEYS), json_values | st.sampled_from(["announce", "tunnel_request"])))
def test_hostile_text_raises_only_what_is_documented(document: dict[str, object]) -> None:
    """Known keys with values of every type."""
    with contextlib.suppress(RemoteProtocolError):
        said = parse_text(json.dumps(document))
        assert said is None or isinstance(said, Announce | TunnelRequest)


@given(
    st.integers(1, 2**63 - 1),
    st.lists(st.text(max_size=30).filter(lambda text: text.isprintable())),
    st.binary(min_size=16, max_size=16).filter(lambda raw: raw != NIL_STREAM_ID),
)
def test_an_announcement_comes_back_as_it_was(version: int, routes: list[str], node_id: bytes) -> None:
    """Whatever names it holds."""
    announce = Announce(version, tuple(routes), node_id, MESH_FEATURES)
    assert parse_text(serialize_announce(announce)) == announce


THUMBPRINT = "t" * 43


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ([f"{'k' * 43}.{THUMBPRINT}"], (f"{'k' * 43}.{THUMBPRINT}",)),
        ([f"{'k' * 21}.{THUMBPRINT}", f"{'k' * 22}.{THUMBPRINT[1:]}", "", 7, None, ["x"]], ()),
        ([f"../{'k' * 22}.{THUMBPRINT}", f"{'k' * 22}.{THUMBPRINT}\n"], ()),
        ([f"{number:022d}.{THUMBPRINT}" for number in range(9)], tuple(f"{n:022d}.{THUMBPRINT}" for n in range(8))),
        ({"token": "answer"}, ()),
        ("text", ()),
    ],
)
def test_only_what_can_be_a_challenge_is_read(said: object, read: tuple[str, ...]) -> None:
    """RFC 8555 8.1 and 8.3: base64url, and no more than a node ever waits for."""
    text = json.dumps({"version": 1, "type": "announce", "client_id": NIL, "challenges": said})
    assert parse_text(text) == Announce(1, (), challenges=read)


def test_challenges_come_back() -> None:
    """Beside the rest."""
    announce = Announce(2, ("a.example",), ID, MESH_FEATURES, (f"{'k' * 43}.{THUMBPRINT}",))
    assert parse_text(serialize_announce(announce)) == announce
