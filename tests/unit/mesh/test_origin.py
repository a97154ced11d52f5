"""Tunnels at their origin: through which peer they go, and what becomes of those without an answer."""

from __future__ import annotations

import pytest

from nexus.mesh.origin import ANSWER_TIMEOUT_S
from nexus.protocol.constants import PAYLOAD_MAX_BYTES, UNCREDITED_MAX
from nexus.routing.decide import Reject, RejectReason
from nexus.transport import OpenRequest
from tests.support.mesh import CLIENT, HELLO, Triangle, settle


@pytest.fixture
async def triangle() -> Triangle:
    """A mesh of three."""
    return Triangle()


def test_peers_share_tunnels_in_turn(triangle: Triangle) -> None:
    """As many each, where they are equally near."""
    for _ in range(6):
        triangle.origin.open()
    settle(*triangle.cables)
    assert [len(backend.session.streams) for backend in triangle.backends] == [3, 3]


async def test_local_beats_peers_and_a_local_wildcard_beats_their_exact_name(triangle: Triangle) -> None:
    """The original's order."""
    local = triangle.origin.backend("*.example.com")
    triangle.origin.open()
    assert local.link.controls("connect")
    assert not any(backend.session.streams for backend in triangle.backends)


def test_a_refused_tunnel_goes_to_the_next_peer_with_every_byte(triangle: Triangle) -> None:
    """A route that has just gone costs a round trip, not the connection."""
    client = triangle.origin.open()
    client.stream.send(HELLO)
    client.stream.send(b" and more")
    chosen = triangle.cables[0] if client.stream.session is triangle.cables[0].peers[0].session else triangle.cables[1]
    index = triangle.cables.index(chosen)
    triangle.backends[index].leave()
    settle(*triangle.cables)
    survivor = triangle.backends[1 - index]
    assert survivor.received() == HELLO + b" and more"
    assert not client.aborted
    assert triangle.origin.mesh.origin.moved == {"moved": 1}
    assert not chosen.peers[0].tunnels


def test_a_tunnel_whose_peers_all_refuse_is_reset(triangle: Triangle) -> None:
    """Each is asked once."""
    client = triangle.origin.open()
    client.stream.send(HELLO)
    for backend in triangle.backends:
        backend.leave()
    settle(*triangle.cables)
    assert client.aborted
    assert triangle.origin.mesh.origin.moved == {"moved": 1, "failed": 1}


@pytest.mark.parametrize(("is_tls", "moves"), [(True, True), (False, False)])
def test_a_link_that_ends_before_the_answer_moves_only_what_may_be_said_twice(
    triangle: Triangle, is_tls: bool, moves: bool
) -> None:
    """A request in the clear may have reached the first backend."""
    client = triangle.origin.open(is_tls=is_tls)
    client.stream.send(HELLO)
    index = 0 if client.stream.session is triangle.cables[0].peers[0].session else 1
    triangle.cables[index].lose()
    settle(triangle.cables[1 - index])
    assert client.aborted is not moves
    assert (triangle.backends[1 - index].received() == HELLO) is moves


def test_an_answered_tunnel_never_moves(triangle: Triangle) -> None:
    """Bytes may have been lost that nobody can send again."""
    client = triangle.origin.open()
    client.stream.send(HELLO)
    settle(*triangle.cables)
    index = triangle.backends.index(triangle.serving())
    triangle.cables[index].lose()
    assert client.aborted
    assert triangle.origin.mesh.origin.moved == {}


def test_silence_of_a_peer_that_always_answers_moves_the_tunnel(triangle: Triangle) -> None:
    """And the silent one is told."""
    client = triangle.origin.open()
    client.stream.send(HELLO)
    silent = triangle.cables[0 if client.stream.session is triangle.cables[0].peers[0].session else 1]
    other = next(cable for cable in triangle.cables if cable is not silent)
    stuck = list(silent.links[0].wire)
    triangle.origin.mesh.origin.sweep(ANSWER_TIMEOUT_S / 2)
    assert not other.links[0].wire
    triangle.origin.mesh.origin.sweep(ANSWER_TIMEOUT_S)
    settle(other)
    assert triangle.serving().received() == HELLO
    assert silent.links[0].log[len(silent.links[0].log) - 1].payload[:1] == b"\x12"
    assert len(silent.links[0].wire) == len(stuck) + 1
    settle(silent)
    assert not any(peer.tunnels for peer in silent.peers)
    assert not client.aborted


def test_what_waits_for_an_answer_is_bounded(triangle: Triangle) -> None:
    """However many pongs come."""
    client = triangle.origin.open()
    client.stream.send(b"z" * PAYLOAD_MAX_BYTES * 40)
    peer = client.stream.session
    for number in range(5):
        peer.pong_received(b"pace:%d" % number)
    attempt = client.stream.attempt
    assert attempt is not None
    assert len(attempt.kept) == UNCREDITED_MAX
    settle(*triangle.cables)
    triangle.serving().grant()
    for _ in range(10):
        settle(*triangle.cables)
        triangle.serving().grant(8)
    settle(*triangle.cables)
    assert triangle.serving().received() == b"z" * PAYLOAD_MAX_BYTES * 40


def test_nobody_serves_what_nobody_announced(triangle: Triangle) -> None:
    """The refusal is that of a node without peers."""
    request = OpenRequest("other.example", True, 443, CLIENT)
    assert triangle.origin.dialer.open_stream(request) == Reject(RejectReason.NO_BACKEND, "other.example")
