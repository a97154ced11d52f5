"""Tests of how a stream ends: half-close, disconnect, reset, and the loss of its session."""

from __future__ import annotations

import pytest

from nexus.protocol.constants import (
    FEATURE_HALF_CLOSE,
    PAYLOAD_MAX_BYTES,
)
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow
from tests.support.sessions import SessionPair, Side

BOTH = pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "no half-close"])


def reasons(side: Side) -> list[str]:
    return [control.reason for control in side.link.controls("disconnect")]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_half_closes_in_either_order_end_the_stream_in_order(first: str) -> None:
    """Each direction ends by itself; with the second the stream is over, and no more is said."""
    side = Side()
    stream, endpoint = side.open()
    if first == "ours":
        stream.send_eof()
        assert not stream.ended
        stream.receive(b"answer")
        stream.receive_eof()
    else:
        stream.receive(b"answer")
        stream.receive_eof()
        assert endpoint.eof
        assert not stream.ended
        stream.send(b"last")
        stream.send_eof()
    assert endpoint.received() == b"answer"
    assert endpoint.finished
    assert [control.event for control in side.link.controls()] == ["half_close"]
    assert side.role.ended == [(stream, "normal")]
    assert side.tables() == 0


def test_an_end_of_data_follows_the_last_byte() -> None:
    """However long it had to wait."""
    side = Side()
    stream, _ = side.open(window=SendWindow(1, paced=False))
    stream.send(bytes(2 * PAYLOAD_MAX_BYTES))
    stream.send_eof()
    stream.send_eof()
    assert side.link.controls() == []
    stream.receive_credits(8)
    assert [sent.control is not None for sent in side.link.log] == [False, False, True]
    stream.send_eof()
    assert len(side.link.controls("half_close")) == 1


def test_a_backend_without_half_close_ends_the_stream_behind_its_last_byte() -> None:
    """The hub then delivers everything and sends FIN."""
    pair = SessionPair(half_close=False)
    client, service = pair.open()
    service.stream.send(b"answer")
    service.stream.send_eof()
    assert reasons(pair.backend) == ["normal"]
    pair.settle()
    assert client.received() == b"answer"
    assert client.finished
    assert pair.hub.tables() == pair.backend.tables() == 0


def test_a_hub_keeps_a_clients_fin_to_itself_where_it_cannot_be_told() -> None:
    """The answer would be lost otherwise (W20)."""
    side = Side(())
    stream, endpoint = side.open()
    stream.send_eof()
    assert side.role.untold == [stream]
    assert side.link.controls() == []
    stream.receive(b"answer")
    stream.receive_disconnect("normal")
    assert endpoint.received() == b"answer"
    assert endpoint.finished


def test_a_fin_that_was_never_told_is_made_up_for_by_a_disconnect() -> None:
    """Half-close was agreed upon only after it: the backend would wait for the other half for ever."""
    side = Side(())
    stream, endpoint = side.open()
    stream.send_eof()
    side.session.features = frozenset({FEATURE_HALF_CLOSE})
    stream.receive_eof()
    assert reasons(side) == ["normal"]
    assert endpoint.finished
    assert side.tables() == 0


@pytest.mark.parametrize("reason", ["", "normal"])
def test_a_clean_disconnect_delivers_everything(reason: str) -> None:
    """FIN behind the last byte; no answer is owed."""
    side = Side()
    stream, endpoint = side.open()
    stream.receive(b"all of it")
    stream.receive_disconnect(reason)
    assert endpoint.finished
    assert not endpoint.aborted
    assert endpoint.received() == b"all of it"
    assert side.link.controls() == []
    assert side.role.ended == [(stream, "normal")]


@pytest.mark.parametrize("reason", ["reset", "timeout", "dial_failed", "anything"])
def test_any_other_disconnect_breaks_the_endpoint(reason: str) -> None:
    """The far end must see that bytes may be missing."""
    side = Side()
    stream, endpoint = side.open()
    stream.receive_disconnect(reason)
    assert endpoint.aborted
    assert not endpoint.finished
    assert side.role.ended == [(stream, reason)]


def test_a_disconnect_drops_what_was_not_sent() -> None:
    """W33: no memory is held for a stream that nobody takes, and its credits change nothing any more."""
    side = Side()
    stream, _ = side.open(window=SendWindow(1, paced=False))
    stream.send(bytes(9 * PAYLOAD_MAX_BYTES))
    stream.receive_disconnect("")
    assert len(stream._unsent) == 0
    assert side.tables() == 0
    stream.receive_credits(64)
    stream.send(b"more")
    stream.send_eof()
    assert len(side.link.data()) == 1
    assert side.link.controls() == []


def test_a_broken_endpoint_is_told_at_once() -> None:
    """What waits is dropped: the client broke, or the service did."""
    side = Side()
    stream, _ = side.open(window=SendWindow(1, paced=False))
    stream.send(bytes(2 * PAYLOAD_MAX_BYTES))
    stream.endpoint_lost()
    stream.endpoint_lost()
    assert reasons(side) == ["reset"]
    assert side.role.ended == [(stream, "reset")]
    assert side.tables() == 0


def test_closing_breaks_both_ends_once() -> None:
    """With the reason in the message and for the log."""
    side = Side()
    stream, endpoint = side.open()
    stream.close(Reason.TIMEOUT)
    stream.close(Reason.SHUTDOWN)
    stream.end_cleanly()
    assert reasons(side) == ["timeout"]
    assert endpoint.aborted
    assert side.role.ended == [(stream, "timeout")]


def test_ending_cleanly_waits_for_the_bytes_that_wait() -> None:
    """A handler that wrote and returned has not lost its last words."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(1, paced=False))
    stream.send(bytes(3 * PAYLOAD_MAX_BYTES))
    stream.end_cleanly()
    assert reasons(side) == []
    stream.receive_credits(1)
    assert reasons(side) == []
    stream.receive_credits(1)
    assert len(side.link.data()) == 3
    assert reasons(side) == ["normal"]
    assert endpoint.finished
    assert side.link.log[-1].control is not None


def test_ending_cleanly_without_waiting_bytes_is_at_once() -> None:
    """And only once."""
    side = Side()
    stream, endpoint = side.open()
    stream.end_cleanly()
    stream.end_cleanly()
    assert reasons(side) == ["normal"]
    assert endpoint.finished


def test_a_full_endpoint_of_an_ended_stream_changes_nothing() -> None:
    """It may still drain its last bytes."""
    side = Side()
    stream, _ = side.open()
    stream.receive_disconnect("")
    stream.endpoint_full(True)
    stream.endpoint_full(False)
    assert side.link.controls() == []
