"""Tests of nexus.auth.jws."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from jwt import InvalidAlgorithmError

from nexus.auth.jws import ALGORITHMS, JWS, PUBLIC_ALGORITHMS


def test_six_algorithms_are_known_and_no_other() -> None:
    """``none`` cannot be reached."""
    assert sorted(JWS.get_algorithms()) == sorted((*ALGORITHMS, *PUBLIC_ALGORITHMS))
    with pytest.raises(InvalidAlgorithmError):
        JWS.decode_complete("eyJhbGciOiJub25lIn0.e30.", b"k", algorithms=["none"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "key", [b"k", b"x" * 200, b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", b'{"kty":1}']
)
def test_any_secret_signs_as_it_is_written(algorithm: str, key: bytes) -> None:
    """Short ones and odd ones, without a warning (which would fail this test)."""
    token = JWS.encode(b"{}", key, algorithm)
    decoded = JWS.decode_complete(token, key, algorithms=ALGORITHMS)
    expected = hmac.new(key, token.rpartition(".")[0].encode(), getattr(hashlib, algorithm.replace("HS", "sha")))
    assert decoded["signature"] == expected.digest()


def test_a_secret_given_as_text_counts_as_utf_8() -> None:
    """PyJWT's interface allows both."""
    assert JWS.encode(b"{}", "é", "HS256") == JWS.encode(b"{}", "é".encode(), "HS256")
