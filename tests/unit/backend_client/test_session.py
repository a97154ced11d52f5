"""backend_client.session: streams that a hub announces, the odd things it may say, and how a session drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from backend_client import pauses
from backend_client import session as module
from backend_client.connection import Connection, StreamInfo
from backend_client.events import EventKind
from backend_client.reauth import Reauthentication
from backend_client.session import ClientSession, Forwarder
from nexus.errors import StreamReset, TokenProviderError
from nexus.limits import STRANGERS_LINES_MAX
from nexus.link import quiet
from nexus.link.connection import Link
from nexus.link.flow import SessionFlow
from nexus.protocol.constants import CREDITS_OVERSHOOT, FEATURE_DRAIN, FEATURE_HALF_CLOSE, FEATURES, FIRST_GRANT_AFTER
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import Reason
from tests.support.clients import Service, connected, forwarder, local_service
from tests.support.fake_hub import NIL
from tests.support.go_wire import Over
from tests.support.hub import eventually
from tests.support.sessions import LOST, FakeEndpoint, FakeLink

ON_BOTH_LOOPS = True
ID = b"\x07" * 16


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A service on loopback whose connections are gone at the end."""
    async with local_service() as found:
        yield found


# -- Forwarding -----------------------------------------------------------------------------------------------------


async def test_a_stream_is_forwarded_both_ways(service: Service) -> None:
    """What came while dialling is delivered first; figures and events tell of it."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        await it.session.send_data(ID, b"early ")
        await it.session.send_data(ID, b"bytes")
        reader, writer = await service.accept()
        assert await reader.readexactly(11) == b"early bytes"
        writer.write(b"answer")
        assert await it.session.receive(ID, 6) == b"answer"
        stats = it.client.stats
        assert (stats.streams, stats.streams_total, stats.dial_failures) == (1, 1, 0)
        assert (stats.bytes_from_hub, stats.bytes_to_hub) == (11, 6)
        await it.session.send("disconnect", ID)
        assert await reader.read() == b""
        assert (await it.events.next(EventKind.STREAM_CLOSED)).detail == "normal"
        assert it.events.kinds == [EventKind.CONNECTED, EventKind.STREAM_OPENED, EventKind.STREAM_CLOSED]
        assert it.client.stats.streams == 0


@pytest.mark.parametrize("features", [(), FEATURES])
async def test_the_window_is_granted_and_renewed(service: Service, features: tuple[str, ...]) -> None:
    """The configured number, then what left, in batches of 8 (spec backend-protocol 7.2).

    With the announcement, but to a hub of ours, which paces itself until then, when some messages are here.
    """
    async with connected(forwarder({443: service.target}, window=32), *features) as it:
        await it.session.connect(ID)
        reader, writer = await service.accept()
        for _ in range(FIRST_GRANT_AFTER - 1):
            await it.session.send_data(ID, b"x")
        assert await reader.readexactly(3) == b"xxx"
        writer.write(b"answer")
        assert await it.session.receive(ID, 6) == b"answer"
        granted = [control.credits for control in it.session.take_controls("resume_stream")]
        assert granted == ([] if features else [32])
        await it.session.send_data(ID, b"x")
        if features:
            assert (await it.session.control("resume_stream")).credits == 32
        for _ in range(4):
            await it.session.send_data(ID, b"x")
        assert await reader.readexactly(5) == b"x" * 5
        assert (await it.session.control("resume_stream")).credits == 8


async def test_the_client_stops_when_its_credits_are_spent(service: Service) -> None:
    """A grant lets it go on, from where it stopped."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID, credits=2)
        _, writer = await service.accept()
        data = bytes(range(256)) * 1024
        writer.write(data)
        first = [await it.session.data.get() for _ in range(2)]
        await it.session.settle()
        assert it.session.data.empty()
        await it.session.send("resume_stream", ID, credits=64)
        sent = b"".join(payload for _, payload in first)
        assert sent + await it.session.receive(ID, len(data) - len(sent)) == data


async def test_the_end_of_a_service_is_the_end_of_the_stream(service: Service) -> None:
    """Towards a hub without half-close, behind the last byte."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        _, writer = await service.accept()
        writer.write(b"last words")
        writer.write_eof()
        assert await it.session.receive(ID, 10) == b"last words"
        assert (await it.session.control("disconnect")).reason == "normal"


async def test_a_hub_with_half_close_hears_of_the_end_of_one_direction(service: Service) -> None:
    """The other one stays open until it ends, too."""
    async with connected(forwarder({443: service.target}), *FEATURES) as it:
        assert set((await it.session.control("hello")).features) == set(FEATURES)
        await it.session.connect(ID)
        reader, writer = await service.accept()
        writer.write_eof()
        await it.session.control("half_close")
        await it.session.send_data(ID, b"still")
        await it.session.send("half_close", ID)
        assert await reader.read() == b"still"
        assert (await it.events.next(EventKind.STREAM_CLOSED)).detail == "normal"


async def test_a_reset_by_the_service_is_told(service: Service) -> None:
    """It is no clean end."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        _, writer = await service.accept()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert (await it.session.control("disconnect")).reason == "reset"


async def test_a_broken_stream_is_a_reset_for_the_service(service: Service) -> None:
    """It must not take what it has for the whole."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        reader, _ = await service.accept()
        await it.session.send("disconnect", ID, reason="reset")
        with pytest.raises(ConnectionError):
            await reader.read()


async def test_streams_break_with_their_session(service: Service) -> None:
    """Nobody knows what did not arrive."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        reader, _ = await service.accept()
        it.session.websocket.transport.abort()
        with pytest.raises(ConnectionError):
            await reader.read()
        assert (await it.events.next(EventKind.STREAM_CLOSED)).detail == "session_ended"


UNREACHABLE = {
    "nobody listens": ({443: "127.0.0.1:1"}, "cannot reach 127.0.0.1:1"),
    "no name": ({443: f"{'a' * 70}.example:1"}, "cannot reach"),
    "no such port": ({80: "127.0.0.1:1"}, "no port mapping for port 443 and 'app.example.com'"),
}


@pytest.mark.parametrize("case", UNREACHABLE)
async def test_a_service_that_cannot_be_reached_is_told_to_the_hub(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """With ``dial_failed``; it is counted, and the session goes on."""
    targets, words = UNREACHABLE[case]
    async with connected(forwarder(targets)) as it:
        await it.session.connect(ID)
        assert (await it.session.control("disconnect")).reason == "dial_failed"
        assert it.client.stats.dial_failures == 1
        await it.session.settle()
        assert it.client.stats.connected
    assert words in caplog.text


async def test_unreachable_services_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Any client of the node can cause such a line; the first ones are warnings."""
    async with connected(forwarder({80: "127.0.0.1:1"})) as it:
        for number in range(1, STRANGERS_LINES_MAX + 4):
            await it.session.connect(number.to_bytes(16))
            await it.session.control("disconnect")
        assert it.client.stats.dial_failures == STRANGERS_LINES_MAX + 3
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == STRANGERS_LINES_MAX


async def test_a_service_that_never_answers_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the protocol's time for it."""
    monkeypatch.setattr(module, "DIAL_TIMEOUT_S", 0.0)
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        assert (await it.session.control("disconnect")).reason == "dial_failed"
    assert "no answer" in caplog.text


async def test_a_stream_that_ends_while_it_is_dialled_reaches_no_service(service: Service) -> None:
    """The connection that comes too late is ended as the stream was."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        await it.session.send("disconnect", ID, reason="reset")
        await it.session.settle()
        assert it.client.stats.streams == 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                reader, _ = await service.connections.get()
                with pytest.raises(ConnectionError):
                    await reader.read()


# -- Odd hubs -------------------------------------------------------------------------------------------------------


async def test_datagrams_of_a_refused_flow_are_answered() -> None:
    """Like those of any unknown stream."""
    async with connected(forwarder()) as it:
        await it.session.connect(ID, transport="udp", hostname="udp:53")
        await it.session.send_data(ID, b"datagram")
        assert [(await it.session.control("disconnect")).reason for _ in range(2)] == ["dial_failed", "unknown"]
        assert it.client.stats.streams_total == 0


async def test_an_absent_transport_means_tcp(service: Service) -> None:
    """Very old hubs send none (spec backend-protocol 24.3)."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID, transport=None, hostname=None, is_tls=None, credits=None)
        await service.accept()


@pytest.mark.parametrize("stream_id", [ID, NIL], ids=["twice", "nil"])
async def test_an_id_that_cannot_be_is_ignored(
    stream_id: bytes, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that runs is not taken over."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID)
        reader, _ = await service.accept()
        await it.session.connect(stream_id)
        await it.session.settle()
        await it.session.send_data(ID, b"mine")
        assert await reader.readexactly(4) == b"mine"
        assert it.client.stats.streams_total == 1
    assert "in use; ignored" in caplog.text


async def test_data_for_an_unknown_stream_is_answered() -> None:
    """The hub learns that there is none (spec backend-protocol 8.3)."""
    async with connected(forwarder()) as it:
        await it.session.send_data(ID, b"hello?")
        answer = await it.session.control("disconnect")
        assert (answer.stream_id, answer.reason) == (ID, "unknown")


async def test_text_in_the_session_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged by its length only."""
    caplog.set_level(logging.DEBUG, logger="nexus.client")
    async with connected(forwarder()) as it:
        await it.session.websocket.send('{"type":"handshake_challenge","nonce":"secret"}')
        await it.session.send("no such event", ID)
        await it.session.send("pong_client", ID)
        await it.session.settle()
        assert it.client.stats.connected
    assert "47 characters of text" in caplog.text
    assert "secret" not in caplog.text


async def test_a_hub_without_credits_is_paused_and_resumed(service: Service) -> None:
    """A grant would undo the pause, so it never gets one (W11)."""
    async with connected(forwarder({443: service.target})) as it:
        await it.session.connect(ID, credits=None)
        reader, writer = await service.accept()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        data = bytes(32_768)
        sent = 0
        while it.session.controls.empty():
            await it.session.send_data(ID, data)
            sent += len(data)
            await asyncio.sleep(0)
        assert (await it.session.control("pause_stream")).reason == "buffer_full"
        assert await reader.readexactly(sent) == bytes(sent)
        resumed = await it.session.control("resume_stream")
        assert (resumed.stream_id, resumed.credits) == (ID, 0)


# -- With fakes -----------------------------------------------------------------------------------------------------


async def _no_token(_nonce: str) -> str:
    raise TokenProviderError("there is none")


class Fake:
    """A client's session with a fake link."""

    def __init__(self, tasks: asyncio.TaskGroup, *features: str, to: Forwarder | None = None) -> None:
        self.link = FakeLink()
        reauthentication = Reauthentication(tasks, _no_token, lambda _kind: None)
        link = cast(Link, self.link)
        self.client = ClientSession(link, "ws://hub", features, to or forwarder(), tasks, reauthentication)

    def receive(self, event: str, stream_id: bytes = ID, **fields: object) -> None:
        """Let a control message arrive."""
        message = serialize_control(Control(event, stream_id, **fields))  # type: ignore[arg-type]
        self.client.session.message_received(message)


async def never(_connection: Connection) -> None:
    """Be a handler that does nothing until it is cancelled."""
    await asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def fake_session(*features: str, to: Forwarder | None = None) -> AsyncIterator[Fake]:
    """Give a session whose handlers are cancelled at the end."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield Fake(tasks, *features, to=to or forwarder(handler=never))
            raise Over  # noqa: TRY301 — ends the handlers
    except* Over:  # nothing else: a failed assertion is to be seen
        pass


async def test_hello_is_said_only_to_hubs_that_know_it() -> None:
    """Followed by the ping whose pong tells of acceptance; only that pong counts."""
    async with fake_session() as old, fake_session(FEATURE_HALF_CLOSE, "teleport") as new:
        assert [sent.kind for sent in old.link.log] == ["ping"]
        assert [sent.kind for sent in new.link.log] == ["message", "ping"]
        assert new.client.session.features == {FEATURE_HALF_CLOSE}
        new.client.session.pong_received(b"")
        assert not new.client.accepted.done()
        for _ in range(2):
            new.client.session.pong_received(new.link.pings()[0])
        assert new.client.accepted.done()


async def test_a_hub_that_overruns_its_window_is_slowed_down() -> None:
    """It may not have seen a grant yet: no stream is broken for it."""
    async with fake_session() as fake:
        fake.receive("connect", conn_port=443, credits=64)
        stream = fake.client.session.streams[ID]
        endpoint = FakeEndpoint(stream, takes=0)
        stream.attach(endpoint)
        for _ in range(stream.receive_window.size + CREDITS_OVERSHOOT + 1):
            fake.client.session.message_received(b"\x01" + ID + b"x")
        assert fake.link.held
        endpoint.drain()
        assert not fake.link.held


async def test_a_pause_of_the_hub_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub v0.3.6 may leave it at that, for streams and for flows; nothing is left of one that has ended."""
    monkeypatch.setattr(pauses, "PAUSE_MAX_S", 0.01)
    async with fake_session() as fake:
        session = fake.client.session
        fake.receive("connect", conn_port=443)
        stream = session.streams[ID]
        stream.attach(FakeEndpoint(stream))
        fake.receive("pause_stream", reason="server_buffer_full")
        stream.send(b"waits")
        assert not fake.link.data()
        await eventually(lambda: fake.link.data() == [b"waits"], "the stream goes on")
        fake.receive("pause_stream")
        fake.receive("disconnect")
        assert len(fake.client._pauses) == 0
        flow = _PausedFlow()
        session.flows[ID] = cast(SessionFlow, flow)
        fake.receive("pause_stream")
        await eventually(lambda: flow.credits == [0], "the flow goes on")
        fake.receive("pause_stream")
        del session.flows[ID]
        await eventually(lambda: not len(fake.client._pauses), "the timer of a flow that has ended")
        assert flow.credits == [0]


class _PausedFlow:
    """A flow that notes its credits."""

    id = ID

    def __init__(self) -> None:
        self.credits: list[int] = []

    def receive_credits(self, count: int) -> None:
        self.credits.append(count)

    def receive_pause(self) -> None:
        """It reads nothing anyway."""


async def test_health_checks_follow_the_clock() -> None:
    """An idle stream is asked for once; a pong settles it, silence ends it (spec backend-protocol 9)."""
    async with fake_session() as fake:
        fake.receive("connect", conn_port=443, credits=64)

        def check(now: float) -> None:
            fake.client.check_health(now, 60.0, 5.0)

        check(100.0)
        check(159.0)
        assert not fake.link.controls("ping_client")
        check(160.0)
        check(164.0)
        assert fake.link.controls("ping_client") == [Control("ping_client", ID)]
        fake.receive("pong_client")
        check(165.0)
        assert ID in fake.client.session.streams
        check(225.0)
        assert len(fake.link.controls("ping_client")) == 2
        check(230.0)
        assert fake.link.controls("disconnect") == [Control("disconnect", ID, reason=Reason.TIMEOUT)]
        assert not fake.client.session.streams
        assert not fake.client._asked


async def test_health_checks_wait_for_answers_that_are_not_read() -> None:
    """While the link is held for another stream; the one that it is held for is ended."""
    async with fake_session() as fake:
        fake.receive("connect", conn_port=443, credits=64)
        stream = fake.client.session.streams[ID]
        endpoint = FakeEndpoint(stream, takes=0)
        stream.attach(endpoint)
        for now in (100.0, 160.0):
            fake.client.check_health(now, 60.0, 5.0)
        assert len(fake.link.controls("ping_client")) == 1
        fake.link.hold()
        fake.client.check_health(200.0, 60.0, 5.0)
        assert ID in fake.client.session.streams
        fake.link.clock_s = 200.0
        fake.link.release()
        fake.client.check_health(204.0, 60.0, 5.0)
        assert ID in fake.client.session.streams
        fake.link.hold()
        stream.receive(b"what its service does not take")
        fake.client.check_health(206.0, 60.0, 5.0)
        assert endpoint.aborted


# -- Draining -------------------------------------------------------------------------------------------------------


async def test_a_hub_that_knows_it_is_told_to_send_nothing_new() -> None:
    """Before anything else; others see only the goodbye."""
    async with connected(forwarder(), FEATURE_DRAIN) as it:
        it.client.stop()
        await it.session.control("drain")
        assert await it.session.closed() == (1001, "the backend stops")
    async with connected(forwarder()) as it:
        it.client.stop()
        assert await it.session.closed() == (1001, "the backend stops")
        assert it.session.controls.empty()


async def test_a_busy_stream_is_waited_for(service: Service) -> None:
    """Until it ends by itself."""
    async with connected(forwarder({443: service.target}), drain_timeout_s=3600) as it:
        await it.session.connect(ID)
        reader, writer = await service.accept()
        it.client.stop()
        for _ in range(3):
            await it.session.send_data(ID, b"more")
            assert await reader.readexactly(4) == b"more"
        writer.write(b"done")
        writer.write_eof()
        assert await it.session.receive(ID, 4) == b"done"
        assert (await it.session.control("disconnect")).reason == "normal"
        assert (await it.session.closed())[0] == 1001


async def test_an_idle_stream_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended with ``shutdown`` long before the drain time is over (W6)."""
    monkeypatch.setattr(quiet, "IDLE_S", 0.01)
    monkeypatch.setattr(quiet, "POLL_S", 0.005)
    async with connected(forwarder({443: service.target}), drain_timeout_s=3600) as it:
        await it.session.connect(ID)
        await service.accept()
        it.client.stop()
        assert (await it.session.control("disconnect")).reason == "shutdown"
        assert (await it.session.closed())[0] == 1001


async def test_draining_has_a_limit(service: Service) -> None:
    """A stream that stays busy is ended, visibly."""
    async with connected(forwarder({443: service.target}), drain_timeout_s=0) as it:
        await it.session.connect(ID)
        reader, _ = await service.accept()
        it.client.stop()
        assert (await it.session.control("disconnect")).reason == "shutdown"
        with pytest.raises(ConnectionError):
            await reader.read()


async def test_a_session_that_ends_while_it_drains_is_over(service: Service) -> None:
    """Nothing is left to wait for."""
    async with connected(forwarder({443: service.target}), drain_timeout_s=3600) as it:
        await it.session.connect(ID)
        await service.accept()
        it.client.stop()
        it.session.websocket.transport.abort()
        await it.events.next(EventKind.STOPPED)


# -- Handlers -------------------------------------------------------------------------------------------------------


async def test_a_handler_is_told_what_the_hub_says_of_the_stream() -> None:
    """And its return ends the stream in order."""
    infos: list[StreamInfo] = []

    async def handle(connection: Connection) -> None:
        infos.append(connection.info)
        await connection.write(b"hello")

    async with connected(forwarder(handler=handle)) as it:
        await it.session.connect(ID)
        assert await it.session.receive(ID, 5) == b"hello"
        assert (await it.session.control("disconnect")).reason == "normal"
    assert infos == [
        StreamInfo(
            hub=infos[0].hub,
            hostname="app.example.com",
            port=443,
            client="203.0.113.9:51234",
            transport="tcp",
            is_tls=True,
        )
    ]


@pytest.mark.parametrize(
    ("error", "logged"), [(LookupError("a bug"), True), (StreamReset("it broke"), False)], ids=["bug", "reset"]
)
async def test_a_handler_that_fails_breaks_its_stream_only(
    error: Exception, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client of the stream sees it; the log tells of bugs."""

    async def handle(connection: Connection) -> None:
        raise error

    async with connected(forwarder(handler=handle)) as it:
        await it.session.connect(ID)
        assert (await it.session.control("disconnect")).reason == "local_error"
        await it.session.settle()
        assert it.client.stats.connected
    assert bool([record for record in caplog.records if record.levelno == logging.ERROR]) is logged


async def test_handlers_end_with_the_client() -> None:
    """One that waits for something else is cancelled."""
    ended = asyncio.Event()

    async def handle(connection: Connection) -> None:
        try:
            await never(connection)
        finally:
            ended.set()

    async with connected(forwarder(handler=handle)) as it:
        await it.session.connect(ID)
        await eventually(lambda: it.client.stats.streams == 1, "the stream is open")
        await asyncio.sleep(0)
    assert ended.is_set()


async def test_the_end_of_a_session_reaches_its_streams() -> None:
    """By the role's calls alone."""
    async with fake_session() as fake:
        fake.receive("connect", conn_port=443, credits=64)
        changes: list[str | None] = []
        fake.client.stream_changed = lambda _stream, reason: changes.append(reason)
        fake.client.session.link_lost(LOST)
        assert changes == [Reason.SESSION_ENDED]
