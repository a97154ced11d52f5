"""nexus.hub.outbound: dials, their slots and their ends, on real loopback sockets behind a fake link."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from nexus.addresses import parse_network
from nexus.auth.grants import Grant
from nexus.hub import outbound as module
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.hub.targets import OutboundPolicy
from nexus.link.connection import Link
from nexus.link.endpoint import SocketEndpoint
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL, FEATURE_HALF_CLOSE
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import OutboundRefusal, Reason
from nexus.protocol.window import SendWindow
from nexus.transport import OpenRequest
from tests.support.hub import HOST, WAIT_S, eventually
from tests.support.sessions import LOST, FakeEndpoint, FakeLink

ON_BOTH_LOOPS = True
LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1"))
POLICY = OutboundPolicy(allowed=True, private_networks=LOOPBACK)
PUBLIC = "93.184.215.14"


def stream_id(number: int) -> bytes:
    """Return an id that a backend chose."""
    return bytes([number]) * 16


@dataclass
class Setup:
    """A backend session on a fake link, and a server to dial."""

    backend: BackendSession
    link: FakeLink
    registry: Registry
    server: socket.socket
    peers: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.server.getsockname()[1])

    @property
    def held(self) -> int:
        """How many slots are taken."""
        return self.backend.outbound.held

    def receive(self, event: str, number: int, **fields: object) -> None:
        """Let a control message arrive."""
        message = serialize_control(Control(event, stream_id(number), **fields))  # type: ignore[arg-type]
        self.backend.session.message_received(message)

    def ask(self, number: int, target: str = "") -> None:
        """Let a request arrive."""
        self.receive("outbound_connect", number, target_addr=target or f"127.0.0.1:{self.port}")

    def answers(self) -> list[Control]:
        """The answers so far."""
        return self.link.controls("outbound_result")

    async def answer(self, count: int = 1) -> Control:
        """Wait for so many answers and return the last one."""
        await eventually(lambda: len(self.answers()) >= count, f"{count} answers")
        return self.answers()[-1]

    async def accept(self) -> socket.socket:
        """Return the server's end of the next connection."""
        async with asyncio.timeout(WAIT_S):
            peer, _ = await asyncio.get_running_loop().sock_accept(self.server)
        peer.setblocking(False)
        self.peers.append(peer)
        return peer

    async def opened(self, number: int = 1) -> tuple[Stream, socket.socket]:
        """Open a connection and return its stream and the server's end."""
        self.ask(number)
        peer = await self.accept()
        await eventually(lambda: stream_id(number) in self.backend.session.streams, "the stream")
        return self.backend.session.streams[stream_id(number)], peer

    def nobody_came(self) -> bool:
        """Tell whether no connection reached the server."""
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return True
        return False


@contextlib.asynccontextmanager
async def setup(policy: OutboundPolicy = POLICY, *, half_close: bool = True) -> AsyncIterator[Setup]:
    """Run a session that may dial; at the end no task and no socket is left."""
    link, registry = FakeLink(), Registry()
    grant = Grant(hostnames=(HOST,), outbound_allowed=True)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        backend = BackendSession(cast(Link, link), grant, registry, "192.0.2.1:5", tasks, outbound=policy)
        backend.session.features = frozenset({FEATURE_HALF_CLOSE} if half_close else ())
        it = Setup(backend, link, registry, server)
        try:
            yield it
        finally:
            link.closing = True
            backend.session.link_lost(LOST)
            for peer in it.peers:
                peer.close()
            server.close()
            await eventually(lambda: not it.held, "every slot is free")


async def receive(sock: socket.socket, size: int = 1 << 16) -> bytes:
    """Return what comes next."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.get_running_loop().sock_recv(sock, size)


class Hanging:
    """Dials that hang until they are cancelled; ``under_way`` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way = 0
        self._monkeypatch = monkeypatch

    def start(self) -> None:
        """Let every dial hang from now on."""
        self._monkeypatch.setattr(module, "connect", self._connect)

    async def _connect(self, _addresses: object) -> socket.socket:
        self.under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.under_way -= 1
        raise AssertionError


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Hanging:
    """Dials that hang, once started."""
    return Hanging(monkeypatch)


# -- Opening ---------------------------------------------------------------------------------------------------------


async def test_a_connection_is_a_stream_like_any_other() -> None:
    """Announced with credits and no ``connect``; bytes and FINs go both ways (spec backend-protocol 12)."""
    async with setup() as it:
        stream, peer = await it.opened()
        assert it.answers() == [Control("outbound_result", stream_id(1), success=True, credits=CREDITS_INITIAL)]
        assert not it.link.controls("connect")
        it.receive("resume_stream", 1, credits=64)
        it.backend.session.message_received(b"\x01" + stream.id + b"hello")
        assert await receive(peer) == b"hello"
        await asyncio.get_running_loop().sock_sendall(peer, b"and back")
        await eventually(lambda: it.link.data(stream) == [b"and back"], "the answer")
        peer.shutdown(socket.SHUT_WR)
        await eventually(lambda: it.link.controls("half_close"), "the target's FIN")
        assert not stream.ended
        it.receive("half_close", 1)
        assert await receive(peer) == b""
        await eventually(lambda: stream.ended and not it.held, "the end")
        assert not it.link.controls("disconnect")
        assert it.registry.totals.outbound == 1


async def test_what_the_target_says_first_comes_behind_the_answer() -> None:
    """A mail server greets at once."""
    async with setup() as it:
        it.ask(1)
        peer = await it.accept()
        peer.send(b"220 mail.example.net")
        await eventually(it.link.data, "the greeting")
        assert [sent.kind for sent in it.link.log] == ["message", "message"]
        assert it.link.log[0].control == it.answers()[0]


async def test_the_first_messages_are_paced_until_the_first_grant() -> None:
    """As for the streams that the hub opens: the backend may be an old one."""
    async with setup() as it:
        stream, _ = await it.opened()
        assert (stream.send_window.paced, stream.send_window.limited) == (True, False)
        it.receive("resume_stream", 1, credits=64)
        assert stream.send_window.limited


async def test_the_end_of_the_target_ends_the_stream_of_a_backend_without_half_close() -> None:
    """As in the original: an answer that ends with the connection must not wait for a time-out."""
    async with setup(half_close=False) as it:
        stream, peer = await it.opened()
        peer.send(b"all of it")
        peer.close()
        await eventually(lambda: stream.ended, "the end of the stream")
        assert it.link.data(stream) == [b"all of it"]
        assert it.link.controls("disconnect") == [Control("disconnect", stream.id, reason=Reason.NORMAL)]


async def test_a_target_that_breaks_breaks_the_stream() -> None:
    """And not in order."""
    async with setup() as it:
        stream, peer = await it.opened()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        await eventually(lambda: stream.ended, "the end of the stream")
        assert it.link.controls("disconnect") == [Control("disconnect", stream.id, reason=Reason.RESET)]


# -- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "[fe80::1%lo]",
    ],
)
async def test_private_targets_are_refused_in_every_spelling(host: str) -> None:
    """W27: the original dials its own loopback for a backend since v0.3.13."""
    async with setup(replace(POLICY, private_networks=())) as it:
        it.ask(1, f"{host}:{it.port}")
        answer = await it.answer()
        assert not answer.success
        # A resolver may not know a spelling at all, which is as good.
        assert answer.reason in {OutboundRefusal.PRIVATE, OutboundRefusal.NAME}
        assert it.nobody_came()
        await eventually(lambda: not it.held, "the slot is free")


Answer = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]


@dataclass
class Zone:
    """A resolver whose answers change, and what was dialled."""

    answers: list[tuple[str, ...]]
    asked: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    async def getaddrinfo(self, host: str, port: int, **_hints: object) -> Answer:
        if host.endswith(".example"):
            self.asked.append(host)
            found = self.answers.pop(0)
        else:  # uvloop asks for addresses, too
            found = (host,)
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]

    async def sock_connect(self, _sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address[0])
        raise ConnectionRefusedError(111, "no route to this test")


@pytest.fixture
async def zone(monkeypatch: pytest.MonkeyPatch) -> Zone:
    """The resolver and the network of a test."""
    it = Zone([])
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", it.getaddrinfo)
    monkeypatch.setattr(loop, "sock_connect", it.sock_connect)
    return it


@pytest.mark.parametrize("answer", ["127.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "fd00::1"])
async def test_a_name_of_a_private_address_is_refused(zone: Zone, answer: str) -> None:
    """W27: whoever owns a zone can point a name anywhere."""
    zone.answers = [(answer,)]
    async with setup(replace(POLICY, private_networks=())) as it:
        it.ask(1, "innocent.example:80")
        assert (await it.answer()).reason == OutboundRefusal.PRIVATE
    assert not zone.dialled


async def test_a_name_is_resolved_once_and_what_was_judged_is_dialled(zone: Zone) -> None:
    """W27: an answer that changes between the check and the dial (DNS rebinding) changes nothing."""
    zone.answers = [(PUBLIC,), ("127.0.0.1",)]
    async with setup(replace(POLICY, private_networks=())) as it:
        it.ask(1, "rebind.example:80")
        assert (await it.answer()).reason == OutboundRefusal.REFUSED
    assert (zone.asked, zone.dialled) == (["rebind.example"], [PUBLIC])


async def test_of_several_addresses_only_the_public_ones_are_dialled(zone: Zone) -> None:
    """A private one among them is neither dialled nor a reason to refuse the others."""
    zone.answers = [("127.0.0.1", PUBLIC, "::1", "2606:4700::1111", "10.0.0.1")]
    async with setup(replace(POLICY, private_networks=())) as it:
        it.ask(1, "mixed.example:80")
        await it.answer()
    assert sorted(zone.dialled) == sorted(["2606:4700::1111", PUBLIC])


# -- Failures --------------------------------------------------------------------------------------------------------


async def test_a_target_that_refuses_is_told_as_that() -> None:
    """With the reason in words and no success."""
    async with setup() as it:
        it.server.close()
        it.ask(1, f"127.0.0.1:{unused_port()}")
        assert await it.answer() == Control("outbound_result", stream_id(1), reason=OutboundRefusal.REFUSED)
        assert not it.backend.session.streams
        assert it.registry.totals.outbound_refusals == {"refused": 1}


def unused_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_a_name_that_nobody_knows_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver says beyond that stays here."""

    async def unknown(*_args: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "ns1.internal says no")

    monkeypatch.setattr(module, "resolve", unknown)
    async with setup() as it:
        it.ask(1, "nobody.example:80")
        assert (await it.answer()).reason == OutboundRefusal.NAME


async def test_a_name_that_cannot_be_one_is_told_as_unknown() -> None:
    """IDNA refuses labels above 63 characters."""
    async with setup() as it:
        it.ask(1, f"{'x' * 64}.example:80")
        assert (await it.answer()).reason == OutboundRefusal.NAME


async def test_a_dial_has_a_time_limit(hanging: Hanging) -> None:
    """It covers resolving and connecting together."""
    hanging.start()
    async with setup(replace(POLICY, dial_timeout_s=0.01)) as it:
        it.ask(1)
        assert (await it.answer()).reason == OutboundRefusal.TIMEOUT
        await eventually(lambda: not it.held, "the slot is free")


@pytest.mark.parametrize("step", ["resolve", "connect"])
async def test_a_bug_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """Nothing escapes into the hub's other tasks."""

    async def fail(*_args: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, step, fail)
    async with setup() as it:
        it.ask(1)
        assert (await it.answer()).reason == OutboundRefusal.FAILED
        await eventually(lambda: not it.held, "the slot is free")
    assert "a bug" in caplog.text


async def test_a_socket_that_cannot_be_used_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Success was announced, so the end must be, too; the slot is free."""

    async def fail(*_args: object, **_options: object) -> object:
        raise OSError("it broke meanwhile")

    async with setup() as it:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
        it.ask(1)
        await eventually(lambda: it.link.controls("disconnect"), "the end of the stream")
        assert [control.success for control in it.answers()] == [True]
        await eventually(lambda: not it.held, "the slot is free")


# -- Slots -----------------------------------------------------------------------------------------------------------


async def test_the_limit_holds_while_dials_are_under_way() -> None:
    """W27: five requests in one turn and a limit of two; the original counts after the dial."""
    async with setup(replace(POLICY, connections=2)) as it:
        for number in range(1, 6):
            it.ask(number)
        assert it.held == 2
        assert [control.reason for control in it.answers()] == [OutboundRefusal.LIMIT] * 3
        for _ in range(2):
            await it.accept()
        await it.answer(5)
        assert sum(control.success for control in it.answers()) == 2
        assert it.held == 2
        assert it.registry.totals.outbound_refusals == {"limit": 3}


async def test_a_slot_is_free_again_once_its_socket_is_closed() -> None:
    """Not earlier: a target that does not close would leave sockets behind that nobody counts."""
    async with setup(replace(POLICY, connections=1)) as it:
        stream, peer = await it.opened(1)
        it.receive("disconnect", 1, reason="normal")
        assert stream.ended
        assert await receive(peer) == b""
        assert it.held == 1
        peer.close()
        await eventually(lambda: not it.held, "the slot is free")
        await it.opened(2)
        assert it.held == 1


async def test_a_backend_that_gives_up_stops_the_dial(hanging: Hanging) -> None:
    """W27: the original goes on dialling and keeps the connection and its slot, with nobody behind it."""
    hanging.start()
    async with setup(replace(POLICY, connections=1)) as it:
        it.ask(1)
        await eventually(lambda: hanging.under_way, "the dial")
        it.receive("disconnect", 1, reason="timeout")
        assert it.held == 0
        await eventually(lambda: not hanging.under_way, "the dial has stopped")
        it.ask(2)
        assert not it.answers()
        assert it.registry.totals.outbound_refusals == {"given_up": 1}


async def test_a_backend_that_gives_up_at_once_leaves_no_slot() -> None:
    """A task that is cancelled before its first step runs nothing, not even its own cleaning up."""
    async with setup(replace(POLICY, connections=1)) as it:
        it.ask(1)
        it.receive("disconnect", 1)
        await eventually(lambda: not it.held, "the slot is free")
        assert it.nobody_came()
        assert not it.answers()


async def test_a_backend_that_leaves_as_soon_as_it_is_answered_leaves_nothing() -> None:
    """The stream is known when its announcement is on the wire, and the socket not yet attached is closed."""
    async with setup() as it:
        send = it.link.send_message

        def answered(message: bytes) -> None:
            send(message)
            if it.answers() and not it.backend.session.streams[stream_id(1)].ended:
                it.receive("disconnect", 1, reason="local_error")

        it.link.send_message = answered  # type: ignore[method-assign]
        it.ask(1)
        peer = await it.accept()
        with pytest.raises(ConnectionResetError):
            await receive(peer)
        await eventually(lambda: not it.held, "the slot is free")
        assert not it.backend.session.streams


async def test_the_end_of_the_session_stops_its_dials(hanging: Hanging) -> None:
    """Nobody is there any more; a connection that is open is reset."""
    async with setup() as it:
        await it.opened(3)
        hanging.start()
        it.ask(1)
        it.ask(2)
        await eventually(lambda: hanging.under_way == 2, "two dials")
        it.link.closing = True
        it.backend.session.link_lost(LOST)
        with pytest.raises(ConnectionResetError):
            await receive(it.peers[0])
        await eventually(lambda: not it.held and not hanging.under_way, "every slot is free")


async def test_a_dial_that_succeeds_behind_the_end_of_the_link_leaves_no_socket() -> None:
    """The link is closing and cannot take an announcement."""
    async with setup() as it:
        it.ask(1)
        it.link.closing = True
        peer = await it.accept()
        assert await receive(peer) == b""
        await eventually(lambda: not it.held, "the slot is free")
        assert not it.backend.session.streams


async def test_an_id_in_use_is_refused_before_the_dial() -> None:
    """Of a stream that the hub announced, of another connection, and of one not quite closed."""
    async with setup() as it:
        announced = it.backend.open_stream(OpenRequest(HOST, is_tls=True, local_port=443, client="c:1"), HOST)
        assert announced is not None
        it.ask(1)
        it.ask(1)
        message = Control("outbound_connect", announced.id, target_addr=f"127.0.0.1:{it.port}")
        it.backend.session.message_received(serialize_control(message))
        assert [control.reason for control in it.answers()] == [OutboundRefusal.ID] * 2
        await it.accept()
        assert (await it.answer(3)).success
        it.receive("disconnect", 1)
        it.ask(1)
        assert it.answers()[-1].reason == OutboundRefusal.ID


async def test_an_id_that_came_into_use_meanwhile_is_refused_after_the_dial() -> None:
    """The stream that has it goes on (spec backend-protocol 12)."""
    async with setup() as it:
        it.ask(1)
        other = Stream(it.backend.session, stream_id(1), SendWindow(paced=True))
        it.backend.session.streams[other.id] = other
        assert (await it.answer()).reason == OutboundRefusal.ID
        peer = await it.accept()
        assert await receive(peer) == b""
        assert not other.ended
        await eventually(lambda: not it.held, "the slot is free")


async def test_a_hub_that_stops_dials_nothing_new() -> None:
    """What is open goes on."""
    async with setup() as it:
        stream, _ = await it.opened(1)
        it.registry.closed = True
        it.ask(2)
        assert it.answers()[-1].reason == OutboundRefusal.STOPPING
        assert not stream.ended


async def test_a_target_that_vanishes_is_noticed() -> None:
    """W27: a silent one would keep its slot for ever; the kernel asks it."""
    async with setup() as it:
        stream, _ = await it.opened()
        await eventually(lambda: isinstance(stream.endpoint, SocketEndpoint), "the socket is attached")
        sock = cast(SocketEndpoint, stream.endpoint).transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- Idle ------------------------------------------------------------------------------------------------------------


async def test_an_idle_connection_has_a_time_limit_of_its_own() -> None:
    """``outboundIdleTimeoutSeconds`` instead of ``idleTimeoutSeconds``, in either direction (spec 22)."""
    async with setup(replace(POLICY, idle_timeout_s=50)) as it:
        outbound, _ = await it.opened()
        inbound = it.backend.open_stream(OpenRequest(HOST, is_tls=True, local_port=443, client="c:1"), HOST)
        assert inbound is not None
        inbound.attach(FakeEndpoint(inbound))
        for now in (0, 49):
            it.backend.sweep(now, 100)
        assert not outbound.ended
        it.backend.sweep(51, 100)
        assert (outbound.ended, inbound.ended) == (True, False)
        assert it.link.controls("disconnect")[-1].reason == Reason.TIMEOUT


async def test_without_one_it_may_idle_for_ever() -> None:
    """0 is none, whatever the other time-out is."""
    async with setup() as it:
        outbound, _ = await it.opened()
        for now in (0, 10_000):
            it.backend.sweep(now, 1)
        assert not outbound.ended
