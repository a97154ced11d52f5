"""backend_client.connection: a stream in the hands of a program, with back-pressure in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from backend_client.connection import _HIGH_BYTES, _LOW_BYTES, Connection, StreamInfo
from nexus.errors import LocalProtocolError, StreamReset
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_BATCH, CREDITS_INITIAL, FEATURES, PAYLOAD_MAX_BYTES
from nexus.protocol.messages import Control
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow
from tests.support.hub import WAIT_S
from tests.support.sessions import LOST, Side

INFO = StreamInfo("wss://hub", "app.example.com", 443, "203.0.113.9:51234", "tcp", is_tls=True)


class Setup:
    """A connection on a stream of a session with a fake link."""

    def __init__(self, credits_: int = CREDITS_INITIAL, *, half_close: bool = True) -> None:
        self.side = Side(FEATURES if half_close else (), ends_on_eof=True)
        self.stream: Stream = self.side.dialling(1, SendWindow(credits_, paced=False))
        self.connection = Connection(self.stream, INFO)
        self.stream.attach(self.connection.endpoint())

    def receive(self, *payloads: bytes) -> None:
        """Let data messages arrive."""
        for payload in payloads:
            self.side.session.message_received(b"\x01" + self.stream.id + payload)

    def controls(self, event: str) -> list[Control]:
        """What was sent."""
        return self.side.link.controls(event)

    def sent(self) -> bytes:
        """All data that was sent."""
        return b"".join(self.side.link.data())


# -- Reading --------------------------------------------------------------------------------------------------------


async def test_bytes_are_read_as_they_came() -> None:
    """In order, and empty behind the last one, as often as one asks."""
    it = Setup()
    it.receive(b"one", b"two")
    assert [await it.connection.read() for _ in range(2)] == [b"one", b"two"]
    it.stream.receive_eof()
    assert [await it.connection.read() for _ in range(2)] == [b"", b""]


async def test_reading_waits_for_bytes() -> None:
    """And for the end."""
    it = Setup()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(it.connection.read())
        await asyncio.sleep(0)
        assert not reading.done()
        it.receive(b"late")
        assert await reading == b"late"
        reading = tasks.create_task(it.connection.read())
        await asyncio.sleep(0)
        assert not reading.done()
        it.stream.receive_eof()
        assert await reading == b""


async def test_what_came_before_a_clean_end_is_read_first() -> None:
    """Then the end."""
    it = Setup()
    it.receive(b"all of it")
    it.stream.receive_disconnect(Reason.NORMAL)
    assert [await it.connection.read() for _ in range(2)] == [b"all of it", b""]


async def test_a_broken_stream_is_an_error_at_once() -> None:
    """What came before is not given out: bytes are missing behind it."""
    it = Setup()
    it.receive(b"part of it")
    it.stream.receive_disconnect(Reason.RESET)
    with pytest.raises(StreamReset):
        await it.connection.read()
    assert it.connection.waiting_bytes == 0


async def test_a_reader_that_waits_hears_of_the_break() -> None:
    """Of a lost session, too."""
    it = Setup()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_fails(it.connection.read()))
        await asyncio.sleep(0)
        it.side.session.link_lost(LOST)
        assert await reading


async def _fails(action: Awaitable[object]) -> bool:
    with pytest.raises(StreamReset):
        await action
    return True


async def test_a_slow_reader_slows_the_client_down() -> None:
    """Above the high mark no credits are granted; they follow once the low mark is reached."""
    it = Setup()
    messages = _HIGH_BYTES // PAYLOAD_MAX_BYTES + 1 + CREDITS_BATCH
    it.receive(*[bytes(PAYLOAD_MAX_BYTES)] * messages)
    assert it.stream.endpoint.unwritten_bytes() == it.connection.waiting_bytes == messages * PAYLOAD_MAX_BYTES
    assert not it.controls("resume_stream")
    while it.connection.waiting_bytes > _LOW_BYTES:
        assert not it.controls("resume_stream")
        await it.connection.read()
    assert [control.credits for control in it.controls("resume_stream")] == [messages]


# -- Writing --------------------------------------------------------------------------------------------------------


async def test_writing_sends_in_messages_that_fit() -> None:
    """Whatever the size; nothing is sent for nothing."""
    it = Setup()
    data = bytes(range(256)) * 400
    await it.connection.write(b"")
    assert not it.side.link.log
    await it.connection.write(data)
    assert it.sent() == data
    assert [len(part) for part in it.side.link.data()][:-1] == [PAYLOAD_MAX_BYTES] * (len(data) // PAYLOAD_MAX_BYTES)


async def test_writing_waits_for_credits() -> None:
    """And goes on where it stopped."""
    it = Setup(credits_=2)
    data = bytes(range(256)) * (4 * PAYLOAD_MAX_BYTES // 256)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
        writing = tasks.create_task(it.connection.write(data))
        await asyncio.sleep(0)
        assert it.sent() == data[: 2 * PAYLOAD_MAX_BYTES]
        assert not writing.done()
        it.stream.receive_credits(8)
        await writing
    assert it.sent() == data


async def test_writing_waits_for_the_link() -> None:
    """A full link takes one piece more, no others."""
    it = Setup()
    it.side.link.writable = False
    data = bytes(range(256)) * (3 * PAYLOAD_MAX_BYTES // 256)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
        writing = tasks.create_task(it.connection.write(data))
        await asyncio.sleep(0)
        assert it.sent() == b""
        assert not writing.done()
        it.side.make_writable()
        await writing
    assert it.sent() == data


@pytest.mark.parametrize("reason", [Reason.RESET, Reason.NORMAL])
async def test_a_writer_that_waits_hears_of_the_end(reason: Reason) -> None:
    """However it ended, nobody takes the rest."""
    it = Setup(credits_=1)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
        writing = tasks.create_task(_fails(it.connection.write(bytes(2 * PAYLOAD_MAX_BYTES))))
        await asyncio.sleep(0)
        it.stream.receive_disconnect(reason)
        assert await writing
    assert await _fails(it.connection.write(b"more"))


async def test_the_client_s_end_of_sending_does_not_end_the_writing() -> None:
    """Half-close: the answer may follow the question's last byte."""
    it = Setup()
    it.stream.receive_eof()
    await it.connection.write(b"answer")
    assert it.sent() == b"answer"


async def test_the_client_s_end_of_sending_does_not_lift_back_pressure() -> None:
    """A writer without credits goes on waiting."""
    it = Setup(credits_=1)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S):
        writing = tasks.create_task(it.connection.write(bytes(2 * PAYLOAD_MAX_BYTES)))
        await asyncio.sleep(0)
        it.stream.receive_eof()
        await asyncio.sleep(0)
        assert not writing.done()
        it.stream.receive_credits(8)


# -- Ends -----------------------------------------------------------------------------------------------------------


async def test_the_end_of_writing_is_told_and_is_final() -> None:
    """Reading goes on; a later write would be lost, so it is an error."""
    it = Setup()
    it.connection.write_eof()
    assert len(it.controls("half_close")) == 1
    with pytest.raises(LocalProtocolError):
        await it.connection.write(b"one more thing")
    it.receive(b"still")
    assert await it.connection.read() == b"still"


async def test_without_half_close_the_end_of_writing_is_the_end() -> None:
    """Such a hub knows no other."""
    it = Setup(half_close=False)
    it.connection.write_eof()
    assert it.controls("disconnect") == [Control("disconnect", it.stream.id, reason=Reason.NORMAL)]
    assert it.stream.ended


async def test_closing_delivers_what_was_written() -> None:
    """Also what the link could not take yet: nothing accepted is lost (design 6)."""
    it = Setup()
    it.side.link.writable = False
    await it.connection.write(b"last words")
    it.connection.close()
    assert not it.side.link.log
    it.side.make_writable()
    assert it.sent() == b"last words"
    assert it.controls("disconnect") == [Control("disconnect", it.stream.id, reason=Reason.NORMAL)]


async def test_aborting_is_told_as_a_failure() -> None:
    """The client sees its connection broken; both calls fail from then on."""
    it = Setup()
    it.connection.abort()
    assert it.controls("disconnect") == [Control("disconnect", it.stream.id, reason=Reason.LOCAL_ERROR)]
    assert await _fails(it.connection.read())
    assert await _fails(it.connection.write(b"x"))


async def test_closing_twice_is_no_different() -> None:
    """Nor is aborting what is closed."""
    it = Setup()
    it.connection.close()
    it.connection.close()
    it.connection.abort()
    assert len(it.controls("disconnect")) == 1
