"""A peer that is an original: what is said to it, what is borne of it."""

from __future__ import annotations

import pytest

from nexus.link.stream import Stream
from nexus.mesh.origin import ANSWER_TIMEOUT_S
from nexus.mesh.peer import BURST_MAX_MESSAGES, DEAD_AFTER_S, ORIGINAL_DEAD_AFTER_S, PING_INTERVAL_S
from nexus.protocol.constants import CREDITS_INITIAL, PAYLOAD_MAX_BYTES
from tests.support.mesh import Pair, settle


@pytest.fixture
async def pair() -> Pair:
    """A mesh of two."""
    return Pair()


@pytest.fixture
async def old(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair whose announcements say nothing of ours: each end takes the other for an original."""
    monkeypatch.setattr("nexus.mesh.announcer.MESH_FEATURES", ())
    return Pair()


def test_an_original_is_watched_more_patiently(pair: Pair, old: Pair) -> None:
    """Its reader may wait for one of its users."""
    assert pair.cable.links[0].alive[-1] == (PING_INTERVAL_S, DEAD_AFTER_S)
    assert old.cable.links[0].alive == [(PING_INTERVAL_S, ORIGINAL_DEAD_AFTER_S)]


def test_towards_an_original_a_close_is_bare_and_windows_do_not_grow(old: Pair) -> None:
    """It takes a grant above 64 for one of 64."""
    client = old.open()
    old.backend.say("disconnect", "timeout")
    settle(old.cable)
    assert [sent.payload for sent in old.cable.links[1].log if sent.payload[:1] == b"\x12"] == [
        b"\x12" + client.stream.id
    ]
    assert client.finished
    assert old.cable.peers[0].session.wire.window_max == CREDITS_INITIAL


def test_the_first_burst_of_an_original_is_borne(old: Pair) -> None:
    """It knows no limit until our grant reaches it; beyond all patience its tunnel breaks, not the link."""
    old.open()
    peer = old.cable.peers[1]
    tunnel = next(iter(peer.served))
    old.backend.link.writable = False  # the backend takes nothing
    for _ in range(CREDITS_INITIAL + BURST_MAX_MESSAGES - 1):
        peer.session.message_received(b"\x11" + tunnel.id + b"b")
    assert not tunnel.ended
    for _ in range(CREDITS_INITIAL):
        peer.session.message_received(b"\x11" + tunnel.id + b"b")
    assert tunnel.ended
    assert not old.cable.links[1].held


def test_a_peer_that_never_answers_may_be_an_old_one(old: Pair) -> None:
    """With nobody else to ask the tunnel stays, and goes on by pongs."""
    client = old.origin.open()
    client.stream.send(b"q" * PAYLOAD_MAX_BYTES * 12)
    old.origin.mesh.origin.sweep(ANSWER_TIMEOUT_S)
    assert client.stream.attempt is None
    assert not client.stream.ended
    assert isinstance(client.stream, Stream)
