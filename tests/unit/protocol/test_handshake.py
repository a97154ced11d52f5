"""Tests of the two-stage handshake without I/O."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.errors import LocalProtocolError, RemoteProtocolError
from nexus.protocol.constants import FEATURES
from nexus.protocol.handshake import (
    Challenge,
    HubHandshake,
    Stage,
    new_nonce,
    parse_challenge,
    parse_reauth_challenge,
    serialize_challenge,
    serialize_reauth_challenge,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "protocol" / "handshake.json").read_text())


def test_two_accepted_tokens_complete_the_handshake() -> None:
    """Stage 0, the challenge, stage 1; nothing is sent after the second."""
    handshake = HubHandshake("nonce")
    stages = [handshake.stage]
    assert handshake.receive_text("token 0") == "token 0"
    stages.append(handshake.stage)
    challenge = handshake.accept()
    assert challenge is not None
    assert parse_challenge(challenge) == Challenge("nonce", FEATURES)
    stages.append(handshake.stage)
    assert handshake.receive_text("token 1") == "token 1"
    stages.append(handshake.stage)
    assert handshake.accept() is None
    assert [*stages, handshake.stage] == list(Stage)


def test_a_second_token_before_the_answer_is_refused() -> None:
    """A backend waits for the challenge."""
    handshake = HubHandshake("nonce")
    handshake.receive_text("token 0")
    with pytest.raises(RemoteProtocolError, match="before the last one was answered"):
        handshake.receive_text("token 1")


def test_text_after_the_handshake_is_refused() -> None:
    """It belongs to the session."""
    handshake = HubHandshake("nonce")
    for token in ("token 0", "token 1"):
        handshake.receive_text(token)
        handshake.accept()
    with pytest.raises(RemoteProtocolError):
        handshake.receive_text("token 2")


def test_an_empty_token_is_refused() -> None:
    """There is nothing to check in it."""
    with pytest.raises(RemoteProtocolError, match="empty"):
        HubHandshake("nonce").receive_text("")


@pytest.mark.parametrize("tokens", [0, 2])
def test_accepting_without_a_token_is_a_bug_of_ours(tokens: int) -> None:
    """Before the first token, and after the last."""
    handshake = HubHandshake("nonce")
    for number in range(tokens):
        handshake.receive_text(f"token {number}")
        handshake.accept()
    with pytest.raises(LocalProtocolError):
        handshake.accept()


def test_nonces_are_32_random_bytes_in_43_characters() -> None:
    """base64url without padding, never the same."""
    nonces = {new_nonce() for _ in range(50)}
    assert len(nonces) == 50
    assert {len(nonce) for nonce in nonces} == {43}
    assert {len(base64.urlsafe_b64decode(nonce + "=")) for nonce in nonces} == {32}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_challenges_of_original_and_newer_hubs_are_read(vector: dict[str, object]) -> None:
    """The nonce comes out verbatim, features where there are any."""
    features = tuple(str(name) for name in vector["features"])  # type: ignore[attr-defined]
    assert parse_challenge(str(vector["text"])) == Challenge(str(vector["nonce"]), features)


def test_a_challenge_without_features_is_the_originals() -> None:
    """Byte for byte, so that nothing new is said where nothing new is meant."""
    assert serialize_challenge(Challenge("N")) == '{"type":"handshake_challenge","nonce":"N"}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token",
        "[]",
        '"handshake_challenge"',
        "{}",
        '{"type":"reauth_challenge","nonce":"n"}',
        '{"type":["handshake_challenge"],"nonce":"n"}',
        '{"type":"handshake_challenge"}',
        '{"type":"handshake_challenge","nonce":null}',
        '{"type":"handshake_challenge","nonce":7}',
        '{"type":"handshake_challenge","nonce":""}',
        '{"type":"handshake_challenge","nonce":" \\t"}',
        '{"type":"handshake_challenge","nonce":"\\ud800"}',
        '{"type":"handshake_challenge","nonce":' + "[" * 30_000,
        '{"type":"handshake_challenge","nonce":' + "9" * 30_000 + "}",
    ],
)
def test_anything_but_a_challenge_with_a_nonce_fails_the_attempt(text: str) -> None:
    """Only the documented error."""
    with pytest.raises(RemoteProtocolError):
        parse_challenge(text)


def test_a_reauthentication_challenge_is_the_originals() -> None:
    """Byte for byte, and read back."""
    text = serialize_reauth_challenge("N")
    assert text == '{"type":"reauth_challenge","nonce":"N"}'
    assert parse_reauth_challenge(text) == "N"
    assert parse_reauth_challenge('{"nonce":" a ","type":"reauth_challenge","until":7}') == " a "


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token",
        "[]",
        "{}",
        '"reauth_challenge"',
        '{"nonce":"n"}',
        '{"type":["reauth_challenge"],"nonce":"n"}',
        '{"type":"reauth_challenge","nonce":7}',
        '{"type":"handshake_challenge","nonce":"n"}',
        '{"type":"handshake_challenge","nonce":""}',
        '{"type":"shazam"}',
        "[" * 30_000,
        '{"type":"reauth_challenge","nonce":' + "9" * 30_000 + "}",
    ],
)
def test_other_text_in_a_session_asks_for_nothing(text: str) -> None:
    """It is ignored (spec backend-protocol 4)."""
    assert parse_reauth_challenge(text) is None


@pytest.mark.parametrize("nonce", ["", ',"nonce":""', ',"nonce":null', ',"nonce":" \\n"', ',"nonce":"\\ud800"'])
def test_a_reauthentication_challenge_without_a_nonce_is_refused(nonce: str) -> None:
    """Nobody could answer it (spec backend-protocol 4)."""
    with pytest.raises(RemoteProtocolError, match="no nonce"):
        parse_reauth_challenge(f'{{"type":"reauth_challenge"{nonce}}}')


@given(st.text(max_size=80) | st.from_type(dict[str, str]).map(json.dumps))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Hostile hubs included."""
    with contextlib.suppress(RemoteProtocolError):
        assert parse_challenge(text).nonce
    with contextlib.suppress(RemoteProtocolError):
        assert parse_reauth_challenge(text) is None or "reauth_challenge" in text
