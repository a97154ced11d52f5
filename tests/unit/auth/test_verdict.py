"""Tests of nexus.auth.verdict."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.claims import parse_claims
from nexus.auth.verdict import VerifierDown, parse_verdict
from nexus.errors import AuthError, TokenUnverified
from tests.support.signing import signed

# What makes an original backend give up for good (spec backend-protocol 17).
PERMANENT = ("unauthorized", "invalid token", "invalid credential", "authentication failed", "forbidden", "401", "403")


def _verdict(**members: object) -> bytes:
    return json.dumps(members).encode()


def test_an_accepted_token_gives_its_claims() -> None:
    """As they are; unknown members are skipped."""
    assert parse_verdict(200, _verdict(valid=True, claims={"sub": "a"}, error="", more=1)) == {"sub": "a"}
    assert parse_verdict(200, _verdict(valid=True, claims={}, error=None)) == {}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("", "invalid token: the verifier refuses it"),
        (None, "invalid token: the verifier refuses it"),
        ("expired", "invalid token: the verifier refuses it: expired"),
        ("a\r\nb\x1b[31m\u202ec  d", "invalid token: the verifier refuses it: a b [31m c d"),
        ("x " * 50, "invalid token: the verifier refuses it: " + "x " * 29 + "x…"),
        (f"not {signed({}, 'EdDSA')} at all", "invalid token: the verifier refuses it: not … at all"),
        ("bad nonce " + "aB3_-" * 9, "invalid token: the verifier refuses it: bad nonce …"),
    ],
)
def test_a_refusal_is_passed_on_cut_and_printable(error: str | None, text: str) -> None:
    """Permanent for original backends, fit for a close reason, without token or nonce, whatever it says."""
    with pytest.raises(AuthError) as caught:
        parse_verdict(200, _verdict(valid=False, error=error))
    assert str(caught.value) == text
    assert not isinstance(caught.value, TokenUnverified)
    assert len(text.encode()) <= 123


@pytest.mark.parametrize("body", [_verdict(), _verdict(valid=None), _verdict(claims={"sub": "a"})])
def test_a_verdict_that_does_not_say_valid_refuses(body: bytes) -> None:
    """Absent is false, as for the original."""
    with pytest.raises(AuthError, match="invalid token"):
        parse_verdict(200, body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, _verdict(valid=True)),
        (200, _verdict(valid=True, claims=None)),
        (200, _verdict(valid=True, claims=[])),
        (200, _verdict(valid=True, claims="x")),
        (200, _verdict(valid="true", claims={})),
        (200, _verdict(valid=1, claims={})),
        (200, _verdict(valid=True, claims={}, error=5)),
        (200, b"<html>ok</html>"),
        (200, b""),
        (200, b"true"),
        (200, b"[" * 50_000),
        (201, _verdict(valid=True, claims={})),
        (204, b""),
        (302, _verdict(valid=True, claims={})),
        (400, b""),
        (401, b""),
        (403, _verdict(valid=False)),
        (404, b""),
        (429, b""),
    ],
    ids=range(19),
)
def test_no_verdict_is_believed_and_none_is_permanent(status: int, body: bytes) -> None:
    """W28: who lies or is no verifier opens no door, not the fallback's either, and no backend gives up for it."""
    with pytest.raises(TokenUnverified) as caught:
        parse_verdict(status, body)
    assert not isinstance(caught.value, VerifierDown)
    assert str(caught.value) == "the token could not be verified, try later"
    assert not [word for word in PERMANENT if word in str(caught.value)]
    assert caught.value.detail


@pytest.mark.parametrize("status", [500, 502, 503, 599])
def test_a_verifier_out_of_order_is_told_apart(status: int) -> None:
    """The one kind of answer that the fallback covers, even where it looks like a verdict."""
    with pytest.raises(VerifierDown, match="try later"):
        parse_verdict(status, _verdict(valid=True, claims={}))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.integers(100, 599),
    st.binary(max_size=40)
    | st.dictionaries(st.sampled_from(["valid", "claims", "error"]), _JSON).map(lambda v: json.dumps(v).encode()),
)
def test_hostile_answers_raise_auth_errors_alone(status: int, body: bytes) -> None:
    """What is believed says 200, true, and has claims that are read like any token's."""
    try:
        claims = parse_verdict(status, body)
        assert status == 200
        assert json.loads(body)["valid"] is True
        parse_claims(claims)
    except AuthError as error:
        assert str(error).startswith(("invalid token: ", "the token could not be"))  # noqa: PT017 — as above
