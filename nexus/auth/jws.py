"""The signed envelope of our tokens: compact JWS, and the constants both its ends share.

Strategy: PyJWT does the envelope, on a registry of its own that knows six algorithms in two families and nothing else:
HMAC for shared secrets; RS256, ES256 and EdDSA for public keys. ``none`` cannot be reached through a token's header,
and whoever verifies (``nexus.auth.tokens``) names the one algorithm of the key at hand, so that no key is ever used by
another family (RFC 8725 sections 2.1 and 3.1).

HMAC is used with two checks taken out: the one for short keys, because the original has no minimum and a warning per
token helps nobody (``nexus init`` writes 32 random bytes), and the one that refuses keys which look like PEM or JWK,
because ``nexus.auth.keys`` does that once, where secrets are read. The registered claims are checked in
``nexus.auth.tokens``, because PyJWT would read the wall clock by itself.

Source: RFC 7515, RFC 7518 sections 3.2 to 3.4, RFC 8037 section 3.1, RFC 8725, spec backend-protocol 3.1.
"""

from __future__ import annotations

from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

Algorithm = Literal["HS256", "HS384", "HS512"]
PublicAlgorithm = Literal["RS256", "ES256", "EdDSA"]

ALGORITHMS: Final[tuple[Algorithm, ...]] = ("HS256", "HS384", "HS512")
PUBLIC_ALGORITHMS: Final[tuple[PublicAlgorithm, ...]] = ("RS256", "ES256", "EdDSA")
ISSUER: Final = "authorizer"
AUDIENCE: Final = "nexus"

TOKEN_MAX_BYTES: Final = 65_536
"""Longest token looked at; ours. About 2,000 hostnames fit; the work on a refused token stays at a few milliseconds."""

ISSUED_AHEAD_MAX_S: Final = 60
"""How far ahead of our clock a token may say that it was issued where its age counts; ours. The original has no limit:
whoever dates a token a year ahead never sees it grow old. Dates of ``exp`` and ``nbf`` have no leeway at all."""


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
    jws.register_algorithm("RS256", RSAAlgorithm(RSAAlgorithm.SHA256))
    jws.register_algorithm("ES256", ECAlgorithm(ECAlgorithm.SHA256, SECP256R1))
    jws.register_algorithm("EdDSA", OKPAlgorithm())
    return jws


JWS: Final = _make_jws()
"""Signs and verifies; raises ``jwt.PyJWTError``. It does not refuse an empty secret: its two callers do."""
