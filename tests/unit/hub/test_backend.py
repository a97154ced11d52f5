"""nexus.hub.backend: the hub's side of a session, by fakes where a decision counts and over TLS where bytes do."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from typing import cast

import pytest

from nexus.auth.grants import Grant
from nexus.bandwidth.limiter import Limiter
from nexus.hub.backend import UNTOLD_FIN_LINGER_S, BackendSession
from nexus.hub.registry import Registry
from nexus.link.connection import Link, LinkEnd
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_OVERSHOOT, FEATURE_DRAIN, FEATURE_HALF_CLOSE
from nexus.protocol.messages import Control, id_text, serialize_control
from nexus.protocol.reasons import OutboundRefusal, Reason
from nexus.routing.decide import Reject, RejectReason
from nexus.transport import OpenRequest
from tests.support.hub import HOST, NAME, Backend, Hub, eventually, running_hub
from tests.support.processes import Pki
from tests.support.sessions import LOST, FakeEndpoint, FakeLink

ON_BOTH_LOOPS = True
REQUEST = OpenRequest(HOST, is_tls=True, local_port=443, client="203.0.113.9:51234")


class Fake:
    """A backend session with a fake link, and one stream of it."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.link = FakeLink()
        grant = Grant(hostnames=(HOST,), subject=NAME)
        self.backend = BackendSession(cast(Link, self.link), grant, self.registry, "192.0.2.1:5", asyncio.TaskGroup())

    def receive(self, event: str, stream_id: bytes = bytes(16), **fields: object) -> None:
        """Let a control message arrive."""
        message = serialize_control(Control(event, stream_id, **fields))  # type: ignore[arg-type]
        self.backend.session.message_received(message)

    def open(self, takes: int | None = None) -> tuple[Stream, FakeEndpoint]:
        """Open a stream with an endpoint."""
        stream = self.backend.open_stream(REQUEST, HOST)
        assert stream is not None
        endpoint = FakeEndpoint(stream, takes)
        stream.attach(endpoint)
        return stream, endpoint


# -- Bandwidth -------------------------------------------------------------------------------------------------------


async def test_every_session_has_a_share_of_its_own_where_there_is_a_cap() -> None:
    """And none where there is no cap: then nothing of it is on the path of a byte."""
    registry = Registry(Limiter(1))
    grant = Grant(hostnames=(HOST,), subject=NAME)
    sessions = [
        BackendSession(cast(Link, FakeLink()), grant, registry, "192.0.2.1:5", asyncio.TaskGroup()).session
        for _ in range(2)
    ]
    assert sessions[0].gate is not None
    assert sessions[0].gate is not sessions[1].gate
    assert Fake().backend.session.gate is None


# -- Opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_tls", "client", "port", "expected"),
    [
        (
            True,
            "203.0.113.9:51234",
            443,
            (
                '"conn_port":443,"client_ip":"203.0.113.9:51234","transport":"tcp","hostname":"app.example.com",'
                '"is_tls":true,"credits":64}'
            ),
        ),
        (
            False,
            "[2001:db8::1]:40000",
            80,
            (
                '"conn_port":80,"client_ip":"[2001:db8::1]:40000","transport":"tcp","hostname":"app.example.com",'
                '"credits":64}'
            ),
        ),
    ],
)
def test_a_stream_is_announced_exactly_as_the_original_does(
    is_tls: bool, client: str, port: int, expected: str
) -> None:
    """Keys, order and absent values are those of spec backend-protocol 2.3."""
    fake = Fake()
    stream = fake.backend.open_stream(OpenRequest(HOST, is_tls=is_tls, local_port=port, client=client), HOST)
    assert stream is not None
    assert stream.id in fake.backend.session.streams
    (sent,) = fake.link.log
    assert sent.payload.decode() == f'\x02{{"event":"connect","client_id":"{id_text(stream.id)}",{expected}'


def test_streams_have_random_version_4_ids() -> None:
    """Nobody can guess the id of another's stream."""
    fake = Fake()
    ids = {fake.open()[0].id for _ in range(50)}
    assert len(ids) == 50
    assert {uuid.UUID(bytes=stream_id).version for stream_id in ids} == {4}


def test_nothing_opens_on_a_link_that_is_going_down() -> None:
    """Neither before the end of the link is known nor after."""
    fake = Fake()
    fake.link.closing = True
    assert fake.backend.open_stream(REQUEST, HOST) is None
    fake.backend.session.link_lost(LOST)
    fake.link.closing = False
    assert fake.backend.open_stream(REQUEST, HOST) is None
    assert not fake.link.log


# -- Events ----------------------------------------------------------------------------------------------------------


def test_features_are_those_that_both_sides_know() -> None:
    """What the backend invents is ignored."""
    fake = Fake()
    assert not fake.backend.session.features
    fake.receive("hello", features=(FEATURE_HALF_CLOSE, "teleport"))
    assert fake.backend.session.features == {FEATURE_HALF_CLOSE}


def test_a_draining_backend_gets_no_new_streams() -> None:
    """Those it has go on."""
    fake = Fake()
    stream, endpoint = fake.open()
    fake.receive("hello", features=(FEATURE_DRAIN,))
    fake.receive("drain")
    assert fake.registry.open_stream(REQUEST) == Reject(RejectReason.NO_BACKEND, HOST)
    assert not endpoint.aborted
    assert stream.id in fake.backend.session.streams


def test_a_backend_that_says_that_it_drains_again_and_again_is_heard_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log is enough."""
    caplog.set_level(logging.INFO)
    fake = Fake()
    fake.receive("hello", features=(FEATURE_DRAIN,))
    for _ in range(3):
        fake.receive("drain")
    assert caplog.text.count("is draining") == 1


def test_faults_of_a_session_are_counted_when_it_has_ended() -> None:
    """By then nobody asks the session itself any more."""
    fake = Fake()
    fake.backend.session.message_received(b"\x02{")
    assert fake.registry.totals.session_faults == 0
    fake.backend.session.link_lost(LOST)
    assert fake.registry.totals.session_faults == 1


def test_drain_without_the_feature_is_an_unknown_event() -> None:
    """An extension that was not agreed on has no effect."""
    fake = Fake()
    fake.receive("drain")
    assert isinstance(fake.registry.open_stream(REQUEST), Stream)


def test_a_ping_for_a_stream_is_answered_if_it_is_here() -> None:
    """Silence says that it is gone (spec backend-protocol 9)."""
    fake = Fake()
    stream, _ = fake.open()
    fake.receive("ping_client", stream.id)
    fake.receive("ping_client", bytes(15) + b"\x01")
    assert fake.link.controls("pong_client") == [Control("pong_client", stream.id)]


def test_outbound_connections_are_refused_with_a_reason() -> None:
    """The answer names the id that the backend chose and has no success (spec backend-protocol 12)."""
    fake = Fake()
    fake.receive("outbound_connect", b"\x07" * 16, target_addr="mail.example.net:25")
    (answer,) = fake.link.controls("outbound_result")
    assert (answer.stream_id, answer.success, answer.reason) == (b"\x07" * 16, False, OutboundRefusal.HUB)


@pytest.mark.parametrize("event", ["", "connect", "outbound_result", "pong_client", "shazam"])
def test_other_events_are_ignored(event: str) -> None:
    """The session goes on and nothing is answered."""
    fake = Fake()
    fake.receive(event, b"\x07" * 16)
    assert not fake.link.log
    assert not fake.backend.session.streams


def test_data_for_a_stream_that_is_gone_is_dropped() -> None:
    """It crossed the disconnect on its way."""
    fake = Fake()
    fake.backend.session.message_received(b"\x01" + b"\x07" * 16 + b"late")
    assert not fake.link.log


def test_text_in_a_session_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """It might be a token, so only its length is logged."""
    caplog.set_level(logging.DEBUG)
    fake = Fake()
    fake.backend.session.text_received("eyJ-secret")
    fake.backend.session.pong_received(b"")
    assert not fake.link.log
    assert "10 characters" in caplog.text
    assert "eyJ" not in caplog.text


# -- Overruns and ends -----------------------------------------------------------------------------------------------


def overrun(fake: Fake, stream: Stream) -> None:
    """Send more than a stream may have waiting."""
    message = b"\x01" + stream.id + b"x"
    for _ in range(stream.receive_window.size + CREDITS_OVERSHOOT + 1):
        fake.backend.session.message_received(message)


def test_a_backend_that_overruns_its_credits_loses_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    """The others are not slowed down for it."""
    fake = Fake()
    stream, endpoint = fake.open(takes=0)
    fake.receive("resume_stream", stream.id, credits=64)
    overrun(fake, stream)
    assert endpoint.aborted
    assert fake.link.controls("disconnect") == [Control("disconnect", stream.id, reason=Reason.BUFFER_FULL)]
    assert not fake.link.held
    assert fake.registry.totals.stream_resets == {"buffer_full": 1}
    assert f"{NAME} at 192.0.2.1:5 overran" in caplog.text


def test_a_backend_without_credits_is_slowed_down_instead() -> None:
    """Its link is not read until the client took what waits: no stream dies of speed."""
    fake = Fake()
    stream, endpoint = fake.open(takes=0)
    overrun(fake, stream)
    assert fake.link.held
    assert not endpoint.aborted
    endpoint.drain()
    assert not fake.link.held


@pytest.mark.parametrize(
    ("reason", "counted"),
    [("normal", {}), ("", {}), ("dial_failed", {"dial_failed": 1}), ("my own words", {"unknown": 1})],
)
def test_resets_are_counted_under_known_reasons_only(reason: str, counted: dict[str, int]) -> None:
    """A backend cannot invent values of a metric's label; a clean end is no reset."""
    fake = Fake()
    stream, _ = fake.open()
    fake.receive("disconnect", stream.id, reason=reason)
    assert fake.registry.totals.stream_resets == counted


@pytest.mark.parametrize(
    ("end", "label"),
    [
        (LinkEnd(1001, "bye"), "1001"),
        (LinkEnd(1006, ""), "1006"),
        (LinkEnd(4321, ""), "other"),
        (LinkEnd(1006, "", "no sign of life"), "error"),
    ],
)
def test_session_ends_are_counted_under_registered_codes_only(end: LinkEnd, label: str) -> None:
    """A backend cannot invent values of a metric's label."""
    fake = Fake()
    fake.backend.session.link_lost(end)
    assert fake.registry.totals.session_ends == {label: 1}


def test_a_backend_without_a_subject_has_a_name_too() -> None:
    """Log lines stay readable."""
    backend = BackendSession(cast(Link, FakeLink()), Grant(), Registry(), "192.0.2.1:5", asyncio.TaskGroup())
    assert backend.name == "backend at 192.0.2.1:5"


# -- Idle streams ----------------------------------------------------------------------------------------------------


def test_idle_streams_are_ended_and_busy_ones_are_not() -> None:
    """Idle is what did not move between two looks that are a timeout apart."""
    fake = Fake()
    (idle, idle_end), (busy, busy_end) = fake.open(), fake.open()
    fake.backend.sweep(100.0, 60.0)
    busy.send(b"x")
    fake.backend.sweep(159.0, 60.0)
    assert not idle_end.aborted
    fake.backend.sweep(160.0, 60.0)
    assert (idle_end.aborted, busy_end.aborted) == (True, False)
    assert fake.link.controls("disconnect") == [Control("disconnect", idle.id, reason=Reason.TIMEOUT)]
    assert fake.registry.totals.stream_resets == {"timeout": 1}


def test_without_a_timeout_streams_may_be_idle_for_ever() -> None:
    """0 means never."""
    fake = Fake()
    _, endpoint = fake.open()
    for now in (0.0, 1e9):
        fake.backend.sweep(now, 0)
    assert not endpoint.aborted


def test_a_fin_that_cannot_be_told_leaves_time_for_the_answer() -> None:
    """The client's end of sending is no end of the stream, until nothing came back for long (W20)."""
    fake = Fake()
    stream, endpoint = fake.open()
    stream.send_eof()
    fake.backend.sweep(0.0, 0)
    fake.backend.session.message_received(b"\x01" + stream.id + b"an answer")
    fake.backend.sweep(UNTOLD_FIN_LINGER_S, 0)
    fake.backend.sweep(2 * UNTOLD_FIN_LINGER_S - 1, 0)
    assert not endpoint.finished
    assert endpoint.received() == b"an answer"
    fake.backend.sweep(2 * UNTOLD_FIN_LINGER_S, 0)
    assert endpoint.finished
    assert fake.link.controls()[-1] == Control("disconnect", stream.id, reason=Reason.NORMAL)
    assert not fake.backend._untold_fins


@pytest.mark.parametrize("idle_timeout_s", [0, 60.0])
def test_nobody_is_ended_for_an_answer_that_is_not_read(idle_timeout_s: float) -> None:
    """While one client holds up the link: a FIN would make the answer look whole, and the others are not idle."""
    fake = Fake()
    (fin, fin_end), (_, quiet_end), (slow, slow_end) = fake.open(), fake.open(), fake.open()
    fin.send_eof()
    slow_end.takes = 0
    slow.receive(b"an answer")
    fake.backend.session.hold_for(slow)
    fake.link.clock_s = 200.0
    for now in (0.0, 100.0, 200.0):
        fake.backend.sweep(now, idle_timeout_s)
    assert not fin_end.finished
    assert not quiet_end.aborted
    assert slow_end.aborted is bool(idle_timeout_s)
    fake.link.release()
    fake.backend.session.message_received(b"\x01" + fin.id + b"its answer")
    fake.backend.sweep(200.0 + UNTOLD_FIN_LINGER_S, idle_timeout_s)
    assert fin_end.received() == b"its answer"
    fake.backend.sweep(200.0 + 2 * UNTOLD_FIN_LINGER_S, idle_timeout_s)
    assert fin_end.finished


def test_a_client_that_takes_none_of_its_answer_gets_no_fin_for_it() -> None:
    """More may follow what waits for it: after its own FIN, too, that is for the idle timeout."""
    fake = Fake()
    stream, endpoint = fake.open()
    endpoint.takes = 0
    stream.send_eof()
    stream.receive(b"the begin of an answer")
    for now in (0.0, 10 * UNTOLD_FIN_LINGER_S):
        fake.backend.sweep(now, 0)
    assert not endpoint.finished
    fake.backend.sweep(20 * UNTOLD_FIN_LINGER_S, 60.0)
    assert endpoint.aborted


# -- Over TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def hub(pki: Pki) -> AsyncIterator[Hub]:
    """A hub."""
    async with running_hub(pki) as running:
        yield running


def open_stream(hub: Hub) -> Stream:
    """Open a stream as a listener does."""
    stream = hub.registry.open_stream(REQUEST)
    assert isinstance(stream, Stream)
    return stream


async def opened(hub: Hub, backend: Backend) -> tuple[Stream, FakeEndpoint]:
    """Return a stream that the backend has heard of."""
    stream = open_stream(hub)
    endpoint = FakeEndpoint(stream)
    stream.attach(endpoint)
    assert (await backend.control()).stream_id == stream.id
    return stream, endpoint


async def test_bytes_go_both_ways(hub: Hub) -> None:
    """Data messages carry the id of the stream in front."""
    backend = await hub.backend()
    stream, endpoint = await opened(hub, backend)
    stream.send(b"question")
    assert await backend.receive() == b"\x01" + stream.id + b"question"
    await backend.websocket.send(b"\x01" + stream.id + b"answer")
    await backend.pong()
    assert endpoint.received() == b"answer"


async def test_streams_are_shared_by_weight_over_real_links(hub: Hub) -> None:
    """Over 400 streams weights 3 and 1 get 300 and 100."""
    heavy, light = await hub.backend(weight=3), await hub.backend(weight=1)
    for _ in range(400):
        open_stream(hub)
    for backend, share in ((heavy, 300), (light, 100)):
        assert [(await backend.control()).event for _ in range(share)] == ["connect"] * share
    assert sorted(len(session.session.streams) for session in hub.registry.sessions) == [100, 300]


async def test_a_backend_that_says_goodbye_is_passed_over_at_once(hub: Hub) -> None:
    """From its close frame on the other backend gets every stream."""
    leaving, staying = await hub.backend(), await hub.backend()
    await leaving.websocket.close()
    for number in range(4):
        open_stream(hub)
        assert (await staying.control()).event == "connect", number


async def test_odd_messages_leave_the_session_up(hub: Hub) -> None:
    """Unknown kinds and events, broken JSON, short data and text are dropped (spec backend-protocol 2)."""
    backend = await hub.backend()
    for message in (b"", b"\x7fwhat", b"\x02{", b"\x02[]", b"\x01short", b'\x02{"event":7}', "text"):
        await backend.websocket.send(message)
    await backend.send("no such event", client_id="no id")
    await backend.send("disconnect", client_id=str(uuid.UUID(int=5)))
    await backend.pong()
    stream, _ = await opened(hub, backend)
    await backend.websocket.send(
        b"\x02" + json.dumps({"event": "ping_client", "client_id": id_text(stream.id)}).encode()
    )
    assert (await backend.control()).event == "pong_client"


async def test_hello_and_drain_work_over_the_wire(hub: Hub) -> None:
    """Sent right behind the handshake, as a backend of ours does."""
    backend = await hub.backend()
    await backend.send("hello", client_id=str(uuid.UUID(int=0)), features=[FEATURE_DRAIN])
    await backend.send("drain", client_id=str(uuid.UUID(int=0)))
    await backend.pong()
    assert hub.registry.open_stream(REQUEST) == Reject(RejectReason.NO_BACKEND, HOST)
    assert len(hub.registry.sessions) == 1


async def test_streams_end_visibly_broken_with_their_session(hub: Hub) -> None:
    """A connection that is cut is an abort for every client (design 6)."""
    backend = await hub.backend()
    _, endpoint = await opened(hub, backend)
    backend.websocket.transport.abort()
    await eventually(lambda: endpoint.aborted, "the client's end is broken")
    assert hub.registry.totals.stream_resets == {"session_ended": 1}
