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
from nexus.auth.keys import PublicKey, parse_key_set
from nexus.auth.mint import mint_token
from nexus.auth.tokens import inspect_token, read_header, verify_token
from nexus.errors import AuthError
from tests.support.signing import KINDS, jwk, key_set, private_key, public_pem, signed

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
    _token(b"", header={"alg": "HS256", "b64": False, "crit": ["b64"]}),
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


# -- Public keys -----------------------------------------------------------------------------------------------------


def _public_keys() -> tuple[PublicKey, ...]:
    return parse_key_set(key_set(*(jwk(private_key(kind), kid=f"{kind}-1") for kind in KINDS)), "keys").keys


def _verify(token: str, *, secrets: tuple[bytes, ...] = (_KEY,)) -> Mapping[str, object]:
    return verify_token(token, secrets, _NOW, public_keys=_public_keys())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("header", [{}, {"kid": True}, {"typ": "at+jwt"}, {"jku": "https://evil.example/", "x5u": "x"}])
def test_a_token_signed_with_a_known_key_is_accepted(kind: str, header: dict[str, object]) -> None:
    """With its key's id or without any; what else the header offers is not looked at."""
    if "kid" in header:
        header = {"kid": f"{kind}-1"}
    assert _verify(signed(_BASE, kind, **header)) == _BASE
    assert _verify(signed(_BASE, kind, **header), secrets=()) == _BASE


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_good_beside_keys(kind: str) -> None:
    """Each family by its own; the claims are held against the same rules."""
    assert _verify(_token(_BASE)) == _BASE
    with pytest.raises(AuthError, match="expired"):
        _verify(signed({**_BASE, "exp": 1}, kind))


def _confused(kind: str, secret: bytes, **header: object) -> str:
    return _token(_BASE, secret, {"alg": "HS256", **header})


_PEMS = [public_pem(private_key(kind)).encode() for kind in KINDS]
_JWKS = [json.dumps(jwk(private_key(kind))).encode() for kind in KINDS]


@pytest.mark.parametrize("secret", [*_PEMS, *(pem.strip() for pem in _PEMS), *_JWKS], ids=range(9))
@pytest.mark.parametrize("secrets", [(), (_KEY,)])
def test_a_public_key_is_no_secret(secret: bytes, secrets: tuple[bytes, ...]) -> None:
    """RFC 8725 section 2.1, key confusion: everybody could sign with what everybody knows."""
    for kind in KINDS:
        with pytest.raises(AuthError, match=r"^invalid token: its (signature|algorithm)"):
            _verify(_confused(kind, secret, kid=f"{kind}-1"), secrets=secrets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", KINDS)
def test_a_key_is_never_used_for_another_algorithm(kind: str, named: str) -> None:
    """An id of a key of another kind leads nowhere, not to the key that would fit either (RFC 8725 section 3.1)."""
    token = signed(_BASE, kind, kid=f"{named}-1")
    if kind == named:
        assert _verify(token) == _BASE
        return
    with pytest.raises(AuthError, match=r"^invalid token: no key of this node has its kid and algorithm$"):
        _verify(token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_s_key_is_not_believed(kind: str) -> None:
    """Whether or not the token brings it along, or names one of ours."""
    stranger = private_key(kind, 2)
    for header in ({}, {"kid": f"{kind}-1"}, {"jwk": jwk(stranger)}, {"jwk": jwk(stranger), "kid": f"{kind}-1"}):
        with pytest.raises(AuthError, match=f"^invalid token: its signature does not match this node's {kind} key"):
            _verify(signed(_BASE, kind, stranger, **header))
    with pytest.raises(AuthError, match="no key of this node"):
        _verify(signed(_BASE, kind, stranger, kid="new"))


@pytest.mark.parametrize("algorithm", ["none", "RS512", "PS256", "ES384", "ES256K", "Ed25519", "eddsa"])
def test_no_other_algorithm_reaches_a_key(algorithm: str) -> None:
    """The message names those that would."""
    token = _token(_BASE, header={"alg": algorithm})
    for candidate in (token, token.rpartition(".")[0] + "."):
        with pytest.raises(AuthError, match=r"none of HS256, HS384, HS512, RS256, ES256, EdDSA$"):
            _verify(candidate)
        with pytest.raises(AuthError, match=r"none of RS256, ES256, EdDSA$"):
            _verify(candidate, secrets=(b"",))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_of_another_form_is_none(kind: str) -> None:
    """Empty, too short, too long, or that of another token."""
    signing_input, _, signature = signed(_BASE, kind).rpartition(".")
    other = signed({**_BASE, "sub": "x"}, kind).rpartition(".")[2]
    for forged in ("", "AAAA", signature[:-4], signature + "AAAA", other):
        with pytest.raises(AuthError, match=r"^invalid token: "):
            _verify(f"{signing_input}.{forged}")


def test_a_header_is_read_without_belief() -> None:
    """Algorithm and key id, each empty where it is none."""
    assert read_header(signed({}, "EdDSA", kid="k")) == ("EdDSA", "k")
    assert read_header(_token(b"{}", header={"alg": 5})) == ("", "")
    for junk in ("x", "é", _token(b"{}", header={"alg": "HS256", "kid": "x" * 257})):
        with pytest.raises(AuthError, match=r"^invalid token: "):
            read_header(junk)


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
