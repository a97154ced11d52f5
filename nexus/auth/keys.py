"""Keys that tokens are verified or signed with, read from what an operator or a web server gives.

Strategy: a public key is bound to its one algorithm when it is read, and never used for another (RFC 8725 section 3.1):
RSA is RS256, P-256 is ES256, Ed25519 is EdDSA. A key set (RFC 7517) may hold keys for other purposes, so what we do
not know, or what says that it is not for verifying, is skipped and told of; a set without any usable key is an error,
as is every PEM block that is not a public key. The text of a key appears in no message.

``candidates`` is the whole rule by which a token finds its keys: the key id decides; keys without an id (those from
PEM) are for tokens whose id nobody has, and a token without an id is tried with every key of its algorithm. Sets are
bounded, so that is too. Secrets have no part in this: they are for HMAC alone.

Source: RFC 7517, RFC 7518 section 6, RFC 8037, RFC 7468; NIST SP 800-131A for the least size of RSA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from jwt import PyJWTError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from nexus.auth.jws import PublicAlgorithm
from nexus.auth.strict_json import parse_object
from nexus.errors import ConfigError, Problem

KEYS_MAX: Final = 32
"""Keys of one set; ours. Issuers publish two to four; a token without a key id is tried with each, 0.1 ms a key."""

RSA_MIN_BITS: Final = 2048  # NIST SP 800-131A
RSA_MAX_BITS: Final = 8192  # ours: the time of a verification grows with the square
KEY_ID_MAX_CHARS: Final = 256  # ours: ids are shown in messages and kept with each session
_SHOWN_CHARS: Final = 40
_UNKNOWN_KIND: Final = "has a kind other than RSA, P-256 and Ed25519"

PublicKeyMaterial: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
PrivateKeyMaterial: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PUBLIC_LABELS = frozenset({"PUBLIC KEY", "RSA PUBLIC KEY"})
_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_CURVES: Final[Mapping[str, str]] = {"EC": "P-256", "OKP": "Ed25519"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies tokens of one algorithm; ``source`` says where it was read."""

    algorithm: PublicAlgorithm
    material: PublicKeyMaterial = field(repr=False)
    key_id: str = ""
    source: str = ""

    def __str__(self) -> str:
        """Short text for people."""
        return f"key {_shown(self.key_id)} of {self.source}" if self.key_id else f"a key of {self.source}"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs tokens by one algorithm."""

    algorithm: PublicAlgorithm
    material: PrivateKeyMaterial = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of one source, and what was skipped in it, in words."""

    keys: tuple[PublicKey, ...] = ()
    skipped: tuple[str, ...] = ()


def parse_key_set(text: str, source: str, *, may_be_empty: bool = False) -> KeySet:
    """Read a JSON key set, or PEM public keys; ``source`` is the file or URL it came from.

    Raises:
        ConfigError: there is no usable key, though a JSON key set ``may_be_empty``, or more than KEYS_MAX.
    """
    is_json = text.lstrip().startswith("{")
    key_set = _parse_jwks(text, source) if is_json else _parse_pem(text, source)
    if not key_set.keys and not (is_json and may_be_empty):
        why = f": {key_set.skipped[0]}" if key_set.skipped else ""
        raise _refusal(source, 0, f"holds no key that tokens can be verified with{why}")
    return KeySet(_distinct(key_set.keys), key_set.skipped)


def parse_private_key(text: str, source: str) -> PrivateKey:
    """Read a PEM private key to sign tokens with; its kind decides the algorithm.

    Raises:
        ConfigError: it is not one, is encrypted, or of a kind that no node takes.
    """
    try:
        key = serialization.load_pem_private_key(text.encode(), None)
    except TypeError:
        mend = f"store it without a passphrase: openssl pkey -in {source} -out KEYFILE"
        raise _refusal(source, 0, "the private key is encrypted", mend) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _refusal(source, 0, "holds no PEM private key", "make one with: openssl genpkey") from None
    try:
        if isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
            return PrivateKey(_algorithm_of(key.public_key()), key)
        what = _UNKNOWN_KIND
    except ValueError as error:
        what = str(error)
    raise _refusal(source, 0, f"the private key {what}", "make one with: openssl genpkey -algorithm ed25519")


def check_secret(secret: str, source: str) -> None:
    """Refuse a secret that everybody may know, because it is a public key or certificate (RFC 8725 section 2.1).

    Raises:
        ConfigError: it is empty or such a text.
    """
    if fault := secret_fault(secret):
        raise _refusal(source, 0, *fault)


def secret_fault(secret: str) -> tuple[str, str] | None:
    """Return what is wrong with a secret, as ``check_secret`` says, and its mend; or nothing."""
    if not secret:
        return "is empty", "write the key into it"
    mend = "name it in backendsJWKSFile, or make a secret with: openssl rand -hex 32"
    if re.search(r"-----BEGIN (?:[A-Z0-9 ]*PUBLIC KEY|CERTIFICATE)-----", secret):
        return "is a public key or certificate, not a secret", mend
    try:
        is_key = not {"kty", "keys"}.isdisjoint(parse_object(secret.encode("utf-8", "surrogatepass")))
    except ValueError:
        return None
    return ("is a JSON key or key set, not a secret", mend) if is_key else None


def candidates(keys: Sequence[PublicKey], algorithm: str, key_id: str) -> tuple[PublicKey, ...]:
    """Return the keys to try a token with; none is the answer where its id names a key of another algorithm."""
    fitting = tuple(key for key in keys if key.algorithm == algorithm)
    if not key_id:
        return fitting
    if any(key.key_id == key_id for key in keys):
        return tuple(key for key in fitting if key.key_id == key_id)
    return tuple(key for key in fitting if not key.key_id)


# -- JSON -------------------------------------------------------------------------------------------------------------


def _parse_jwks(text: str, source: str) -> KeySet:
    try:
        items = parse_object(text.encode("utf-8", "surrogatepass")).get("keys")
    except ValueError:
        raise _refusal(source, 0, "is not JSON") from None
    if not isinstance(items, list):
        raise _refusal(source, 0, 'is no key set: it has no list "keys" (RFC 7517 section 5)')
    if len(items) > KEYS_MAX:
        raise _refusal(source, 0, f"holds {len(items)} keys, more than {KEYS_MAX}")
    keys, skipped = [], []
    for position, item in enumerate(items):
        try:
            keys.append(_read_jwk(item, source))
        except ValueError as error:
            skipped.append(f"keys[{position}] {error}")
    return KeySet(tuple(keys), tuple(skipped))


def _read_jwk(item: object, source: str) -> PublicKey:
    """Return a key, or raise ValueError whose text follows its place in a message."""
    if not isinstance(item, dict):
        raise ValueError("is not an object")  # noqa: TRY004 — caught as one kind
    kind = item.get("kty")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise ValueError("has a kty other than RSA, EC and OKP")
    _check_purpose(item)
    key_id = _key_id(item)
    if "d" in item:
        raise ValueError("is a private key; publish its public part alone")
    if not all(isinstance(item.get(name), str) for name in _MEMBERS[kind]):
        raise ValueError(f"lacks one of {', '.join(_MEMBERS[kind])}")
    if kind in _CURVES and item["crv"] != _CURVES[kind]:
        raise ValueError(f"has a curve other than {_CURVES[kind]}")
    material = _material(kind, {name: str(item[name]) for name in _MEMBERS[kind]} | {"kty": kind})
    algorithm = _algorithm_of(material)
    if item.get("alg") not in (None, algorithm):
        raise ValueError(f"has an alg other than {algorithm}")
    return PublicKey(algorithm, material, key_id, source)


def _check_purpose(item: Mapping[str, object]) -> None:
    """Respect ``use`` and ``key_ops`` (RFC 7517 sections 4.2 and 4.3)."""
    if item.get("use") not in (None, "sig"):
        raise ValueError("is not for signatures (use)")
    operations = item.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise ValueError("is not for verifying (key_ops)")


def _key_id(item: Mapping[str, object]) -> str:
    key_id = item.get("kid")
    if key_id is None:
        return ""
    if not isinstance(key_id, str) or len(key_id) > KEY_ID_MAX_CHARS:
        raise ValueError(f"has a kid that is not text of at most {KEY_ID_MAX_CHARS} characters")
    return key_id


def _material(kind: str, jwk: dict[str, str]) -> PublicKeyMaterial:
    readers = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}
    if kind == "RSA" and len(jwk["n"]) * 6 > RSA_MAX_BITS + 64:  # base64: six bits a character
        raise ValueError(f"has an RSA key of more than {RSA_MAX_BITS} bits")
    try:
        # Of these members, without a private one, they make public keys of our three kinds only.
        return cast("PublicKeyMaterial", readers[kind](jwk))
    except (PyJWTError, ValueError, OverflowError, UnsupportedAlgorithm):
        raise ValueError("is no valid key") from None


# -- PEM --------------------------------------------------------------------------------------------------------------


def _parse_pem(text: str, source: str) -> KeySet:
    blocks = list(_PEM_BLOCK.finditer(text))
    if len(blocks) > KEYS_MAX:
        raise _refusal(source, 0, f"holds {len(blocks)} keys, more than {KEYS_MAX}")
    return KeySet(tuple(_read_pem(block[1], block[0], source, _line_of(text, block.start())) for block in blocks))


def _read_pem(label: str, pem: str, source: str, line: int) -> PublicKey:
    if "PRIVATE KEY" in label:
        raise _refusal(source, line, "is a private key", f"name its public part: openssl pkey -in {source} -pubout")
    if label not in _PUBLIC_LABELS:
        mend = "write the public key alone, for a certificate: openssl x509 -pubkey -noout"
        raise _refusal(source, line, f"is a {label.lower()}, not a public key", mend)
    try:
        material = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _refusal(source, line, "is no valid public key") from None
    try:
        if isinstance(material, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
            return PublicKey(_algorithm_of(material), material, "", source)
        what = _UNKNOWN_KIND
    except ValueError as error:
        what = str(error)
    raise _refusal(source, line, f"the public key {what}")


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


# -- Both -------------------------------------------------------------------------------------------------------------


def _algorithm_of(material: PublicKeyMaterial) -> PublicAlgorithm:
    """Return the one algorithm of a public key, or raise ValueError whose text follows its place in a message."""
    if isinstance(material, Ed25519PublicKey):
        return "EdDSA"
    if isinstance(material, EllipticCurvePublicKey):
        if isinstance(material.curve, SECP256R1):
            return "ES256"
        raise ValueError(_UNKNOWN_KIND)
    if not RSA_MIN_BITS <= material.key_size <= RSA_MAX_BITS:
        raise ValueError(f"has {material.key_size} bits; RSA needs {RSA_MIN_BITS} to {RSA_MAX_BITS}")
    return "RS256"


def _distinct(keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
    """Drop repetitions. Two keys under one id both stay: an issuer that errs so is tried with each."""
    found: list[PublicKey] = []
    for key in keys:
        if not any(key.key_id == other.key_id and key.material == other.material for other in found):
            found.append(key)
    return tuple(found)


def _shown(key_id: str) -> str:
    return repr(key_id[:_SHOWN_CHARS] + ("…" if len(key_id) > _SHOWN_CHARS else ""))


def _refusal(source: str, line: int, what: str, mend: str = "") -> ConfigError:
    return ConfigError(Problem(source, line, "", what, mend))
