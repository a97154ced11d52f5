"""Two streams that are each other's endpoint: bytes, credits, ends and breaks pass from one session to the other."""

from __future__ import annotations

import pytest

from nexus.bandwidth.limiter import Limiter
from nexus.link.endpoint import undelivered_bytes
from nexus.link.joint import join
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL, CREDITS_MAX
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow
from tests.support.hub import eventually
from tests.support.sessions import LOST, Side


class Joined:
    """Two sessions with a stream each, joined; both far ends have granted ``credits``."""

    def __init__(self, credits_: int = CREDITS_INITIAL) -> None:
        self.one, self.other = Side(), Side()
        self.a = self.one.dialling(1, SendWindow(credits_, paced=False))
        self.b = self.other.dialling(2, SendWindow(credits_, paced=False))
        join(self.a, self.b)

    def ended(self) -> bool:
        """Whether nothing is left in either session."""
        return self.a.ended and self.b.ended and not self.one.tables() and not self.other.tables()


def reasons(side: Side) -> list[str]:
    return [control.reason for control in side.link.controls("disconnect")]


def test_what_one_receives_the_other_sends() -> None:
    """In both directions, also what came before they were joined."""
    one, other = Side(), Side()
    a, b = one.dialling(1), other.dialling(2)
    a.receive(b"early")
    join(a, b)
    a.receive(b"late")
    b.receive(b"back")
    assert other.link.data(b) == [b"early", b"late"]
    assert one.link.data(a) == [b"back"]


def test_credits_follow_only_what_was_sent_on() -> None:
    """Between the two stands no more than one window."""
    joined = Joined(credits_=3)
    for _ in range(CREDITS_INITIAL):
        joined.a.receive(b"x")
    assert len(joined.other.link.data()) == 3
    assert joined.one.link.controls("resume_stream") == []
    joined.b.receive_credits(CREDITS_INITIAL)
    assert len(joined.other.link.data()) == CREDITS_INITIAL
    assert sum(control.credits for control in joined.one.link.controls("resume_stream")) == CREDITS_INITIAL


@pytest.mark.parametrize("half", [True, False], ids=["both ends", "the far end"])
def test_an_orderly_end_comes_behind_the_last_byte(half: bool) -> None:
    """Whoever ends, and with bytes still waiting."""
    joined = Joined(credits_=1)
    joined.a.receive(b"1")
    joined.a.receive(b"2")
    if half:
        joined.a.receive_eof()
        joined.b.receive_eof()
    else:
        joined.a.receive_disconnect("normal")
    assert joined.other.link.data() == [b"1"]
    joined.b.receive_credits(CREDITS_INITIAL)
    assert joined.other.link.data() == [b"1", b"2"]
    assert joined.ended()
    assert set(reasons(joined.other)) <= {Reason.NORMAL}


@pytest.mark.parametrize("how", ["disconnect", "close", "lost"])
def test_a_break_breaks_the_other_once(how: str) -> None:
    """And leaves nothing behind."""
    joined = Joined()
    if how == "disconnect":
        joined.a.receive_disconnect("timeout")
    elif how == "close":
        joined.a.close(Reason.TIMEOUT)
    else:
        joined.one.session.link_lost(LOST)
    assert joined.ended()
    assert reasons(joined.other) == [Reason.RESET]
    assert reasons(joined.one) == ([Reason.TIMEOUT] if how == "close" else [])


def test_a_break_after_an_orderly_end_is_the_other_sides_alone() -> None:
    """Bytes that still wait when the far end is gone are not owed to the near one."""
    joined = Joined(credits_=0 + 1)
    joined.a.receive(b"1")
    joined.a.receive(b"2")
    joined.a.receive_disconnect("normal")
    assert joined.a.ended
    assert not joined.b.ended
    joined.other.session.link_lost(LOST)
    assert joined.ended()


def test_what_waits_is_what_the_other_could_not_send() -> None:
    """For the idle timeout and the metrics."""
    joined = Joined(credits_=1)
    joined.a.receive(b"12")
    joined.a.receive(b"345")
    assert joined.a.endpoint.unwritten_bytes() == 3
    assert isinstance(joined.a, Stream)


# -- Under the node's cap -------------------------------------------------------------------------------------------


def plenty() -> SendWindow:
    """Credits that do not run out: turns may cut a message in pieces, each of them a message."""
    return SendWindow(CREDITS_MAX, paced=False)


async def test_under_a_cap_bytes_wait_for_their_turn_and_the_end_follows_them() -> None:
    """In both directions, nothing lost, nothing out of order."""
    one, other = Side(), Side()
    a, b = one.dialling(1, plenty()), other.dialling(2, plenty())
    limiter = Limiter(8)  # a megabyte a second
    join(a, b, limiter.gate())
    messages = [bytes([number]) * 30_000 for number in range(12)]
    for message in messages:
        a.receive(message)
        b.receive(message)
    a.receive_disconnect("normal")
    assert len(other.link.data()) < len(messages)
    await eventually(lambda: b.ended, "the end has followed")
    assert b"".join(other.link.data()) == b"".join(messages)
    assert reasons(other) == [Reason.NORMAL]
    assert undelivered_bytes() == 0
    assert limiter.scheduler.charged_bytes >= sum(map(len, messages))


@pytest.mark.parametrize("who", ["one", "other"])
async def test_under_a_cap_a_break_drops_what_waits(who: str) -> None:
    """And is seen at both ends at once."""
    one, other = Side(), Side()
    a, b = one.dialling(1, plenty()), other.dialling(2, plenty())
    join(a, b, Limiter(8).gate())
    for stream in (a, b):
        for _ in range(12):
            stream.receive(b"x" * 30_000)
    assert undelivered_bytes() == 0
    (a if who == "one" else b).close(Reason.TIMEOUT)
    assert a.ended
    assert b.ended
    assert not one.tables()
    assert not other.tables()
    assert undelivered_bytes() == 0


async def test_under_a_cap_credits_wait_for_bytes_that_have_left() -> None:
    """No more than the lane holds is granted ahead."""
    one, other = Side(), Side()
    a, b = one.dialling(1, plenty()), other.dialling(2, plenty())
    join(a, b, Limiter(1).gate())
    for _ in range(CREDITS_INITIAL):
        a.receive(b"x" * 30_000)
    granted = sum(control.credits for control in one.link.controls("resume_stream"))
    assert granted < CREDITS_INITIAL / 2
    a.close(Reason.TIMEOUT)
