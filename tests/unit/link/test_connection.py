"""Tests of links on a transport in memory, with the library alone on the other side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.link.connection import (
    CLOSE_TIMEOUT_S,
    HANDSHAKE_FRAMES_MAX,
    KEEP_ALIVE_PING,
    RECEIVE_BUFFER_BYTES,
    WRITE_BATCH_BYTES,
    WRITE_MAX_BYTES,
    LinkEnd,
)
from nexus.link.hold import SIGN_OF_LIFE_S
from nexus.protocol.constants import (
    CLOSE_REASON_MAX_BYTES,
    HANDSHAKE_MESSAGE_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
)
from tests.support.framing import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from tests.support.links import LinkHarness

STREAM_ID = bytes(range(16))
both_roles = pytest.mark.parametrize("server", [True, False], ids=["hub", "backend"])
HEAD = "GET {path} HTTP/1.1\r\nHost: hub.example\r\n{fields}\r\n"
FIELDS = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


# -- Messages -------------------------------------------------------------------------------------------------------


@both_roles
async def test_data_and_control_messages_arrive_as_sent(server: bool) -> None:
    """Whole frames, masked from a backend."""
    harness = LinkHarness(server=server).open()
    for payload in (b"", b"abc", bytes(PAYLOAD_MAX_BYTES)):
        harness.link.send_data(STREAM_ID, payload)
    harness.link.send_message(b"\x02{}")
    harness.link.ping(b"?")
    frames = harness.frames()
    assert frames[:3] == [
        ("binary", b"\x01" + STREAM_ID + payload) for payload in (b"", b"abc", bytes(PAYLOAD_MAX_BYTES))
    ]
    assert frames[3:] == [("binary", b"\x02{}"), ("ping", b"?")]


async def test_what_is_sent_in_one_turn_is_one_write() -> None:
    """Headers and payloads of several messages together: one system call, few TLS records."""
    harness = LinkHarness(server=True).open()
    before = harness.transport.writes
    harness.link.send_message(b"\x02{}")
    harness.link.send_data(STREAM_ID, bytes(1000))
    await asyncio.sleep(0)
    assert harness.transport.writes == before + 1
    assert [kind for kind, _ in harness.frames()] == ["binary", "binary"]


async def test_the_next_turn_comes_after_everybody_elses() -> None:
    """Long work that asks for it leaves the event loop to what was ready before."""
    link, done = LinkHarness(server=True).open().link, list[str]()
    asyncio.get_running_loop().call_soon(done.append, "somebody else")
    link.next_turn(lambda: done.append("the rest"))
    assert done == []
    await asyncio.sleep(0)
    assert done == ["somebody else", "the rest"]


async def test_a_full_batch_is_written_within_the_turn() -> None:
    """What waits in a link is bounded even before the turn ends."""
    harness = LinkHarness(server=True).open()
    before = harness.transport.writes
    for _ in range(2):
        harness.link.send_data(STREAM_ID, bytes(WRITE_BATCH_BYTES // 2))
    assert harness.transport.writes == before + 1
    await asyncio.sleep(0)
    assert harness.transport.writes == before + 1


@both_roles
async def test_pings_are_answered_and_pongs_told(server: bool) -> None:
    """In the order of everything else."""
    harness = LinkHarness(server=server).open()
    parts = [frame(PING, b"a", masked=server), frame(BINARY, b"m", masked=server), frame(PONG, b"b", masked=server)]
    harness.feed(b"".join(parts))
    assert harness.frames() == [("pong", b"a")]
    assert harness.owner.heard == [("binary", b"m"), ("pong", b"b")]


@both_roles
async def test_a_text_in_fragments_is_one_text(server: bool) -> None:
    """Cut inside a character, with a ping between."""
    harness = LinkHarness(server=server).open()
    text = "tök\u20ac".encode()
    harness.feed(
        frame(TEXT, text[:2], masked=server, fin=False)
        + frame(PING, b"", masked=server)
        + frame(CONTINUATION, b"", masked=server, fin=False)
        + frame(CONTINUATION, text[2:], masked=server)
    )
    assert harness.owner.heard == [("text", text.decode())]


@both_roles
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 4096, MESSAGE_MAX_BYTES]), max_size=8), chunk=st.integers(1, 70_000)
)
def test_messages_arrive_however_they_are_cut(server: bool, sizes: list[int], chunk: int) -> None:
    """More of them than the buffer holds."""

    async def run() -> None:
        harness = LinkHarness(server=server).open()
        harness.link.start_session()
        data = b"".join(frame(BINARY, bytes([at]) * size, masked=server) for at, size in enumerate(sizes))
        harness.feed(data, max(chunk, len(data) // 50))
        assert harness.owner.told("binary") == [bytes([at]) * size for at, size in enumerate(sizes)]

    asyncio.run(run())


# -- Limits and violations ------------------------------------------------------------------------------------------


async def closed_by(harness: LinkHarness, data: bytes, code: int, error: str) -> None:
    """Assert that ``data`` ends the link with ``code``, and that nothing behind it is looked at."""
    harness.feed(data + frame(BINARY, b"behind", masked=harness.server) + frame(PING, b"", masked=harness.server))
    harness.link.buffer_updated(0)
    heard = harness.hear()
    assert harness.peer.close_rcvd is not None
    assert harness.peer.close_rcvd.code == code
    assert len(heard) == 1
    assert harness.owner.told("binary") == []
    assert harness.link.is_closing()
    assert error in str(harness.lose())


@both_roles
@pytest.mark.parametrize("in_session", [True, False], ids=["session", "handshake"])
async def test_a_message_over_the_limit_closes_with_1009(server: bool, in_session: bool) -> None:
    """64 KiB during the handshake, 32,785 bytes in the session."""
    harness = LinkHarness(server=server).open()
    limit = MESSAGE_MAX_BYTES if in_session else HANDSHAKE_MESSAGE_MAX_BYTES
    if in_session:
        harness.link.start_session()
    harness.feed(frame(BINARY, bytes(limit), masked=server))
    assert harness.owner.told("binary") == [bytes(limit)]
    harness.owner.heard.clear()
    await closed_by(harness, frame(TEXT, bytes(limit + 1), masked=server), 1009, "protocol violation")


@both_roles
async def test_text_that_is_not_utf_8_closes_with_1007(server: bool) -> None:
    """The library leaves that check to us."""
    harness = LinkHarness(server=server).open()
    await closed_by(harness, frame(TEXT, b"\xff", masked=server), 1007, "text is not UTF-8")


@both_roles
@pytest.mark.parametrize(
    "build",
    [
        lambda masked: frame(BINARY, b"x", masked=masked, rsv=0x40),
        lambda masked: frame(BINARY, b"x", masked=not masked),
        lambda masked: frame(CONTINUATION, b"x", masked=masked),
        lambda masked: frame(BINARY, b"x", masked=masked, fin=False) + frame(TEXT, b"y", masked=masked),
        lambda masked: frame(0xB, b"", masked=masked),
    ],
)
async def test_violations_close_with_1002(server: bool, build: Callable[[bool], bytes]) -> None:
    """And what comes behind them in the same segment is not delivered."""
    harness = LinkHarness(server=server).open()
    await closed_by(harness, build(server), 1002, "protocol violation")


@both_roles
async def test_endless_bytes_behind_a_violation_are_dropped(server: bool) -> None:
    """A backend waits for the hub to close TCP; until then nothing is kept."""
    harness = LinkHarness(server=server).open()
    harness.feed(frame(0x3, b"", masked=server))
    harness.transport.closed = False
    harness.feed(bytes(3 * RECEIVE_BUFFER_BYTES))
    assert harness.owner.told("binary") == []


# -- Closing --------------------------------------------------------------------------------------------------------


@both_roles
async def test_a_close_is_answered_and_its_code_reported(server: bool) -> None:
    """Nothing is sent behind the answer; a hub closes TCP, a backend waits for it."""
    harness = LinkHarness(server=server).open()
    harness.peer.send_close(1001, "the backend stops")
    harness.feed(harness.peer_output())
    assert harness.link.is_closing()
    assert not harness.link.writable
    assert harness.owner.told("writable") == [False]
    harness.link.send_message(b"\x02{}")
    harness.link.send_text("late")
    harness.link.ping()
    assert harness.frames() == [("close", b"\x03\xe9the backend stops")]
    assert harness.transport.closed is server
    assert harness.lose() == LinkEnd(1001, "the backend stops")


@both_roles
async def test_closing_sends_one_close_frame_and_nothing_behind_it(server: bool) -> None:
    """Pings are still answered, messages still delivered, until the peer answers."""
    harness = LinkHarness(server=server).open()
    harness.link.close(1008, "invalid token")
    harness.link.close(1001)
    harness.link.send_message(b"\x02{}")
    harness.link.resume_writing()
    assert not harness.link.writable
    harness.feed(frame(BINARY, b"on its way", masked=server))
    assert harness.owner.told("binary") == [b"on its way"]
    assert harness.frames() == [("close", b"\x03\xf0invalid token")]
    harness.feed(harness.peer_output())
    assert harness.lose() == LinkEnd(1008, "invalid token")


@both_roles
@pytest.mark.parametrize("reason", ["x" * 500, "\u20ac" * 41 + "\u20ac", "\ud800" * 200])
async def test_a_reason_too_long_for_its_frame_is_cut(server: bool, reason: str) -> None:
    """At a character; the original sends no close frame at all then."""
    harness = LinkHarness(server=server).open()
    harness.link.close(1008, reason)
    ((kind, payload),) = harness.frames()
    assert kind == "close"
    assert CLOSE_REASON_MAX_BYTES - 3 < len(payload) - 2 <= CLOSE_REASON_MAX_BYTES
    assert reason.encode(errors="replace").startswith(payload[2:])


@both_roles
@pytest.mark.parametrize("how", ["close", "closed by peer", "violation", "eof"])
async def test_a_peer_that_does_not_end_it_is_cut_off(server: bool, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end begins a time limit, also where TCP cannot be closed because the peer takes nothing."""
    calls: dict[float, Callable[[], None]] = {}
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def call_later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        calls[delay] = callback
        return real(3600, callback)

    monkeypatch.setattr(loop, "call_later", call_later)
    harness = LinkHarness(server=server).open()
    if how == "close":
        harness.link.close()
    elif how == "eof":
        harness.link.eof_received()
    else:
        harness.feed(frame(CLOSE if how == "closed by peer" else 0x3, b"", masked=server))
    assert list(calls) == [CLOSE_TIMEOUT_S]
    assert not harness.transport.aborted
    calls[CLOSE_TIMEOUT_S]()
    assert harness.transport.aborted
    harness.lose()


@both_roles
async def test_an_abort_says_why(server: bool) -> None:
    """The first reason counts."""
    harness = LinkHarness(server=server).open()
    harness.link.abort("first")
    harness.link.abort("second")
    assert harness.transport.aborted
    assert harness.link.is_closing()
    assert str(harness.lose()) == "first"


async def test_ends_read_well_in_a_log() -> None:
    """What went wrong here, or the peer's code and reason."""
    assert str(LinkEnd(1006, "")) == "closed with code 1006"
    assert str(LinkEnd(1001, "bye")) == "closed with code 1001 (bye)"
    assert str(LinkEnd(1006, "", "reset")) == "reset"


# -- Flow -----------------------------------------------------------------------------------------------------------


async def test_the_owner_is_told_of_a_full_transport() -> None:
    """And of room in it."""
    harness = LinkHarness(server=True).open()
    harness.link.pause_writing()
    assert not harness.link.writable
    harness.link.resume_writing()
    assert harness.link.writable
    assert harness.owner.told("writable") == [False, True]


@pytest.mark.parametrize("what", ["message", "pong"])
async def test_a_peer_that_does_not_read_is_cut_off_at_16_mib(what: str) -> None:
    """Control messages and pongs are written without asking for room, so there is a last bound."""
    harness = LinkHarness(server=True).open()
    harness.transport.backlog = WRITE_MAX_BYTES
    harness.link.send_message(b"\x02{}")
    harness.link.write_out()
    assert not harness.transport.aborted
    harness.transport.backlog += 1
    if what == "message":
        harness.link.send_message(b"\x02{}")
        harness.link.write_out()
    else:
        harness.feed(frame(PING, b"", masked=True))
    assert harness.transport.aborted
    assert "does not read" in harness.lose().error


# -- Holding --------------------------------------------------------------------------------------------------------


@both_roles
async def test_a_held_link_reads_and_delivers_nothing(server: bool) -> None:
    """Also of what was in the same segment; pongs are held back, and the order is kept."""
    harness = LinkHarness(server=server).open()
    harness.owner.hold_after = "token"
    parts = [
        frame(TEXT, b"token", masked=server),
        frame(PING, b"accepted?", masked=server),
        frame(BINARY, b"1", masked=server),
        frame(BINARY, b"2", masked=server),
    ]
    harness.feed(b"".join(parts))
    assert harness.owner.heard == [("text", "token")]
    assert not harness.transport.reading
    assert harness.frames() == []
    harness.link.hold()
    harness.link.release()
    assert harness.owner.heard[1:] == [("binary", b"1"), ("binary", b"2")]
    assert harness.frames() == [("pong", b"accepted?")]
    assert harness.transport.reading
    harness.link.release()


async def test_a_link_may_be_held_again_while_it_is_released() -> None:
    """Whatever did not get out stays in front of what comes later."""
    harness = LinkHarness(server=True).open()
    harness.owner.hold_after = b"1"
    harness.feed(b"".join(frame(BINARY, b"%d" % at, masked=True) for at in range(6)))
    assert harness.owner.told("binary") == [b"0", b"1"]
    harness.owner.hold_after = b"3"
    harness.link.release()
    assert harness.owner.told("binary") == [b"0", b"1", b"2", b"3"]
    assert not harness.transport.reading
    harness.link.buffer_updated(0)
    view = harness.link.get_buffer(-1)
    late = frame(BINARY, b"6", masked=True)
    view[: len(late)] = late
    harness.link.buffer_updated(len(late))  # a loop may still deliver what it had read
    harness.owner.hold_after = None
    harness.link.release()
    assert harness.owner.told("binary") == [b"%d" % at for at in range(7)]
    assert harness.transport.reading


async def test_a_close_in_what_was_held_back_ends_it() -> None:
    """Nothing behind it is delivered, and a closed transport is not read again."""
    harness = LinkHarness(server=True).open()
    harness.owner.hold_after = b"0"
    harness.feed(frame(BINARY, b"0", masked=True) + frame(CLOSE, b"", masked=True) + frame(BINARY, b"1", masked=True))
    harness.link.release()
    assert harness.owner.told("binary") == [b"0"]
    assert harness.transport.closed
    assert not harness.transport.reading


async def test_closing_a_held_link_lets_the_peers_answer_in() -> None:
    """Otherwise a rejection would always take the whole time limit."""
    harness = LinkHarness(server=True).open()
    harness.owner.hold_after = "token"
    harness.feed(frame(TEXT, b"token", masked=True))
    harness.link.close(1008, "no")
    assert harness.transport.reading
    assert harness.frames() == [("close", b"\x03\xf0no")]
    harness.feed(harness.peer_output())
    assert harness.transport.closed


# -- Liveness -------------------------------------------------------------------------------------------------------


class Ticks:
    """Stands in for the loop's timers: ``tick`` runs the newest one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delays: list[float] = []
        self.pending: Callable[[], None] | None = None
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
            self.delays.append(delay)
            self.pending = callback
            return real(3600, callback)

        monkeypatch.setattr(loop, "call_later", call_later)

    def tick(self) -> None:
        pending, self.pending = self.pending, None
        assert pending is not None
        pending()


@both_roles
async def test_a_silent_peer_is_cut_off(server: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit at the earliest, and one interval later at the latest."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=server).open()
    harness.link.keep_alive(10, 25)
    while not harness.transport.aborted:
        assert harness.frames() == [("ping", KEEP_ALIVE_PING)]
        ticks.tick()
    assert ticks.delays[:3] == [10, 10, 5]
    assert harness.lose().error == "no sign of life for 25 s"


@both_roles
async def test_any_byte_is_a_sign_of_life(server: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pong, a message, or a piece of one."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=server).open()
    harness.link.keep_alive(10, 25)
    for _ in range(6):
        ticks.tick()
        harness.feed(frame(BINARY, b"x", masked=server)[:3])
        ticks.tick()
        harness.feed(frame(BINARY, b"x", masked=server)[3:])
    assert not harness.transport.aborted
    assert set(ticks.delays) == {10}


async def test_a_held_link_is_not_called_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether something arrived."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=True).open()
    harness.link.hold()
    harness.link.keep_alive(10, 25)
    for _ in range(10):
        ticks.tick()
    assert not harness.transport.aborted


@both_roles
async def test_a_held_link_gives_signs_of_life(server: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers no pings, and an original client before v0.3.7 leaves after 10 s without a pong or a message."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=server).open()
    harness.link.hold()
    for _ in range(4):
        ticks.tick()
        assert harness.frames() == [("pong", b"")]
    assert ticks.delays == [SIGN_OF_LIFE_S] * 5


@both_roles
async def test_no_sign_of_life_follows_a_close_frame(server: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a timer go on."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=server).open()
    harness.link.hold()
    beat = ticks.pending
    harness.link.close()
    assert [kind for kind, _ in harness.frames()] == ["close"]
    ticks.pending = beat
    ticks.tick()
    assert harness.frames() == []
    assert ticks.pending is None


async def test_a_sign_of_life_is_no_answer_to_a_ping() -> None:
    """Taken for one it would make the round trip look short, and a window that is too small would never grow."""
    harness = LinkHarness(server=False).open()
    harness.link.keep_alive(10, 25)
    harness.feed(frame(PONG, b"", masked=False))
    assert harness.link.round_trip_s is None
    harness.feed(frame(PONG, KEEP_ALIVE_PING, masked=False))
    assert harness.link.round_trip_s is not None
    harness.lose()


async def test_it_is_known_until_when_a_link_was_held() -> None:
    """Never, until now, or until it was released."""
    harness = LinkHarness(server=True).open()
    assert harness.link.held_until(5.0) == -math.inf
    harness.link.hold()
    assert harness.link.held_until(5.0) == 5.0
    before = harness.link.now()
    harness.link.release()
    assert before <= harness.link.held_until(math.inf) <= harness.link.now()
    harness.lose()


async def test_the_ticks_end_with_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer keeps a lost link alive."""
    ticks = Ticks(monkeypatch)
    harness = LinkHarness(server=True).open()
    harness.link.keep_alive(10, 25)
    harness.lose()
    assert harness.link._timers == {}
    ticks.tick()
    assert ticks.pending is None
    harness.link.close()
    assert ticks.pending is None


async def test_a_stranger_may_not_send_frames_without_end() -> None:
    """Empty fragments of one text message cost no memory, but work: before the session they are counted."""
    harness = LinkHarness(server=True).open()
    harness.feed(frame(TEXT, b"", masked=True, fin=False))
    harness.feed(frame(CONTINUATION, b"", masked=True, fin=False) * (HANDSHAKE_FRAMES_MAX - 1))
    assert not harness.link.is_closing()
    harness.feed(frame(CONTINUATION, b"", masked=True, fin=False))
    assert harness.link.is_closing()
    assert harness.frames()[-1][0] == "close"


async def test_a_session_may_send_rare_frames_without_end() -> None:
    """The bound is for strangers only."""
    harness = LinkHarness(server=True).open()
    harness.link.start_session()
    harness.feed(frame(PING, b"", masked=True) * (2 * HANDSHAKE_FRAMES_MAX))
    assert not harness.link.is_closing()


@both_roles
async def test_text_may_be_longer_than_the_receive_buffer(server: bool) -> None:
    """Where the owner allows it: a peer announces all its routes in one message."""
    harness = LinkHarness(server=server).open()
    harness.link.start_session()
    harness.link.limit_messages(MESSAGE_MAX_BYTES, 1_000_000)
    text = "n" * 999_999
    harness.feed(frame(TEXT, text.encode(), masked=server) + frame(BINARY, b"data", masked=server))
    assert harness.owner.heard == [("text", text), ("binary", b"data")]
    harness.feed(frame(TEXT, b"n" * 1_000_001, masked=server))
    harness.hear()
    assert harness.peer.close_rcvd is not None
    assert harness.peer.close_rcvd.code == 1009


@both_roles
async def test_binary_messages_keep_their_limit_beside_longer_text(server: bool) -> None:
    """Nothing of one kind is measured by the other's bound."""
    harness = LinkHarness(server=server).open()
    harness.link.start_session()
    harness.link.limit_messages(MESSAGE_MAX_BYTES, 1_000_000)
    harness.feed(frame(BINARY, bytes(MESSAGE_MAX_BYTES), masked=server))
    harness.feed(frame(BINARY, bytes(MESSAGE_MAX_BYTES + 1), masked=server))
    harness.hear()
    assert [len(what) for what in harness.owner.told("binary") if isinstance(what, bytes)] == [MESSAGE_MAX_BYTES]
    assert harness.peer.close_rcvd is not None
    assert harness.peer.close_rcvd.code == 1009
