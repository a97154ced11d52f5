"""From the text a backend sent to a payload that may be believed.

Strategy: bound the length, let PyJWT check the envelope and the signature (``nexus.auth.jws``) with each secret in
turn, parse the payload as strict JSON in UTF-8, then check the registered claims against the caller's clock. Whatever
is wrong, the caller sees an ``AuthError`` whose text holds ``invalid token`` and neither token nor secret; the cause
is cut off, since the exceptions of parsers carry what they parsed.

``iat``, ``sub``, ``jti`` and ``typ`` are not looked at: the age of a token is a matter of ``handshake_max_age_seconds``
(``nexus.auth.grants``), and replay of stage 1 is prevented by the nonce.

Source: RFC 7519, RFC 8725; spec backend-protocol 3.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jwt import InvalidAlgorithmError, InvalidSignatureError, PyJWTError

from nexus.auth.claims import parse_date
from nexus.auth.jws import ALGORITHMS, AUDIENCE, ISSUER, JWS, TOKEN_MAX_BYTES
from nexus.errors import AuthError


@dataclass(frozen=True, slots=True)
class InspectedToken:
    """What a token says about itself. Nothing in it is verified."""

    header: Mapping[str, object]
    claims: Mapping[str, object]


def verify_token(
    token: str, keys: Sequence[bytes], now: float, *, require_expiry: bool = False
) -> Mapping[str, object]:
    """Return the payload of a token signed with one of ``keys``, for ``nexus.auth.claims.parse_claims``.

    Args:
        token: the compact form exactly as received; white space around it is not trimmed.
        keys: the secrets as written; several while one is being replaced. Empty ones are never used.
        now: seconds since the epoch. There is no leeway.
        require_expiry: refuse a token without ``exp``, which the original accepts.

    Raises:
        AuthError: anything at all is wrong with the token, or there is no secret to verify it with.
    """
    secrets = [key for key in keys if key]
    if not secrets:
        raise AuthError("this node has no secret to verify tokens with")
    payload = _parse_payload(_verified_payload(_bounded(token), secrets))
    _check_issuer(payload)
    _check_audience(payload)
    _check_dates(payload, now, require_expiry=require_expiry)
    return payload


def inspect_token(token: str) -> InspectedToken:
    """Return header and claims of a token, unverified and of any algorithm; for display only.

    Raises:
        AuthError: the text is not a token.
    """
    try:
        decoded = JWS.decode_complete(_bounded(token.strip()), options={"verify_signature": False})
    except PyJWTError:
        raise _invalid("it is not a JWT in compact form") from None
    return InspectedToken(decoded["header"], _parse_payload(decoded["payload"]))


def _bounded(token: str) -> str:
    if not token.isascii():
        raise _invalid("it contains characters other than ASCII")
    if len(token) > TOKEN_MAX_BYTES:
        raise _invalid(f"it is longer than {TOKEN_MAX_BYTES} bytes")
    return token


def _verified_payload(token: str, secrets: Sequence[bytes]) -> bytes:
    for secret in secrets:
        try:
            payload: bytes = JWS.decode_complete(token, secret, algorithms=ALGORITHMS)["payload"]
        except InvalidSignatureError:
            continue
        except InvalidAlgorithmError:
            raise _invalid(f"its algorithm is none of {', '.join(ALGORITHMS)}") from None
        except PyJWTError:
            raise _invalid("it is not a JWT in compact form") from None
        return payload
    raise _invalid("its signature does not match this node's secret")


def _parse_payload(payload: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(payload.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _invalid("its payload is not JSON") from None
    if not isinstance(document, dict):
        raise _invalid("its payload is not a JSON object")
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON (RFC 8259 section 6)")


def _check_issuer(payload: Mapping[str, object]) -> None:
    if payload.get("iss") != ISSUER:
        raise _invalid(f'the claim iss must be "{ISSUER}"')


def _check_audience(payload: Mapping[str, object]) -> None:
    audience = payload.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if AUDIENCE not in audiences or not all(isinstance(name, str) for name in audiences):
        raise _invalid(f'the claim aud must contain "{AUDIENCE}"')


def _check_dates(payload: Mapping[str, object], now: float, *, require_expiry: bool) -> None:
    expires, begins = parse_date(payload, "exp"), parse_date(payload, "nbf")
    if expires is None and require_expiry:
        raise _invalid("this node requires the claim exp")
    if expires is not None and now >= expires:
        raise _invalid(f"it expired {now - expires:.0f} s ago; check the clocks")
    if begins is not None and now < begins:
        raise _invalid(f"it is not valid for another {begins - now:.0f} s; check the clocks")


def _invalid(what: str) -> AuthError:
    return AuthError(f"invalid token: {what}")
