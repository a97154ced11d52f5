"""backend_client.socks5_listener: real SOCKS clients on loopback, and a fake hub behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from backend_client import socks5_listener as module
from backend_client.client import BackendClient
from backend_client.mapping import Target
from backend_client.socks5 import Login
from backend_client.socks5_listener import EARLY_MAX_BYTES, Socks5Listener
from nexus import places, sockets
from nexus.link.stream import Stream
from nexus.protocol.messages import Control
from nexus.protocol.reasons import OutboundRefusal
from nexus.sockets import listen
from tests.support.clients import running
from tests.support.fake_hub import HubSession, fake_hub
from tests.support.hub import WAIT_S, eventually

ON_BOTH_LOOPS = True
NEGOTIATED = b"\x05\x00"
CONNECT = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
WRONG_LOGIN = b"\x05\x01\x02" + b"\x01\x07mallory\x04hush"
LOGIN_REFUSED = b"\x05\x02" + b"\x01\x01"
SUCCESS = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def failure(code: int) -> bytes:
    """Return a reply."""
    return bytes([5, code]) + SUCCESS[2:]


@dataclass
class User:
    """A program that uses the listener."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self, size: int) -> bytes:
        """Return exactly so much."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Return everything up to the end."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()

    def send(self, data: bytes) -> None:
        """Send it."""
        self.writer.write(data)


@dataclass
class Setup:
    """A listener, its client and the hub's side of its session."""

    listener: Socks5Listener
    client: BackendClient
    session: HubSession
    serving: asyncio.Task[None]
    port: int
    users: list[User] = field(default_factory=list)

    async def user(self, data: bytes = b"") -> User:
        """Connect and send."""
        user = User(*await asyncio.open_connection("127.0.0.1", self.port))
        self.users.append(user)
        user.send(data)
        return user

    async def asked(self) -> Control:
        """Return the next request at the hub."""
        return await self.session.control("outbound_connect")

    async def opened(self, data: bytes = CONNECT) -> tuple[User, bytes]:
        """Open a connection; return the user and the stream's id."""
        user = await self.user(data)
        request = await self.asked()
        await self.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert await user.read(2 + len(SUCCESS)) == NEGOTIATED + SUCCESS
        return user, request.stream_id


@contextlib.asynccontextmanager
async def setup(login: Login | None = None, *features: str) -> AsyncIterator[Setup]:
    """Run a listener with a client at a fake hub; at the end nothing is pending."""

    async def script(session: HubSession) -> None:
        await session.handshake(*features)

    async with fake_hub(script) as hub, running(hub.url) as client:
        listener = Socks5Listener(listen("127.0.0.1", 0, "socks5ListenAddr"), [client], login)
        async with asyncio.TaskGroup() as tasks:
            port = int(listener.address.rpartition(":")[2])
            it = Setup(listener, client, await hub.session(), tasks.create_task(listener.run()), port)
            await asyncio.sleep(0)
            try:
                yield it
            finally:
                listener.stop()
                for user in it.users:
                    user.writer.transport.abort()
        await eventually(lambda: not listener.pending, "nobody is pending")


# -- Streams ---------------------------------------------------------------------------------------------------------


async def test_a_connection_is_opened_by_the_hub() -> None:
    """The target goes there as it was said; bytes and FINs then go both ways."""
    async with setup(None, "half_close") as it:
        user = await it.user(CONNECT)
        request = await it.asked()
        assert request.target_addr == "example.com:443"
        assert await user.read(2) == NEGOTIATED
        assert len(it.listener.pending) == 1
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert await user.read(10) == SUCCESS
        assert not it.listener.pending
        user.send(b"hello")
        assert await it.session.receive(request.stream_id, 5) == b"hello"
        await it.session.send_data(request.stream_id, b"and back")
        assert await user.read(8) == b"and back"
        user.writer.write_eof()
        assert (await it.session.control("half_close")).stream_id == request.stream_id
        await it.session.send_data(request.stream_id, b"the rest")
        await it.session.send("half_close", request.stream_id)
        assert await user.rest() == b"the rest"


async def test_what_comes_behind_the_request_at_once_is_not_lost() -> None:
    """Nor what comes while the hub dials."""
    async with setup() as it:
        user = await it.user(CONNECT + b"first ")
        request = await it.asked()
        user.send(b"second ")
        await eventually(lambda: len(pending(it)._early) == 13, "it has arrived")
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert await user.read(12) == NEGOTIATED + SUCCESS
        user.send(b"third")
        assert await it.session.receive(request.stream_id, 18) == b"first second third"


def pending(it: Setup) -> module.SocksConnection:
    """Return the one connection that is no stream yet."""
    (connection,) = it.listener.pending.oldest_first()
    return connection


async def test_a_client_that_says_much_before_it_is_answered_is_not_read_further() -> None:
    """A bound on its bytes, and all of them arrive."""
    size = 64 * EARLY_MAX_BYTES
    async with setup() as it:
        user = await it.user(CONNECT + bytes(size))
        request = await it.asked()
        await eventually(lambda: len(pending(it)._early) > EARLY_MAX_BYTES, "it has said much")
        await it.session.settle()
        assert len(pending(it)._early) < size // 8
        await it.session.send("outbound_result", request.stream_id, success=True, credits=1000)
        assert await user.read(12) == NEGOTIATED + SUCCESS
        assert await it.session.receive(request.stream_id, size) == bytes(size)


async def test_what_the_target_says_first_follows_the_reply() -> None:
    """In one read with the answer of the hub, and its end, too."""
    async with setup() as it:
        user = await it.user(CONNECT)
        request = await it.asked()
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        await it.session.send_data(request.stream_id, b"220 hello")
        await it.session.send("disconnect", request.stream_id)
        assert await user.rest() == NEGOTIATED + SUCCESS + b"220 hello"


async def test_the_end_of_the_session_is_seen_as_broken() -> None:
    """No user takes half an answer for a whole one."""
    async with setup() as it:
        user, _ = await it.opened()
        it.session.websocket.transport.abort()
        with pytest.raises(ConnectionError):
            await user.rest()


# -- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (OutboundRefusal.HUB_PORT, 2),
        (OutboundRefusal.NAME, 4),
        (OutboundRefusal.TIMEOUT, 6),
        ("dial failed", 5),
        ("", 5),
    ],
)
async def test_a_refusal_of_the_hub_has_its_code(reason: str, code: int, caplog: pytest.LogCaptureFixture) -> None:
    """The words go into the log."""
    async with setup() as it:
        user = await it.user(CONNECT)
        await it.session.send("outbound_result", (await it.asked()).stream_id, reason=reason)
        assert await user.rest() == NEGOTIATED + failure(code)
        assert "no connection to 'example.com:443': " + reason in caplog.text


async def test_without_a_session_it_is_a_general_failure() -> None:
    """At once; the listener stays (spec backend-protocol 12)."""
    async with setup() as it:
        it.client.stop()
        user = await it.user(CONNECT)
        assert await user.rest() == NEGOTIATED + failure(1)


async def test_a_session_that_ends_meanwhile_is_a_general_failure() -> None:
    """The connection was not refused by anybody."""
    async with setup() as it:
        user = await it.user(CONNECT)
        await it.asked()
        it.session.websocket.transport.abort()
        assert await user.rest() == NEGOTIATED + failure(1)


async def test_a_bug_costs_one_connection(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The listener goes on."""
    async with setup() as it:

        async def fail(_target: object) -> object:
            raise RuntimeError("a bug")

        monkeypatch.setattr(it.client, "open_stream", fail)
        user = await it.user(CONNECT)
        assert await user.rest() == NEGOTIATED + failure(1)
        monkeypatch.undo()
        await it.opened()
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6), NEGOTIATED + failure(7)),
        (b"\x05\x01\x00\x05\x01\x00\x09" + bytes(600), NEGOTIATED + failure(8)),
        (b"\x04\x01\x01\xbb" + bytes(600), b""),
    ],
)
async def test_who_asks_for_something_else_is_told_and_closed(said: bytes, answer: bytes) -> None:
    """In order, whatever else was sent: a reset would destroy the answer."""
    async with setup() as it:
        assert await (await it.user(said)).rest() == answer


async def test_a_login_is_required_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 1929, also on loopback."""
    monkeypatch.setattr(module, "REFUSED_LOGIN_S", 0.01)
    greeting = b"\x05\x01\x02"
    async with setup(Login("alice", "s3cret")) as it:
        assert await (await it.user(b"\x05\x01\x00")).rest() == b"\x05\xff"
        assert await (await it.user(greeting + b"\x01\x05alice\x03bad")).rest() == b"\x05\x02\x01\x01"
        user = await it.user(greeting + b"\x01\x05alice\x06s3cret" + CONNECT[3:])
        await it.asked()
        assert await user.read(4) == b"\x05\x02\x01\x00"


async def test_wrong_logins_are_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first few at WARNING; neither name nor password is repeated, since one may stand in the other's place."""
    monkeypatch.setattr(module, "REFUSED_LOGIN_S", 0.0)
    caplog.set_level(logging.DEBUG)
    async with setup(Login("alice", "s3cret")) as it:
        for _ in range(22):
            assert await (await it.user(WRONG_LOGIN)).rest() == LOGIN_REFUSED
        assert it.listener.refused_logins == 22
        told = [record for record in caplog.records if "login" in record.message]
        assert [record.levelno for record in told] == [logging.WARNING] * 20 + [logging.DEBUG] * 2
        assert told[6].message == (
            "refused a SOCKS5 login from 127.0.0.1: wrong name or password "
            f"(7 refused at {it.listener.address} since the start)"
        )
    assert "mallory" not in caplog.text
    assert "hush" not in caplog.text


async def test_a_wrong_login_keeps_its_place_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the client has left: passwords are not tried as fast as connections are made."""
    monkeypatch.setattr(module, "REFUSED_LOGIN_S", 3600.0)
    async with setup(Login("alice", "s3cret")) as it:
        user = await it.user(WRONG_LOGIN)
        assert await user.read(len(LOGIN_REFUSED)) == LOGIN_REFUSED
        user.writer.transport.abort()
        other = await it.user(CONNECT[:3])
        assert await other.rest() == b"\x05\xff"
        other.writer.close()
        await eventually(lambda: len(it.listener.pending) == 1, "whoever is not refused a login can leave")
        assert not pending(it)._closing


async def test_a_negotiation_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It covers everything up to the request."""
    monkeypatch.setattr(module, "NEGOTIATION_TIMEOUT_S", 0.02)
    async with setup() as it:
        assert await (await it.user()).rest() == b""
        assert await (await it.user(CONNECT[:5])).rest() == NEGOTIATED


async def test_the_time_limit_ends_with_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on the hub's counts."""
    monkeypatch.setattr(module, "NEGOTIATION_TIMEOUT_S", 0.02)
    async with setup() as it:
        user = await it.user(CONNECT)
        request = await it.asked()
        assert pending(it)._clock.cancelled()
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert await user.read(12) == NEGOTIATED + SUCCESS


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_user_that_leaves_takes_its_request_back(how: str) -> None:
    """W27: no connection is opened for nobody."""
    async with setup() as it:
        user = await it.user(CONNECT)
        request = await it.asked()
        if how == "reset":
            sock = user.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        user.writer.transport.abort() if how == "reset" else user.writer.close()
        goodbye = await it.session.control("disconnect")
        assert (goodbye.stream_id, goodbye.reason) == (request.stream_id, "shutdown")
        await eventually(lambda: not it.listener.pending, "nobody is pending")
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        late = await it.session.control("disconnect")
        assert (late.stream_id, late.reason) == (request.stream_id, "unknown")


async def test_a_user_that_left_when_the_hub_answered_leaves_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection broke in the turn in which the answer came."""
    async with setup() as it:
        open_stream = it.client.open_stream

        async def leave_meanwhile(target: Target) -> Stream:
            stream = await open_stream(target)
            pending(it)._transport.abort()
            return stream

        monkeypatch.setattr(it.client, "open_stream", leave_meanwhile)
        await it.user(CONNECT)
        request = await it.asked()
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert (await it.session.control("disconnect")).reason == "local_error"
        assert it.client.stats.streams == 0


# -- Bounds and ends -------------------------------------------------------------------------------------------------


async def test_clients_beyond_the_bound_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for an answer count; streams do not."""
    monkeypatch.setattr(module, "PENDING_MAX", 2)
    monkeypatch.setattr(places, "GRACE_S", 3600.0)
    async with setup() as it:
        await it.opened()
        waiting = [await it.user(CONNECT), await it.user()]
        await eventually(lambda: len(it.listener.pending) == 2, "two are pending")
        with contextlib.suppress(ConnectionError):
            assert await (await it.user(CONNECT)).rest() == b""
        assert it.listener.turned_away == 1
        waiting[1].writer.close()
        await eventually(lambda: len(it.listener.pending) == 1, "one has left")
        await it.user(CONNECT)
        assert (await it.asked()).target_addr == "example.com:443"


async def test_the_client_that_has_been_silent_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for the hub does not: silence costs nothing, and must keep nobody out."""
    monkeypatch.setattr(module, "PENDING_MAX", 3)
    monkeypatch.setattr(places, "GRACE_S", 0.0)
    async with setup() as it:
        waiting = await it.user(CONNECT)
        request = await it.asked()
        silent = [await it.user(CONNECT[:3]) for _ in range(2)]
        for user in silent:
            assert await user.read(2) == NEGOTIATED
        await it.opened()
        assert await silent[0].rest() == b""
        assert it.listener.turned_away == 1
        silent[1].send(CONNECT[3:])
        await it.asked()
        await it.session.send("outbound_result", request.stream_id, success=True, credits=64)
        assert await waiting.read(12) == NEGOTIATED + SUCCESS


async def test_a_client_that_was_answered_and_does_not_close_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for the hub, but has nothing to wait for any more."""
    monkeypatch.setattr(module, "PENDING_MAX", 1)
    monkeypatch.setattr(places, "GRACE_S", 0.0)
    async with setup() as it:
        user = await it.user(CONNECT)
        await it.session.send("outbound_result", (await it.asked()).stream_id, reason="dial failed")
        assert await user.rest() == NEGOTIATED + failure(5)
        await it.opened()
        assert it.listener.turned_away == 1


@pytest.mark.parametrize(
    ("address", "is_bounded"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::7", True),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
    ],
)
async def test_one_source_does_not_take_every_place(
    monkeypatch: pytest.MonkeyPatch, address: str, is_bounded: bool
) -> None:
    """Off loopback, where all programs of the machine are one source."""
    monkeypatch.setattr(module, "PENDING_PER_SOURCE_MAX", 1)
    monkeypatch.setattr(places, "GRACE_S", 3600.0)
    accept = sockets.accept

    async def accept_from(sock: socket.socket) -> tuple[socket.socket, str]:
        return (await accept(sock))[0], address

    monkeypatch.setattr(module, "accept", accept_from)
    async with setup() as it:
        first = await it.user(CONNECT[:3])
        assert await first.read(2) == NEGOTIATED
        second = await it.user(CONNECT)
        if is_bounded:
            with contextlib.suppress(ConnectionError):
                assert await second.rest() == b""
            assert it.listener.turned_away == 1
        else:
            await it.asked()


async def test_a_lack_of_descriptors_does_not_end_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """W30: the original's accept loop ends at the first error."""
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_S", 0.001)
    async with setup() as it:
        loop = asyncio.get_running_loop()
        accept, failures = (
            loop.sock_accept,
            [OSError(24, "EMFILE"), OSError(23, "ENFILE"), OSError(103, "ECONNABORTED")],
        )

        async def fail_first(sock: socket.socket) -> object:
            if failures:
                raise failures.pop()
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", fail_first)
        await it.opened()
        await it.opened()
        assert not failures


async def test_a_connection_that_broke_before_it_was_served_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one is served."""
    async with setup() as it:
        loop = asyncio.get_running_loop()
        connect, failures = loop.connect_accepted_socket, [OSError(107, "ENOTCONN")]

        async def fail_first(factory: Callable[[], asyncio.Protocol], sock: socket.socket) -> object:
            if failures:
                raise failures.pop()
            return await connect(factory, sock)

        monkeypatch.setattr(loop, "connect_accepted_socket", fail_first)
        with contextlib.suppress(ConnectionError):
            assert await (await it.user(CONNECT)).rest() == b""
        await it.opened()


async def test_a_stop_closes_the_listener_and_leaves_streams() -> None:
    """Who waits is told of a failure, who negotiates is closed, and streams go on until their session drains."""
    async with setup() as it:
        streaming, stream_id = await it.opened()
        negotiating = await it.user(CONNECT[:3])
        assert await negotiating.read(2) == NEGOTIATED
        waiting = await it.user(CONNECT)
        request = await it.asked()
        it.listener.stop()
        assert await waiting.rest() == NEGOTIATED + failure(1)
        assert await negotiating.rest() == b""
        assert (await it.session.control("disconnect")).stream_id == request.stream_id
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([it.serving])
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await it.user()
        streaming.send(b"still here")
        assert await it.session.receive(stream_id, 10) == b"still here"


async def test_refusals_fill_no_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first few are warnings, the rest is for who looks closely."""
    caplog.set_level(logging.DEBUG)
    async with setup() as it:
        it.client.stop()
        for _ in range(22):
            await (await it.user(CONNECT)).rest()
    levels = [record.levelno for record in caplog.records if "no connection to" in record.message]
    assert (levels.count(logging.WARNING), levels.count(logging.DEBUG)) == (20, 2)
