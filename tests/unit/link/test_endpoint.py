"""Tests of the socket at a stream's end, on loopback, with both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import uvloop

from nexus.link import endpoint as endpoint_module
from nexus.link.endpoint import SocketEndpoint, finish, receive_view, reset_undelivered, undelivered_bytes
from nexus.link.stream import Stream
from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.protocol.window import SendWindow
from tests.support.sessions import Side

WAIT_S = 10.0
BIG = bytes(at % 251 for at in range(1 << 20)) * 4  # more than the kernel holds
SMALL_SOCKET_BYTES = 16_384
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Case = Callable[["Connected"], Awaitable[None]]


class Connected:
    """A stream with a socket for its endpoint, and the other end of that socket."""

    def __init__(self, side: Side, stream: Stream, endpoint: SocketEndpoint, peer: socket.socket) -> None:
        self.side = side
        self.stream = stream
        self.endpoint = endpoint
        self.peer = peer
        self.closed = asyncio.Event()

    async def read(self, size: int = 65_536) -> bytes:
        """Return what the other end receives next, b"" at FIN."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.peer, size), WAIT_S)

    async def read_to_end(self) -> bytes:
        received = bytearray()
        while chunk := await self.read():
            received += chunk
        return bytes(received)

    async def write(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.peer, data), WAIT_S)

    def close(self) -> None:
        self.peer.close()

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    async def until_closed(self) -> None:
        """Wait until our side's socket is closed."""
        await asyncio.wait_for(self.closed.wait(), WAIT_S)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until something is so."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 — turns of the loop, there is nothing to await
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def connected(*, attach: bool = True) -> AsyncIterator[Connected]:
    """Connect a socket endpoint over loopback."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_SOCKET_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SOCKET_BYTES)
        ours.setblocking(False)
        await loop.sock_connect(ours, listener.getsockname())
        peer, _ = await loop.sock_accept(listener)
        peer.setblocking(False)
    side = Side()
    stream = side.dialling(1, SendWindow(1 << 20, paced=False))
    box: list[Connected] = []
    _, endpoint = await loop.create_connection(
        lambda: SocketEndpoint(stream, on_closed=lambda: box[0].closed.set()),  # noqa: PLW0108 — the box is still empty
        sock=ours,
    )
    case = Connected(side, stream, endpoint, peer)
    box.append(case)
    if attach:
        stream.attach(endpoint)
    try:
        yield case
    finally:
        endpoint.abort()
        await case.until_closed()
        case.close()


@pytest.fixture(params=LOOPS, name="run")
def _run(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], None]]:
    """Return what runs a test in a loop of each kind, with every callback's failure a failure of the test."""

    def run(case: Case, *, attach: bool = True) -> None:
        failures: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
            async with connected(attach=attach) as one:
                await case(one)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())
        assert failures == []

    return run  # type: ignore[return-value]


Run = Callable[..., None]


# -- Bytes ----------------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways(run: Run) -> None:
    """What the socket receives is sent, what the stream receives is delivered."""

    async def case(one: Connected) -> None:
        await one.write(b"request")
        await one.until(lambda: one.side.link.data() == [b"request"])
        one.stream.receive(b"response")
        assert await one.read() == b"response"

    run(case)


def test_a_read_is_never_longer_than_a_message(run: Run) -> None:
    """And the buffer for it is one for all sockets of a thread."""

    async def case(one: Connected) -> None:
        data = BIG[: 10 * PAYLOAD_MAX_BYTES]
        await one.write(data)
        await one.until(lambda: sum(map(len, one.side.link.data())) == len(data))
        assert b"".join(one.side.link.data()) == data
        assert max(map(len, one.side.link.data())) <= PAYLOAD_MAX_BYTES
        assert one.endpoint.get_buffer(-1) is receive_view()

    run(case)


def test_reading_stops_and_goes_on_as_the_stream_asks(run: Run) -> None:
    """The kernel's buffer then pushes back on the sender."""

    async def case(one: Connected) -> None:
        one.endpoint.read_more(False)
        await one.write(b"later")
        for _ in range(10):
            await asyncio.sleep(0)
        assert one.side.link.data() == []
        one.endpoint.read_more(True)
        await one.until(lambda: one.side.link.data() == [b"later"])

    run(case)


def test_a_slow_socket_withholds_credits_until_it_has_drained(run: Run) -> None:
    """Its buffer is seen, and everything arrives in order."""

    async def case(one: Connected) -> None:
        sent = b""
        while not one.stream.is_waiting:
            sent += BIG[:PAYLOAD_MAX_BYTES]
            one.stream.receive(BIG[:PAYLOAD_MAX_BYTES])
        for _ in range(8):
            one.stream.receive(b"12345678")
            sent += b"12345678"
        assert one.endpoint.unwritten_bytes() > 0
        before = len(one.side.link.controls())
        received = b""
        while len(received) < len(sent):
            received += await one.read()
        assert received == sent
        await one.until(lambda: len(one.side.link.controls()) > before)

    run(case)


# -- Orderly ends ---------------------------------------------------------------------------------------------------


def test_finish_delivers_everything_to_a_slow_reader_and_then_fin(run: Run) -> None:
    """W2: no byte is lost, however slow; the socket closes when the reader does."""

    async def case(one: Connected) -> None:
        one.stream.receive(BIG)
        one.stream.receive_disconnect("normal")
        assert undelivered_bytes() > 0
        received = bytearray()
        while chunk := await one.read(50_000):
            received += chunk
        assert received == BIG
        assert undelivered_bytes() == 0
        assert not one.closed.is_set()
        one.close()
        await one.until_closed()

    run(case)


def test_what_arrives_behind_our_fin_is_dropped_without_a_reset(run: Run) -> None:
    """An RST could destroy what the peer has not read yet."""

    async def case(one: Connected) -> None:
        one.stream.receive(b"answer")
        one.stream.receive_disconnect("")
        await one.write(BIG)
        assert await one.read_to_end() == b"answer"
        one.close()
        await one.until_closed()
        assert one.side.link.data() == []

    run(case)


def test_fin_from_the_peer_is_passed_on_and_leaves_the_other_way_open(run: Run) -> None:
    """W20: a client that shuts down its side still gets its answer."""

    async def case(one: Connected) -> None:
        await one.write(b"request")
        one.peer.shutdown(socket.SHUT_WR)
        await one.until(lambda: one.stream.sent_eof)
        assert [control.event for control in one.side.link.controls()] == ["half_close"]
        one.endpoint.read_more(True)
        one.endpoint.read_more(False)
        one.stream.receive(BIG)
        one.stream.receive_eof()
        assert await one.read_to_end() == BIG
        await one.until_closed()
        assert one.side.role.ended == [(one.stream, "normal")]

    run(case)


def test_fin_to_the_peer_leaves_the_other_way_open(run: Run) -> None:
    """The other order; the second FIN ends the stream."""

    async def case(one: Connected) -> None:
        one.stream.receive(b"question")
        one.stream.receive_eof()
        one.endpoint.write_eof()
        assert await one.read_to_end() == b"question"
        await one.write(b"answer")
        one.close()
        await one.until_closed()
        assert one.side.link.data() == [b"answer"]
        assert one.side.role.ended == [(one.stream, "normal")]

    run(case)


def test_finishing_twice_is_finishing_once(run: Run) -> None:
    """The transport was taken over by the first."""

    async def case(one: Connected) -> None:
        one.endpoint.finish()
        one.endpoint.finish()
        assert await one.read_to_end() == b""

    run(case)


def test_a_peer_that_never_closes_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has got everything, and had its time."""
    monkeypatch.setattr(endpoint_module, "LINGER_S", 0.01)
    monkeypatch.setattr(endpoint_module, "DRAIN_STALL_S", 0.01)

    async def case(one: Connected) -> None:
        one.stream.receive_disconnect("")
        assert await one.read() == b""
        await one.until_closed()

    run(case)


def test_a_peer_that_takes_nothing_is_reset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is not kept for ever, and it must see that bytes are missing."""
    monkeypatch.setattr(endpoint_module, "DRAIN_STALL_S", 0.01)

    async def case(one: Connected) -> None:
        one.stream.receive(BIG)
        one.stream.receive_disconnect("")
        await one.until_closed()
        with pytest.raises(ConnectionResetError):
            await one.read_to_end()

    run(case)


def test_a_slow_peer_that_takes_something_is_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at it finds less waiting; then it has its time to close."""
    monkeypatch.setattr(endpoint_module, "LINGER_S", 0.01)
    looks: list[int] = []
    check = endpoint_module._Finishing._check
    checks: list[Callable[[], None]] = []

    def watch(finishing: endpoint_module._Finishing, waiting: int, delay_s: float) -> None:
        looks.append(waiting)
        loop = asyncio.get_running_loop()
        finishing._timer = loop.call_later(3600 if waiting else delay_s, check, finishing, waiting)

        def look() -> None:
            finishing._timer.cancel()
            check(finishing, waiting)

        checks.append(look)

    monkeypatch.setattr(endpoint_module._Finishing, "_watch", watch)

    async def case(one: Connected) -> None:
        one.stream.receive(BIG)
        one.stream.receive_disconnect("")
        received = bytearray()
        while chunk := await one.read(1 << 18):
            received += chunk
            if looks[-1] > undelivered_bytes() > 0:
                checks[-1]()
        assert received == BIG
        checks[-1]()
        await one.until_closed()
        assert looks == sorted(looks, reverse=True)
        assert len(looks) > 2

    run(case)


def test_what_is_not_delivered_at_the_end_of_the_process_is_broken(run: Run) -> None:
    """A FIN of the kernel would say that it was all; who has got everything sees no reset."""

    async def slow(one: Connected) -> None:
        one.stream.receive(BIG)
        one.stream.receive_disconnect("")
        reset_undelivered()
        await one.until_closed()
        with pytest.raises(ConnectionResetError):
            await one.read_to_end()

    async def quick(one: Connected) -> None:
        one.stream.receive(b"all")
        one.stream.receive_disconnect("")
        assert await one.read_to_end() == b"all"
        reset_undelivered()
        assert await one.read() == b""

    run(slow)
    run(quick)


def test_a_transport_can_be_finished_by_itself(run: Run) -> None:
    """A listener answers a client that way for which there is no stream."""

    async def case(one: Connected) -> None:
        gone = asyncio.Event()
        one.endpoint.transport.write(b"404")
        finish(one.endpoint.transport, eof_received=False, on_closed=gone.set)
        assert await one.read_to_end() == b"404"
        one.close()
        await asyncio.wait_for(gone.wait(), WAIT_S)
        one.closed.set()

    run(case)


def test_a_transport_that_is_closing_is_only_watched(run: Run) -> None:
    """Its end is still told."""

    async def case(one: Connected) -> None:
        gone = asyncio.Event()
        one.endpoint.transport.abort()
        finish(one.endpoint.transport, eof_received=False, on_closed=gone.set)
        await asyncio.wait_for(gone.wait(), WAIT_S)
        one.closed.set()

    run(case)


# -- Broken ends ----------------------------------------------------------------------------------------------------


def test_abort_gives_the_peer_a_reset(run: Run) -> None:
    """Not a FIN, which would say that this was all."""

    async def case(one: Connected) -> None:
        one.stream.receive(b"some of it")
        assert await one.read() == b"some of it"
        one.stream.receive_disconnect("reset")
        with pytest.raises(ConnectionResetError):
            await one.read()
        await one.until_closed()

    run(case)


def test_abort_drops_what_waits(run: Run) -> None:
    """Nobody wants it any more."""

    async def case(one: Connected) -> None:
        one.stream.receive(BIG)
        one.stream.session_lost()
        await one.until_closed()
        assert one.endpoint.unwritten_bytes() == 0

    run(case)


def test_a_reset_from_the_peer_is_told_once(run: Run) -> None:
    """The other side must not take it for an end."""

    async def case(one: Connected) -> None:
        one.reset()
        await one.until_closed()
        assert [control.reason for control in one.side.link.controls("disconnect")] == ["reset"]
        assert one.side.role.ended == [(one.stream, "reset")]

    run(case)


@pytest.mark.parametrize("then", ["data", "half_close", "disconnect", "pause", "close"])
def test_what_arrives_for_a_connection_that_just_broke_does_no_harm(run: Run, then: str) -> None:
    """One stream's broken socket must never end a session: neither before nor after the loop has seen the RST."""

    def act(stream: Stream, endpoint: SocketEndpoint) -> None:
        if then == "data":
            endpoint.write(b"x")
            stream.receive(b"y")
        elif then == "half_close":
            endpoint.write_eof()
            stream.receive_eof()
        elif then == "disconnect":
            stream.receive_disconnect("")
        elif then == "pause":
            endpoint.read_more(False)
            endpoint.read_more(True)
        else:
            endpoint.abort()

    async def before(one: Connected) -> None:
        one.reset()
        act(one.stream, one.endpoint)
        await one.until_closed()

    async def after(one: Connected) -> None:
        one.reset()
        await one.until_closed()
        act(one.stream, one.endpoint)
        assert one.endpoint.unwritten_bytes() == 0

    run(before)
    run(after)


def test_a_service_that_speaks_first_is_heard_before_the_stream_is_attached(run: Run) -> None:
    """And one that breaks before that has ended the stream."""

    async def speaks(one: Connected) -> None:
        await one.write(b"220 ready")
        await one.until(lambda: one.side.link.data() == [b"220 ready"])
        one.stream.attach(one.endpoint)

    async def breaks(one: Connected) -> None:
        one.stream.receive(b"request")
        one.reset()
        await one.until_closed()
        one.stream.attach(one.endpoint)
        assert one.side.role.ended == [(one.stream, "reset")]

    run(speaks, attach=False)
    run(breaks, attach=False)


def test_an_endpoint_takes_a_transport_that_is_connected_already(run: Run) -> None:
    """A listener's, after the peek."""

    async def case(one: Connected) -> None:
        transport = one.endpoint.transport
        stream = one.side.dialling(2, SendWindow(8, paced=False))
        second = SocketEndpoint(stream, transport)
        transport.set_protocol(second)
        stream.attach(second)
        await one.write(b"hello")
        await one.until(lambda: one.side.link.data(stream) == [b"hello"])
        second.abort()
        with pytest.raises(ConnectionResetError):
            await one.read()
        one.closed.set()

    run(case)
