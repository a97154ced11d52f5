"""What stays open: WebSocket, server-sent events, and connections of which one direction has ended."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.ports import free_ports
from tests.support.processes import Client, Nginx, scratch_directory, wait_for

pytestmark = pytest.mark.programs

LIVE = "live.example.com"
DEADLINE_S = 40.0
MESSAGES = 1000
MESSAGE_SIZES = (0, 1, 125, 126, 65_535, 65_536)  # RFC 6455 5.2: where the length field changes
EVENTS = 20
BODY_BYTES = 8 << 20
PAGE_BYTES = 64 << 10  # a socket's buffer takes it at once


# -- Live behind nginx -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """A second nginx, which passes /websocket and /events on to programs of the test."""

    port: int
    websocket_port: int
    events_port: int


@pytest.fixture(scope="module")
def live(chain: Chain) -> Iterator[Live]:
    """One more backend at the chain's node."""
    websocket_port, events_port = free_ports(2)
    locations = f"""
    location /websocket {{
      proxy_pass http://127.0.0.1:{websocket_port}; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
    }}
    location /events {{ proxy_pass http://127.0.0.1:{events_port}; proxy_buffering off; }}"""
    with (
        scratch_directory() as directory,
        Nginx(directory, *chain.pki.issue("live", LIVE), locations) as nginx,
        Client(directory, chain.node, {chain.node.tls_port: nginx.tls_port}, LIVE),
    ):
        yield Live(chain.node.tls_port, websocket_port, events_port)


async def echo(connection: ServerConnection) -> None:
    """Answer each message with itself."""
    async for message in connection:
        await connection.send(message)


async def test_a_websocket_carries_a_thousand_messages_and_pings(chain: Chain, live: Live) -> None:
    """Text and binary of mixed sizes come back one for one and in order, with pings answered in between."""
    rng = random.Random(MESSAGES)
    sizes = [*MESSAGE_SIZES, *(int(rng.paretovariate(0.7)) % 65_536 for _ in range(MESSAGES - len(MESSAGE_SIZES)))]
    messages = [os.urandom(size) if size % 2 else os.urandom(size // 2).hex() for size in sizes]
    async with (
        asyncio.timeout(DEADLINE_S),
        serve_websocket(echo, "127.0.0.1", live.websocket_port),
        connect_websocket(
            f"wss://{LIVE}:{live.port}/websocket",
            ssl=wire.trusting(chain.pki.ca_file),
            host="127.0.0.1",
            port=live.port,
            proxy=None,
        ) as client,
    ):
        for number, message in enumerate(messages):
            await client.send(message)
            assert await client.recv() == message
            if number % 100 == 0:
                await (await client.ping(str(number)))


async def test_server_sent_events_arrive_one_by_one(chain: Chain, live: Live) -> None:
    """Each event is seen before the next one exists: the service waits for the client's word on another connection."""
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the next event only when the client has seen the last one."""
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        with closing(writer):
            if target != "/events":
                seen.put_nowait(int(target.rpartition("/")[2]))
                writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for number in range(EVENTS):
                writer.write(b"data: %d\n\n" % number)
                assert await seen.get() == number

    async with (
        asyncio.timeout(DEADLINE_S),
        await asyncio.start_server(service, "127.0.0.1", live.events_port),
        ask(chain, live, "/events") as events,
    ):
        for number in range(EVENTS):
            await events.readuntil(b"data: %d\n\n" % number)
            async with ask(chain, live, f"/events/{number}") as answer:
                assert b" 204 " in await answer.readline()
        assert b"data" not in await events.read()


@asynccontextmanager
async def ask(chain: Chain, live: Live, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request to the live backend; give what the answer is read from."""
    context = wire.trusting(chain.pki.ca_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port, ssl=context, server_hostname=LIVE)
    with closing(writer):
        writer.write(wire.request(LIVE, path, "GET", "Connection: close"))
        yield reader


# -- One direction has ended -------------------------------------------------------------------------------------------


@pytest.fixture
def raw_service(chain: Chain) -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Start a service for one connection behind the HTTP port; give the host it is reached by."""
    with scratch_directory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(wire.IO_TIMEOUT_S)
        threads: list[threading.Thread] = []

        def start(serve: Callable[[socket.socket], None]) -> str:
            def run() -> None:
                connection, _ = listener.accept()
                connection.settimeout(wire.IO_TIMEOUT_S)
                with connection:
                    serve(connection)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return "raw.example.com"

        port = listener.getsockname()[1]
        with Client(directory, chain.node, {chain.node.http_port: port}, "raw.example.com"):
            yield start
            for thread in threads:
                thread.join()


RawService = Callable[[Callable[[socket.socket], None]], str]


def test_a_client_that_ends_its_direction_gets_a_page_of_nginx(chain: Chain) -> None:
    """FIN behind the request says only that nothing more is asked.

    The page is small: nginx itself breaks off a response that the socket does not take at once when it sees a FIN.
    """
    page = os.urandom(PAGE_BYTES)
    (chain.nginx.root / "page").write_bytes(page)
    with wire.connect(chain.node.http_port) as client:
        client.sendall(wire.request(HOST, "/page", "GET", "Connection: close"))
        client.shutdown(socket.SHUT_WR)
        assert wire.read_to_end(client).endswith(b"\r\n\r\n" + page)
    chain.wait_until_quiet()


def test_a_service_may_answer_after_the_clients_end(chain: Chain, raw_service: RawService) -> None:
    """The service sees the client's FIN behind 8 MiB and only then answers as much; every byte of it arrives."""
    upload, answer = os.urandom(BODY_BYTES), os.urandom(BODY_BYTES)
    received = []

    def serve(connection: socket.socket) -> None:
        received.append(wire.read_to_end(connection))
        connection.sendall(answer)

    head = wire.request(raw_service(serve))
    with wire.connect(chain.node.http_port) as client:
        client.sendall(head + upload)
        client.shutdown(socket.SHUT_WR)
        assert wire.read_to_end(client) == answer
    assert received == [head + upload]
    chain.wait_until_quiet()


def test_an_upload_goes_on_after_the_services_end(chain: Chain, raw_service: RawService) -> None:
    """The client has read the service's FIN before it sends 8 MiB, which arrive up to its own FIN."""
    upload = os.urandom(BODY_BYTES)
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        received.append(wire.read_head(connection))
        connection.sendall(b"done")
        connection.shutdown(socket.SHUT_WR)
        received.append(wire.read_to_end(connection))

    head = wire.request(raw_service(serve))
    with wire.connect(chain.node.http_port) as client:
        client.sendall(head)
        assert wire.read_to_end(client) == b"done"
        client.sendall(upload)
        client.shutdown(socket.SHUT_WR)
        chain.wait_until_quiet()
        wait_for(lambda: len(received) == 2, "the service has read what the node no longer holds")
    assert b"".join(received) == head + upload
