"""From the text a backend sent to a payload that may be believed.

Strategy: a row of checks (``ENVELOPE_CHECKS``) over one ``Envelope``. The length is bounded; the header names an
algorithm and perhaps a key. The algorithm decides the family: HMAC is tried with each secret, the others with the
public keys that fit (``nexus.auth.keys``), and PyJWT gets exactly one algorithm with each key, so no key of one family
ever meets a token of another. What else a header may offer, such as keys of its own (``jwk``, ``jku``, ``x5u``), is
not looked at. Then the payload is parsed as strict JSON in UTF-8, and the registered claims are checked against the
caller's clock. Whatever is wrong, the caller sees an ``AuthError`` whose text holds ``invalid token`` and neither
token nor secret; the cause is cut off, since the exceptions of parsers carry what they parsed.

``iat``, ``sub``, ``jti`` and ``typ`` are not looked at: the age of a token is a matter of ``handshake_max_age_seconds``
(``nexus.auth.grants``), and replay of stage 1 is prevented by the nonce.

Source: RFC 7519, RFC 8725; spec backend-protocol 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from jwt import InvalidSignatureError, PyJWTError

from nexus.auth.checks import Check, enforce
from nexus.auth.claims import parse_date
from nexus.auth.jws import ALGORITHMS, AUDIENCE, ISSUER, JWS, TOKEN_MAX_BYTES
from nexus.auth.keys import KEY_ID_MAX_CHARS, PublicKey, PublicKeyMaterial, candidates
from nexus.auth.strict_json import parse_object
from nexus.errors import AuthError


@dataclass(frozen=True, slots=True)
class InspectedToken:
    """What a token says about itself. Nothing in it is verified."""

    header: Mapping[str, object]
    claims: Mapping[str, object]


@dataclass(slots=True)
class Envelope:
    """One token on trial: what it is verified with, and what the checks found so far.

    ``raw_payload`` is empty until the signature is found good; who only explains a token may fill it in before.
    """

    token: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    public_keys: tuple[PublicKey, ...]
    now: float
    require_expiry: bool = False
    algorithm: str = ""
    key_id: str = ""
    raw_payload: bytes = field(default=b"", repr=False)
    payload: Mapping[str, object] = field(default_factory=dict, repr=False)


def verify_token(
    token: str,
    secrets: Sequence[bytes],
    now: float,
    *,
    public_keys: Sequence[PublicKey] = (),
    require_expiry: bool = False,
) -> Mapping[str, object]:
    """Return the payload of a token signed with one of the keys, for ``nexus.auth.claims.parse_claims``.

    Args:
        token: the compact form exactly as received; white space around it is not trimmed.
        secrets: shared secrets as written; several while one is being replaced. Empty ones are never used.
        now: seconds since the epoch. There is no leeway.
        public_keys: keys for the asymmetric algorithms.
        require_expiry: refuse a token without ``exp``, which the original accepts.

    Raises:
        AuthError: anything at all is wrong with the token, or there is no key to verify it with.
    """
    envelope = Envelope(token, tuple(secrets), tuple(public_keys), now, require_expiry)
    enforce(ENVELOPE_CHECKS, envelope)
    return envelope.payload


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


def unverified_payload(token: str) -> bytes:
    """Return what a token says, for display only; nothing where it is not a token."""
    try:
        payload: bytes = JWS.decode_complete(_bounded(token), options={"verify_signature": False})["payload"]
    except (AuthError, PyJWTError):
        return b""
    return payload


def read_header(token: str) -> tuple[str, str]:
    """Return algorithm and key id as a token's header names them, unverified; empty where it has none.

    Raises:
        AuthError: the text is not a token.
    """
    try:
        header = JWS.get_unverified_header(_bounded(token))
    except PyJWTError:
        raise _invalid("it is not a JWT in compact form") from None
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if len(key_id) > KEY_ID_MAX_CHARS:
        raise _invalid(f"its kid is longer than {KEY_ID_MAX_CHARS} characters")
    return algorithm if isinstance(algorithm, str) else "", key_id


def _bounded(token: str) -> str:
    if not token.isascii():
        raise _invalid("it contains characters other than ASCII")
    if len(token) > TOKEN_MAX_BYTES:
        raise _invalid(f"it is longer than {TOKEN_MAX_BYTES} bytes")
    return token


# -- Checks -----------------------------------------------------------------------------------------------------------


def _check_keys(envelope: Envelope) -> str:
    envelope.secrets = tuple(secret for secret in envelope.secrets if secret)
    if not (envelope.secrets or envelope.public_keys):
        raise AuthError("this node has no secret and no key to verify tokens with")
    return f"{len(envelope.secrets)} secrets, {len(envelope.public_keys)} public keys"


def _check_form(envelope: Envelope) -> str:
    envelope.algorithm, envelope.key_id = read_header(envelope.token)
    return f"{len(envelope.token)} bytes"


def _check_algorithm(envelope: Envelope) -> str:
    known = ALGORITHMS if envelope.secrets else ()
    names = tuple(dict.fromkeys((*known, *(key.algorithm for key in envelope.public_keys))))
    if envelope.algorithm not in names:
        raise _invalid(f"its algorithm is none of {', '.join(names)}")
    return envelope.algorithm


def _check_signature(envelope: Envelope) -> str:
    if envelope.algorithm in ALGORITHMS:
        count = len(envelope.secrets)
        for number, secret in enumerate(envelope.secrets, start=1):
            if _is_signed(envelope, secret):
                return f"by secret {number} of {count}"
        raise _invalid("its signature does not match this node's secret" + ("s" if count > 1 else ""))
    keys = candidates(envelope.public_keys, envelope.algorithm, envelope.key_id)
    if not keys:
        raise _invalid("no key of this node has its kid and algorithm")
    for key in keys:
        if _is_signed(envelope, key.material):
            return f"by {key}"
    raise _invalid(
        f"its signature does not match this node's {envelope.algorithm} key" + ("s" if len(keys) > 1 else "")
    )


def _is_signed(envelope: Envelope, key: bytes | PublicKeyMaterial) -> bool:
    """Try one key, with the one algorithm that the token names and the key is for."""
    try:
        decoded = JWS.decode_complete(envelope.token, key, algorithms=[envelope.algorithm])
    except InvalidSignatureError:
        return False
    except PyJWTError:
        raise _invalid("it is not a JWT in compact form") from None
    envelope.raw_payload = decoded["payload"]
    return True


def _check_payload(envelope: Envelope) -> str:
    envelope.payload = _parse_payload(envelope.raw_payload)
    return f"{len(envelope.payload)} claims"


def _parse_payload(payload: bytes) -> Mapping[str, object]:
    try:
        return parse_object(payload)
    except ValueError:
        raise _invalid("its payload is not a JSON object") from None


def _check_issuer(envelope: Envelope) -> str:
    if envelope.payload.get("iss") != ISSUER:
        raise _invalid(f'the claim iss must be "{ISSUER}"')
    return ISSUER


def _check_audience(envelope: Envelope) -> str:
    audience = envelope.payload.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if AUDIENCE not in audiences or not all(isinstance(name, str) for name in audiences):
        raise _invalid(f'the claim aud must contain "{AUDIENCE}"')
    return AUDIENCE


def _check_expiry(envelope: Envelope) -> str:
    expires, now = parse_date(envelope.payload, "exp"), envelope.now
    if expires is None and envelope.require_expiry:
        raise _invalid("this node requires the claim exp")
    if expires is None:
        return "never expires"
    if now >= expires:
        raise _invalid(f"it expired {now - expires:.0f} s ago; check the clocks")
    return f"for another {expires - now:.0f} s"


def _check_beginning(envelope: Envelope) -> str:
    begins, now = parse_date(envelope.payload, "nbf"), envelope.now
    if begins is not None and now < begins:
        raise _invalid(f"it is not valid for another {begins - now:.0f} s; check the clocks")
    return "no nbf" if begins is None else f"since {now - begins:.0f} s"


ENVELOPE_CHECKS: Final[tuple[Check[Envelope], ...]] = (
    Check("keys of the node", _check_keys),
    Check("form", _check_form),
    Check("algorithm", _check_algorithm, needs=("keys of the node", "form")),
    Check("signature", _check_signature, needs=("algorithm",)),
    # An explanation looks into a payload whose signature is not good, too (``Envelope.raw_payload``).
    Check("payload", _check_payload, needs=("form",)),
    Check("issuer", _check_issuer, needs=("payload",)),
    Check("audience", _check_audience, needs=("payload",)),
    Check("expiry", _check_expiry, needs=("payload",)),
    Check("beginning", _check_beginning, needs=("payload",)),
)


def _invalid(what: str) -> AuthError:
    return AuthError(f"invalid token: {what}")
