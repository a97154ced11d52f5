"""nexus.bandwidth.endpoint: what a stream and a socket see of the cap between them, and how it ends."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nexus.bandwidth import endpoint as endpoint_module
from nexus.bandwidth.endpoint import QUEUE_HIGH_BYTES, QUEUE_HIGH_MESSAGES, QUEUE_LOW_BYTES, PacedEndpoint
from nexus.bandwidth.scheduler import Scheduler
from nexus.link.endpoint import SocketEndpoint, reset_undelivered, undelivered_bytes
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_BATCH, CREDITS_INITIAL, CREDITS_OVERSHOOT, PAYLOAD_MAX_BYTES
from nexus.protocol.window import SendWindow
from tests.support.sessions import LOST, FakeEndpoint, Side

RATE = 125_000  # 1 Mbit/s
BIG = bytes(at % 251 for at in range(PAYLOAD_MAX_BYTES))


class Case:
    """A stream and a socket with the cap between them, on a clock of their own."""

    def __init__(self, granted: int = 1 << 20, takes: int | None = None) -> None:
        self.now = 0.0
        self.side = Side()
        self.scheduler = Scheduler(RATE, lambda: None)
        self.stream = self.side.dialling(1, SendWindow(granted, paced=False))
        self.paced = PacedEndpoint(self.stream, self.scheduler.share(), lambda: self.now)
        self.socket = FakeEndpoint(cast(Stream, self.paced), takes)
        self.paced.socket = cast(SocketEndpoint, self.socket)
        self.stream.attach(self.paced)

    def use_up(self) -> None:
        """Spend what the bucket holds, so that everything has to wait."""
        assert self.scheduler.share().take(int(self.scheduler.burst), self.now)

    def serve(self, rounds: int = 1) -> None:
        """Let time pass."""
        for _ in range(rounds):
            self.now += 1.0
            self.scheduler.round(self.now)

    def run_dry(self) -> None:
        """Serve until nobody waits for the cap."""
        while self.scheduler.waiting_shares:
            self.serve()

    def sent(self) -> bytes:
        """What went to the backend."""
        return b"".join(self.side.link.data(self.stream))

    def events(self) -> list[str]:
        """The control messages to the backend, without grants."""
        return [control.event for control in self.side.link.controls() if control.event != "resume_stream"]

    def granted(self) -> int:
        """The credits granted to the backend so far."""
        return sum(control.credits for control in self.side.link.controls("resume_stream"))


# -- Towards the backend ----------------------------------------------------------------------------------------------


def test_within_the_cap_nothing_is_held() -> None:
    """Bytes and ends go straight on, both ways."""
    case = Case()
    case.paced.send(b"request")
    case.paced.send(b"")
    case.paced.send_eof()
    case.stream.receive(b"response")
    case.stream.receive_eof()
    assert case.sent() == b"request"
    assert case.events() == ["half_close"]
    assert case.socket.delivered == b"response"
    assert case.socket.finished
    assert case.socket.reading
    assert case.side.role.ended == [(case.stream, "normal")]
    assert case.scheduler.charged_bytes == len(b"requestresponse") + 2 * 17


def test_a_read_beyond_the_cap_is_held_and_the_socket_rests() -> None:
    """One read at most: the kernel pushes back on the client."""
    case = Case()
    case.use_up()
    case.paced.send(BIG)
    assert not case.socket.reading
    assert case.sent() == b""
    case.serve()
    assert 0 < len(case.sent()) < len(BIG)
    assert not case.socket.reading
    case.run_dry()
    assert case.sent() == BIG
    assert case.socket.reading


def test_fin_follows_the_last_byte() -> None:
    """W2: an end that overtakes cuts off what it was to end."""
    case = Case()
    case.use_up()
    case.paced.send(BIG)
    case.paced.send_eof()
    case.serve()
    assert case.events() == []
    case.run_dry()
    assert case.sent() == BIG
    assert case.events() == ["half_close"]


def test_a_stream_without_credits_waits_outside_the_ring() -> None:
    """W25: it costs the others nothing, and goes on with its credits."""
    case = Case(granted=2)
    case.use_up()
    case.paced.send(BIG)
    case.serve(3)
    assert len(case.side.link.data(case.stream)) == 2
    assert case.scheduler.waiting_shares == 0
    assert not case.socket.reading
    case.stream.receive_credits(1000)
    assert case.scheduler.waiting_shares == 1
    case.run_dry()
    assert case.sent() == BIG
    assert case.socket.reading


def test_the_last_credit_stops_the_socket() -> None:
    """What was held has left, but more could not."""
    case = Case(granted=1)
    case.use_up()
    case.paced.send(b"small")
    case.run_dry()
    assert case.sent() == b"small"
    assert not case.socket.reading


def test_a_stream_that_does_not_read_is_not_read_for() -> None:
    """Pause and resume of the backend reach the socket while nothing is held."""
    case = Case()
    case.stream.receive_pause()
    assert not case.socket.reading
    case.paced.send(b"read before the pause")
    assert case.sent() == b""
    assert case.scheduler.waiting_shares == 0
    case.stream.receive_credits(0)
    case.run_dry()
    assert case.sent() == b"read before the pause"
    assert case.socket.reading


def test_a_full_link_stops_the_socket() -> None:
    """Its one message waits in the stream, as without a cap."""
    case = Case()
    case.side.link.writable = False
    case.paced.send(BIG[:1_000])
    assert not case.socket.reading
    assert case.scheduler.waiting_shares == 0
    case.side.make_writable()
    assert case.sent() == BIG[:1_000]
    assert case.socket.reading


# -- Towards the client -----------------------------------------------------------------------------------------------


def test_an_answer_beyond_the_cap_waits_and_arrives_whole() -> None:
    """W2: whatever waited when the backend ended the stream is delivered before the FIN."""

    async def run() -> None:
        case = Case()
        case.use_up()
        for _ in range(4):
            case.stream.receive(BIG)
        case.stream.receive_disconnect("normal")
        assert case.stream.ended
        assert undelivered_bytes() == case.paced.unwritten_bytes() == 4 * len(BIG)
        case.serve(3)
        assert not case.socket.finished
        assert undelivered_bytes() == 4 * len(BIG) - len(case.socket.delivered)
        case.run_dry()
        assert bytes(case.socket.delivered) == 4 * BIG
        assert case.socket.finished
        assert undelivered_bytes() == 0

    asyncio.run(run())


def test_what_the_client_sends_behind_the_end_is_read_and_dropped() -> None:
    """Else a client that sends before it reads would never take the rest."""

    async def run() -> None:
        case = Case()
        case.use_up()
        case.paced.send(BIG)
        case.stream.receive(BIG)
        case.stream.receive_disconnect("")
        assert case.socket.reading
        case.paced.send(b"too late")
        case.paced.send_eof()
        case.run_dry()
        assert case.sent() == b""
        assert bytes(case.socket.delivered) == BIG
        assert case.socket.finished
        assert case.scheduler.charged_bytes == int(case.scheduler.burst) + len(BIG) + 17

    asyncio.run(run())


def test_a_half_close_of_the_backend_passes_where_nothing_waits() -> None:
    """And leaves the other direction open."""
    case = Case()
    case.stream.receive_eof()
    assert case.socket.eof
    assert not case.socket.finished


def test_a_half_close_of_the_backend_follows_its_bytes() -> None:
    """And leaves the other direction open."""
    case = Case()
    case.use_up()
    case.stream.receive(BIG)
    case.stream.receive_eof()
    case.serve()
    assert not case.socket.eof
    case.run_dry()
    assert bytes(case.socket.delivered) == BIG
    assert case.socket.eof
    assert not case.socket.finished
    case.paced.send(b"more")
    case.run_dry()
    assert case.sent() == b"more"


def test_credits_wait_while_much_waits() -> None:
    """What is bounded is what the backend may send; and its credits follow each message that left."""
    case = Case()
    case.use_up()
    for _ in range(CREDITS_INITIAL):
        case.stream.receive(BIG)
    assert case.granted() == 0
    assert case.stream.is_waiting
    assert case.paced.unwritten_bytes() == CREDITS_INITIAL * len(BIG) > QUEUE_HIGH_BYTES
    while not case.granted():
        case.serve()
    left = CREDITS_INITIAL * len(BIG) - case.paced.unwritten_bytes()
    assert case.granted() == left // len(BIG) == 8
    case.run_dry()
    assert case.granted() == CREDITS_INITIAL
    assert not case.stream.is_waiting
    assert bytes(case.socket.delivered) == CREDITS_INITIAL * BIG


def test_room_is_told_once_little_waits() -> None:
    """With marks apart, so that a queue at the edge does not tell at each message."""
    case = Case()
    case.use_up()
    for _ in range(3):
        case.stream.receive(BIG)
    assert case.stream.is_waiting
    while case.paced.unwritten_bytes() > QUEUE_LOW_BYTES:
        assert case.stream.is_waiting
        case.serve()
    assert not case.stream.is_waiting


@pytest.mark.parametrize("granted", [True, False], ids=["credits", "no credits"])
def test_small_messages_are_bounded_in_number(granted: bool) -> None:
    """65,537 messages of one byte fitted into 64 KiB, each with what an object costs; and every byte arrives."""
    case = Case()
    case.stream.grants = granted
    case.use_up()
    sent = 0
    while not case.side.link.held and sent < 1_000:
        case.stream.receive(b"%d" % (sent % 10))
        sent += 1
        assert case.stream.is_waiting is (sent >= CREDITS_INITIAL)
    assert sent <= QUEUE_HIGH_MESSAGES + case.stream.receive_window.size + CREDITS_OVERSHOOT
    assert case.granted() < QUEUE_HIGH_MESSAGES
    case.run_dry()
    assert not case.side.link.held
    assert not case.stream.is_waiting
    assert bytes(case.socket.delivered) == b"".join(b"%d" % (at % 10) for at in range(sent))
    assert (sent - case.granted() < CREDITS_BATCH) is granted


def test_a_slow_client_waits_outside_the_ring() -> None:
    """W25: it counted as active; and its bytes wait here rather than in the transport."""
    case = Case(takes=1_000)
    case.use_up()
    case.stream.receive(BIG)
    case.serve()
    assert case.socket.full
    assert case.scheduler.waiting_shares == 0
    assert case.stream.is_waiting
    case.stream.receive(b"behind")
    assert len(case.socket.waiting) < len(BIG)
    while case.paced.unwritten_bytes():
        case.socket.drain()
        case.run_dry()
    assert bytes(case.socket.delivered) == BIG + b"behind"
    assert not case.stream.is_waiting


def test_a_peer_without_credits_is_held_as_with_a_slow_socket() -> None:
    """It sends without limit, and only reading less of its link helps."""
    case = Case()
    case.use_up()
    for _ in range(3 * CREDITS_INITIAL):
        case.stream.receive(BIG)
    assert case.side.role.overflows
    assert case.side.link.held
    case.run_dry()
    assert not case.side.link.held
    assert len(case.socket.delivered) == 3 * CREDITS_INITIAL * len(BIG)


# -- Broken ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["reset", "session"])
def test_a_broken_stream_is_broken_at_once(end: str) -> None:
    """An RST, nothing delivered behind it, nothing left in any ring."""
    case = Case()
    case.use_up()
    case.paced.send(BIG)
    case.stream.receive(BIG)
    if end == "reset":
        case.stream.receive_disconnect("dial_failed")
    else:
        case.side.session.link_lost(LOST)
    assert case.socket.aborted
    assert case.scheduler.waiting_shares == 0
    assert case.paced.unwritten_bytes() == 0
    case.serve(9)
    assert (case.sent(), bytes(case.socket.delivered)) == (b"", b"")


def test_a_client_that_resets_ends_its_stream_at_once() -> None:
    """The backend is told, whatever waited in either direction."""
    case = Case()
    case.use_up()
    case.paced.send(BIG)
    case.stream.receive(BIG)
    case.paced.endpoint_lost()
    assert case.events() == ["disconnect"]
    assert case.side.role.ended == [(case.stream, "reset")]
    assert case.scheduler.waiting_shares == 0
    case.serve(9)
    assert case.sent() == b""


def test_a_client_that_resets_behind_the_end_is_forgotten() -> None:
    """Its stream is over already; nothing waits for it any more."""

    async def run() -> None:
        case = Case()
        case.use_up()
        case.stream.receive(BIG)
        case.stream.receive_disconnect("normal")
        case.paced.endpoint_lost()
        assert undelivered_bytes() == 0
        assert case.scheduler.waiting_shares == 0
        assert case.side.role.ended == [(case.stream, "normal")]

    asyncio.run(run())


def test_the_end_of_the_process_breaks_what_is_not_delivered() -> None:
    """W2: cut off by a FIN it would look whole."""

    async def run() -> None:
        case = Case()
        case.use_up()
        case.stream.receive(BIG)
        case.stream.receive_disconnect("normal")
        reset_undelivered()
        assert case.socket.aborted
        assert undelivered_bytes() == 0

    asyncio.run(run())


def test_a_client_that_takes_none_of_its_last_bytes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is over, so nobody else would see it; one that waits for the cap, or takes a little, is not."""
    checks: list[bool] = []

    async def run() -> None:
        monkeypatch.setattr(endpoint_module, "DRAIN_STALL_S", 0.001)
        case = Case(takes=1_000)
        watch = case.paced._check

        def check(before: int) -> None:
            checks.append(case.socket.aborted)
            watch(before)

        case.use_up()
        case.stream.receive(BIG)
        monkeypatch.setattr(PacedEndpoint, "_check", lambda _self, before: check(before))
        case.stream.receive_disconnect("normal")
        async with asyncio.timeout(10):
            while len(checks) < 3:  # waits for the cap  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert not case.socket.aborted
            case.serve()
            while not case.socket.aborted:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert undelivered_bytes() == 0
        assert case.socket.delivered == b""

    asyncio.run(run())


# -- Idle -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_stream_that_waits_for_the_cap_is_not_idle(direction: str) -> None:
    """A stop waits for it, and no idle timeout ends it, however long its turn is in coming."""
    case = Case()
    case.use_up()
    if direction == "forward":
        case.paced.send(BIG)
    else:
        case.stream.receive(BIG)
    assert case.stream.idle_s(0.0) == 0
    assert case.stream.idle_s(100.0) == 0
    case.run_dry()
    assert case.stream.idle_s(200.0) == 0
    assert case.stream.idle_s(300.0) == 100


def test_a_client_that_takes_nothing_is_idle_all_the_same() -> None:
    """The cap is no excuse for it."""
    case = Case(takes=1_000)
    case.use_up()
    case.stream.receive(BIG)
    case.serve()
    assert case.stream.idle_s(0.0) == 0
    assert case.stream.idle_s(50.0) == 50
