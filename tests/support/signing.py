"""Key pairs to sign tokens with, as an issuer has them: made once, since RSA takes its time."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from nexus.auth.keys import PrivateKeyMaterial

KINDS: Final = ("RS256", "ES256", "EdDSA")


@functools.cache
def private_key(algorithm: str, number: int = 1) -> PrivateKeyMaterial:
    """Return the private key of an algorithm; another ``number`` is another key."""
    del number
    if algorithm == "RS256":
        return rsa.generate_private_key(65_537, 2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def private_pem(key: PrivateKeyMaterial) -> str:
    """Return a private key as text."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def public_pem(key: PrivateKeyMaterial) -> str:
    """Return the public part of a key as text."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def jwk(key: PrivateKeyMaterial, **members: object) -> dict[str, object]:
    """Return the public part of a key as a JSON Web Key with more members."""
    if isinstance(key, rsa.RSAPrivateKey):
        found = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    plain = {name: value for name, value in found.items() if name not in {"key_ops", "use"}}
    return {**plain, **members}


def key_set(*keys: Mapping[str, object]) -> str:
    """Return a JSON key set."""
    return json.dumps({"keys": list(keys)})


def signed(
    payload: Mapping[str, object], algorithm: str, key: PrivateKeyMaterial | None = None, /, **header: object
) -> str:
    """Return a token as any issuer's library would make it."""
    material = key or private_key(algorithm)
    return PyJWS().encode(json.dumps(dict(payload)).encode(), material, algorithm, headers=dict(header))
