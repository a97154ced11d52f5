"""nexus.listeners.tcp: real clients on loopback, a dialer that a test controls, and no patience."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest

from nexus.acme.challenges import challenge_context
from nexus.link import endpoint as endpoints
from nexus.listeners.answers import UNRECOGNIZED_NAME_ALERT, answer
from nexus.listeners.tcp import ClientPeek, PeekBudget, TcpListeners
from nexus.peek import CLIENT_HELLO_MAX_BYTES, HTTP_HEAD_MAX_BYTES, Peeked
from nexus.places import Bursts
from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.routing.decide import RejectReason
from nexus.transport import OpenRequest
from tests.support.client_hello import GREASE, client_hello, extension, hello_of, in_records, padding, record, sni
from tests.support.hub import WAIT_S, eventually
from tests.support.listeners import Dialer, listening

ON_BOTH_LOOPS = True
HOST = "app.example.com"
HELLO = hello_of(sni(HOST.encode()))
REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
SHORT_S = 0.05


# -- Found ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "is_tls"), [(HELLO, True), (REQUEST, False)], ids=["tls", "http"])
async def test_a_client_that_names_a_host_gets_a_stream(data: bytes, is_tls: bool) -> None:
    """The dialer is asked once, and the stream gets every byte read so far, then every byte that follows."""
    async with listening() as setup:
        client = await setup.connect(data + b"behind it")
        stream = await setup.stream()
        address = client.writer.get_extra_info("sockname")
        assert setup.dialer.requests == [
            OpenRequest(HOST, is_tls=is_tls, local_port=setup.port, client=f"127.0.0.1:{address[1]}")
        ]
        client.writer.write(b" and more")
        await eventually(lambda: setup.dialer.received() == data + b"behind it and more", "all has arrived, in order")
        stream.receive(b"answer")
        assert await client.reader.readexactly(6) == b"answer"
        assert not setup.rejected
        assert setup.listeners.stats.connections == {setup.port: 1}
        assert len(setup.listeners.peeks) == 0
        assert setup.listeners.connections.held == 1


@pytest.mark.parametrize("data", [HELLO, REQUEST], ids=["tls", "http"])
async def test_a_head_that_drips_in_is_delivered_whole(data: bytes) -> None:
    """Byte by byte, with the event loop turning in between."""
    async with listening() as setup:
        client = await setup.connect()
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            client.writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        await eventually(lambda: setup.dialer.received() == data, "all has arrived, in order")
        assert len(setup.dialer.requests) == 1


async def test_a_long_head_is_split_into_messages_that_fit() -> None:
    """A head of more than 32 KiB must not become one message that ends the session (W1)."""
    head = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {'x' * 60_000}\r\n\r\n".encode()
    async with listening() as setup:
        await setup.connect(head)
        await eventually(lambda: setup.dialer.received() == head, "all has arrived, in order")
        assert max(map(len, setup.dialer.side.link.data())) <= PAYLOAD_MAX_BYTES


async def test_a_request_with_its_fin_right_behind_is_served() -> None:
    """The FIN goes to the stream, behind the request."""
    async with listening() as setup:
        client = await setup.connect(REQUEST)
        client.writer.write_eof()
        stream = await setup.stream()
        await eventually(lambda: setup.dialer.side.link.controls("half_close"), "the FIN is told")
        assert setup.dialer.received() == REQUEST
        stream.receive(b"the answer")
        stream.receive_disconnect("normal")
        assert await client.rest() == b"the answer"


async def test_a_stream_that_breaks_is_a_reset_for_the_client() -> None:
    """And the place of the client is free again."""
    async with listening(connections_per_source=1) as setup:
        client = await setup.connect(REQUEST)
        stream = await setup.stream()
        stream.receive_disconnect("dial_failed")
        assert await client.rest() is None
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


async def test_an_ipv6_client_is_told_in_brackets() -> None:
    """As the original writes it in ``client_ip``."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    async with listening("") as setup:
        await setup.connect(REQUEST, "::1")
        await setup.connect(REQUEST, "127.0.0.1")
        await eventually(lambda: len(setup.dialer.requests) == 2, "both are served")
        clients = sorted(request.client.rpartition(":")[0] for request in setup.dialer.requests)
        assert clients == ["127.0.0.1", "[::1]"]


# -- Refused --------------------------------------------------------------------------------------------------------

NO_SNI = hello_of()
LARGE_HELLO = in_records(client_hello(extension(GREASE), padding(CLIENT_HELLO_MAX_BYTES)))
LARGE_HEAD = b"GET / HTTP/1.1\r\nX: " + b"x" * HTTP_HEAD_MAX_BYTES
CASES = {
    "no backend, tls": (HELLO, RejectReason.NO_BACKEND, UNRECOGNIZED_NAME_ALERT),
    "no backend, http": (REQUEST, RejectReason.NO_BACKEND, answer(RejectReason.NO_BACKEND, is_tls=False, is_http=True)),
    "no name, tls": (NO_SNI, RejectReason.NO_NAME, UNRECOGNIZED_NAME_ALERT),
    "no name, http": (
        b"GET / HTTP/1.0\r\n\r\n",
        RejectReason.NO_NAME,
        answer(RejectReason.NO_NAME, is_tls=False, is_http=True),
    ),
    "broken tls": (record(b"\x00" * 40), RejectReason.UNRECOGNISED, UNRECOGNIZED_NAME_ALERT),
    "neither": (b"\x00\x01\x02", RejectReason.UNRECOGNISED, b""),
    "too large, tls": (LARGE_HELLO, RejectReason.TOO_LARGE, UNRECOGNIZED_NAME_ALERT),
    "too large, http": (
        LARGE_HEAD,
        RejectReason.TOO_LARGE,
        answer(RejectReason.TOO_LARGE, is_tls=False, is_http=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_refused_client_is_answered_in_its_own_language(case: str) -> None:
    """The whole answer arrives, then a FIN; one refusal is counted under its reason."""
    data, reason, expected = CASES[case]
    async with listening() as setup:
        setup.dialer.refusal = RejectReason.NO_BACKEND
        client = await setup.connect(data)
        assert await client.rest() == expected
        assert setup.rejected == {reason.value: 1}
        assert len(setup.listeners.peeks) == 0
        client.writer.close()
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


@pytest.mark.parametrize("case", CASES)
async def test_silence_is_a_choice_of_the_operator(case: str) -> None:
    """``unroutedClose: silent`` ends every refused client without a word, as the original does."""
    data, reason, _ = CASES[case]
    async with listening(answers=False) as setup:
        setup.dialer.refusal = RejectReason.NO_BACKEND
        client = await setup.connect(data)
        assert await client.rest() == b""
        assert setup.rejected == {reason.value: 1}


async def test_an_answer_is_read_by_an_ordinary_client() -> None:
    """``http.client`` over a real socket, in a thread of its own."""

    def ask(port: int) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Host": HOST})
            response = connection.getresponse()
            return response.status, response.read()

    async with listening() as setup:
        setup.dialer.refusal = RejectReason.NO_BACKEND
        status, body = await asyncio.to_thread(ask, setup.port)
    assert status == 404
    assert body.startswith(b"404 Not Found\n")


async def test_refusals_are_told_to_the_debug_log_only(caplog: pytest.LogCaptureFixture) -> None:
    """One line, with the name that was asked for."""
    caplog.set_level(logging.DEBUG, "nexus.listeners")
    async with listening() as setup:
        setup.dialer.refusal = RejectReason.NO_BACKEND
        await (await setup.connect(REQUEST)).rest()
    (record_,) = [entry for entry in caplog.records if entry.name == "nexus.listeners"]
    assert record_.levelno == logging.DEBUG
    assert record_.getMessage().endswith(f"on port {setup.port}: no_backend {HOST}")


async def test_a_client_that_ends_while_peeked_at_is_gone() -> None:
    """Nothing is opened for it, and nothing is said."""
    async with listening() as setup:
        client = await setup.connect(HELLO[:20])
        client.writer.write_eof()
        assert await client.rest() == b""
        assert setup.rejected == {"client_gone": 1}
        assert not setup.dialer.requests
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


async def test_a_client_that_resets_while_peeked_at_is_gone() -> None:
    """It is counted once."""
    async with listening() as setup:
        client = await setup.connect(HELLO[:20])
        await eventually(lambda: len(setup.listeners.peeks) == 1, "it is peeked at")
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await eventually(lambda: setup.rejected == {"client_gone": 1}, "it is counted")
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


async def test_a_client_without_an_address_is_gone_already() -> None:
    """So says the kernel of one that was reset before it was accepted."""

    class Transport(asyncio.Transport):
        closed = False

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

        def close(self) -> None:
            self.closed = True

    listeners = TcpListeners(Dialer(), PeekBudget())
    transport = Transport()
    client = ClientPeek(listeners, 443)
    client.connection_made(transport)
    assert transport.closed
    client.connection_lost(None)
    assert dict(listeners.stats.rejected) == {"client_gone": 1}
    assert listeners.connections.held == 0


def test_a_client_that_is_reset_behind_its_request_still_has_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop asks the kernel each time, which knows no address of a connection that was reset meanwhile."""

    class Forgetful(_Peer):
        asked = 0

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            self.asked += name == "peername"
            return default if self.asked > 1 else super().get_extra_info(name, default)

    _Clock(monkeypatch)
    dialer = Dialer()
    client = ClientPeek(TcpListeners(dialer, PeekBudget()), 443)
    client.connection_made(Forgetful())
    feed(client, b"GET / HTTP/1.1\r\nHost: x\r\n")
    monkeypatch.setattr(ClientPeek, "_splice", lambda _self, _stream, *, eof: None)
    feed(client, b"\r\n")
    assert [request.client for request in dialer.requests] == ["192.0.2.1:5"]


# -- Time -----------------------------------------------------------------------------------------------------------

DEADLINES: dict[str, tuple[dict[str, Any], bytes]] = {
    "first byte": ({"first_byte_s": SHORT_S}, b""),
    "first byte, by the absolute limit": ({"absolute_max_s": SHORT_S}, b""),
    "between bytes": ({"idle_extension_s": SHORT_S}, HELLO[:20]),
    "between bytes, by the absolute limit": ({"absolute_max_s": SHORT_S}, REQUEST[:20]),
}


@pytest.mark.parametrize("case", DEADLINES)
async def test_a_client_that_says_too_little_is_closed(case: str) -> None:
    """Silently, since nothing is known of what it speaks; the time is the budget's, not the default's 15 s."""
    budget, data = DEADLINES[case]
    async with listening("127.0.0.1", **budget) as setup:
        client = await setup.connect(data)
        assert await client.rest() == b""
        assert setup.rejected == {"timeout": 1}
        assert len(setup.listeners.peeks) == 0
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


class _Clock:
    """Stands for the event loop: notes when timers are due, and tells the time that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.due: list[float] = []
        self.cancelled = 0
        self.call: Callable[[], None] | None = None
        monkeypatch.setattr("nexus.listeners.tcp.asyncio.get_running_loop", lambda: self)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> _Clock:
        self.due.append(when)
        self.call = call
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class _Peer(asyncio.Transport):
    """A transport of a client at an address, which notes its end."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.ended = ""

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"


def feed(client: ClientPeek, data: bytes) -> None:
    """Let bytes arrive."""
    client.get_buffer(-1)[: len(data)] = data
    client.buffer_updated(len(data))


def test_the_deadlines_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """First byte, then the extension from each read on, never beyond the absolute limit (node-and-mesh 4.2)."""
    clock = _Clock(monkeypatch)
    listeners = TcpListeners(Dialer(), PeekBudget())
    client, transport = ClientPeek(listeners, 443), _Peer()
    client.connection_made(transport)
    for now in (103.0, 108.0, 126.0):
        clock.now = now
        feed(client, b"GET / HTTP/1.1\r\n" if now < 108 else b"X: y\r\n")
    assert clock.due == [115.0, 108.0, 113.0, 130.0]
    assert clock.cancelled == 3
    assert clock.call is not None
    clock.call()
    assert transport.ended == "closed"
    assert clock.cancelled == 4
    assert dict(listeners.stats.rejected) == {"timeout": 1}


def test_on_a_claimed_port_only_silence_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """``portClaimWaitSeconds``: whose first bytes are here may be about to name a host, over a slow path."""
    clock = _Clock(monkeypatch)
    dialer = Dialer()
    dialer.claimed.add(443)
    client = ClientPeek(TcpListeners(dialer, PeekBudget()), 443)
    client.connection_made(_Peer())
    clock.now = 102.0
    feed(client, b"GET / HTTP/1.1\r\n")
    assert clock.due == [103.0, 107.0]


def test_an_absolute_limit_below_the_first_byte_limit_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment on."""
    clock = _Clock(monkeypatch)
    client = ClientPeek(TcpListeners(Dialer(), PeekBudget(absolute_max_s=2)), 443)
    client.connection_made(_Peer())
    assert clock.due == [102.0]


# -- Number ---------------------------------------------------------------------------------------------------------


async def test_connections_per_source_are_limited_for_their_whole_life() -> None:
    """One too many is reset at once; a stream holds its place, and gives it back."""
    async with listening(connections_per_source=2) as setup:
        first = await setup.connect(REQUEST)
        await setup.stream()
        await setup.connect()
        await eventually(lambda: setup.listeners.connections.held == 2, "both have a place")
        third = await setup.connect()
        assert await third.rest() is None
        assert setup.rejected == {"overloaded": 1}
        first.writer.close()
        next(iter(setup.dialer.side.session.streams.values())).receive_disconnect("normal")
        await eventually(lambda: setup.listeners.connections.held == 1, "a place is free")
        await setup.connect(REQUEST)
        await eventually(lambda: len(setup.dialer.requests) == 2, "the next one is served")


async def test_a_silent_client_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reset, the new one is served: 256 silent connections lock nobody out."""
    monkeypatch.setattr("nexus.places.GRACE_S", 0.0)
    async with listening(concurrent=1) as setup:
        silent = await setup.connect()
        await eventually(lambda: len(setup.listeners.peeks) == 1, "it is peeked at")
        await setup.connect(REQUEST)
        assert await silent.rest() is None
        await setup.stream()
        assert setup.rejected == {"overloaded": 1}


async def test_a_flood_of_fresh_clients_is_refused_far_above_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused holds no place."""
    monkeypatch.setattr("nexus.listeners.tcp.BURSTS", Bursts(2, 2))
    async with listening(concurrent=1) as setup:
        for _ in range(2):
            await setup.connect()
        await eventually(lambda: len(setup.listeners.peeks) == 2, "both are peeked at")
        third = await setup.connect()
        assert await third.rest() is None
        assert setup.rejected == {"overloaded": 1}
        assert setup.listeners.connections.held == 2


async def test_refused_clients_that_stay_give_way_to_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who is refused again and again and never closes holds no more descriptors than one who is silent."""
    monkeypatch.setattr("nexus.places.GRACE_S", 0.0)
    async with listening(concurrent=2) as setup:
        clients = [await setup.connect(b"\x00") for _ in range(5)]
        await eventually(lambda: setup.rejected == {"unrecognised": 5}, "all are refused")
        await eventually(lambda: setup.listeners.connections.held == 2, "the older ones are closed")
        assert len(setup.listeners.refused) == 2
        assert await clients[4].rest() == b""


async def test_a_flood_of_refused_clients_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far above the cap even a fresh one is reset at once."""
    monkeypatch.setattr("nexus.listeners.tcp.BURSTS", Bursts(2, 2))
    async with listening(concurrent=1) as setup:
        for count in range(1, 4):
            await setup.connect(b"\x00")
            await eventually(lambda: setup.rejected == {"unrecognised": count}, "it is refused")  # noqa: B023
        await eventually(lambda: setup.listeners.connections.held == 2, "the third is gone")


# -- End ------------------------------------------------------------------------------------------------------------


async def test_closing_drops_who_is_peeked_at_and_keeps_streams() -> None:
    """Nobody new is accepted; closing twice is no different."""
    async with listening() as setup:
        served = await setup.connect(REQUEST)
        stream = await setup.stream()
        waiting = await setup.connect(HELLO[:20])
        await eventually(lambda: len(setup.listeners.peeks) == 1, "it is peeked at")
        setup.listeners.close()
        setup.listeners.close()
        assert await waiting.rest() is None
        stream.receive(b"still here")
        assert await served.reader.readexactly(10) == b"still here"
        with pytest.raises(ConnectionError):
            await setup.connect()
    assert setup.rejected == {"overloaded": 1}


async def test_a_refused_client_that_never_closes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free once it had its time to read the answer."""
    monkeypatch.setattr(endpoints, "LINGER_S", SHORT_S)
    monkeypatch.setattr(endpoints, "DRAIN_STALL_S", SHORT_S)
    async with listening() as setup:
        client = await setup.connect(b"GET / HTTP/1.0\r\n\r\n")
        await eventually(lambda: setup.listeners.connections.held == 0 and setup.rejected, "the place is free")
        assert (await client.rest() or b"").startswith(b"HTTP/1.1 400 ")


# -- What the node answers itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [b"HTTP/1.1 200 OK\r\n\r\n", b""], ids=["answer", "end"])
async def test_the_node_answers_what_is_its_own(answered: bytes) -> None:
    """No backend is asked; behind the answer the connection ends in order."""
    async with listening() as setup:
        asked: list[tuple[int, str | None]] = []

        def own(port: int, peeked: Peeked) -> bytes:
            asked.append((port, peeked.host))
            return answered

        setup.listeners.own_answers = own
        client = await setup.connect(REQUEST)
        assert await client.reader.read() == answered
        assert asked == [(setup.port, HOST)]
        assert setup.dialer.requests == []
        assert not setup.rejected


async def test_the_node_shakes_hands_itself() -> None:
    """With the hello that was peeked; behind the handshake the connection ends in order."""
    proof = challenge_context(HOST, "token.thumbprint")
    async with listening() as setup:
        setup.listeners.own_answers = lambda _port, _peeked: proof
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", setup.port, ssl=context, server_hostname=HOST)
            assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        assert setup.dialer.requests == []


async def test_handshakes_of_the_node_are_bounded_as_refusals_are() -> None:
    """One that only begins keeps a place until there are too many."""
    proof = challenge_context(HOST, "token.thumbprint")
    async with listening(concurrent=1, concurrent_per_source=1) as setup:
        setup.listeners.own_answers = lambda _port, _peeked: proof
        clients = [await setup.connect(HELLO) for _ in range(40)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(WAIT_S):
                    await client.reader.read(1)
        assert len(setup.listeners.refused) <= 17
