"""The load of the suite: a service, and clients, that cost as little as they can, so that they measure what is between.

Every connection begins with a real ClientHello; its server name says what the service does with the rest, which nobody
on the way looks into: ``sink`` counts bytes, ``source-N`` sends N of them, ``echo`` returns what comes, ``once``
answers with one byte and closes, ``idle`` answers with one byte and waits. There is no TLS at the ends, so no cost of
it: bulk leaves by ``sendfile`` from memory and is dropped in the kernel (``MSG_TRUNC``), so a stream costs the load a
few system calls for a MiB; connections and round trips are one ``epoll`` loop over bare sockets, without asyncio.

    python -m bench.traffic PORT_FILE     runs the service, TCP and UDP on the same port, until it is killed
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Final

from tests.support.client_hello import hello_by_openssl

ZONE: Final = "bench.test"
Address = tuple[str, int]

MIB: Final = 1 << 20
_BLOCK_BYTES: Final = 16 * MIB
_READ_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 60.0
_BACKLOG: Final = 4096


def raise_descriptors() -> None:
    """Take as many descriptors as this process may have; programs that it starts inherit them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def streams_max() -> int:
    """Return how many streams a proxy can have that needs two descriptors for each, and some for itself."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1_000) // 2


@cache
def hello(label: str) -> bytes:
    """Return the ClientHello that OpenSSL sends for a name of the suite."""
    return hello_by_openssl(f"{label}.{ZONE}", [])


@cache
def _memory() -> int:
    """Return a file of zeros in memory."""
    descriptor = os.memfd_create("bench")
    os.ftruncate(descriptor, _BLOCK_BYTES)
    return descriptor


def send_zeros(sock: socket.socket, count: int) -> None:
    """Send so many bytes, without copying them through this process."""
    while count:
        count -= os.sendfile(sock.fileno(), _memory(), 0, min(count, _BLOCK_BYTES))


def drop_all(sock: socket.socket) -> int:
    """Read to the end, dropping in the kernel; return how many bytes there were."""
    buffer = bytearray(_READ_BYTES)
    total = 0
    while count := sock.recv_into(buffer, _READ_BYTES, socket.MSG_TRUNC):
        total += count
    return total


# -- The service -----------------------------------------------------------------------------------------------------


def serve(port_file: Path) -> None:
    """Serve for ever; tell the port in a file."""
    raise_descriptors()
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listener.setblocking(False)
    address = listener.getsockname()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
    datagrams.bind(address)
    threading.Thread(target=_echo_datagrams, args=(datagrams,), daemon=True).start()
    port_file.with_suffix(".new").write_text(str(address[1]))
    port_file.with_suffix(".new").replace(port_file)
    _Service(listener).run()


def _echo_datagrams(sock: socket.socket) -> None:
    while True:
        data, source = sock.recvfrom(2048)
        sock.sendto(data, source)


class _Service:
    """One loop for what is short; a thread for each bulk stream."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._heads: dict[int, tuple[socket.socket, bytes]] = {}
        self._echoes: dict[int, socket.socket] = {}

    def run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._echoes:
                    self._echo(descriptor)
                else:
                    self._read_head(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._heads[sock.fileno()] = (sock, b"")
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read_head(self, descriptor: int) -> None:
        sock, head = self._heads[descriptor]
        try:
            if len(head) < 5:
                head += sock.recv(5 - len(head))
                complete = False
            if len(head) >= 5:
                missing = 5 + int.from_bytes(head[3:5], "big") - len(head)
                chunk = sock.recv(missing)
                head += chunk
                complete = len(chunk) == missing
        except BlockingIOError:
            complete = False
        except OSError:
            self._forget(descriptor)
            return
        if complete:
            self._start(descriptor, sock, _label_of(head))
        elif not head:
            self._forget(descriptor)
        else:
            self._heads[descriptor] = (sock, head)

    def _start(self, descriptor: int, sock: socket.socket, label: str) -> None:
        del self._heads[descriptor]
        kind, _, size = label.partition("-")
        if kind == "echo":
            self._echoes[descriptor] = sock
        elif kind == "idle":
            self._echoes[descriptor] = sock
            sock.send(b"1")
        elif kind == "once":
            with contextlib.suppress(OSError):
                sock.send(b"1")
            self._epoll.unregister(descriptor)
            sock.close()
        else:
            self._epoll.unregister(descriptor)
            sock.setblocking(True)
            threading.Thread(target=_bulk, args=(sock, kind, int(size or 0)), daemon=True).start()

    def _echo(self, descriptor: int) -> None:
        sock = self._echoes[descriptor]
        try:
            data = sock.recv(65_536)
            if data:
                sock.send(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        del self._echoes[descriptor]
        self._epoll.unregister(descriptor)
        sock.close()

    def _forget(self, descriptor: int) -> None:
        sock, _ = self._heads.pop(descriptor)
        self._epoll.unregister(descriptor)
        sock.close()


def _label_of(head: bytes) -> str:
    """Return the first label of the server name; the hellos are ours, so it is found by its zone."""
    end = head.index(f".{ZONE}".encode())
    start = end
    while 0x20 < head[start - 1] < 0x7F and end - start < 32:
        start -= 1
    return head[start:end].decode().partition(".")[0]


def _bulk(sock: socket.socket, kind: str, size: int) -> None:
    with sock, contextlib.suppress(OSError):
        if kind == "source":
            send_zeros(sock, size)
            sock.shutdown(socket.SHUT_WR)
            drop_all(sock)
        else:
            sock.sendall(drop_all(sock).to_bytes(8, "big"))


# -- Clients ---------------------------------------------------------------------------------------------------------


def connect(address: Address, label: str) -> socket.socket:
    """Open a connection and say what is wanted."""
    sock = socket.create_connection(address, timeout=_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(hello(label))
    return sock


def download(address: Address, size: int) -> None:
    """Fetch so many bytes. Raises ConnectionError when fewer, or more, came."""
    with connect(address, f"source-{size}") as sock:
        if (came := drop_all(sock)) != size:
            raise ConnectionError(f"{came} of {size} bytes came")


def upload(address: Address, size: int) -> None:
    """Send so many bytes. Raises ConnectionError when the service did not get them all."""
    with connect(address, "sink") as sock:
        sock.settimeout(None)  # sendfile wants a blocking socket
        send_zeros(sock, size)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(_TIMEOUT_S)
        came = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
        if came != size:
            raise ConnectionError(f"{came} of {size} bytes arrived")


def together(action: Callable[[], None], count: int) -> tuple[float, int]:
    """Run an action in so many threads at once; return the seconds until all had ended, and how many failed."""
    failures: list[BaseException] = []
    gate = threading.Barrier(count + 1)

    def run() -> None:
        gate.wait()
        try:
            action()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.monotonic()
    for thread in threads:
        thread.join()
    return time.monotonic() - started, len(failures)


@contextlib.contextmanager
def in_background(action: Callable[[], None]) -> Iterator[None]:
    """Repeat an action in a thread while the context is open."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def round_trips(address: Address, streams: int, seconds: float, size: int = 64, label: str = "echo") -> list[float]:
    """Return the seconds of every round trip of a message, one at a time on each stream."""
    message, found = bytes(size), []
    epoll = select.epoll()
    socks = [connect(address, label) for _ in range(streams)]
    by_descriptor = {sock.fileno(): sock for sock in socks}
    sent: dict[int, float] = {}
    clock = time.perf_counter
    for descriptor, sock in by_descriptor.items():
        epoll.register(descriptor, select.EPOLLIN)
        sent[descriptor] = clock()
        sock.send(message)
    end = clock() + seconds
    while clock() < end:
        for descriptor, _ in epoll.poll(_TIMEOUT_S):
            sock = by_descriptor[descriptor]
            if len(sock.recv(size)) != size:
                raise ConnectionError("an echo came in parts, or ended")
            now = clock()
            found.append(now - sent[descriptor])
            sent[descriptor] = now
            sock.send(message)
    for sock in socks:
        sock.close()
    epoll.close()
    return found


def connections(address: Address, at_once: int, seconds: float, labels: Sequence[str] = ("once",)) -> tuple[int, int]:
    """Connect, say a hello, get one byte and the end, again and again, so many at once; the names take turns.

    Returns how many connections were made, answered and closed, and how many failed.
    """
    made = failed = 0
    greetings = cycle([hello(label) for label in labels])
    epoll = select.epoll()
    pending: dict[int, socket.socket] = {}
    connected: set[int] = set()

    def start() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        pending[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLOUT)

    def close(descriptor: int) -> None:
        connected.discard(descriptor)
        epoll.unregister(descriptor)
        pending.pop(descriptor).close()

    end = time.monotonic() + seconds
    for _ in range(at_once):
        start()
    while time.monotonic() < end:
        for descriptor, _ in epoll.poll(1):
            sock = pending[descriptor]
            try:
                if descriptor not in connected:
                    sock.send(next(greetings))
                    connected.add(descriptor)
                    epoll.modify(descriptor, select.EPOLLIN)
                    continue
                answered = sock.recv(2) == b"1"
            except OSError:
                answered = False
            made += answered
            failed += not answered
            close(descriptor)
            start()
    for descriptor in tuple(pending):
        close(descriptor)
    epoll.close()
    return made, failed


@contextlib.contextmanager
def idle(address: Address, count: int, label: str = "idle") -> Iterator[list[socket.socket]]:
    """Hold so many streams that have exchanged a byte and say nothing more. Raises TimeoutError if that takes 60 s."""
    deadline = time.monotonic() + _TIMEOUT_S
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for _ in range(count):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(socks)} of {count} idle streams were open after {_TIMEOUT_S:g} s")
            sock = stack.enter_context(connect(address, label))
            socks.append(sock)
            if sock.recv(1) != b"1":
                raise ConnectionError("an idle stream was not opened")
        yield socks


def small_writes(address: Address, size: int, seconds: float) -> int:
    """Send messages of one size as fast as they are taken; return how many arrived."""
    message, sent = bytes(size), 0
    with connect(address, "sink") as sock:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(64):
                sock.sendall(message)
            sent += 64
        sock.shutdown(socket.SHUT_WR)
        came = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
        if came != sent * size:
            raise ConnectionError(f"{came} of {sent * size} bytes arrived")
    return sent


def datagrams(address: Address, flows: int, seconds: float, size: int = 64) -> tuple[int, int]:
    """Keep one datagram under way on each flow; return how many came back, and how many were sent again after 1 s."""
    epoll = select.epoll()
    socks = {}
    message = bytes(size)
    for _ in range(flows):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(address)
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
        sock.send(message)
    returned = lost = 0
    end = time.monotonic() + seconds
    heard = set()
    sweep = time.monotonic() + 1
    while time.monotonic() < end:
        for descriptor, _ in epoll.poll(0.2):
            sock = socks[descriptor]
            sock.recv(2048)
            returned += 1
            heard.add(descriptor)
            sock.send(message)
        if time.monotonic() > sweep:
            for descriptor in socks.keys() - heard:
                socks[descriptor].send(message)
                lost += 1
            heard.clear()
            sweep = time.monotonic() + 1
    for sock in socks.values():
        sock.close()
    epoll.close()
    return returned, lost


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
