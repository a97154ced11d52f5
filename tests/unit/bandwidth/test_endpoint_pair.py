"""nexus.bandwidth.endpoint between two whole sessions: whatever happens, bytes and ends arrive as without a cap."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.bandwidth.endpoint import PacedEndpoint
from nexus.bandwidth.scheduler import Scheduler
from nexus.link.endpoint import SocketEndpoint, undelivered_bytes
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.protocol.window import SendWindow
from tests.support.sessions import FakeEndpoint, SessionPair

STREAMS = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["client", "service", "carry", "drain", "full", "room", "time", "time", "pause", "resume"]),
        st.integers(0, 1),
        st.integers(0, STREAMS - 1),
        st.integers(1, 80_000),
    ),
    max_size=80,
)


class CappedPair(SessionPair):
    """Two sessions with a cap of 1 Mbit/s at the hub, whose clients' sockets are paced; a clock of its own."""

    def __init__(self, *, half_close: bool, credits_known: bool, takes: int | None) -> None:
        super().__init__(half_close=half_close, credits_known=credits_known)
        self.now = 0.0
        self.scheduler = Scheduler(125_000, lambda: None)
        self.share = self.scheduler.share()
        self.paced: list[PacedEndpoint] = []
        for number in range(1, STREAMS + 1):
            self.add(number, takes)

    def add(self, number: int, takes: int | None) -> None:
        """Open a stream as hub and backend do."""
        stream = self.hub.dialling(number, SendWindow(paced=True))
        paced = PacedEndpoint(stream, self.share, lambda: self.now)
        client = FakeEndpoint(cast(Stream, paced), takes)
        paced.socket = cast(SocketEndpoint, client)
        stream.attach(paced)
        window = SendWindow(CREDITS_INITIAL if self.credits_known else 0, paced=False)
        at_backend, service = self.backend.open(number, window, takes)
        if self.credits_known:
            stream.receive_credits(at_backend.receive_window.size)
        else:
            at_backend.grants = stream.grants = False
        self.paced.append(paced)
        self.streams.append((client, service))

    def settle(self) -> None:
        """Let everything move, and time pass, until nothing waits any more."""
        super().settle()
        while self.scheduler.waiting_shares:
            self.now += 1.0
            self.scheduler.round(self.now)
            super().settle()

    def step(self, name: str, at: int, number: int, size: int, fed: dict[FakeEndpoint, bytearray]) -> None:
        """Do one thing."""
        side = (self.hub, self.backend)[at]
        client, service = self.streams[number]
        endpoint = (client, service)[at]
        payload = bytes((size + number + at) % 251 for at in range(size))
        if name in {"client", "service"}:
            self._read(client if name == "client" else service, payload, fed)
        elif name == "carry":
            self.deliver(side, size % 40)
        elif name == "drain":
            endpoint.drain(size)
        elif name == "full":
            side.link.writable = False
        elif name == "room":
            side.make_writable(size % 9 or None)
        elif name == "time":
            self.now += size / 200_000
            self.scheduler.round(self.now)
        else:
            self._tell(side is self.hub, number, name)

    def resume_all(self) -> None:
        """Undo pauses."""
        for number in range(STREAMS):
            for from_hub in (True, False):
                self._tell(from_hub, number, "resume")

    def _read(self, endpoint: FakeEndpoint, payload: bytes, fed: dict[FakeEndpoint, bytearray]) -> None:
        if endpoint.reading:
            fed[endpoint] += payload
            endpoint.stream.send(payload)

    def _tell(self, from_hub: bool, number: int, name: str) -> None:
        stream_id = self.streams[number][1].stream.id.hex().encode()
        side = self.hub if from_hub else self.backend
        side.session.send_control(b'\x02{"event":"%b_stream","client_id":"%b"}' % (name.encode(), stream_id))


def run(plan: list[tuple[str, int, int, int]], pair: CappedPair) -> dict[FakeEndpoint, bytearray]:
    """Follow a plan; return what each endpoint sent."""
    fed = {endpoint: bytearray() for both in pair.streams for endpoint in both}
    for step in plan:
        pair.step(*step, fed)
    pair.resume_all()
    return fed


@pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "no half-close"])
@pytest.mark.parametrize("credits_known", [True, False], ids=["credits", "no credits"])
@settings(max_examples=40, deadline=None)
@given(plan=STEPS, slow=st.booleans())
def test_bytes_out_are_the_bytes_in(
    half_close: bool, credits_known: bool, slow: bool, plan: list[tuple[str, int, int, int]]
) -> None:
    """Nothing is lost, doubled or reordered by the cap, with credits, pauses, full links and slow sockets beside it."""
    pair = CappedPair(half_close=half_close, credits_known=credits_known, takes=40_000 if slow else None)
    fed = run(plan, pair)
    pair.settle()
    for client, service in pair.streams:
        assert service.received() == bytes(fed[client])
        assert client.received() == bytes(fed[service])
        assert client.reading
        assert service.reading
        client.stream.send_eof()
        service.stream.send_eof()
        pair.settle()
        assert client.finished
        assert service.finished
    assert pair.hub.tables() == pair.backend.tables() == 0
    moved = sum(map(len, fed.values()))
    assert moved <= pair.scheduler.charged_bytes <= moved + 17 * (moved // 1_000 + len(plan))


@pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "no half-close"])
@settings(max_examples=40, deadline=None)
@given(plan=STEPS, slow=st.booleans())
def test_ends_come_behind_everything_that_waits(
    half_close: bool, slow: bool, plan: list[tuple[str, int, int, int]]
) -> None:
    """W2: the backend ends each stream in whatever state it is; its client still gets every byte, then FIN."""

    async def ends() -> None:
        pair = CappedPair(half_close=half_close, credits_known=True, takes=40_000 if slow else None)
        fed = run(plan, pair)
        for _, service in pair.streams:
            service.stream.send_eof()
        pair.settle()
        for client, service in pair.streams:
            assert client.received() == bytes(fed[service])
            assert client.finished or (half_close and client.eof)
        assert undelivered_bytes() == 0

    asyncio.run(ends())


@settings(max_examples=40, deadline=None)
@given(plan=STEPS, slow=st.booleans())
def test_a_lost_link_leaves_nothing_waiting(slow: bool, plan: list[tuple[str, int, int, int]]) -> None:
    """Every client sees a reset, and the cap knows nobody any more."""
    pair = CappedPair(half_close=True, credits_known=True, takes=40_000 if slow else None)
    run(plan, pair)
    pair.lose()
    assert all(client.aborted for client, _ in pair.streams)
    assert pair.scheduler.waiting_shares == 0
    assert all(paced.unwritten_bytes() == 0 for paced in pair.paced)
    assert pair.hub.tables() == 0
