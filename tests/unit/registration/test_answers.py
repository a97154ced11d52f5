"""What an orchestrator's answer means."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.registration.answers import (
    BODY_SHOWN_CHARACTERS,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    REFUSED_S,
    RETRY_AFTER_MAX_S,
    Outcome,
    Verdict,
    judge,
    redirected,
    wait_after,
)

NOW = 1_800_000_000.0
URL = "https://registry.example.com/nodes"


@pytest.mark.parametrize(
    ("body", "wait_s"),
    [
        (b'{"heartbeat_interval": 30}', 30),
        (b'{"heartbeat_interval": 30.5, "more": []}', 30.5),
        (b'{"heartbeat_interval": 1}', INTERVAL_MIN_S),
        (b'{"heartbeat_interval": -7}', INTERVAL_MIN_S),
        (b"{}", INTERVAL_MIN_S),
        (b'{"heartbeat_interval": "30"}', INTERVAL_MIN_S),
        (b'{"heartbeat_interval": true}', INTERVAL_MIN_S),
        (b'{"heartbeat_interval": NaN}', INTERVAL_MIN_S),
        (b'{"heartbeat_interval": 1e300}', INTERVAL_MAX_S),
        (b'{"heartbeat_interval": 1' + b"0" * 400 + b"}", INTERVAL_MAX_S),
        (b'{"heartbeat_interval": -1' + b"0" * 400 + b"}", INTERVAL_MIN_S),
        (b'{"heartbeat_interval": -Infinity}', INTERVAL_MIN_S),
    ],
)
def test_the_orchestrator_says_when_to_come_again(body: bytes, wait_s: float) -> None:
    """Within reason."""
    outcome = judge(200, body, "", NOW, [URL])
    assert outcome == Outcome(Verdict.REGISTERED, wait_s)
    assert wait_after(outcome, 0, 0.5) == wait_s


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"{", b"\xff", b"[" * 100_000])
def test_success_without_an_object_is_none(body: bytes) -> None:
    """A page of some other server."""
    assert judge(200, body, "", NOW, [URL]).verdict is Verdict.FAILED


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_is_repeated_slowly_and_not_given_up(status: int) -> None:
    """The original gives up until it is restarted (W25)."""
    outcome = judge(status, b"unknown\nnode \x1b[31m" + b"x" * 500, "", NOW, [URL])
    assert outcome.verdict is Verdict.REFUSED
    mend = "see what it expects of region, ports and the node's certificate"
    assert outcome.why == f"it refuses this node with HTTP {status}; {mend}"
    assert outcome.said.startswith("unknown node [31mxxx")
    assert outcome.said.isprintable()
    assert len(outcome.said) == BODY_SHOWN_CHARACTERS
    assert [wait_after(outcome, 9, random) for random in (0.0, 0.5)] == [REFUSED_S * 0.8, REFUSED_S]


@pytest.mark.parametrize(
    ("status", "retry_after", "wait_s"),
    [
        (429, "60", 60),
        (503, "60", 60),
        (500, "60", None),
        (429, "0", None),
        (429, "-1", None),
        (429, "soon", None),
        (429, "", None),
        (429, formatdate(NOW + 90, usegmt=True), 90),
        (429, formatdate(NOW - 90, usegmt=True), None),
        (429, "999999999", RETRY_AFTER_MAX_S),
        (201, "", None),
        (404, "", None),
    ],
)
def test_any_other_answer_is_a_failure_that_may_say_how_long(
    status: int, retry_after: str, wait_s: float | None
) -> None:
    """In seconds or by a date."""
    outcome = judge(status, b"", retry_after, NOW, [URL])
    assert (outcome.verdict, outcome.wait_s) == (Verdict.FAILED, wait_s)
    assert outcome.why == f"it answered HTTP {status}; see its own log"


@pytest.mark.parametrize(
    ("status", "mend"), [(403, "see what it expects of region"), (302, "a redirect that loses the request")]
)
def test_a_failure_comes_with_its_mend(status: int, mend: str) -> None:
    """It is repeated as every failure is: the original takes 403 for one, too."""
    outcome = judge(status, b"", "", NOW, [URL])
    assert outcome.why.startswith(f"it answered HTTP {status}; {mend}")
    assert (outcome.verdict, wait_after(outcome, 1, 0.5)) == (Verdict.FAILED, 5)


def test_what_it_says_shows_no_secret() -> None:
    """Servers like to repeat the URL that they were asked, and where they redirected to."""
    asked = [f"{URL}?key=secret", "https://me:password@other.example.com/?token=a%2Fb%2Fc"]
    body = b"Cannot POST /nodes?key=secret&#8230; no secret; a/b/c is no token of password"
    outcome = judge(404, body, "", NOW, asked)
    assert outcome.said == "Cannot POST /nodes?******** no ********; ******** is no token of ********"
    assert outcome.why == "it answered HTTP 404; see its own log"


def test_waits_double_up_to_two_minutes() -> None:
    """With a fifth either way."""
    failed = Outcome(Verdict.FAILED)
    assert [wait_after(failed, number, 0.5) for number in range(1, 8)] == [5, 10, 20, 40, 80, 120, 120]
    assert wait_after(failed, 1, 0.0) == 4
    assert wait_after(failed, 1, 1.0) == pytest.approx(6)
    assert wait_after(failed, 10_000, 0.5) == 120
    assert wait_after(Outcome(Verdict.FAILED, 77), 3, 0.0) == 77


@pytest.mark.parametrize(
    ("status", "location", "target"),
    [
        (307, "https://other.example.com/x", "https://other.example.com/x"),
        (308, "/elsewhere", "https://registry.example.com/elsewhere"),
        (307, "http://other.example.com/x", ""),
        (302, "https://other.example.com/x", ""),
        (200, "https://other.example.com/x", ""),
        (307, "", ""),
        (307, "https://[", ""),
    ],
)
def test_only_encrypted_redirects_that_repeat_a_post_are_followed(status: int, location: str, target: str) -> None:
    """Others lose the body, or show it."""
    assert redirected(status, location, URL) == target


@given(st.integers(100, 599), st.binary(max_size=200), st.text(max_size=40))
def test_no_answer_breaks_it(status: int, body: bytes, retry_after: str) -> None:
    """Each is one of three, and the wait is bounded."""
    outcome = judge(status, body, retry_after, NOW, [URL])
    assert 0 < wait_after(outcome, 1, 0.5) <= INTERVAL_MAX_S
