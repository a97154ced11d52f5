"""nexus.bandwidth.limiter: one timer on a real event loop, and nothing at all while nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from nexus.bandwidth.endpoint import PacedEndpoint
from nexus.bandwidth.limiter import Limiter
from nexus.bandwidth.scheduler import Member
from nexus.protocol.framing import Buffer
from nexus.protocol.window import SendWindow
from tests.support.links import MemoryTransport
from tests.support.sessions import Side

ON_BOTH_LOOPS = True
WAIT_S = 20.0


class Timers:
    """What a limiter asks of the event loop, instead of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.soon: list[Callable[..., object]] = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def time(self) -> float:
        """Return the clock."""
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Note a timer."""
        self.later.append((delay_s, call))

    def call_soon(self, call: Callable[..., object], *arguments: Callable[[], None]) -> None:
        """Note a call in the next turn."""
        self.soon.append(lambda: call(*arguments))


class Endless:
    """A source that always has something to send."""

    def __init__(self, limiter: Limiter) -> None:
        self.sent = 0
        self.member = Member(limiter.scheduler.share(), self)

    def serve(self, limit: int) -> int:
        """Send as much as is allowed."""
        self.sent += limit
        return limit

    def waiting_bytes(self) -> int:
        """Return some number."""
        return 1


def test_a_timer_is_set_for_the_next_turn_in_whole_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """W25: waiters polled. uvloop rounds to the nearest millisecond, which may be too early."""
    timers = Timers(monkeypatch)
    limiter = Limiter(1)
    assert limiter.scheduler.share().take(6_250, timers.now)
    source = Endless(limiter)
    source.member.join()
    ((delay_s, call),) = timers.later
    assert delay_s == 0.017  # 2,065 bytes at 125 a millisecond are 16.52 ms
    assert not timers.soon
    timers.now += delay_s
    call()
    assert source.sent == limiter.scheduler.quantum
    assert len(timers.later) == 2


def test_between_two_rounds_the_loop_looks_at_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns of the loop: in one alone the call may come before the sockets."""
    timers = Timers(monkeypatch)
    limiter = Limiter(20)
    source = Endless(limiter)
    source.member.join()
    assert not timers.later
    for _ in range(3):
        (hop,) = timers.soon
        timers.soon.clear()
        hop()
        (call,) = timers.soon
        timers.soon.clear()
        before = source.sent
        call()
        assert source.sent == before + limiter.scheduler.quantum


def test_nobody_is_called_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second one who waits needs no second timer."""
    timers = Timers(monkeypatch)
    limiter = Limiter(1)
    share = limiter.scheduler.share()
    assert share.take(6_250, timers.now)
    assert not timers.later
    first, second = Endless(limiter), Endless(limiter)
    first.member.join()
    second.member.join()
    first.member.leave()
    second.member.leave()
    first.member.join()
    assert len(timers.later) == 1
    first.member.leave()
    timers.now += 1.0
    timers.later[0][1]()
    assert first.sent == second.sent == 0
    assert len(timers.later) == 1
    assert not timers.soon


def test_an_error_of_one_source_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that is not set again would stop every stream of the node."""
    timers = Timers(monkeypatch)
    limiter = Limiter(1)
    assert limiter.scheduler.share().take(6_250, timers.now)

    class Broken(Endless):
        def serve(self, limit: int) -> int:
            self.member.leave()
            raise RuntimeError(limit)

    Broken(limiter).member.join()
    source = Endless(limiter)
    source.member.join()
    delay_s, call = timers.later[0]
    timers.now += delay_s
    with pytest.raises(RuntimeError):
        call()
    timers.now += 1.0
    timers.later[1][1]()
    assert source.sent


async def test_on_a_real_loop_everything_leaves_in_the_end() -> None:
    """Two backends, each with more than the bucket holds, streams and datagrams."""
    limiter = Limiter(20)
    data = bytes(at % 251 for at in range(200_000))
    sides = [Side(), Side()]
    got: list[bytes] = []

    def keep(datagram: Buffer) -> None:
        got.append(bytes(datagram))

    for side in sides:
        side.session.gate = gate = limiter.gate()
        stream = side.dialling(window=SendWindow(1 << 20, paced=False))
        socket, endpoint = gate.pace(stream, MemoryTransport(), None)
        stream.attach(endpoint)
        for at in range(0, len(data), 25_000):
            socket.stream.send(data[at : at + 25_000])
    assert limiter.scheduler.waiting_bytes()
    assert gate.offer("flow", b"datagram", keep, to_backend=True)
    assert gate.offer("gone", b"nobody wants", keep, to_backend=False)
    assert gate.forget("gone") == 1
    async with asyncio.timeout(WAIT_S):
        while limiter.scheduler.waiting_shares:  # noqa: ASYNC110 — the end tells nobody
            await asyncio.sleep(0.001)
    assert [b"".join(side.link.data()) for side in sides] == [data, data]
    assert got == [b"datagram"]


async def test_a_gate_paces_a_socket() -> None:
    """The protocol talks to the pace, and the pace to the socket."""
    side = Side()
    stream = side.dialling()
    socket, endpoint = Limiter(1).gate().pace(stream, None, None)
    assert isinstance(endpoint, PacedEndpoint)
    assert (socket.stream, endpoint.socket) == (endpoint, socket)
    assert stream.held_up is not None
    assert not stream.held_up()
