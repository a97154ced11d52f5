"""One end of a pair of Unix sockets by which processes hand each other sockets, each with some bytes of message.

Strategy: SOCK_SEQPACKET keeps messages whole and in order, and its end is seen at once. Nothing waits here: a message
that the kernel does not take now is refused, and the sender has another way.

Source: unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from array import array
from collections.abc import Callable, Sequence
from typing import Final

MESSAGE_MAX_BYTES: Final = 128 * 1024  # a prelude of 64 KiB and what goes with it; the kernel takes 208 KiB at once
DESCRIPTORS_MAX: Final = 4
# So many messages are taken in one turn of the event loop; then everybody else has a turn.
MESSAGES_PER_TURN: Final = 32
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

Receive = Callable[[bytes, Sequence[int]], None]
"""Takes a message and its descriptors, which are the callee's to close."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends, neither of which blocks."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
    return pair


class Channel:
    """One end, as callbacks of the running event loop; ``on_end`` is called once when the other process is gone."""

    def __init__(self, sock: socket.socket, receive: Receive, on_end: Callable[[], None]) -> None:
        """Take ``sock`` over and begin to read."""
        self._sock = sock
        self._receive = receive
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(MESSAGE_MAX_BYTES))
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send now or not at all; return whether it was sent. The descriptors stay the caller's."""
        return send(self._sock, message, descriptors)

    def close(self) -> None:
        """End it from this side; idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _read(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            if self._sock.fileno() < 0:  # closed by what was received
                return
            try:
                message, descriptors = receive(self._sock, self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the other process ended with messages unread
                message, descriptors = b"", []
            if not message:
                self.close()
                self._on_end()
                return
            self._receive(message, descriptors)


def send(sock: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> bool:
    """Send a message with descriptors if the kernel takes it now; return whether it did."""
    if len(message) > MESSAGE_MAX_BYTES:
        return False
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    try:
        sock.sendmsg([message], ancillary)
    except OSError:  # full, gone, or too many descriptors under way (ETOOMANYREFS)
        return False
    return True


def receive(sock: socket.socket, buffer: memoryview) -> tuple[bytes, list[int]]:
    """Return the next message, b"" at the end, and its descriptors.

    Raises:
        OSError: there is none now (BlockingIOError), or never again.
    """
    count, ancillary, flags, _ = sock.recvmsg_into(
        [buffer], socket.CMSG_SPACE(DESCRIPTORS_MAX * array("i").itemsize), _CLOEXEC
    )
    descriptors = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:  # this process may have no more descriptors: what came without is of no use
        close_all(descriptors)
        descriptors = array("i")
    return bytes(buffer[:count]), descriptors.tolist()


def close_all(descriptors: Sequence[int]) -> None:
    """Close what was received and is not wanted."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
