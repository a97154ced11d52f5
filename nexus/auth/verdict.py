"""What a remote verifier said about a token.

Strategy: a verdict is exactly ``200`` with a JSON object ``{"valid", "claims", "error"}``. Either it accepts, with
claims, or it refuses, and then its ``error`` is passed on: cut, printable, and with everything that could be part of a
token or a nonce blotted out. Whatever else comes is no verdict: a status of 500 or above means that the verifier is
out of order, which ``remoteVerifierFallback`` covers; every other answer means that whoever answered is no verifier,
or lies, and nothing is believed. Both leave the token unjudged, which a backend is told in words that do not make it
give up; the details are for this node's log.

Source: spec backend-protocol 3.4, 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from nexus.auth.jws import TOKEN_MAX_BYTES
from nexus.auth.strict_json import parse_object
from nexus.errors import AuthError, TokenUnverified

VERDICT_MAX_BYTES: Final = TOKEN_MAX_BYTES + 16_384
"""Longest answer of a verifier; ours. The claims of the longest token in plain JSON are shorter than the token."""

_ERROR_SHOWN_CHARS: Final = 60  # a close reason has room for 123 bytes
_STATUS_OK: Final = 200
_STATUS_SERVER_ERROR: Final = 500
# Parts of tokens, and nonces (43 characters), are long runs of base64url.
_SECRET_LIKE = re.compile(r"[A-Za-z0-9_+/=-]{24,}(?:\.[A-Za-z0-9_+/=-]*)*")


class VerifierDown(TokenUnverified):
    """The verifier cannot be reached or is out of order: the one case in which a node may be told to use local keys."""


def parse_verdict(status: int, body: bytes) -> Mapping[str, object]:
    """Return the claims of a token that the verifier accepts.

    Raises:
        VerifierDown: the status is 500 or above.
        TokenUnverified: the answer is no verdict.
        AuthError: the verifier refuses the token.
    """
    if status >= _STATUS_SERVER_ERROR:
        raise VerifierDown(f"the verifier answered HTTP {status}")
    if status != _STATUS_OK:
        raise TokenUnverified(f"the verifier answered HTTP {status} instead of 200")
    try:
        verdict = parse_object(body)
    except ValueError:
        raise TokenUnverified("the verifier's answer is not a JSON object") from None
    valid, claims, error = (verdict.get(name) for name in ("valid", "claims", "error"))
    if not isinstance(valid, bool | None) or not isinstance(error, str | None):
        raise TokenUnverified("the verifier's answer has a value of the wrong type")
    if not valid:  # absent is false, as for the original
        raise AuthError(": ".join(["invalid token: the verifier refuses it", *_shown(error)]))
    if not isinstance(claims, dict):
        raise TokenUnverified("the verifier accepts the token, but its answer has no claims")
    return claims


def _shown(error: str | None) -> list[str]:
    printable = "".join(character if character.isprintable() else " " for character in error or "")
    text = _SECRET_LIKE.sub("…", " ".join(printable.split()))
    return [text if len(text) <= _ERROR_SHOWN_CHARS else text[: _ERROR_SHOWN_CHARS - 1] + "…"] if text else []
