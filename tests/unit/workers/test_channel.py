"""nexus.workers.channel: messages with sockets, whole and in order, and an end that is seen."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from nexus.workers.channel import DESCRIPTORS_MAX, MESSAGE_MAX_BYTES, Channel, channel_pair, close_all, receive, send
from tests.support.hub import eventually
from tests.support.processes import open_descriptors

ON_BOTH_LOOPS = True


class End:
    """What one end has got."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[tuple[bytes, int]] = []
        self.ends = 0
        self.channel = Channel(sock, self.take, self.end)

    def take(self, message: bytes, descriptors: Sequence[int]) -> None:
        self.messages.append((message, len(descriptors)))
        close_all(descriptors)

    def end(self) -> None:
        self.ends += 1


async def test_messages_arrive_whole_and_in_order() -> None:
    """More of them than are taken in one turn, of any length, with and without descriptors."""
    one, other = channel_pair()
    end, sender = End(other), End(one)
    sent = [(b"%d" % number, number % (DESCRIPTORS_MAX + 1)) for number in range(100)]
    with socket.socket() as passed:
        for message, count in sent:
            await eventually(lambda m=message, c=count: sender.channel.send(m, [passed.fileno()] * c), "room")  # type: ignore[misc]
        long = b"x" * MESSAGE_MAX_BYTES
        await eventually(lambda: sender.channel.send(long), "room")
    await eventually(lambda: len(end.messages) == len(sent) + 1, "everything arrives")
    assert end.messages == [*sent, (long, 0)]
    sender.channel.close()
    await eventually(lambda: end.ends == 1, "the end is seen")
    sender.channel.close()
    assert sender.ends == 0


async def test_what_is_passed_stays_open_in_one_process_only() -> None:
    """The connection lives on with the receiver when the sender closes its own descriptor."""
    one, other = channel_pair()
    near, far = socket.socketpair()
    with far:
        assert send(one, b"take it", [near.fileno()])
        near.close()
        _, (descriptor,) = receive(other, memoryview(bytearray(100)))
        assert not os.get_inheritable(descriptor)
        with socket.socket(fileno=descriptor) as taken:
            far.sendall(b"hello")
            assert taken.recv(5) == b"hello"
        assert far.recv(1) == b""
    one.close()
    other.close()


async def test_what_cannot_be_sent_is_refused() -> None:
    """Too long, a full queue, a receiver that is gone: the sender keeps what it has, and is told."""
    one, other = channel_pair()
    assert not send(one, b"x" * (MESSAGE_MAX_BYTES + 1))
    sent = 0
    while send(one, b"x" * 10_000):
        sent += 1
    assert sent > 0
    other.close()
    assert not send(one, b"x")
    one.close()


async def test_a_receiver_without_descriptors_to_spare_gets_none() -> None:
    """Half of what was passed would be of no use; nothing of it is left open."""
    one, other = channel_pair()
    with socket.socket() as passed:
        assert send(one, b"many", [passed.fileno()] * (DESCRIPTORS_MAX + 1))
    before = open_descriptors()
    assert receive(other, memoryview(bytearray(100))) == (b"many", [])
    assert open_descriptors() == before
    one.close()
    other.close()


async def test_what_closes_the_channel_may_be_a_message() -> None:
    """Nothing is read after that."""
    one, other = channel_pair()
    got: list[bytes] = []

    def take(message: bytes, _descriptors: Sequence[int]) -> None:
        got.append(message)
        channel.close()

    channel = Channel(other, take, got.clear)
    for message in (b"first", b"second"):
        send(one, message)
    await eventually(lambda: got, "the first message")
    await asyncio.sleep(0)
    assert got == [b"first"]
    one.close()
