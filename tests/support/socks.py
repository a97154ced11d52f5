"""The client's side of SOCKS5, for tests that need the reply itself or a target that no program would send."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator

from tests.support import wire
from tests.support.loopback import Reader, Writer, close, connection

_REPLY_BYTES = 10
_PENDING = 4  # of connections to a listener that takes none: those the kernel completes, and some whose SYN it drops


class SocksError(Exception):
    """The reply of a SOCKS server that opened no connection."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SOCKS reply {code}")
        self.code = code


def request(host: str, port: int) -> bytes:
    """Return a greeting and a request in one; an address as an address, anything else as a name."""
    try:
        address = ipaddress.ip_address(host)
        packed = bytes([1 if address.version == 4 else 4]) + address.packed
    except ValueError:
        packed = bytes([3, len(host.encode())]) + host.encode()
    return b"\x05\x01\x00" + b"\x05\x01\x00" + packed + port.to_bytes(2, "big")


def connect(socks_port: int, host: str, port: int) -> socket.socket:
    """Return a connection to ``host:port`` through a SOCKS server on loopback; SocksError if it opened none."""
    sock = wire.connect(socks_port)
    try:
        sock.sendall(request(host, port))
        answer = b""
        while len(answer) < 2 + _REPLY_BYTES:
            part = sock.recv(2 + _REPLY_BYTES - len(answer))
            assert part, f"the SOCKS server said no more than {answer!r}"
            answer += part
        _check(answer)
    except BaseException:
        sock.close()
        raise
    return sock


def reply_code(socks_port: int, host: str, port: int) -> int:
    """Return the code of the reply to a request."""
    try:
        connect(socks_port, host, port).close()
    except SocksError as error:
        return error.code
    return 0


@contextlib.asynccontextmanager
async def connected(
    socks_port: int, host: str, port: int, *, slow: bool = False
) -> AsyncIterator[tuple[Reader, Writer]]:
    """Connect as ``connect`` does, in the event loop."""
    async with connection(socks_port, slow=slow) as (reader, writer):
        writer.write(request(host, port))
        _check(await reader.readexactly(2 + _REPLY_BYTES))
        yield reader, writer
        await close(writer)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Give a port of loopback that answers no SYN: its listener takes no connection and its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(_PENDING):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])


def _check(answer: bytes) -> None:
    assert answer[:3] == b"\x05\x00\x05", answer
    if answer[3]:
        raise SocksError(answer[3])
