"""Tunnels through an HTTP proxy: a real small CONNECT proxy on loopback with a real echo server behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvloop

from nexus.proxy_dial import RESPONSE_HEAD_MAX_BYTES, ProxyError, open_tunnel, parse_proxy

TIMEOUT_S = 10.0
SHORT_TIMEOUT_S = 0.1
PASSWORD = "p@ss/w#rd:?"
QUOTED_PASSWORD = "p%40ss%2Fw%23rd%3A%3F"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve one handler on an ephemeral loopback port, yield the port, and wait until every connection has ended."""
    idle = asyncio.Condition()
    running = 0

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running
        running += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        running -= 1
        async with idle:
            idle.notify_all()

    async with await asyncio.start_server(run, host, 0) as server:
        yield server.sockets[0].getsockname()[1]
        async with idle:
            await idle.wait_for(lambda: running == 0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, after a greeting of its own."""
    writer.write(b"hello ")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, then pass the end on."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@dataclass
class ConnectProxy:
    """A CONNECT proxy that notes the requests it sees."""

    credentials: str | None = None
    heads: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if self.credentials is not None:
            basic = base64.b64encode(self.credentials.encode()).decode()
            if f"Proxy-Authorization: Basic {basic}\r\n" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
        host, _, port = head.split(" ")[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        greeting = await far_reader.read(65536)
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n" + greeting)
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            far_writer.close()
            await far_writer.wait_closed()


def answering(answer: bytes) -> Handler:
    """Make a proxy that gives one fixed answer to whatever it is asked."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()

    return handler


async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Accept, read, and never answer."""
    await reader.read()


async def receive(sock: socket.socket, count: int) -> bytes:
    """Read exactly so many bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        assert chunk
        data += chunk
    return bytes(data)


async def talk_through(proxy: ConnectProxy, user_info: str = "") -> None:
    """Open a tunnel to an echo server and check that every byte comes through, the first ones included."""
    payload = bytes(range(256)) * 1024
    async with served(echo) as far_port, served(proxy) as port:
        sock = await open_tunnel(f"http://{user_info}127.0.0.1:{port}", "127.0.0.1", far_port, TIMEOUT_S)
        with sock:
            assert sock.getblocking() is False
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sending = asyncio.get_running_loop().sock_sendall(sock, payload)
            received, _ = await asyncio.gather(receive(sock, 6 + len(payload)), sending)
        assert received == b"hello " + payload
        assert proxy.heads[-1].startswith(f"CONNECT 127.0.0.1:{far_port} HTTP/1.1\r\nHost: 127.0.0.1:{far_port}\r\n")


async def failure(handler: Handler, timeout_s: float = TIMEOUT_S) -> ProxyError:
    """Ask a proxy for a tunnel and return the error, which must neither quote nor carry the password."""
    async with served(handler) as port:
        with pytest.raises(ProxyError) as caught:
            await open_tunnel(f"http://me:{QUOTED_PASSWORD}@127.0.0.1:{port}", "hub.example", 443, timeout_s)
        assert f"http://me:***@127.0.0.1:{port}" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert QUOTED_PASSWORD not in str(caught.value)
    return caught.value


async def test_bytes_pass_both_ways_and_none_is_lost_behind_the_answer() -> None:
    """What a talkative far end sent together with the proxy's answer stays in the socket."""
    proxy = ConnectProxy()
    await talk_through(proxy)
    assert "Proxy-Authorization" not in proxy.heads[0]


def test_the_same_works_on_uvloop() -> None:
    """The event loop that production uses behaves alike."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk_through(ConnectProxy()))


async def test_credentials_of_the_url_are_sent_as_basic() -> None:
    """User and password are percent-decoded, then sent as RFC 7617 says."""
    await talk_through(ConnectProxy(credentials=f"me:{PASSWORD}"), user_info=f"me:{QUOTED_PASSWORD}@")


async def test_a_user_without_a_password_is_sent_with_an_empty_one() -> None:
    """Some proxies take an access key in place of the user."""
    await talk_through(ConnectProxy(credentials="key:"), user_info="key@")


async def test_a_refusal_names_the_proxy_and_the_status() -> None:
    """The wrong password gives the 407 with its reason, and the password stays out of the text."""
    error = await failure(ConnectProxy(credentials="me:other"))
    assert error.status == 407
    assert "refused a tunnel to hub.example:443: 407 Proxy Authentication Required" in str(error)
    assert isinstance(error, ConnectionError)


@pytest.mark.parametrize(
    ("answer", "what", "status"),
    [
        (b"HTTP/1.1 503\r\n\r\n", "443: 503", 503),
        (b"HTTP/1.0 403 No \x1b[31m\xff!\r\n\r\n", "403 No ?[31m?!", 403),
        (b"HTTP/1.1 502 " + b"x" * 200 + b"\r\n\r\n", "502 " + "x" * 100, 502),
        (b"HTTP/1.1 100 Continue\n\n", "100 Continue", 100),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP/1.1", None),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1", None),
        (b"HTTP/1.1 999 x\r\n\r\n", "not HTTP/1.1", None),
        (b"\r\n\r\n", "not HTTP/1.1", None),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * RESPONSE_HEAD_MAX_BYTES, "longer than 8192 bytes", None),
    ],
)
async def test_any_other_answer_is_an_error(answer: bytes, what: str, status: int | None) -> None:
    """Refusals, nonsense and endless heads are told apart, and hostile bytes do not reach the terminal."""
    error = await failure(answering(answer))
    assert what in str(error)
    assert error.status == status
    assert str(error).isprintable()


async def test_any_2xx_opens_the_tunnel_and_a_bare_line_feed_ends_a_line() -> None:
    """Lenient where RFC 9110 and RFC 9112 are."""
    async with served(answering(b"HTTP/1.0 204 fine\nA: b\n\nrest")) as port:
        with await open_tunnel(f"127.0.0.1:{port}", "hub.example", 443, TIMEOUT_S) as sock:
            assert await receive(sock, 4) == b"rest"


async def test_a_proxy_that_hangs_up_is_an_error() -> None:
    """An end in place of an answer is not mistaken for a tunnel."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 O")

    assert "closed the connection" in str(await failure(hang_up))


async def test_a_silent_proxy_is_given_up_at_the_time_limit() -> None:
    """The limit covers the answer too, and the error says what was waited for."""
    assert "no tunnel to hub.example:443 within 0.1 s" in str(await failure(never, SHORT_TIMEOUT_S))


async def test_cancelling_closes_the_socket() -> None:
    """The proxy sees the end of a connection whose caller lost interest."""
    opened, ended = asyncio.Event(), asyncio.Event()

    async def watch(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        opened.set()
        await reader.read()
        ended.set()

    async with served(watch) as port, asyncio.TaskGroup() as group:
        task = group.create_task(open_tunnel(f"http://127.0.0.1:{port}", "hub.example", 443, TIMEOUT_S))
        await opened.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await ended.wait()


async def test_cancelling_while_connecting_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is still being made is given up at once."""
    connecting: asyncio.Queue[socket.socket] = asyncio.Queue()

    async def hang(sock: socket.socket, _address: object) -> None:
        connecting.put_nowait(sock)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", hang)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(open_tunnel("http://127.0.0.1:1", "hub.example", 443, TIMEOUT_S))
        sock = await connecting.get()
        task.cancel()
    assert sock.fileno() == -1


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_a_proxy_that_is_not_there_is_an_error_that_names_it() -> None:
    """A refused connection says which proxy refused it."""
    port = closed_port()
    with pytest.raises(ProxyError, match=f"proxy http://127.0.0.1:{port}: .*[Cc]onnect"):
        await open_tunnel(f"http://127.0.0.1:{port}", "hub.example", 443, TIMEOUT_S)


async def test_a_proxy_name_that_cannot_exist_is_an_error_that_names_it() -> None:
    """A label of 70 characters is refused before any resolver is asked."""
    with pytest.raises(ProxyError, match=r"proxy http://x{70}:3128: "):
        await open_tunnel(f"http://{'x' * 70}:3128", "hub.example", 443, TIMEOUT_S)


async def test_the_next_address_is_tried_when_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy whose first address refuses is reached on its second."""
    dead = closed_port()
    async with served(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as port:

        async def resolve(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", there)) for there in (dead, port)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        (await open_tunnel("http://proxy.example:1", "hub.example", 443, TIMEOUT_S)).close()


async def test_a_name_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer of the resolver is told as such."""

    async def resolve(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    with pytest.raises(ProxyError, match="the name has no address"):
        await open_tunnel("http://proxy.example:1", "hub.example", 443, TIMEOUT_S)


async def test_an_ipv6_target_is_asked_for_in_brackets() -> None:
    """RFC 9110 section 9.3.6: the request target is an authority."""
    heads: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with served(note) as port:
        (await open_tunnel(f"http://127.0.0.1:{port}", "2001:db8::1", 443, TIMEOUT_S)).close()
    assert heads == [b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"]


@pytest.mark.parametrize("host", ["", "two words", "a\r\nX: y", "bücher.example"])
async def test_a_host_that_would_break_the_request_is_refused(host: str) -> None:
    """Nothing can be smuggled into the request head."""
    with pytest.raises(ProxyError, match="cannot be asked for"):
        await open_tunnel("http://127.0.0.1:1", host, 443, TIMEOUT_S)


@pytest.mark.parametrize(
    ("url", "host", "port", "shown"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128, "http://proxy.example:3128"),
        ("http://proxy.example/", "proxy.example", 80, "http://proxy.example:80"),
        ("proxy.example:3128", "proxy.example", 3128, "http://proxy.example:3128"),
        ("HTTP://[::1]:8080", "::1", 8080, "http://[::1]:8080"),
        ("http://me:secret@proxy.example", "proxy.example", 80, "http://me:***@proxy.example:80"),
        ("http://me%0A:secret@proxy.example", "proxy.example", 80, "http://me?:***@proxy.example:80"),
        ("http://secret@proxy.example", "proxy.example", 80, "http://***@proxy.example:80"),
        ("http://:secret@proxy.example", "proxy.example", 80, "http://***@proxy.example:80"),
    ],
)
def test_proxy_urls_are_parsed_and_shown_without_their_password(url: str, host: str, port: int, shown: str) -> None:
    """Neither the text nor the repr of an address holds the password."""
    address = parse_proxy(url)
    assert (address.host, address.port, str(address)) == (host, port, shown)
    assert "secret" not in repr(address)


@pytest.mark.parametrize("scheme", ["https", "socks5", "socks5h", "socks4", "ftp"])
def test_other_kinds_of_proxies_are_refused_by_name(scheme: str) -> None:
    """The error says what is not supported and what is."""
    with pytest.raises(ProxyError, match=f"{scheme} proxies are not supported, only http://") as caught:
        parse_proxy(f"{scheme}://me:secret@proxy.example:1080")
    assert str(caught.value).startswith(f"proxy {scheme}://***@proxy.example:1080: ")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret/secret@proxy.example:3128",
        "http://me:secret#secret@proxy.example:3128",
        "http://me:secret@proxy.example:port",
        "http://me:secret@proxy.example:99999",
        "http://me:secret@[::1",
        "http://me:secret@",
        "http://me:secret@two words",
        "http://me:secret@proxy.example/path",
        "me:secret@proxy.example?query",
    ],
)
def test_a_url_that_cannot_be_parsed_is_not_quoted_with_its_password(url: str) -> None:
    """Even the parser's own error, which quotes what it stumbled over, is not carried along."""
    with pytest.raises(ProxyError, match="cannot be parsed") as caught:
        parse_proxy(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
