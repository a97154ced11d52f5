"""backend_client.outbound: what a hub answers to a request, and what is left of one that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from backend_client import outbound as module
from backend_client.mapping import Target
from backend_client.reauth import Reauthentication
from backend_client.session import ClientSession
from nexus.errors import OutboundError
from nexus.link.connection import Link
from nexus.link.stream import Stream
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import OutboundRefusal, Reason
from tests.support.clients import forwarder
from tests.support.sessions import LOST, FakeEndpoint, FakeLink

ON_BOTH_LOOPS = True
TARGET = Target("2001:db8::1", 25)


async def no_token(_nonce: str) -> str:
    """No hub asks for one here."""
    raise AssertionError


class Fake:
    """A client's session on a fake link, and its request."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.link = FakeLink()
        reauthentication = Reauthentication(tasks, no_token, lambda _kind: None)
        to = forwarder(window=32)
        self.client = ClientSession(cast(Link, self.link), "hub", (), to, tasks, reauthentication)
        self._tasks = tasks

    @property
    def streams(self) -> list[Stream]:
        """The streams of the session."""
        return list(self.client.session.streams.values())

    async def ask(self) -> tuple[asyncio.Task[Stream], bytes]:
        """Send a request; return who waits for the answer, and its id."""
        waiting = asyncio.get_running_loop().create_task(self.client.outbound.open(TARGET))
        await asyncio.sleep(0)
        return waiting, self.link.controls("outbound_connect")[-1].stream_id

    def answer(self, stream_id: bytes, **fields: object) -> None:
        """Let an answer arrive."""
        message = serialize_control(Control("outbound_result", stream_id, **fields))  # type: ignore[arg-type]
        self.client.session.message_received(message)

    def goodbyes(self, stream_id: bytes) -> list[str]:
        """The reasons of the disconnects for one id."""
        return [control.reason for control in self.link.controls("disconnect") if control.stream_id == stream_id]


async def test_a_success_is_a_stream_at_once() -> None:
    """Data may follow in the same read; the first grant is the window, and the hub's is counted."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        assert fake.link.controls("outbound_connect")[0].target_addr == "[2001:db8::1]:25"
        fake.answer(stream_id, success=True, credits=20)
        fake.client.session.message_received(b"\x01" + stream_id + b"220 hello")
        stream = await waiting
        assert fake.streams == [stream]
        assert fake.link.controls("resume_stream") == [Control("resume_stream", stream_id, credits=32)]
        assert (stream.send_window.available, stream.send_window.paced, stream.grants) == (20, False, True)
        endpoint = FakeEndpoint(stream)
        stream.attach(endpoint)
        assert endpoint.received() == b"220 hello"


@pytest.mark.parametrize(("reason", "words"), [(OutboundRefusal.PRIVATE, OutboundRefusal.PRIVATE), ("", "no reason")])
async def test_a_refusal_is_told_in_the_hubs_words(reason: str, words: str) -> None:
    """They are the hub's, so a SOCKS client gets the code for them."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        fake.answer(stream_id, reason=reason)
        with pytest.raises(OutboundError, match=words) as caught:
            await waiting
        assert caught.value.by_hub
        assert not fake.streams
        assert not fake.goodbyes(stream_id)


async def test_no_answer_in_time_is_told_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """W27: and a success that comes all the same is given back, so that no orphan keeps a slot."""
    monkeypatch.setattr(module, "OUTBOUND_ANSWER_TIMEOUT_S", 0.001)
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        with pytest.raises(OutboundError, match="did not answer within") as caught:
            await waiting
        assert not caught.value.by_hub
        assert fake.goodbyes(stream_id) == [Reason.TIMEOUT]
        fake.answer(stream_id, success=True, credits=64)
        assert fake.goodbyes(stream_id) == [Reason.TIMEOUT, Reason.UNKNOWN]
        assert not fake.streams


async def test_who_stops_waiting_takes_the_request_back() -> None:
    """W27: the hub learns at once that nobody is there."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert fake.goodbyes(stream_id) == [Reason.SHUTDOWN]


async def test_who_stops_waiting_as_the_answer_comes_leaves_no_stream() -> None:
    """Success and cancellation in one turn of the event loop."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        fake.answer(stream_id, success=True, credits=64)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert fake.goodbyes(stream_id) == [Reason.SHUTDOWN]
        assert not fake.streams


def _stopped(fake: Fake, waiting: asyncio.Task[Stream]) -> None:
    waiting.cancel()


def _lost(fake: Fake, waiting: asyncio.Task[Stream]) -> None:
    fake.link.closing = True
    fake.client.session.link_lost(LOST)


@pytest.mark.parametrize("first", [_stopped, _lost])
async def test_two_ends_in_one_turn_are_one(first: Callable[[Fake, asyncio.Task[Stream]], None]) -> None:
    """A refusal, a cancellation and the end of the session may meet."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        first(fake, waiting)
        fake.client.session.link_lost(LOST)
        fake.answer(stream_id, reason="no")
        with pytest.raises((asyncio.CancelledError, OutboundError)):
            await waiting
        assert not fake.streams


async def test_the_end_of_the_session_is_an_answer() -> None:
    """Nobody waits for a hub that is gone."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, _ = await fake.ask()
        fake.client.session.link_lost(LOST)
        with pytest.raises(OutboundError, match="ended before it answered") as caught:
            await waiting
        assert not caught.value.by_hub
        with pytest.raises(OutboundError, match="has ended"):
            await fake.client.outbound.open(TARGET)


async def test_nothing_is_asked_on_a_link_that_is_closing() -> None:
    """It would wait for its time limit."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        fake.link.closing = True
        with pytest.raises(OutboundError, match="has ended"):
            await fake.client.outbound.open(TARGET)


async def test_answers_that_nobody_asked_for_are_ignored_or_given_back() -> None:
    """A refusal means nothing; a success means a connection at the hub; a second one for a stream means nothing."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        fake.answer(b"\x01" * 16, reason="no")
        assert not fake.link.controls("disconnect")
        fake.answer(b"\x02" * 16, success=True, credits=64)
        assert fake.goodbyes(b"\x02" * 16) == [Reason.UNKNOWN]
        waiting, stream_id = await fake.ask()
        fake.answer(stream_id, success=True, credits=64)
        fake.answer(stream_id, success=True, credits=64)
        assert fake.streams == [await waiting]
        assert not fake.goodbyes(stream_id)


async def test_a_hub_without_credits_gets_none() -> None:
    """As for the streams that it announces (spec backend-protocol 7.6)."""
    async with asyncio.TaskGroup() as tasks:
        fake = Fake(tasks)
        waiting, stream_id = await fake.ask()
        fake.answer(stream_id, success=True)
        assert not (await waiting).grants
        assert not fake.link.controls("resume_stream")
