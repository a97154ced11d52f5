"""Tests of nexus.auth.tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt import PyJWS

from nexus.auth.claims import parse_claims
from nexus.auth.jws import ALGORITHMS, JWS, TOKEN_MAX_BYTES, Algorithm
from nexus.auth.mint import mint_token
from nexus.auth.tokens import inspect_token, verify_token
from nexus.errors import AuthError

_KEY = b"short"
_NOW = 1000.5
_BASE: dict[str, object] = {"iss": "authorizer", "aud": ["nexus"], "exp": 1030}


def _token(payload: Mapping[str, object] | bytes, key: bytes = _KEY, header: Mapping[str, object] | None = None) -> str:
    """Sign by hand what a library would refuse to make."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{_segment(json.dumps(header or {'alg': 'HS256'}).encode())}.{_segment(body)}"
    return f"{signed}.{_segment(_hs256(signed.encode(), key))}"


def _hs256(message: bytes, key: bytes) -> bytes:
    return JWS.get_algorithm_by_name("HS256").sign(message, key)


def _segment(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_gives_its_payload(algorithm: Algorithm) -> None:
    """Any of the three algorithms will do."""
    assert verify_token(mint_token(_BASE, _KEY, algorithm=algorithm), [_KEY], _NOW) == _BASE


def test_several_secrets_are_tried() -> None:
    """While a secret is being replaced both are good; an empty one is never used."""
    token = _token(_BASE)
    assert verify_token(token, [b"", b"new", _KEY], _NOW) == _BASE
    with pytest.raises(AuthError, match="signature"):
        verify_token(token, [b"new", b"newer"], _NOW)


@pytest.mark.parametrize("keys", [[], [b""], [b"", b""]])
def test_without_a_secret_nothing_is_verified(keys: list[bytes]) -> None:
    """A token signed with the empty key least of all."""
    with pytest.raises(AuthError, match="no secret"):
        verify_token(_token(_BASE, b""), keys, _NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "nexus"},
        {"aud": ["other", "nexus"]},
        {"exp": None},
        {"exp": 1001},
        {"exp": 1001.9},
        {"nbf": 1000},
        {"nbf": 1000.9},
        {"nbf": None},
        {"iat": "soon", "sub": 5, "jti": []},
        {"iat": 9_999_999_999},
        {"exp": 2**63 - 1},
    ],
)
def test_a_token_within_the_rules_is_accepted(change: dict[str, object]) -> None:
    """Dates are cut to whole seconds; issue date, subject and id are not looked at here."""
    assert verify_token(_token({**_BASE, **change}), [_KEY], _NOW) == {**_BASE, **change}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"iss": "Authorizer"}, "claim iss"),
        ({"iss": None}, "claim iss"),
        ({"iss": ["authorizer"]}, "claim iss"),
        ({"aud": None}, "claim aud"),
        ({"aud": []}, "claim aud"),
        ({"aud": "nexus2"}, "claim aud"),
        ({"aud": ["nexus", 1]}, "claim aud"),
        ({"aud": [["nexus"], {}]}, "claim aud"),
        ({"aud": {"nexus": 1}}, "claim aud"),
        ({"exp": 1000}, "expired 0 s ago"),
        ({"exp": 940.9}, "expired 60 s ago"),
        ({"nbf": 1002}, "not valid for another 2 s"),
        ({"exp": True}, "claim exp"),
        ({"exp": "1030"}, "claim exp"),
        ({"exp": [1030]}, "claim exp"),
        ({"exp": 10**400}, "claim exp"),
        ({"nbf": {}}, "claim nbf"),
    ],
)
def test_a_token_outside_the_rules_is_refused(change: dict[str, object], text: str) -> None:
    """Zero leeway, and the words by which original backends know a lasting refusal."""
    with pytest.raises(AuthError, match=f"^invalid token: .*{text}"):
        verify_token(_token({**_BASE, **change}), [_KEY], _NOW)


def test_expiry_can_be_required() -> None:
    """W28: the original accepts tokens that never expire."""
    endless = {**_BASE, "exp": None}
    assert verify_token(_token(endless), [_KEY], _NOW)
    with pytest.raises(AuthError, match="invalid token: this node requires the claim exp"):
        verify_token(_token(endless), [_KEY], _NOW, require_expiry=True)
    assert verify_token(_token(_BASE), [_KEY], _NOW, require_expiry=True)


_JUNK = [
    "",
    "a",
    "..",
    "a.b",
    "a.b.c",
    "é.é.é",
    "\ud800",
    "A" * TOKEN_MAX_BYTES,
    "A" * (TOKEN_MAX_BYTES + 1),
    "." * 1000,
    _token(_BASE) + "\n",
    " " + _token(_BASE),
    _token(_BASE) + ".x",
    _token(_BASE, header={"typ": "JWT"}),
    _token(_BASE, header={"alg": "HS256", "kid": 5}),
    _token(_BASE, header={"alg": "HS256", "crit": ["x"], "x": 1}),
    _token(_BASE, header={"alg": "HS256", "b64": False, "crit": ["b64"]}),
    _token(_BASE, header={"alg": ["HS256"]}),
    _token(_BASE, header={"alg": {"a": 1}}),
    _token(_BASE, header={"alg": None}),
    _token(b""),
    _token(b"\xff\xfe"),
    _token(json.dumps(_BASE).encode("utf-16")),
    _token(b"\xef\xbb\xbf" + json.dumps(_BASE).encode()),
    _token(b"[]"),
    _token(b"null"),
    _token(b'"iss"'),
    _token(b"[" * 40_000),
    _token(b'{"a":' * 8_000),
    _token(b'{"exp":' + b"9" * 40_000 + b"}"),
    _token(b'{"iss":"authorizer","aud":"nexus","exp":NaN}'),
    _token(b'{"iss":"authorizer","aud":"nexus","exp":Infinity}'),
    _token(b'{"iss":"authorizer","aud":"nexus","exp":1e999}'),
    _segment(b"[" * 40_000) + ".e30.",
    _segment(b'{"alg":' + b"9" * 40_000 + b"}") + ".e30.",
]


@pytest.mark.parametrize("token", _JUNK, ids=range(len(_JUNK)))
def test_junk_is_refused_as_an_invalid_token(token: str) -> None:
    """Nothing but AuthError, no cause in sight, and not a word of the token in the text."""
    with pytest.raises(AuthError, match=r"^invalid token: ") as caught:
        verify_token(token, [_KEY], _NOW)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert len(str(caught.value)) < 123


@pytest.mark.parametrize("algorithm", ["none", "None", "hs256", "HS1", "RS256", "ES256", "EdDSA", ""])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    """Even when the signature would match, and ``none`` above all."""
    with pytest.raises(AuthError, match=r"^invalid token: its algorithm is none of HS256, HS384, HS512$"):
        verify_token(_token(_BASE, header={"alg": algorithm}), [_KEY], _NOW)
    with pytest.raises(AuthError, match=r"^invalid token: "):
        verify_token(_token(_BASE, header={"alg": algorithm}).rpartition(".")[0] + ".", [_KEY], _NOW)


@given(st.text(max_size=50) | st.binary(max_size=60).map(_token))
def test_hostile_text_raises_auth_errors_alone(token: str) -> None:
    """With a good signature as without."""
    with pytest.raises(AuthError):
        verify_token(token, [_KEY], _NOW)


@given(
    st.dictionaries(
        st.sampled_from(["exp", "nbf", "aud", "iss", "sub", "hostnames", "weight"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_hostile_claims_raise_auth_errors_alone(payload: dict[str, object]) -> None:
    """Any JSON in a token with a good signature is either believed and read, or refused."""
    try:
        parse_claims(verify_token(_token({**_BASE, **payload}), [_KEY], _NOW))
    except AuthError as error:
        assert str(error).startswith("invalid token: ")  # noqa: PT017 — both outcomes are right


def test_inspection_shows_header_and_claims_unverified() -> None:
    """Of expired tokens and foreign algorithms too, with white space around."""
    token = PyJWS().encode(b'{"exp":1}', None, "none")  # type: ignore[arg-type]
    shown = inspect_token(f" {token}\n")
    assert shown.header == {"alg": "none", "typ": "JWT"}
    assert shown.claims == {"exp": 1}


@pytest.mark.parametrize("position", [i for i, junk in enumerate(_JUNK) if not junk.strip().startswith("eyJ")])
def test_inspection_of_junk_raises_auth_errors_alone(position: int) -> None:
    """The command prints the text and no traceback."""
    with pytest.raises(AuthError, match=r"^invalid token: "):
        inspect_token(_JUNK[position])


@given(st.text(max_size=50) | st.binary(max_size=60).map(_token))
def test_inspection_of_hostile_text_raises_auth_errors_alone(token: str) -> None:
    """Whatever it is given."""
    try:
        inspect_token(token)
    except AuthError as error:
        assert str(error).startswith("invalid token: ")  # noqa: PT017 — both outcomes are right
