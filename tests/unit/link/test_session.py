"""Tests of sessions: dispatch, fairness, pacing, holding the link, and the end, without sockets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import pytest

from nexus.limits import STRANGERS_LINES_MAX
from nexus.link.session import WINDOWS_MAX
from nexus.link.stream import Stream
from nexus.protocol.constants import (
    CREDITS_INITIAL,
    NIL_STREAM_ID,
    PAYLOAD_MAX_BYTES,
    UNCREDITED_MAX,
    WINDOW_MAX,
    WINDOW_MIN,
)
from nexus.protocol.messages import Control, credit_message, id_text, serialize_control, simple_message
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SHRINK_MIN, SendWindow
from tests.support.sessions import LOST, FakeEndpoint, FakeRole, SessionPair, Side

UNKNOWN = b"\xee" * 16


def data(stream_id: bytes, payload: bytes = b"") -> bytes:
    return b"\x01" + stream_id + payload


# -- Dispatch -------------------------------------------------------------------------------------------------------


def test_data_reaches_its_stream_and_is_counted() -> None:
    """By the sixteen bytes behind the kind."""
    side = Side()
    _, one = side.open(1)
    second, two = side.open(2)
    side.session.message_received(data(second.id, b"for two"))
    assert (one.received(), two.received()) == (b"", b"for two")
    assert (side.session.bytes_received, second.bytes_received) == (7, 7)


def test_data_for_an_unknown_stream_is_the_roles_to_answer() -> None:
    """A hub drops it, a backend says that the stream is gone."""
    side = Side()
    side.session.message_received(data(UNKNOWN, b"late"))
    assert side.role.unknown == [UNKNOWN]
    assert side.session.bytes_received == 0


@pytest.mark.parametrize("message", [b"", b"\x00", b"\x03abc", b"\x01", b"\x01" + bytes(15), b"\xff" * 40])
def test_messages_without_meaning_are_dropped(message: bytes) -> None:
    """Empty ones, unknown kinds, and data too short for its id; the session stays up."""
    side = Side()
    side.session.message_received(message)
    assert side.link.log == []
    assert side.role.unknown == []


def test_an_instant_answer_finds_the_stream() -> None:
    """W17: a stream is in the table before its connect can be answered."""
    side = Side()
    stream = side.dialling(1)
    side.session.message_received(data(stream.id, b"server speaks first"))
    side.session.message_received(credit_message(stream.id, 8))
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    assert endpoint.received() == b"server speaks first"


def test_a_broken_control_message_is_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As the original does; the session goes on."""
    side = Side()
    stream, _ = side.open()
    with caplog.at_level(logging.WARNING, logger="nexus.session"):
        side.session.message_received(b"\x02{")
        side.session.message_received(b'\x02{"event":"disconnect","client_id":"x"}')
    assert [record.getMessage() for record in caplog.records] == [
        "the peer sent a control message that was dropped: the message is not JSON",
        "the peer sent a control message that was dropped: client_id is not a UUID: 'x'",
    ]
    assert not stream.ended
    assert side.session.faults == 2


def test_a_peer_that_errs_without_end_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """The first faults of each interval are warnings; all are counted."""
    side = Side()
    with caplog.at_level(logging.DEBUG, logger="nexus.session"):
        for _ in range(STRANGERS_LINES_MAX + 3):
            side.session.message_received(b"\x02{")
    levels = Counter(record.levelname for record in caplog.records)
    assert levels == {"WARNING": STRANGERS_LINES_MAX, "DEBUG": 3}
    assert side.session.faults == STRANGERS_LINES_MAX + 3


@pytest.mark.parametrize("event", ["disconnect", "pause_stream", "resume_stream", "half_close", "later", ""])
def test_events_of_unknown_streams_and_unknown_events_are_ignored(event: str) -> None:
    """Messages cross each other on the way."""
    side = Side()
    side.session.message_received(simple_message(event, UNKNOWN))
    assert side.link.log == []


def test_events_act_on_their_stream() -> None:
    """Pause, resume with a grant, half_close and disconnect."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(1, paced=False))
    side.session.message_received(simple_message("pause_stream", stream.id, Reason.BUFFER_FULL))
    assert stream.send_window.paused
    assert side.role.pauses == [stream.id]
    side.session.message_received(credit_message(stream.id, 8))
    assert not stream.send_window.paused
    assert stream.send_window.available == 9
    side.session.message_received(simple_message("half_close", stream.id))
    assert endpoint.eof
    side.session.message_received(simple_message("disconnect", stream.id, Reason.RESET))
    assert endpoint.aborted
    assert side.role.ended == [(stream, "reset")]


def test_half_close_that_was_not_agreed_upon_is_an_unknown_event() -> None:
    """The other side would wait for an answer that this one cannot give."""
    side = Side(())
    stream, endpoint = side.open()
    side.session.message_received(simple_message("half_close", stream.id))
    assert not endpoint.eof
    assert not stream.received_eof


def test_the_roles_events_come_first() -> None:
    """A role adds events, and may replace one."""
    seen: list[Control] = []
    role = FakeRole(events={"connect": seen.append, "disconnect": seen.append})
    side = Side()
    session = type(side.session)(side.session.link, role, ())
    for event in ("connect", "disconnect"):
        session.message_received(serialize_control(Control(event, NIL_STREAM_ID)))
    assert [control.event for control in seen] == ["connect", "disconnect"]


def test_text_is_the_roles() -> None:
    """It belongs to authentication."""
    side = Side()
    side.session.text_received("challenge")
    assert side.role.texts == ["challenge"]


# -- Fairness -------------------------------------------------------------------------------------------------------


def test_waiting_streams_take_turns_of_one_message() -> None:
    """When the link has room again, each sends one message, then each the next."""
    side = Side()
    streams = [side.open(number)[0] for number in (1, 2, 3)]
    side.link.writable = False
    for stream, messages in zip(streams, (3, 1, 2), strict=True):
        stream.send(stream.id[:1] * (messages * PAYLOAD_MAX_BYTES))
    side.make_writable()
    assert [payload[0] for payload in side.link.data()] == [1, 2, 3, 1, 3, 1]
    assert side.tables() == 3


def test_a_turn_ends_when_the_link_is_full_and_goes_on_with_the_next_stream() -> None:
    """Nobody loses its turn to one that has much to send."""
    side = Side()
    streams = [side.open(number)[0] for number in (1, 2, 3)]
    side.link.writable = False
    for stream in streams:
        stream.send(stream.id[:1] * (2 * PAYLOAD_MAX_BYTES))
    order: list[int] = []
    for _ in range(6):
        side.make_writable(room=1)
        order.append(side.link.data()[-1][0])
    assert order == [1, 2, 3, 1, 2, 3]


def test_a_transport_that_finds_room_while_it_is_written_to_is_served_once() -> None:
    """A turn inside a turn would take streams out of the round."""
    side = Side()
    (first, _), (second, _) = side.open(1), side.open(2)
    side.link.writable = False
    first.send(bytes(3 * PAYLOAD_MAX_BYTES))
    second.send(bytes(3 * PAYLOAD_MAX_BYTES))
    send_data = side.link.send_data

    def send_and_resume(stream_id: bytes, payload: bytes) -> None:
        send_data(stream_id, payload)
        side.session.writable_changed()

    side.link.send_data = send_and_resume  # type: ignore[assignment, method-assign]
    side.make_writable()
    assert len(side.link.data(first)) == len(side.link.data(second)) == 3
    assert side.tables() == 2


def test_a_stream_that_ended_while_it_waited_has_no_turn() -> None:
    """Its place goes to the next."""
    side = Side()
    (first, _), (second, _) = side.open(1), side.open(2)
    side.link.writable = False
    first.send(b"1")
    second.send(b"2")
    first.receive_disconnect("")
    side.make_writable()
    assert side.link.data() == [b"2"]
    assert side.tables() == 1


# -- Pacing of peers without credits --------------------------------------------------------------------------------


def test_one_ping_serves_all_streams_that_wait_for_it() -> None:
    """The next one is sent for those that came later, when the first is answered."""
    side = Side()
    streams = [side.open(number, SendWindow(paced=True))[0] for number in (1, 2, 3)]
    for stream in streams:
        stream.send(bytes(10 * PAYLOAD_MAX_BYTES))
    first = side.link.pings()
    assert len(first) == 1
    side.session.pong_received(first[0])
    assert len(side.link.data(streams[0])) == 10
    assert len(side.link.data(streams[1])) == UNCREDITED_MAX
    second = side.link.pings()[1:]
    assert len(second) == 1
    side.session.pong_received(second[0])
    assert [len(side.link.data(stream)) for stream in streams] == [10, 10, 10]
    assert side.role.pongs == []


def test_an_old_or_foreign_pong_confirms_nothing() -> None:
    """A pong to keep-alive may answer a ping that was sent before the data."""
    side = Side()
    stream, _ = side.open(window=SendWindow(paced=True))
    stream.send(bytes(10 * PAYLOAD_MAX_BYTES))
    side.session.pong_received(b"pace:0")
    side.session.pong_received(b"")
    assert len(side.link.data()) == UNCREDITED_MAX
    assert side.role.pongs == [b"pace:0", b""]


def test_a_pong_that_was_lost_is_asked_for_again() -> None:
    """The original gives one up that it cannot write within a second; the next sign of life repeats the question."""
    side = Side()
    stream, _ = side.open(window=SendWindow(paced=True))
    stream.send(bytes(10 * PAYLOAD_MAX_BYTES))
    side.session.pong_received(b"")
    assert len(side.link.pings()) == 2
    assert len(set(side.link.pings())) == 1
    side.session.pong_received(side.link.pings()[1])
    assert len(side.link.data()) == 10
    side.session.pong_received(side.link.pings()[0])
    assert len(side.link.pings()) == 2


def test_streams_that_end_before_the_pong_do_not_stop_the_others() -> None:
    """The pong still counts, and the next ping goes out."""
    side = Side()
    (first, _), (second, _) = (side.open(number, SendWindow(paced=True)) for number in (1, 2))
    first.send(bytes(10 * PAYLOAD_MAX_BYTES))
    second.send(bytes(10 * PAYLOAD_MAX_BYTES))
    first.close(Reason.TIMEOUT)
    side.session.pong_received(side.link.pings()[0])
    side.session.pong_received(side.link.pings()[1])
    assert len(side.link.data(second)) == 10


def test_credits_end_the_pacing() -> None:
    """A peer that grants is not pinged."""
    side = Side()
    stream, _ = side.open(window=SendWindow(paced=True))
    stream.receive_credits(CREDITS_INITIAL)
    stream.send(bytes(CREDITS_INITIAL * PAYLOAD_MAX_BYTES))
    assert len(side.link.data()) == CREDITS_INITIAL
    assert side.link.pings() == []


def test_a_grant_and_a_pong_that_cross_count_once() -> None:
    """What the pong confirms was counted by the grant."""
    side = Side()
    stream, _ = side.open(window=SendWindow(paced=True))
    stream.send(bytes(100 * PAYLOAD_MAX_BYTES))
    stream.receive_credits(CREDITS_INITIAL)
    assert len(side.link.data()) == CREDITS_INITIAL
    side.session.pong_received(side.link.pings()[0])
    assert len(side.link.data()) == CREDITS_INITIAL


# -- Holding the link -----------------------------------------------------------------------------------------------


def test_a_peer_that_cannot_be_slowed_down_is_not_read_until_the_endpoint_has_room() -> None:
    """W11: nothing is lost, and the endpoint drains before more arrives."""
    side = Side()
    stream, endpoint = side.open(takes=1000)
    while not side.link.held:
        stream.receive(bytes(PAYLOAD_MAX_BYTES))
    endpoint.drain()
    assert not side.link.held
    assert side.tables() == 1


def test_the_link_is_held_as_long_as_any_stream_needs_it() -> None:
    """And released with the last, also where that one ended."""
    side = Side()
    pairs = [side.open(number, takes=1000) for number in (1, 2)]
    for stream, _ in pairs:
        side.session.hold_for(stream)
    pairs[0][1].stream.endpoint_full(False)
    assert side.link.held
    pairs[1][0].close(Reason.TIMEOUT)
    assert not side.link.held


def test_what_was_held_back_may_fill_the_endpoint_at_once() -> None:
    """Then no credits are granted, and the link may be held anew."""
    side = Side()
    stream, endpoint = side.open(takes=10)
    stream.receive(bytes(20))
    side.session.hold_for(stream)

    def more() -> None:
        for _ in range(8):
            stream.receive(bytes(20))

    side.link.on_release = more
    endpoint.drain()
    assert endpoint.full
    assert side.link.controls() == []
    side.link.on_release = lambda: None
    endpoint.drain()
    assert [control.credits for control in side.link.controls()] == [9]


# -- The end --------------------------------------------------------------------------------------------------------


def test_a_lost_link_aborts_every_endpoint_and_leaves_no_entry() -> None:
    """W16: nobody knows what did not arrive, so every end is a broken one."""
    side = Side()
    opened = [side.open(number, SendWindow(paced=True)) for number in range(1, 6)]
    for stream, _ in opened:
        stream.send(bytes(20 * PAYLOAD_MAX_BYTES))
    side.link.writable = False
    opened[0][0].send(b"x")
    side.session.hold_for(opened[1][0])
    side.session.link_lost(LOST)
    assert all(endpoint.aborted for _, endpoint in opened)
    assert side.tables() == 0
    assert side.session.ended
    assert {reason for _, reason in side.role.ended} == {"session_ended"}
    assert side.role.ends == [LOST]


def test_a_lost_link_breaks_both_ends_of_a_pair() -> None:
    """Client and service see it."""
    pair = SessionPair()
    client, service = pair.open()
    pair.lose()
    assert client.aborted
    assert service.aborted


def test_streams_leave_no_entry_however_they_end() -> None:
    """W16: not in the table, the round, the paces or the holds."""
    side = Side()

    def both_eofs(stream: Stream) -> None:
        stream.send_eof()
        stream.receive_eof()

    breaks: list[Callable[[Stream], None]] = [
        lambda stream: stream.receive_disconnect(""),
        lambda stream: stream.receive_disconnect("reset"),
        lambda stream: stream.endpoint_lost(),
        lambda stream: stream.close(Reason.TIMEOUT),
    ]
    ends = [*breaks, lambda stream: stream.end_cleanly(), both_eofs]
    for number, end in enumerate(ends, 1):
        stream, _ = side.open(number, SendWindow(paced=True))
        stream.send(bytes(9 * PAYLOAD_MAX_BYTES) if end in breaks else b"x")
        side.session.hold_for(stream)
        end(stream)
    assert len(side.role.ended) == len(ends)
    assert side.tables() == 0
    assert not side.link.held


def test_ending_all_tells_the_peer_why() -> None:
    """For a stop."""
    side = Side()
    ids = [id_text(side.open(number)[0].id) for number in (1, 2)]
    side.session.end_all(Reason.SHUTDOWN)
    assert [(id_text(one.stream_id), one.reason) for one in side.link.controls("disconnect")] == [
        (one, "shutdown") for one in ids
    ]
    assert side.session.streams == {}


def test_buffered_bytes_are_those_of_the_link_and_of_all_endpoints() -> None:
    """What a metric shows."""
    side = Side()
    for number in (1, 2):
        stream, _ = side.open(number, takes=0)
        stream.receive(bytes(100))
    side.link.waiting = 7
    assert side.session.buffered_bytes() == 207


# -- Windows ----------------------------------------------------------------------------------------------------------


def transfer(pair: SessionPair, messages: int) -> None:
    """Send full messages from the service to the client, all within one round trip."""
    at_backend = pair.streams[-1][1]
    for _ in range(messages):
        at_backend.stream.send(bytes(PAYLOAD_MAX_BYTES))
        pair.settle()


def transfer_slowly(pair: SessionPair, messages: int) -> None:
    """Send full messages, one a millisecond, none of which the window may hold back."""
    for _ in range(messages):
        pair.hub.link.clock_s += 0.001
        assert pair.streams[-1][1].stream.send_window.can_send()
        transfer(pair, 1)


def test_a_window_grows_where_it_holds_its_sender_back() -> None:
    """A long path needs more than 64 messages under way; a grant above that tells the sender."""
    pair = SessionPair()
    at_hub, _ = pair.open()
    pair.hub.link.round_trip_s = 0.2
    transfer(pair, CREDITS_INITIAL)
    stream = at_hub.stream
    assert stream.receive_window.size == 2 * CREDITS_INITIAL
    granted = sum(control.credits for control in pair.hub.link.controls("resume_stream"))
    assert granted == 2 * CREDITS_INITIAL
    assert pair.streams[-1][1].stream.send_window.available == 2 * CREDITS_INITIAL


@pytest.mark.parametrize("round_trip_s", [None, 0.02])
def test_a_window_stays_where_it_fits_or_nothing_is_known(round_trip_s: float | None) -> None:
    """64 messages that leave within 64 ms, about three round trips."""
    pair = SessionPair()
    at_hub, _ = pair.open()
    pair.hub.link.round_trip_s = round_trip_s
    transfer_slowly(pair, 4 * CREDITS_INITIAL)
    assert at_hub.stream.receive_window.size == CREDITS_INITIAL


def test_a_window_shrinks_where_it_only_makes_a_queue() -> None:
    """A short path needs few messages under way; the sender always has some, and what is given back can be used."""
    pair = SessionPair()
    at_hub, at_backend = pair.open()
    pair.hub.link.round_trip_s = 0.0001
    transfer_slowly(pair, 20 * CREDITS_INITIAL)
    window, sender = at_hub.stream.receive_window, at_backend.stream.send_window
    assert window.size == sender.available + window.held == SHRINK_MIN
    assert pair.hub.session.window_messages == SHRINK_MIN
    at_hub.stream.close(Reason.RESET)
    assert pair.hub.session.window_messages == pair.hub.session.grown_messages == 0


def test_a_window_that_shrank_grows_again() -> None:
    """When the path has become long, or has been busy with something else."""
    pair = SessionPair()
    at_hub, _ = pair.open()
    pair.hub.link.round_trip_s = 0.0001
    transfer_slowly(pair, 20 * CREDITS_INITIAL)
    pair.hub.link.round_trip_s = 1000.0
    transfer(pair, 2 * WINDOW_MAX)
    assert at_hub.stream.receive_window.size == WINDOW_MAX
    at_hub.stream.close(Reason.RESET)
    assert pair.hub.session.window_messages == pair.hub.session.grown_messages == 0


def test_a_window_does_not_grow_beyond_its_bound() -> None:
    """16 MiB a stream."""
    pair = SessionPair()
    at_hub, _ = pair.open()
    pair.hub.link.round_trip_s = 1000.0
    transfer(pair, 2 * WINDOW_MAX)
    assert at_hub.stream.receive_window.size == WINDOW_MAX


def test_many_streams_share_the_budget_of_their_session_and_give_it_back() -> None:
    """Then new streams start with little, and grow none the less where they are held back."""
    pair = SessionPair()
    while pair.hub.session.window_messages + CREDITS_INITIAL <= WINDOWS_MAX:
        pair.open()
    late, _ = pair.open()
    assert late.stream.receive_window.size == WINDOW_MIN
    pair.hub.link.round_trip_s = 1000.0
    transfer(pair, 2 * WINDOW_MAX)
    assert late.stream.receive_window.size == WINDOW_MAX
    assert pair.hub.session.grown_messages == WINDOW_MAX - WINDOW_MIN
    for stream in tuple(pair.hub.session.streams.values()):
        stream.close(Reason.RESET)
    assert pair.hub.session.window_messages == pair.hub.session.grown_messages == 0


def test_what_the_windows_of_a_session_grow_by_is_bounded() -> None:
    """The last one takes what is left, and gives it back."""
    pair = SessionPair()
    pair.hub.link.round_trip_s = 1000.0
    at_hub, _ = pair.open()
    pair.hub.session.grown_messages = WINDOWS_MAX - 10
    transfer(pair, 2 * WINDOW_MAX)
    assert at_hub.stream.receive_window.size == CREDITS_INITIAL + 10
    at_hub.stream.close(Reason.RESET)
    assert pair.hub.session.grown_messages == WINDOWS_MAX - 10
