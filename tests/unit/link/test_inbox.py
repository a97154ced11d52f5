"""Tests of the owner of a link during the handshake."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nexus.errors import RejectedError, RemoteProtocolError
from nexus.link.connection import Link, LinkEnd
from nexus.link.inbox import Inbox
from tests.support.sessions import FakeLink


def guarded() -> tuple[Inbox, FakeLink]:
    inbox, link = Inbox(), FakeLink()
    inbox.guard(cast(Link, link))
    return inbox, link


async def test_texts_come_out_in_order() -> None:
    """Whether they came before or after they were asked for."""
    inbox = Inbox()
    inbox.text_received("one")
    inbox.text_received("two")
    assert [await inbox.next_text(), await inbox.next_text()] == ["one", "two"]
    waiting = asyncio.ensure_future(inbox.next_text())  # noqa: TID251 — a waiter to look at
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.text_received("three")
    assert await waiting == "three"


async def test_the_link_is_held_behind_each_text_until_the_next_is_asked_for() -> None:
    """A ping behind a token is answered only once the token was judged."""
    inbox, link = guarded()
    inbox.text_received("token 0")
    assert link.held
    assert await inbox.next_text() == "token 0"
    assert link.held, "nothing behind the token may be looked at while it is judged"
    link.on_release = lambda: inbox.text_received("token 1")
    assert await inbox.next_text() == "token 1"
    assert link.held


async def test_a_link_that_was_not_held_is_just_waited_for() -> None:
    """The first text has not come yet."""
    inbox, link = guarded()
    waiting = asyncio.ensure_future(inbox.next_text())  # noqa: TID251 — a waiter to look at
    await asyncio.sleep(0)
    inbox.pong_received(b"")
    inbox.writable_changed()
    inbox.text_received("token")
    assert await waiting == "token"
    assert link.held


async def test_a_close_with_1008_is_a_rejection_in_the_hubs_words() -> None:
    """Or in ours where it gave none."""
    inbox = Inbox()
    inbox.link_lost(LinkEnd(1008, "invalid token"))
    with pytest.raises(RejectedError, match=r"^invalid token$"):
        await inbox.next_text()
    silent = Inbox()
    silent.link_lost(LinkEnd(1008, ""))
    with pytest.raises(RejectedError, match="1008"):
        await silent.next_text()


async def test_any_other_end_is_a_protocol_error() -> None:
    """It says how the connection ended; texts that came before are still given out."""
    inbox = Inbox()
    inbox.text_received("token")
    inbox.link_lost(LinkEnd(1006, "", "no sign of life for 25 s"))
    assert await inbox.next_text() == "token"
    with pytest.raises(RemoteProtocolError, match="no sign of life"):
        await inbox.next_text()


async def test_binary_data_fails_the_handshake() -> None:
    """Whoever waits learns of the first failure."""
    inbox = Inbox()
    waiting = asyncio.ensure_future(inbox.next_text())  # noqa: TID251 — a waiter to look at
    await asyncio.sleep(0)
    inbox.message_received(b"\x01")
    inbox.link_lost(LinkEnd(1006, ""))
    with pytest.raises(RemoteProtocolError, match="binary"):
        await waiting


async def test_a_waiter_that_gave_up_is_no_problem() -> None:
    """A time-out cancels it; the text is there for the next."""
    inbox = Inbox()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await inbox.next_text()
    inbox.text_received("late")
    assert await inbox.next_text() == "late"
