"""Which token provider the attestation settings ask for."""

from __future__ import annotations

from pathlib import Path

from backend_client.config import Attestation
from backend_client.tokens import CachingProvider, CommandTokenProvider, HmacTokenProvider, TokenProvider
from nexus.auth.mint import TokenSpec


def provider_for(attestation: Attestation) -> TokenProvider:
    """Return the provider; a command wins over a secret, a secret file over an inline secret (spec 16)."""
    issuer: CommandTokenProvider | HmacTokenProvider
    if attestation.command:
        issuer = CommandTokenProvider(
            attestation.command, attestation.args, attestation.env, timeout_s=attestation.timeout_s
        )
    else:
        file = attestation.hmac_secret_file
        issuer = HmacTokenProvider(Path(file) if file else attestation.hmac_secret, _terms(attestation))
    return CachingProvider(issuer, attestation.cache_handshake_s) if attestation.cache_handshake_s else issuer


def _terms(attestation: Attestation) -> TokenSpec:
    return TokenSpec(
        subject="",
        ttl_s=attestation.token_ttl_s,
        handshake_max_age_s=attestation.handshake_max_age_s,
        reauth_interval_s=attestation.reauth_interval_s,
        reauth_grace_s=attestation.reauth_grace_s,
        maintenance_grace_cap_s=attestation.maintenance_grace_cap_s or None,
        authorizer_status_uri=attestation.authorizer_status_uri,
        policy_version=attestation.policy_version,
    )
