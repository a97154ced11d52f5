"""Tests of the credit arithmetic, and of the pacing of peers that grant none."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.protocol.constants import CREDITS_BATCH, CREDITS_INITIAL, CREDITS_MAX, UNCREDITED_MAX
from nexus.protocol.window import SHRINK_ROUND_TRIPS, SHRINK_WITHIN_S, ReceiveWindow, SendWindow


def send_all(window: SendWindow, limit: int = 10_000) -> int:
    """Send until the window says no; return how many went."""
    sent = 0
    while sent < limit and window.can_send():
        window.take()
        sent += 1
    return sent


# -- Sending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paced", [True, False])
def test_a_first_grant_is_the_number_of_messages(paced: bool) -> None:
    """At zero the sender stops until it is granted more."""
    window = SendWindow(CREDITS_INITIAL, paced=paced)
    assert send_all(window) == CREDITS_INITIAL
    window.grant(CREDITS_BATCH)
    assert send_all(window) == CREDITS_BATCH


@pytest.mark.parametrize("granted", [0, -1, -(1 << 63)])
def test_a_peer_without_credits_is_sent_to_freely_where_it_is_not_paced(granted: int) -> None:
    """A backend towards an older hub."""
    window = SendWindow(granted, paced=False)
    assert not window.limited
    assert send_all(window, 5000) == 5000
    assert not window.confirm()


def test_grants_are_cut_to_their_maximum() -> None:
    """One at a time, and in sum."""
    assert SendWindow(1 << 62, paced=False).available == CREDITS_MAX
    window = SendWindow(CREDITS_MAX - 3, paced=False)
    window.grant(1 << 62)
    assert window.available == CREDITS_MAX
    window.grant(1)
    assert window.available == CREDITS_MAX


@pytest.mark.parametrize("count", [0, -8])
def test_a_resume_without_a_grant_grants_nothing(count: int) -> None:
    """Nor does a negative one take credits away."""
    window = SendWindow(5, paced=False)
    window.grant(count)
    assert window.available == 5
    unlimited = SendWindow(paced=True)
    unlimited.grant(count)
    assert not unlimited.limited


def test_the_first_grant_starts_the_counting() -> None:
    """Nothing was counted before it where the sender was not paced."""
    window = SendWindow(paced=False)
    send_all(window, 500)
    window.grant(64)
    assert window.limited
    assert send_all(window) == 64


@pytest.mark.parametrize("pongs", [0, 1, 2])
def test_the_first_grant_covers_what_a_paced_sender_sent_before_it(pongs: int) -> None:
    """A queue as long as the grant may still hold all of that."""
    window = SendWindow(paced=True)
    sent = send_all(window)
    for _ in range(pongs):
        assert window.confirm()
        sent += send_all(window)
    assert sent == UNCREDITED_MAX * (pongs + 1)
    window.grant(64)
    assert send_all(window) == 64 - sent
    window.grant(sent)
    assert send_all(window) == sent


@pytest.mark.parametrize(("grant", "room"), [(64, UNCREDITED_MAX), (3, 3), (8, 8)])
def test_a_late_first_grant_leaves_room_all_the_same(grant: int, room: int) -> None:
    """A peer that counts from its grant on would never grant again otherwise."""
    window = SendWindow(paced=True)
    for _ in range(50):
        send_all(window)
        window.confirm()
    send_all(window)
    window.grant(grant)
    assert window.available == room


def test_a_pause_stops_whatever_the_credits() -> None:
    """Credits that arrive meanwhile are kept."""
    window = SendWindow(10, paced=False)
    window.paused = True
    assert not window.can_send()
    window.grant(1)
    assert not window.can_send()
    window.paused = False
    assert send_all(window) == 11


# -- Pacing ---------------------------------------------------------------------------------------------------------


def test_a_paced_sender_waits_for_a_pong() -> None:
    """It makes room again, and says so only where there was none."""
    window = SendWindow(paced=True)
    assert send_all(window) == UNCREDITED_MAX
    assert window.confirm()
    assert send_all(window, 3) == 3
    assert not window.confirm()
    assert send_all(window) == UNCREDITED_MAX


def test_pongs_mean_nothing_once_credits_were_granted() -> None:
    """The grant alone counts."""
    window = SendWindow(paced=True)
    window.grant(2)
    send_all(window)
    assert not window.confirm()
    assert not window.can_send()


@dataclass
class OldClient:
    """The receiving side of a v0.2.3 client: 64 slots, a pause at 48, a resume at 16, and no credits.

    Its pongs are written by its reader and may overtake a pause that waits for the writer, but not a second time: the
    writer takes the pause next.
    """

    slots: int = 64
    high: int = 48
    low: int = 16
    queued: int = 0
    paused: bool = False
    pause_waits: bool = False
    wire: deque[str] = field(default_factory=deque)

    def receive(self, item: str) -> None:
        if item == "ping":
            self.wire.append("pong")
            self.write_pause()
            return
        assert self.queued < self.slots, "the queue overflowed: the stream would be killed"
        self.queued += 1
        if self.queued >= self.high and not self.paused:
            self.paused = self.pause_waits = True

    def write_pause(self) -> None:
        if self.pause_waits:
            self.pause_waits = False
            self.wire.append("pause")

    def write_local(self) -> None:
        if self.queued:
            self.queued -= 1
        if self.paused and self.queued <= self.low:
            self.write_pause()
            self.paused = False
            self.wire.append("resume")


@given(st.lists(st.sampled_from(["send", "send", "arrive", "arrive", "writer", "local", "back"]), max_size=400))
@settings(max_examples=200, deadline=None)
def test_the_queue_of_an_old_client_never_overflows(steps: list[str]) -> None:
    """However slow the ways there and back, its writer and its local service are."""
    window, client = SendWindow(paced=True), OldClient()
    wire: deque[str] = deque()
    unconfirmed, pinged = 0, False
    for step in [*steps, *["send", "arrive"] * 300]:
        if step == "send" and window.can_send():
            window.take()
            unconfirmed += 1
            wire.append("data")
        if not pinged and window.available <= 0:
            pinged = True
            wire.append("ping")
        if step == "arrive" and wire:
            client.receive(wire.popleft())
        elif step == "writer":
            client.write_pause()
        elif step == "local":
            client.write_local()
        if step in {"back", "arrive"} and client.wire:
            answer = client.wire.popleft()
            if answer == "pong":
                pinged, unconfirmed = False, 0
                window.confirm()
            else:
                window.paused = answer == "pause"
        assert unconfirmed <= UNCREDITED_MAX


def test_an_old_client_that_drains_gets_everything() -> None:
    """Pacing and pausing slow the sender down, but never stop it for good."""
    window, client = SendWindow(paced=True), OldClient()
    delivered, pinged = 0, False
    for _ in range(1000):
        if window.can_send():
            window.take()
            client.receive("data")
            delivered += 1
        elif window.available <= 0 and not pinged:
            pinged = True
            client.receive("ping")
        if not delivered % 3:
            client.write_local()
        client.write_pause()
        while client.wire:
            answer = client.wire.popleft()
            if answer == "pong":
                pinged = False
                window.confirm()
            else:
                window.paused = answer == "pause"
        client.write_local()
    assert delivered > 400


# -- Receiving ------------------------------------------------------------------------------------------------------


def test_a_grant_is_due_after_a_batch() -> None:
    """The remainder counts towards the next one."""
    window = ReceiveWindow(CREDITS_INITIAL)
    for _ in range(CREDITS_BATCH - 1):
        window.receive()
        assert window.release() == 0
    window.receive()
    assert window.release() == CREDITS_BATCH
    assert window.release() == 0


def test_everything_held_back_is_granted_at_once() -> None:
    """After the endpoint was full."""
    window = ReceiveWindow(CREDITS_INITIAL)
    for _ in range(50):
        window.receive()
    assert window.release() == 50


def test_what_an_endpoint_keeps_is_not_granted() -> None:
    """Credits follow the messages that left, a batch at a time."""
    window = ReceiveWindow(64)
    for _ in range(20):
        window.receive()
    assert window.release(13) == 0
    assert window.release(12) == CREDITS_BATCH
    assert window.held == 12
    assert window.release() == 12


@given(st.integers(1, 200), st.lists(st.integers(1, 40), max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_sender_is_always_granted_more_in_the_end(size: int, bursts: list[int]) -> None:
    """W10: whatever the window, also below a batch, no pair of windows deadlocks, and none is overrun."""
    sender, receiver = SendWindow(size, paced=True), ReceiveWindow(size)
    for burst in bursts:
        sent = send_all(sender, burst)
        for _ in range(sent):
            receiver.receive()
        assert receiver.held <= receiver.size
        sender.grant(receiver.release())
        assert sender.can_send()


# -- Windows that grow ------------------------------------------------------------------------------------------------


def test_a_window_used_up_within_two_round_trips_is_short() -> None:
    """That is what a sender looks like whom the window holds back."""
    window = ReceiveWindow(16)
    assert not window.is_short(8, now=10.0, round_trip_s=0.1)
    assert window.is_short(8, now=10.15, round_trip_s=0.1)


def test_a_window_used_up_more_slowly_is_long_enough() -> None:
    """The count starts anew with each two round trips."""
    window = ReceiveWindow(16)
    assert not any(window.is_short(8, now=10.0 + 0.21 * turn, round_trip_s=0.1) for turn in range(20))


def test_a_window_that_grew_is_measured_anew() -> None:
    """What left through the smaller one says nothing about the larger one."""
    window = ReceiveWindow(16)
    assert window.is_short(16, now=1.0, round_trip_s=1.0)
    window.grow(16)
    assert window.size == 32
    assert not window.is_short(16, now=1.0, round_trip_s=1.0)
    assert window.is_short(16, now=1.0, round_trip_s=1.0)


# -- Windows that shrink ----------------------------------------------------------------------------------------------


def turns(window: ReceiveWindow, took_s: float, round_trip_s: float) -> list[bool]:
    """Let two windows leave in so much time each; tell whether each was long."""
    window.is_long(window.size, 100.0, round_trip_s)  # the first look only begins to measure
    return [window.is_long(window.size, 100.0 + took_s * turn, round_trip_s) for turn in (1, 2)]


@pytest.mark.parametrize(
    ("took_s", "is_long"),
    [
        (0.05, False),
        (SHRINK_ROUND_TRIPS * 0.01 + 0.001, True),
        (0.9, True),
        (SHRINK_WITHIN_S + 0.1, False),
        (60, False),
    ],
)
def test_a_window_that_took_many_round_trips_to_leave_is_long(took_s: float, is_long: bool) -> None:
    """But for one of a sender that has little to send."""
    assert turns(ReceiveWindow(64), took_s, 0.01) == [is_long, is_long]


def test_only_a_whole_window_counts() -> None:
    """Whatever pieces it leaves in."""
    window = ReceiveWindow(64)
    window.is_long(64, 100.0, 0.001)
    assert [window.is_long(16, 100.0 + 0.01 * n, 0.001) for n in range(1, 9)] == [False, False, False, True] * 2


def test_what_was_grown_shrinks_first() -> None:
    """The rest is given back to those whose share it was."""
    window = ReceiveWindow(64)
    window.grow(8)
    window.excess = 20
    assert window.shrink(6) == (6, 0)
    assert window.shrink(6) == (2, 4)
    assert (window.size, window.first, window.excess) == (60, 60, 8)
    window.grow(60)
    assert window.excess == 0
