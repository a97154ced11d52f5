"""nexus.hub.outbound: dials, their slots and their ends, on real loopback sockets behind a fake link."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from typing import cast

import pytest

from nexus.hub import outbound as module
from nexus.link.endpoint import SocketEndpoint
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import OutboundRefusal, Reason
from nexus.protocol.window import SendWindow
from nexus.resolver import Found
from nexus.transport import OpenRequest
from tests.support.hub import HOST, eventually
from tests.support.outbound import POLICY, receive, setup, stream_id
from tests.support.ports import free_ports
from tests.support.sessions import LOST, FakeEndpoint

ON_BOTH_LOOPS = True


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


# -- Failures --------------------------------------------------------------------------------------------------------


async def test_a_target_that_refuses_is_told_as_that() -> None:
    """With the reason in words and no success."""
    async with setup() as it:
        it.server.close()
        it.ask(1, f"127.0.0.1:{free_ports(1)[0]}")
        assert await it.answer() == Control("outbound_result", stream_id(1), reason=OutboundRefusal.REFUSED)
        assert not it.backend.session.streams
        assert it.registry.totals.outbound_refusals == {"refused": 1}


async def test_a_name_that_nobody_knows_is_told_as_that() -> None:
    """What the resolver says beyond that stays here."""

    def unknown(*_args: object) -> Found:
        raise socket.gaierror(socket.EAI_NONAME, "ns1.internal says no")

    async with setup(lookup=unknown) as it:
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


@pytest.mark.parametrize("step", ["pick_addresses", "connect"])
async def test_a_bug_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """Nothing escapes into the hub's other tasks."""

    def fail(*_args: object) -> object:
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


async def test_a_socket_that_cannot_be_kept_alive_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was announced yet, so a refusal is the answer."""
    kept: list[socket.socket] = []

    def fail(sock: socket.socket) -> None:
        kept.append(sock)
        raise OSError(errno.EINVAL, "the other side has reset it")

    monkeypatch.setattr(module, "keep_alive", fail)
    async with setup() as it:
        it.ask(1)
        assert (await it.answer()).reason == OutboundRefusal.FAILED
        assert [sock.fileno() for sock in kept] == [-1]
        await eventually(lambda: not it.held, "the slot is free")


async def test_what_uvloop_says_in_its_own_way_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises RuntimeError where a descriptor is not free for it; no bug of ours, so no traceback."""

    async def fail(*_args: object) -> None:
        raise RuntimeError("File descriptor 7 is used by transport")

    async with setup() as it:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
        it.ask(1)
        assert (await it.answer()).reason == OutboundRefusal.FAILED
    assert "Traceback" not in caplog.text


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
