"""Nodes that mesh in memory: what passes through tunnels, what ends them, twins, and what a peer may not do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nexus.bandwidth.limiter import Limiter
from nexus.mesh.peer import Peer
from nexus.protocol.constants import CREDITS_INITIAL, NIL_STREAM_ID, PAYLOAD_MAX_BYTES
from nexus.protocol.messages import credit_message, id_text
from nexus.protocol.reasons import Reason
from tests.support.hub import eventually
from tests.support.mesh import CLIENT, HELLO, HOST, Cable, MemoryNode, Pair, settle
from tests.support.sessions import FakeEndpoint


@pytest.fixture
async def pair() -> Pair:
    """A mesh of two."""
    return Pair()


def test_the_backend_learns_what_a_local_one_would(pair: Pair) -> None:
    """Route key, client, port and TLS flag survive the tunnel."""
    pair.open()
    connect = pair.backend.link.controls("connect")[0]
    assert (connect.hostname, connect.client_ip, connect.conn_port, connect.is_tls) == (HOST, CLIENT, 443, True)
    assert connect.transport == "tcp"
    assert connect.stream_id not in pair.cable.peers[0].session.streams


def test_bytes_pass_in_both_directions_and_end_in_order(pair: Pair) -> None:
    """The backend's end comes behind its last byte."""
    client = pair.open()
    pair.backend.send(b"answer")
    client.stream.send(b"more")
    settle(pair.cable)
    assert pair.backend.received() == HELLO + b"more"
    assert client.received() == b"answer"
    pair.backend.say("disconnect", "normal")
    settle(pair.cable)
    assert client.finished
    assert not client.aborted
    assert not pair.cable.peers[0].tunnels
    assert not pair.cable.peers[1].tunnels


def test_a_half_close_passes_between_nodes_of_ours(pair: Pair) -> None:
    """A client that ends its request gets the whole answer."""
    client = pair.open()
    pair.backend.session.features = frozenset({"half_close"})
    client.stream.send_eof()
    settle(pair.cable)
    assert [one.event for one in pair.backend.link.controls()][-1] == "half_close"
    pair.backend.send(b"late answer")
    pair.backend.say("half_close")
    settle(pair.cable)
    assert client.received() == b"late answer"
    assert client.finished
    assert not pair.cable.peers[0].tunnels


@pytest.mark.parametrize("reason", ["timeout", "local_error", "anything else"])
def test_a_broken_stream_is_broken_at_both_ends(pair: Pair, reason: str) -> None:
    """The client sees a reset, never an end that looks whole."""
    client = pair.open()
    pair.backend.send(b"half an ans")
    pair.backend.say("disconnect", reason)
    settle(pair.cable)
    assert client.aborted
    assert not client.finished
    assert sum(pair.origin.mesh.totals.resets.values()) == 1


def test_a_client_that_breaks_breaks_the_backends_stream(pair: Pair) -> None:
    """Nothing is left at either node."""
    client = pair.open()
    client.stream.endpoint_lost()
    settle(pair.cable)
    assert pair.backend.link.controls("disconnect")[0].reason == Reason.RESET
    assert not pair.cable.peers[0].tunnels
    assert not pair.cable.peers[1].tunnels


def test_a_backend_that_leaves_breaks_its_tunnels_and_its_routes(pair: Pair) -> None:
    """At once, at the far end, too."""
    client = pair.open()
    pair.backend.leave()
    pair.destination.mesh._announcer.tell_now()
    settle(pair.cable)
    assert client.aborted
    assert len(pair.origin.mesh.routes) == 0


def test_a_lost_link_ends_everything_on_it_at_both_ends(pair: Pair) -> None:
    """Nobody knows what did not arrive."""
    client = pair.open()
    pair.cable.lose()
    assert client.aborted
    assert pair.backend.link.controls("disconnect")
    assert len(pair.origin.mesh.routes) == 0
    assert not pair.origin.mesh.peers


def test_a_slow_backend_stops_its_own_tunnel_only(pair: Pair) -> None:
    """The window of one is full; another one's bytes pass."""
    client = pair.origin.open()
    client.stream.send(b"x" * PAYLOAD_MAX_BYTES * 200)
    settle(pair.cable)
    first = pair.backend.stream_id()
    assert not client.reading
    other = pair.open(b"quick")
    assert b"quick" in pair.backend.received()
    assert other.reading
    tunnel = next(iter(pair.cable.peers[1].served))
    assert tunnel.receive_window.held <= CREDITS_INITIAL
    for _ in range(40):
        pair.backend.session.message_received(credit_message(first, 8))
        settle(pair.cable)
    assert client.reading
    assert pair.backend.received().count(b"x") == PAYLOAD_MAX_BYTES * 200


def test_a_slow_client_stops_its_own_tunnel_only(pair: Pair) -> None:
    """No more than a window waits at the origin, and the link goes on being read."""
    client = pair.open()
    slow = FakeEndpoint(client.stream, takes=0)
    client.stream.endpoint = slow
    for _ in range(CREDITS_INITIAL * 2):
        pair.backend.send(b"y" * 1000)
        settle(pair.cable)
    assert len(slow.waiting) <= CREDITS_INITIAL * 1000
    assert not pair.cable.links[0].held
    slow.drain()
    settle(pair.cable)
    slow.drain()
    settle(pair.cable)
    assert slow.received() == b"y" * 2 * CREDITS_INITIAL * 1000


# -- Two links to one node ------------------------------------------------------------------------------------------


async def test_two_nodes_that_dial_each_other_keep_one_link_both_the_same() -> None:
    """Whoever dialled first, and in whatever order the announcements arrive."""
    for first in (0, 1):
        one, other = MemoryNode(), MemoryNode()
        cables = (Cable(one, other), Cable(other, one))
        for cable in (cables[first], cables[1 - first]):
            settle(cable)
        kept = [cable for cable in cables if not any(peer.retired for peer in cable.peers)]
        retired = [cable for cable in cables if all(peer.retired for peer in cable.peers)]
        assert len(kept) == len(retired) == 1
        assert kept[0] is cables[0 if one.mesh.node_id < other.mesh.node_id else 1]


async def test_the_newer_of_two_links_that_one_node_dialled_is_kept() -> None:
    """The older one may be a ghost that only one end still believes in."""
    one, other = MemoryNode(), MemoryNode()
    older = Cable(one, other)
    settle(older)
    newer = Cable(one, other)
    settle(newer)
    assert [peer.retired for cable in (older, newer) for peer in cable.peers] == [True, True, False, False]
    other.backend()
    settle(older, newer)
    client = one.open()
    assert client.stream.session is newer.peers[0].session


async def test_a_retired_link_serves_again_when_the_kept_one_is_gone() -> None:
    """Routes never vanish while a link is up."""
    one, other = MemoryNode(), MemoryNode()
    other.backend()
    cables = (Cable(one, other), Cable(other, one))
    settle(*cables)
    kept = next(cable for cable in cables if not cable.peers[0].retired)
    kept.lose()
    assert list(one.mesh.routes) == [HOST]
    one.open()


async def test_links_to_nodes_with_other_certificates_are_no_twins() -> None:
    """A node cannot push out another one's link by announcing its id."""
    one, other, liar = MemoryNode(), MemoryNode(), MemoryNode()
    liar.mesh.node_id = other.mesh.node_id
    liar.mesh._announcer._node_id = other.mesh.node_id
    honest = Cable(one, other, ("honest",))
    settle(honest)
    settle(Cable(one, liar, ("liar",)))
    assert not honest.peers[0].retired


async def test_a_node_that_reaches_itself_lets_go() -> None:
    """An address of a fleet may be its own."""
    node = MemoryNode()
    cable = Cable(node, node)
    settle(cable)
    assert cable.links[0].closed[0][0] == 1008
    assert cable.peers[0].is_self
    assert len(node.mesh.routes) == 0


async def test_a_link_that_is_gone_before_it_is_taken_in_leaves_nothing() -> None:
    """It may break in the moment between upgrade and greeting."""
    one, other = MemoryNode(), MemoryNode()
    cable = Cable(one, other)
    cable.lose()
    one.mesh.join(cable.peers[0])
    assert not one.mesh.peers


# -- What a peer may not do -----------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_a_peer_reaches_no_tunnel_of_another_link(pair: Pair) -> None:
    """Its ids mean nothing there."""
    client = pair.open()
    stranger = Cable(MemoryNode(), pair.origin)
    settle(stranger)
    stranger.peers[1].session.message_received(b"\x11" + client.stream.id + b"injected")
    stranger.peers[1].session.message_received(b"\x12" + client.stream.id)
    settle(pair.cable, stranger)
    assert client.received() == b""
    assert not client.stream.ended


@pytest.mark.parametrize("tunnel_id", [NIL_STREAM_ID, None], ids=["nil", "in use"])
def test_an_id_that_is_nil_or_in_use_opens_nothing(
    pair: Pair, tunnel_id: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """And does not harm the tunnel that has it."""
    client = pair.open()
    served = next(iter(pair.cable.peers[1].served))
    request = {"type": "tunnel_request", "client_id": id_text(tunnel_id or served.id), "hostname": HOST}
    pair.cable.peers[1].session.text_received(json.dumps(request))
    assert len(pair.backend.session.streams) == 1
    assert not client.stream.ended
    assert "nil or in use" in lines(caplog)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "the message is not JSON"),
        ('{"type":"announce","version":"x"}', "version is not of type int"),
        (
            '{"type":"announce","version":99,"hostnames":["tcp:0","udp:99999","app.example.com"]}',
            "tcp:0, udp:99999",
        ),
    ],
)
def test_a_lie_costs_a_line_and_nothing_else(
    pair: Pair, text: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What can be used of it is."""
    pair.cable.peers[0].session.text_received(text)
    assert line in lines(caplog)
    pair.open()


async def test_requests_are_served_locally_only() -> None:
    """A tunnel has one hop: what only another peer serves is refused."""
    one, middle, far = MemoryNode(), MemoryNode(), MemoryNode()
    cables = (Cable(one, middle), Cable(middle, far))
    far.backend()
    settle(*cables)
    assert list(middle.mesh.routes) == [HOST]
    assert len(one.mesh.routes) == 0
    one.mesh.routes.replace(cables[0].peers[0], frozenset({HOST}))
    client = one.open()
    settle(*cables)
    assert client.aborted
    assert middle.mesh.destination.refused == {"no_backend": 1}


# -- Under the cap of either node -----------------------------------------------------------------------------------


async def test_both_nodes_charge_a_tunnel_to_their_caps() -> None:
    """The origin to the route's share, the destination to the backend's; nothing is lost on the way."""
    caps = [Limiter(80), Limiter(80)]
    origin, destination = (MemoryNode(cap) for cap in caps)
    cable = Cable(origin, destination)
    backend = destination.backend()
    settle(cable)
    client = origin.open()
    data = b"z" * PAYLOAD_MAX_BYTES
    for _ in range(20):
        origin.clients[0].send(data)

    def served() -> bool:
        settle(cable)
        if backend.link.controls("connect"):
            backend.grant(1)
        return len(backend.received()) == 20 * PAYLOAD_MAX_BYTES

    await eventually(served, "every byte has arrived")
    for _ in range(20):
        backend.send(data)

    def answered() -> bool:
        settle(cable)
        return len(client.received()) == 20 * PAYLOAD_MAX_BYTES

    await eventually(answered, "the answer, too")
    for cap in caps:
        assert 40 * PAYLOAD_MAX_BYTES <= cap.scheduler.charged_bytes <= 41 * PAYLOAD_MAX_BYTES


async def test_tunnels_of_one_route_share_one_share_while_there_is_one() -> None:
    """As the streams of one backend do."""
    origin, destination = MemoryNode(Limiter(80)), MemoryNode()
    cable = Cable(origin, destination)
    destination.backend(HOST, "other.example.com")
    settle(cable)
    first, second, third = origin.open(), origin.open(), origin.open("other.example.com")
    assert first.stream.gate is second.stream.gate is not None
    assert third.stream.gate is not first.stream.gate
    assert cable.peers[0].session.gate is not None
    assert len(origin.mesh.origin._gates) == 2


# -- Time -----------------------------------------------------------------------------------------------------------


def test_idle_tunnels_end_at_both_ends(pair: Pair) -> None:
    """W7: neither node relies on the other one, nor on the link."""
    for node in (pair.origin, pair.destination):
        node.mesh.settings = replace(node.mesh.settings, idle_timeout_s=60)
        client = pair.open()
        for now in (1000.0, 1059.0, 1065.0):
            node.mesh._sweep(now)
            assert sum(peer.tunnels for peer in node.mesh.peers) == (now < 1060)
        settle(pair.cable)
        assert client.aborted
        assert not any(peer.tunnels for peer in pair.cable.peers)


def test_idle_tunnels_are_not_looked_at_all_the_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands."""
    pair.open()
    looks: list[float] = []
    monkeypatch.setattr(Peer, "sweep", lambda _peer, now, _timeout_s: looks.append(now))
    for tick in range(40):
        pair.origin.mesh._sweep(tick * 0.5)
    assert looks == [0.0, 5.0, 10.0, 15.0]


async def test_challenges_are_told_at_once_to_nodes_of_the_same_name() -> None:
    """A node of another name could obtain a certificate by them, so what it says is not used."""
    answer = f"{'k' * 43}.{'t' * 43}"
    first, second = MemoryNode(), MemoryNode()
    waiting: list[str] = []
    second.mesh.challenges = lambda: waiting
    cable = Cable(first, second)
    for peer in cable.peers:
        peer.names = ("hub.example.com",)
    waiting.append(answer)
    second.mesh.challenges_changed()
    settle(cable)
    assert first.mesh.challenges_for("hub.example.com") == {"k" * 43: answer}
    assert first.mesh.challenges_for("other.example.com") == {}
    waiting.clear()
    second.mesh.challenges_changed()
    settle(cable)
    assert first.mesh.challenges_for("hub.example.com") == {}
