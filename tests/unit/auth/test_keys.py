"""Tests of nexus.auth.keys."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth import keys as module
from nexus.auth.keys import (
    KEYS_MAX,
    PublicKey,
    candidates,
    check_secret,
    parse_key_set,
    parse_private_key,
)
from nexus.errors import ConfigError
from nexus.tls.localca import create_ca
from tests.support.signing import KINDS, jwk, key_set, private_key, private_pem, public_pem

SHORT_RSA = rsa.generate_private_key(65_537, 1024)  # a size that OpenSSL still makes


def _refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_key_set(text, "keys")
    (problem,) = caught.value.problems
    assert problem.source == "keys"
    return str(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_bound_to_its_algorithm(kind: str) -> None:
    """Whichever of the two forms it comes in."""
    key = private_key(kind)
    (from_jwk,) = parse_key_set(key_set(jwk(key, kid="k1", alg=kind, use="sig", key_ops=["verify"])), "keys").keys
    (from_pem,) = parse_key_set(public_pem(key), "keys").keys
    assert (from_jwk.algorithm, from_jwk.key_id, str(from_jwk)) == (kind, "k1", "key 'k1' of keys")
    assert (from_pem.algorithm, from_pem.key_id, str(from_pem)) == (kind, "", "a key of keys")
    assert from_jwk.material == from_pem.material == key.public_key()
    assert "material" not in repr(from_jwk)


def test_a_pem_file_may_hold_several_keys_and_notes() -> None:
    """In any order, of any kind."""
    text = "my keys\n" + "".join(public_pem(private_key(kind)) + "# next\n" for kind in KINDS)
    assert [key.algorithm for key in parse_key_set(text, "keys").keys] == list(KINDS)
    older = private_key("RS256").public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    assert parse_key_set(older.decode(), "keys").keys[0].algorithm == "RS256"


GOOD = jwk(private_key("ES256"), kid="good")
RSA = jwk(private_key("RS256"))
SKIPPED: list[tuple[object, str]] = [
    ("text", "is not an object"),
    ({}, "has a kty other than"),
    ({"kty": ["RSA"]}, "has a kty other than"),
    ({"kty": "oct", "k": "c2VjcmV0"}, "has a kty other than"),
    ({"kty": "RSA"}, "lacks one of n, e"),
    ({**RSA, "use": "enc"}, "is not for signatures"),
    ({**RSA, "key_ops": ["sign"]}, "is not for verifying"),
    ({**RSA, "key_ops": "verify"}, "is not for verifying"),
    ({**RSA, "alg": "RS512"}, "has an alg other than RS256"),
    ({**RSA, "alg": "HS256"}, "has an alg other than RS256"),
    ({**RSA, "alg": ["RS256"]}, "has an alg other than RS256"),
    ({**RSA, "kid": 5}, "has a kid that is not text"),
    ({**RSA, "kid": "x" * 257}, "has a kid that is not text of at most 256"),
    ({**RSA, "d": "AQAB"}, "is a private key"),
    ({**RSA, "n": 5}, "lacks one of"),
    ({**RSA, "n": ""}, "is no valid key"),
    ({**RSA, "n": "é"}, "is no valid key"),
    ({**RSA, "e": "AA"}, "is no valid key"),
    ({**RSA, "n": "_" * 1400}, "more than 8192 bits"),
    ({**RSA, "n": "_" * 100_000}, "more than 8192 bits"),
    (jwk(SHORT_RSA), "has 1024 bits; RSA needs 2048 to 8192"),
    (jwk(ec.generate_private_key(ec.SECP384R1())), "has a curve other than P-256"),
    ({**GOOD, "crv": "secp256k1"}, "has a curve other than P-256"),
    ({**GOOD, "x": GOOD["y"]}, "is no valid key"),
    ({**GOOD, "x": "AQ"}, "is no valid key"),
    ({"kty": "OKP", "crv": "Ed448", "x": "AQ"}, "has a curve other than Ed25519"),
    ({"kty": "OKP", "crv": "X25519", "x": "AQ"}, "has a curve other than Ed25519"),
    ({"kty": "OKP", "crv": "Ed25519", "x": "AQ"}, "is no valid key"),
]


@pytest.mark.parametrize(("item", "why"), SKIPPED, ids=range(len(SKIPPED)))
def test_what_we_cannot_use_is_skipped_and_told_of(item: object, why: str) -> None:
    """Another key of the set goes on working; alone it makes a set without a key, which is an error."""
    parsed = parse_key_set(json.dumps({"keys": [item, GOOD]}), "keys")
    assert [key.key_id for key in parsed.keys] == ["good"]
    (skipped,) = parsed.skipped
    assert skipped.startswith("keys[0] ")
    assert why in skipped
    assert why in _refusal(json.dumps({"keys": [item]}))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("key: value", "holds no key"),
        ("{}", 'no list "keys"'),
        ('{"keys": {}}', 'no list "keys"'),
        ('{"keys": []}', "holds no key"),
        ("{keys}", "is not JSON"),
        ("{" * 100_000, "is not JSON"),
        ('{"keys":["\ud800"]}', "is not JSON"),
        (key_set(*[GOOD] * (KEYS_MAX + 1)), f"holds {KEYS_MAX + 1} keys, more than {KEYS_MAX}"),
        (public_pem(private_key("ES256")) * (KEYS_MAX + 1), f"holds {KEYS_MAX + 1} keys, more than {KEYS_MAX}"),
        ("x\ny\n" + private_pem(private_key("ES256")), "keys:3: is a private key; name its public part: openssl pkey"),
        (create_ca("CA", 0).cert_pem.decode(), "keys:1: is a certificate, not a public key; write the public key"),
        (public_pem(SHORT_RSA), "keys:1: the public key has 1024 bits"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "the public key has a kind other than"),
        (public_pem(ed448.Ed448PrivateKey.generate()), "the public key has a kind other than"),  # type: ignore[arg-type]
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "keys:1: is no valid public key"),
    ],
    ids=range(16),
)
def test_a_source_without_a_key_is_refused(text: str, why: str) -> None:
    """With its line where there is one, and never with what it says."""
    refusal = _refusal(text)
    assert why in refusal
    assert "MII" not in refusal


def test_repetitions_are_dropped_and_shared_ids_are_kept() -> None:
    """Whoever publishes two keys under one id is tried with each."""
    other = jwk(private_key("ES256", 2), kid="good")
    assert len(parse_key_set(key_set(GOOD, GOOD, other, {**GOOD, "kid": "b"}), "keys").keys) == 3


def _keys(*named: tuple[str, str]) -> tuple[PublicKey, ...]:
    return tuple(PublicKey(kind, private_key(kind).public_key(), key_id) for kind, key_id in named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "key_id", "found"),
    [
        ("RS256", "r1", [0]),
        ("RS256", "r2", [1]),
        ("RS256", "", [0, 1, 4]),
        ("RS256", "new", [4]),
        ("RS256", "e1", []),
        ("ES256", "e1", [2]),
        ("ES256", "new", []),
        ("EdDSA", "shared", [3]),
        ("RS256", "shared", []),
        ("HS256", "r1", []),
        ("none", "", []),
    ],
)
def test_the_key_id_decides(algorithm: str, key_id: str, found: list[int]) -> None:
    """RFC 8725 section 3.1: an id of a key for another algorithm is no way to any key."""
    keys = _keys(("RS256", "r1"), ("RS256", "r2"), ("ES256", "e1"), ("EdDSA", "shared"), ("RS256", ""))
    assert [keys.index(key) for key in candidates(keys, algorithm, key_id)] == found


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_signs_by_its_own_algorithm(kind: str) -> None:
    """And shows nothing of itself."""
    key = parse_private_key(private_pem(private_key(kind)), "k.pem")
    assert key.algorithm == kind
    assert "material" not in repr(key)


def _encrypted() -> str:
    form, cipher = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    return ed25519.Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, cipher).decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no PEM private key; make one with: openssl genpkey"),
        (public_pem(private_key("EdDSA")), "holds no PEM private key"),
        (_encrypted(), "is encrypted; store it without a passphrase"),
        (private_pem(SHORT_RSA), "the private key has 1024 bits"),
        (private_pem(ec.generate_private_key(ec.SECP384R1())), "the private key has a kind other than"),
        (private_pem(dsa.generate_private_key(1024)), "the private key has a kind other than"),  # type: ignore[arg-type]
    ],
    ids=range(6),
)
def test_other_private_keys_are_refused(text: str, why: str) -> None:
    """With what mends it."""
    with pytest.raises(ConfigError) as caught:
        parse_private_key(text, "k.pem")
    assert str(caught.value).startswith("k.pem: ")
    assert why in str(caught.value)


def test_a_secret_that_everybody_may_know_is_refused() -> None:
    """RFC 8725 section 2.1: a public key as a secret lets everybody sign."""
    keys = ('{"kty": "oct", "k": "AAAA"}', ' {"keys": []}\n')
    for text in (public_pem(private_key("RS256")), create_ca("CA", 0).cert_pem.decode(), *keys):
        with pytest.raises(ConfigError, match="not a secret; name it in backendsJWKSFile"):
            check_secret(text, "secret")
    with pytest.raises(ConfigError, match="secret: is empty"):
        check_secret("", "secret")
    for text in ("-----BEGIN OTHER-----", '{"key": 1}', '["kty"]', "{kty", "{" + "[" * 100_000, "\ud800"):
        check_secret(text, "secret")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
_JWKS = st.lists(
    st.dictionaries(st.sampled_from(["kty", "n", "e", "crv", "x", "y", "d", "kid", "use", "alg", "key_ops"]), _JSON)
    | st.builds(
        lambda base, name, value: {**base, name: value},
        st.sampled_from([GOOD, RSA, jwk(private_key("EdDSA"))]),
        st.sampled_from(["n", "e", "crv", "x", "y", "kid", "use", "alg", "key_ops", "kty"]),
        _JSON | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519"]),
    ),
    max_size=3,
)


@given(_JWKS.map(lambda items: json.dumps({"keys": items})) | st.text(max_size=60))
def test_hostile_key_sets_raise_config_errors_alone(text: str) -> None:
    """What is taken over is a key of a kind and size that we know."""
    try:
        parsed = parse_key_set(text, "keys")
    except ConfigError:
        return
    for key in parsed.keys:
        assert key.algorithm in KINDS
        assert not isinstance(key.material, rsa.RSAPublicKey) or key.material.key_size >= module.RSA_MIN_BITS
