"""The signed envelope of our tokens: compact JWS with HMAC, and the constants both its ends share.

Strategy: PyJWT does the envelope, on a registry of its own that knows three algorithms and nothing else, so ``none``
and asymmetric algorithms cannot be reached through a token's header. Its HMAC is used with two checks taken out: the
one for short keys, because the original has no minimum and a warning per token helps nobody (``nexus init`` writes 32
random bytes), and the one that refuses keys which look like PEM or JWK, because it guards against mixing symmetric
and asymmetric algorithms on one key, which cannot happen here. The registered claims are checked in
``nexus.auth.tokens``, because PyJWT would read the wall clock by itself.

Source: RFC 7515, RFC 7518 section 3.2, spec backend-protocol 3.1.
"""

from __future__ import annotations

from typing import Final, Literal

from jwt import PyJWS
from jwt.algorithms import HMACAlgorithm

Algorithm = Literal["HS256", "HS384", "HS512"]

ALGORITHMS: Final[tuple[Algorithm, ...]] = ("HS256", "HS384", "HS512")
ISSUER: Final = "authorizer"
AUDIENCE: Final = "nexus"

TOKEN_MAX_BYTES: Final = 65_536
"""Longest token looked at; ours. About 2,000 hostnames fit; the work on a refused token stays at a few milliseconds."""


class _PlainHmac(HMACAlgorithm):
    """HMAC over the secret as it is written."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> str | None:
        return None


def _make_jws() -> PyJWS:
    jws = PyJWS(algorithms=[])
    for name, digest in zip(ALGORITHMS, (_PlainHmac.SHA256, _PlainHmac.SHA384, _PlainHmac.SHA512), strict=True):
        jws.register_algorithm(name, _PlainHmac(digest))
    return jws


JWS: Final = _make_jws()
"""Signs and verifies; raises ``jwt.PyJWTError``. It does not refuse an empty secret: its two callers do."""
