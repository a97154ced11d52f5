"""Whose tokens this node believes: its own keys, keys fetched from an issuer, or a remote verifier; and none revoked.

Strategy: with a verifier it alone judges, as in the original. Where it cannot be reached the token stays unjudged,
unless the operator asked for the fallback to local keys: whoever could keep the verifier out of reach would otherwise
choose the weaker way in. Without a verifier the local keys judge; a token with a key id that nobody has makes the
fetched key set be renewed, and is judged again. In either way the revocation list has the last word.

Source: spec backend-protocol 3.1, 3.5, weak point W28; docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from nexus.auth.claims import Claims, parse_claims
from nexus.auth.jws import PUBLIC_ALGORITHMS
from nexus.auth.key_url import KeyUrl
from nexus.auth.keyring import Keyring
from nexus.auth.keys import PublicKey, candidates
from nexus.auth.remote import RemoteVerifier
from nexus.auth.revocation import Revocations
from nexus.auth.tokens import read_header, verify_token
from nexus.auth.verdict import VerifierDown
from nexus.errors import AuthError, TokenUnverified


class Authenticator:
    """Judges tokens of every stage; ``verify`` is what the hub asks."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        verifier: RemoteVerifier | None = None,
        falls_back: bool = False,
        key_url: KeyUrl | None = None,
        require_expiry: bool = False,
    ) -> None:
        """Take the sources of trust there are; ``falls_back`` lets local keys stand in for the verifier."""
        self.keyring = keyring
        self.verifier = verifier
        self.key_url = key_url
        self._falls_back = falls_back
        self._require_expiry = require_expiry

    async def verify(self, token: str, now: float) -> Claims:
        """Return the claims of a token that may be believed at ``now``, in seconds since the epoch.

        Takes as long as a verifier or the fetching of keys may take: 10 s each.

        Raises:
            TokenUnverified: nobody can tell now.
            AuthError: the token is refused, or revoked.
        """
        payload = await self._payload(token, now)
        claims = parse_claims(payload, _key_id(token))
        self.keyring.revocations.check(claims.identity, now)
        return claims

    async def watch(self, interval_s: float, on_revocations: Callable[[Revocations], None]) -> None:
        """Look at the files every ``interval_s`` seconds until cancelled, as ``look`` does."""
        while True:
            await asyncio.sleep(interval_s)
            self.look(on_revocations)

    def look(self, on_revocations: Callable[[Revocations], None]) -> None:
        """Look at the files now; tell of a revocation list that changed."""
        if self.keyring.look():
            on_revocations(self.keyring.revocations)

    def unready(self) -> tuple[str, ...]:
        """Return why tokens cannot be judged yet, if so."""
        if self.key_url is None or self.key_url.keys:
            return ()
        if self.key_url.fetched_at is None:
            return ("the keys of backendsJWKSURL were not fetched yet",)
        return ("the key set of backendsJWKSURL holds no usable key",)

    async def _payload(self, token: str, now: float) -> Mapping[str, object]:
        if self.verifier is None:
            return await self._verify_here(token, now)
        try:
            return await self.verifier.verify(token)
        except VerifierDown:
            if not self._falls_back:
                raise
            self.verifier.answers["fallback"] += 1
        return await self._verify_here(token, now)

    async def _verify_here(self, token: str, now: float) -> Mapping[str, object]:
        algorithm, key_id = read_header(token)
        is_current = self.key_url is None or algorithm not in PUBLIC_ALGORITHMS or self._knows(algorithm, key_id)
        if self.key_url is not None and not is_current:
            is_current = await self.key_url.renew()
        public_keys, secrets = self._public_keys(), self.keyring.secrets
        try:
            return verify_token(token, secrets, now, public_keys=public_keys, require_expiry=self._require_expiry)
        except AuthError:
            if is_current or self._knows(algorithm, key_id):
                raise
        raise TokenUnverified("its key is unknown, and those of backendsJWKSURL cannot be fetched now")

    def _public_keys(self) -> tuple[PublicKey, ...]:
        return (*self.keyring.public_keys, *(self.key_url.keys if self.key_url is not None else ()))

    def _knows(self, algorithm: str, key_id: str) -> bool:
        """Tell whether there is a key by the token's key id, or where it has none, any key of its algorithm."""
        keys = candidates(self._public_keys(), algorithm, key_id)
        return any(not key_id or key.key_id == key_id for key in keys)


def _key_id(token: str) -> str:
    """Return the key id of a token that was judged good; a verifier may know forms of tokens that we do not."""
    try:
        return read_header(token)[1]
    except AuthError:
        return ""
