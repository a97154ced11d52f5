"""The two-stage handshake after the WebSocket upgrade, for both sides, without I/O.

    backend                                         hub
      text: stage-0 token             ->            checks the claims
                                      <-            text: {"type":"handshake_challenge","nonce":N,"features":[…]}
      text: stage-1 token, session_nonce = N  ->    checks nonce and claims against stage 0; the session is up

Strategy: each side is a small state machine; the caller verifies tokens, waits and sends. Tokens are the whole text of
a message. There is no acknowledgement of stage 1 in the protocol, but a hub reads nothing while it checks the token, so
the pong to a ping sent right behind the token proves acceptance; ``docs/protocol.md`` says so too.

Later, in the session, the hub may ask again, with a fresh nonce: ``{"type":"reauth_challenge","nonce":N}``. That is no
stage: text in a session means nothing else, and what is no such challenge is ignored (spec backend-protocol 4).
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from enum import Enum, auto

from nexus.errors import LocalProtocolError, RemoteProtocolError
from nexus.protocol.constants import CHALLENGE_TYPE, FEATURES, NONCE_BYTES, REAUTH_TYPE
from nexus.protocol.messages import parse_texts, replace_surrogates


class Stage(Enum):
    """Where a handshake stands; a handshake only moves forward."""

    STAGE0 = auto()
    CHECKING_STAGE0 = auto()
    STAGE1 = auto()
    CHECKING_STAGE1 = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the hub asks: ``nonce`` goes verbatim into the stage-1 token; ``features`` is empty from an original hub."""

    nonce: str
    features: tuple[str, ...] = ()


def new_nonce() -> str:
    """Return 32 random bytes as base64url without padding (43 characters)."""
    return base64.urlsafe_b64encode(os.urandom(NONCE_BYTES)).rstrip(b"=").decode("ascii")


class HubHandshake:
    """The hub's side: ``receive_text`` a token, check it, ``accept`` it; twice."""

    __slots__ = ("challenge", "stage")

    def __init__(self, nonce: str) -> None:
        """Take the nonce of this session from ``new_nonce``."""
        self.challenge = Challenge(nonce, FEATURES)
        self.stage = Stage.STAGE0

    def receive_text(self, text: str) -> str:
        """Return the token to check.

        Raises:
            RemoteProtocolError: a text message although the hub has not answered the one before, or an empty one.
        """
        follower = {Stage.STAGE0: Stage.CHECKING_STAGE0, Stage.STAGE1: Stage.CHECKING_STAGE1}.get(self.stage)
        if follower is None:
            raise RemoteProtocolError("a token was sent before the last one was answered")
        if not text:
            raise RemoteProtocolError("the token is empty")
        self.stage = follower
        return text

    def accept(self) -> str | None:
        """Note that the token holds; return the challenge to send after stage 0, None after stage 1."""
        if self.stage is Stage.CHECKING_STAGE0:
            self.stage = Stage.STAGE1
            return serialize_challenge(self.challenge)
        if self.stage is Stage.CHECKING_STAGE1:
            self.stage = Stage.DONE
            return None
        raise LocalProtocolError(f"no token to accept in {self.stage.name}")


def serialize_challenge(challenge: Challenge) -> str:
    """Return the challenge's JSON; original clients ignore ``features``."""
    document: dict[str, object] = {"type": CHALLENGE_TYPE, "nonce": challenge.nonce}
    if challenge.features:
        document["features"] = list(challenge.features)
    return json.dumps(document, separators=(",", ":"))


def serialize_reauth_challenge(nonce: str) -> str:
    """Return the JSON that asks a session for a fresh token with this nonce."""
    return json.dumps({"type": REAUTH_TYPE, "nonce": nonce}, separators=(",", ":"))


def parse_challenge(text: str) -> Challenge:
    """Read the hub's answer to stage 0.

    Raises:
        RemoteProtocolError: not a ``handshake_challenge`` with a nonce that is not blank and is Unicode.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("the hub's challenge is not JSON") from error
    if not isinstance(document, dict) or document.get("type") != CHALLENGE_TYPE:
        raise RemoteProtocolError(f"the hub's first message is not a {CHALLENGE_TYPE}")
    nonce = document.get("nonce")
    if not isinstance(nonce, str) or not _is_nonce(nonce):
        raise RemoteProtocolError("the hub's challenge has no nonce")
    return Challenge(nonce, parse_texts(document.get("features")))


def parse_reauth_challenge(text: str) -> str | None:
    """Read a text of the hub in a session: the nonce of a ``reauth_challenge``, None for anything else.

    Raises:
        RemoteProtocolError: such a challenge without a nonce that could be copied; the session must end.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("type") != REAUTH_TYPE:
        return None
    nonce = document.get("nonce", "")
    nonce = "" if nonce is None else nonce
    if not isinstance(nonce, str):  # to the original a value of the wrong type is no JSON at all
        return None
    if not _is_nonce(nonce):
        raise RemoteProtocolError(f"the hub's {REAUTH_TYPE} has no nonce")
    return nonce


def _is_nonce(text: str) -> bool:
    """Tell whether there is something to copy, and it can be copied: a lone surrogate cannot be encoded."""
    return bool(text.strip()) and replace_surrogates(text) == text
