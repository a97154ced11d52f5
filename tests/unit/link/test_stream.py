"""Tests of streams: order, credits, pauses and ends, without sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.link.stream import Stream
from nexus.protocol.constants import (
    CREDITS_BATCH,
    CREDITS_INITIAL,
    CREDITS_OVERSHOOT,
    FIRST_GRANT_AFTER,
    MESSAGE_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    UNCREDITED_MAX,
)
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow
from tests.support.sessions import FakeEndpoint, SessionPair, Side

BOTH = pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "no half-close"])


def reasons(side: Side) -> list[str]:
    return [control.reason for control in side.link.controls("disconnect")]


# -- Sending --------------------------------------------------------------------------------------------------------


def test_a_read_goes_out_at_once_as_one_message() -> None:
    """Where there are credits and the link has room, nothing is queued."""
    side = Side()
    stream, endpoint = side.open()
    stream.send(b"hello")
    assert side.link.data() == [b"hello"]
    assert endpoint.reading
    assert (stream.bytes_sent, side.session.bytes_sent) == (5, 5)


@pytest.mark.parametrize("size", [PAYLOAD_MAX_BYTES, PAYLOAD_MAX_BYTES + 1, 65_536, 100_000])
def test_a_long_prelude_is_split_into_messages_that_fit(size: int) -> None:
    """W1: no user can make a message that ends the session."""
    side = Side()
    stream, endpoint = side.open()
    prelude = bytes(at % 251 for at in range(size))
    stream.send(prelude)
    assert b"".join(side.link.data()) == prelude
    assert max(len(sent.payload) for sent in side.link.log) <= MESSAGE_MAX_BYTES
    assert len(side.link.data()) == -(-size // PAYLOAD_MAX_BYTES)
    assert endpoint.reading


def test_a_prelude_longer_than_the_credits_follows_them() -> None:
    """What was not sent is kept, the endpoint is not read, and credits move exactly as much as they say."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(1, paced=False))
    stream.send(bytes(3 * PAYLOAD_MAX_BYTES))
    assert len(side.link.data()) == 1
    assert not endpoint.reading
    stream.receive_credits(1)
    assert len(side.link.data()) == 2
    assert not endpoint.reading
    stream.receive_credits(8)
    assert len(side.link.data()) == 3
    assert endpoint.reading


def test_an_empty_read_sends_nothing_and_stops_nothing() -> None:
    """It would cost a credit and say nothing."""
    side = Side()
    stream, endpoint = side.open()
    stream.send(b"")
    side.link.writable = False
    stream.send(b"")
    assert side.link.data() == []
    assert endpoint.reading


def test_reading_stops_with_the_last_credit_and_starts_with_the_next() -> None:
    """Not one message later."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(2, paced=False))
    stream.send(b"a")
    assert endpoint.reading
    stream.send(b"b")
    assert not endpoint.reading
    stream.receive_credits(8)
    assert endpoint.reading


def test_a_read_while_the_link_is_full_waits_for_room() -> None:
    """At most one read is kept."""
    side = Side()
    stream, endpoint = side.open()
    side.link.writable = False
    stream.send(b"late")
    assert side.link.data() == []
    assert not endpoint.reading
    assert stream.is_waiting
    side.make_writable()
    assert side.link.data() == [b"late"]
    assert endpoint.reading
    assert not stream.is_waiting


def test_a_read_never_overtakes_what_waits() -> None:
    """Not even where the link has room again and the turn has not come yet."""
    side = Side()
    stream, _ = side.open()
    side.link.writable = False
    stream.send(b"first")
    side.link.writable = True
    stream.send(b"second")
    side.session.writable_changed()
    assert side.link.data() == [b"first", b"second"]


def test_a_pause_stops_reading_until_any_resume() -> None:
    """A read that was under way is kept."""
    side = Side()
    stream, endpoint = side.open()
    stream.receive_pause()
    assert not endpoint.reading
    stream.send(b"under way")
    assert side.link.data() == []
    stream.receive_credits(0)
    assert side.link.data() == [b"under way"]
    assert endpoint.reading


def test_a_pause_takes_a_waiting_stream_out_of_the_round() -> None:
    """It comes back with the resume."""
    side = Side()
    stream, _ = side.open()
    side.link.writable = False
    stream.send(b"x")
    stream.receive_pause()
    side.make_writable()
    assert side.link.data() == []
    stream.receive_credits(0)
    assert side.link.data() == [b"x"]


def test_a_peer_without_credits_has_at_most_eight_unconfirmed_messages() -> None:
    """A ping asks for more room, once."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(paced=True))
    stream.send(bytes(20 * PAYLOAD_MAX_BYTES))
    assert len(side.link.data()) == UNCREDITED_MAX
    assert len(side.link.pings()) == 1
    side.session.pong_received(side.link.pings()[0])
    assert len(side.link.data()) == 2 * UNCREDITED_MAX
    assert len(side.link.pings()) == 2
    side.session.pong_received(side.link.pings()[1])
    assert len(side.link.data()) == 20
    assert endpoint.reading


# -- Receiving ------------------------------------------------------------------------------------------------------


def test_a_batch_that_left_is_granted_again() -> None:
    """Of whatever sizes, also empty ones, which deliver nothing."""
    side = Side()
    stream, endpoint = side.open()
    for _ in range(CREDITS_BATCH):
        assert side.link.controls() == []
        stream.receive(b"")
    assert [control.credits for control in side.link.controls("resume_stream")] == [CREDITS_BATCH]
    assert endpoint.received() == b""


def test_a_first_grant_may_come_late_and_is_whole_then() -> None:
    """Not held back by a full endpoint: it covers what was sent before it."""
    side = Side()
    stream, _ = side.open()
    stream.grant_late()
    stream.endpoint_full(True)
    for _ in range(FIRST_GRANT_AFTER - 1):
        stream.receive(b"x")
    assert side.link.controls() == []
    for _ in range(CREDITS_BATCH):
        stream.receive(b"x")
    assert [control.credits for control in side.link.controls("resume_stream")] == [stream.receive_window.size]
    stream.endpoint_full(False)
    granted = [control.credits for control in side.link.controls("resume_stream")]
    assert granted[1:] == [FIRST_GRANT_AFTER - 1 + CREDITS_BATCH]


def test_grants_are_withheld_while_the_endpoint_is_full() -> None:
    """They follow in one message when it has drained."""
    side = Side()
    stream, endpoint = side.open(takes=10)
    for _ in range(20):
        stream.receive(b"0123456789")
    assert stream.is_waiting
    granted = sum(control.credits for control in side.link.controls("resume_stream"))
    assert granted == 0
    endpoint.drain()
    assert [control.credits for control in side.link.controls("resume_stream")] == [20]


def test_a_hub_without_credits_is_paused_and_resumed_instead() -> None:
    """A grant would undo the pause."""
    side = Side()
    stream, endpoint = side.open(takes=10)
    stream.grants = False
    for _ in range(3):
        stream.receive(b"0123456789")
    endpoint.drain()
    for _ in range(CREDITS_INITIAL):
        stream.receive(b"x")
        endpoint.drain()
    controls = [(control.event, control.reason, control.credits) for control in side.link.controls()]
    assert controls[:2] == [("pause_stream", "buffer_full", 0), ("resume_stream", "", 0)]
    assert {control[2] for control in controls} == {0}


@pytest.mark.parametrize("size", [PAYLOAD_MAX_BYTES, 1])
def test_a_peer_that_overruns_its_credits_is_reported(size: int) -> None:
    """Counted in messages, as small ones cost memory, too."""
    side = Side()
    stream, _ = side.open(takes=0)
    for _ in range(CREDITS_INITIAL + CREDITS_OVERSHOOT):
        stream.receive(bytes(size))
    assert side.role.overflows == []
    stream.receive(bytes(size))
    assert side.role.overflows == [stream]


def test_data_behind_the_end_is_dropped() -> None:
    """A peer that sends on after its half_close cannot reach the endpoint."""
    side = Side()
    stream, endpoint = side.open()
    stream.receive_eof()
    stream.receive(b"more")
    stream.receive_eof()
    assert endpoint.received() == b""
    assert stream.bytes_received == 0


# -- Before the endpoint is there -----------------------------------------------------------------------------------


def test_what_arrives_while_dialling_is_delivered_in_order() -> None:
    """And its credits are granted only then."""
    side = Side()
    stream = side.dialling()
    for number in range(CREDITS_BATCH):
        stream.receive(bytes([number]))
    assert side.link.controls() == []
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    assert endpoint.received() == bytes(range(CREDITS_BATCH))
    assert [control.credits for control in side.link.controls()] == [CREDITS_BATCH]


def test_an_endpoint_that_is_full_at_once_gets_no_credits_granted() -> None:
    """The withheld grant follows when it drains."""
    side = Side()
    stream = side.dialling()
    for _ in range(CREDITS_BATCH):
        stream.receive(b"12345")
    endpoint = FakeEndpoint(stream, takes=1)
    stream.attach(endpoint)
    assert side.link.controls() == []
    endpoint.drain()
    assert [control.credits for control in side.link.controls()] == [CREDITS_BATCH]


@pytest.mark.parametrize("end", ["eof", "clean", "broken", "lost", "closed"])
def test_an_end_while_dialling_reaches_the_endpoint(end: str) -> None:
    """Behind the bytes where it is orderly, at once where it is not."""
    side = Side()
    stream = side.dialling()
    stream.receive(b"request")
    ends: dict[str, Callable[[], None]] = {
        "eof": stream.receive_eof,
        "clean": lambda: stream.receive_disconnect(""),
        "broken": lambda: stream.receive_disconnect("reset"),
        "lost": stream.session_lost,
        "closed": lambda: stream.close(Reason.TIMEOUT),
    }
    ends[end]()
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    orderly = end in {"eof", "clean"}
    assert endpoint.received() == (b"request" if orderly else b"")
    assert (endpoint.eof, endpoint.finished, endpoint.aborted) == (end == "eof", end == "clean", not orderly)


def test_a_pause_while_dialling_holds_for_the_endpoint() -> None:
    """It starts out not reading, so nothing piles up."""
    side = Side()
    stream = side.dialling()
    stream.receive_pause()
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    assert not endpoint.reading
    stream.receive_credits(0)
    assert endpoint.reading


def test_an_endpoint_that_broke_before_it_was_attached_is_aborted() -> None:
    """Its stream has ended already; what waits for it has nowhere to go."""
    side = Side()
    stream = side.dialling()
    stream.receive(b"request")
    endpoint = FakeEndpoint(stream)
    stream.endpoint_lost()
    stream.attach(endpoint)
    assert endpoint.aborted
    assert endpoint.received() == b""


def test_a_second_attach_only_swaps_the_endpoint() -> None:
    """Nothing waits for it."""
    side = Side()
    stream, first = side.open()
    stream.receive(b"a")
    second = FakeEndpoint(stream)
    stream.attach(second)
    stream.receive(b"b")
    assert (first.received(), second.received()) == (b"a", b"b")


def test_a_link_that_was_held_while_dialling_is_released_by_an_endpoint_that_takes_all() -> None:
    """W11: otherwise every other stream of the session would stand still for ever."""
    side = Side()
    stream = side.dialling()
    while not side.link.held:
        stream.receive(bytes(PAYLOAD_MAX_BYTES))
    stream.attach(FakeEndpoint(stream))
    assert not side.link.held
    assert side.tables() == 1


def test_credits_follow_what_a_full_endpoint_has_delivered() -> None:
    """All but what it keeps, a batch at a time; nothing once the stream has ended."""
    side = Side()
    stream, _ = side.open(takes=10)
    for _ in range(20):
        stream.receive(b"message")
    before = len(side.link.controls("resume_stream"))
    stream.endpoint_keeps(13)
    assert len(side.link.controls("resume_stream")) == before
    stream.endpoint_keeps(4)
    assert [control.credits for control in side.link.controls("resume_stream")[before:]] == [16]
    stream.close(Reason.TIMEOUT)
    stream.endpoint_keeps(0)
    assert len(side.link.controls("resume_stream")) == before + 1


# -- Idle accounting ------------------------------------------------------------------------------------------------


def idle_after(stream: Stream, seconds: float = 100.0) -> float:
    """Ask now and later, as the sweep does."""
    stream.idle_s(1000.0)
    return stream.idle_s(1000.0 + seconds)


def test_a_stream_on_which_nothing_moves_is_idle() -> None:
    """Counted from the sweep that first saw it so."""
    stream, _ = Side().open()
    assert idle_after(stream) == 100.0
    stream.send(b"x")
    assert stream.idle_s(1200.0) == 0.0


@pytest.mark.parametrize("why", ["no credits", "paused", "link full"])
def test_a_stream_that_waits_for_its_peer_is_not_idle(why: str) -> None:
    """W18: it is not at fault."""
    side = Side()
    stream, _ = side.open(window=SendWindow(1, paced=False) if why == "no credits" else None)
    if why == "paused":
        stream.receive_pause()
    side.link.writable = why != "link full"
    stream.send(bytes(2 * PAYLOAD_MAX_BYTES))
    assert idle_after(stream) == 0.0


def test_a_stream_whose_endpoint_takes_nothing_is_idle() -> None:
    """Also when it waits for its peer at the same time."""
    side = Side()
    stream, endpoint = side.open(window=SendWindow(1, paced=False), takes=10)
    stream.receive(b"response")
    stream.send(bytes(2 * PAYLOAD_MAX_BYTES))
    assert idle_after(stream) == 100.0
    endpoint.drain(1)
    assert stream.idle_s(1300.0) == 0.0


def test_a_stream_that_has_sent_its_end_waits_for_nobody() -> None:
    """Although its endpoint is not read any more, an answer that never comes makes it idle."""
    side = Side()
    stream, _ = side.open(window=SendWindow(1, paced=False))
    stream.send(b"last credit")
    stream.send_eof()
    assert stream.sent_eof
    assert idle_after(stream) == 100.0


def test_a_stream_that_is_held_up_by_this_side_is_not_idle() -> None:
    """Bytes that wait for the node's cap are no fault of the client's."""
    stream, _ = Side().open(takes=10)
    held_up = True
    stream.held_up = lambda: held_up
    stream.receive(b"an answer that has to wait")
    assert idle_after(stream) == 0.0
    held_up = False
    assert stream.idle_s(1200.0) == 100.0


def test_a_stream_is_not_idle_while_its_link_is_held() -> None:
    """What its peer sent may be here, unread, and the time counts anew from then on."""
    side = Side()
    stream, _ = side.open()
    side.link.hold()
    assert idle_after(stream) == 0.0
    side.link.clock_s = 1150.0
    side.link.release()
    assert stream.idle_s(1200.0) == 50.0
    side.link.hold()
    side.link.release()
    assert stream.idle_s(1250.0) == 100.0


def test_a_stream_whose_endpoint_takes_nothing_is_idle_although_its_link_is_held() -> None:
    """It may be the very one that the link is held for."""
    side = Side()
    stream, _ = side.open(takes=10)
    stream.receive(bytes(20))
    side.session.hold_for(stream)
    assert idle_after(stream) == 100.0


# -- Everything at random -------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "read", "carry", "carry", "drain", "full", "room", "pause", "resume"]),
        st.integers(0, 1),
        st.integers(0, 2),
        st.integers(1, 3 * PAYLOAD_MAX_BYTES),
    ),
    max_size=120,
)


def one_step(pair: SessionPair, step: tuple[str, int, int, int], fed: dict[FakeEndpoint, bytearray]) -> None:
    """Do one thing at one side."""
    name, at, number, size = step
    side = (pair.hub, pair.backend)[at]
    endpoint = pair.streams[number][at]
    stream = endpoint.stream
    if name == "read" and endpoint.reading and not stream.ended:
        payload = bytes((size + at) % 251 for at in range(min(size, 70_000)))
        fed[endpoint] += payload
        stream.send(payload)
    elif name == "carry":
        pair.deliver(side, size % 40)
    elif name == "drain":
        endpoint.drain(size)
    elif name == "full":
        side.link.writable = False
    elif name == "room":
        side.make_writable(size % 9 or None)
    elif name == "pause" and not stream.ended:
        side.session.send_control(b"\x02" + b'{"event":"pause_stream","client_id":"%b"}' % stream.id.hex().encode())
    elif name == "resume" and not stream.ended:
        side.session.send_control(b"\x02" + b'{"event":"resume_stream","client_id":"%b"}' % stream.id.hex().encode())


@BOTH
@pytest.mark.parametrize("credits_known", [True, False], ids=["credits", "no credits"])
@settings(max_examples=60, deadline=None)
@given(plan=steps, slow=st.booleans())
def test_bytes_out_are_the_bytes_in(
    half_close: bool, credits_known: bool, slow: bool, plan: list[tuple[str, int, int, int]]
) -> None:
    """Nothing is lost, doubled or put in another order by credits, pauses, full links and slow endpoints."""
    pair = SessionPair(half_close=half_close, credits_known=credits_known)
    for _ in range(3):
        pair.open(takes=40_000 if slow else None)
    fed = {endpoint: bytearray() for both in pair.streams for endpoint in both}
    for step in plan:
        one_step(pair, step, fed)
    for both in pair.streams:
        for endpoint, side in zip(both, (pair.hub, pair.backend), strict=True):
            side.session.send_control(
                b'\x02{"event":"resume_stream","client_id":"%b"}' % endpoint.stream.id.hex().encode()
            )
    pair.settle()
    for client, service in pair.streams:
        assert service.received() == bytes(fed[client])
        assert client.received() == bytes(fed[service])
        assert client.reading
        assert service.reading
        client.stream.send_eof()
        if half_close:
            pair.settle()
            assert service.eof
        service.stream.send_eof()
        pair.settle()
        assert client.finished
        assert service.finished
    assert pair.hub.tables() == pair.backend.tables() == 0
    assert {reason for side in (pair.hub, pair.backend) for _, reason in side.role.ended} == {"normal"}
