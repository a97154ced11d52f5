"""backend_client.providers: which settings lead to which provider (spec backend-protocol 16)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backend_client.config import Attestation
from backend_client.providers import provider_for
from backend_client.tokens import CachingProvider, CommandTokenProvider, HmacTokenProvider, TokenRequest
from nexus.auth.tokens import inspect_token, verify_token
from nexus.errors import AuthError

HANDSHAKE = TokenRequest("handshake", "", "b", ("app.example.com",))
ATTEST = TokenRequest("attest", "nonce", "b", ("app.example.com",))


async def signed_with(attestation: Attestation, secret: str) -> bool:
    """Tell whether the provider's tokens are signed with this secret."""
    token = await provider_for(attestation).token(HANDSHAKE)
    try:
        verify_token(token, [secret.encode()], time.time())
    except AuthError:
        return False
    return True


async def test_a_command_wins_over_secrets(tmp_path: Path) -> None:
    """With its arguments, its environment and its limit."""
    attestation = Attestation(
        command="sh", args=("-c", 'echo "$WORD-$NEXUS_BACKEND_NAME"'), env={"WORD": "made"}, hmac_secret="s" * 32
    )
    provider = provider_for(attestation)
    assert isinstance(provider, CommandTokenProvider)
    assert await provider.token(HANDSHAKE) == "made-b"


async def test_a_secret_file_wins_over_an_inline_secret(tmp_path: Path) -> None:
    """And is read for every token."""
    file = tmp_path / "secret"
    file.write_text("f" * 32 + "\n")
    attestation = Attestation(hmac_secret="i" * 32, hmac_secret_file=str(file))
    assert isinstance(provider_for(attestation), HmacTokenProvider)
    assert await signed_with(attestation, "f" * 32)
    assert await signed_with(Attestation(hmac_secret="i" * 32), "i" * 32)


@pytest.mark.parametrize("command", ["", "true"])
def test_tokens_are_kept_only_where_that_is_asked_for(command: str) -> None:
    """By a wrapper around either provider."""
    asked = Attestation(command=command, hmac_secret="s" * 32, cache_handshake_s=10)
    assert isinstance(provider_for(asked), CachingProvider)
    assert not isinstance(provider_for(Attestation(command=command, hmac_secret="s" * 32)), CachingProvider)


async def test_the_terms_of_the_settings_are_in_the_tokens() -> None:
    """Each under its claim, at the stage where it belongs."""
    provider = provider_for(
        Attestation(
            hmac_secret="s" * 32,
            token_ttl_s=7,
            handshake_max_age_s=1,
            reauth_interval_s=2,
            reauth_grace_s=3,
            maintenance_grace_cap_s=4,
            authorizer_status_uri="https://status.example.com",
            policy_version="v5",
        )
    )
    first, second = [inspect_token(await provider.token(request)).claims for request in (HANDSHAKE, ATTEST)]
    assert first["handshake_max_age_seconds"] == 1
    assert "handshake_max_age_seconds" not in second
    assert second["session_nonce"] == "nonce"
    for claims in (first, second):
        assert claims["sub"] == "b"
        issued_at = claims["iat"]
        assert isinstance(issued_at, int)
        assert claims["exp"] == issued_at + 7
        assert claims["reauth_interval_seconds"] == 2
        assert claims["reauth_grace_seconds"] == 3
        assert claims["maintenance_grace_cap_seconds"] == 4
        assert claims["authorizer_status_uri"] == "https://status.example.com"
        assert claims["policy_version"] == "v5"
