"""nexus.auth.authenticator: who judges a token, and who may stand in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from nexus.auth import key_url as key_url_module
from nexus.auth.authenticator import Authenticator
from nexus.auth.key_url import KeyUrl
from nexus.auth.keyring import Keyring, KeySources
from nexus.auth.mint import mint_token
from nexus.auth.remote import RemoteVerifier
from nexus.auth.revocation import Revocations, TokenIdentity
from nexus.errors import AuthError, TokenUnverified
from nexus.files import write_private
from nexus.web import WebClient
from tests.support.processes import SECRET, Pki
from tests.support.signing import jwk, key_set, private_key, public_pem, signed
from tests.support.web_server import WebServer, reply, reply_json, web_server

NOW = 1000.0
CLAIMS: Mapping[str, object] = {"iss": "authorizer", "aud": "nexus", "sub": "shop", "jti": "1", "iat": 900, "exp": 1100}


@pytest.fixture
async def server(pki: Pki) -> AsyncIterator[WebServer]:
    """A server that says nothing useful yet."""
    async with web_server(pki, reply(404, b"")) as running:
        yield running


def _local() -> str:
    return mint_token(CLAIMS, SECRET.encode())


async def test_local_keys_judge_alone() -> None:
    """The claims come with what names the token."""
    claims = await Authenticator(Keyring(KeySources(SECRET))).verify(_local(), NOW)
    assert claims.identity == TokenIdentity("shop", "1", "", 900)
    with pytest.raises(AuthError, match="expired"):
        await Authenticator(Keyring(KeySources(SECRET))).verify(_local(), 2000)


async def test_expiry_can_be_required() -> None:
    """Of tokens that are verified here; the hub asks it of all others (nexus.auth.grants)."""
    endless = mint_token({name: value for name, value in CLAIMS.items() if name != "exp"}, SECRET.encode())
    assert await Authenticator(Keyring(KeySources(SECRET))).verify(endless, NOW)
    with pytest.raises(AuthError, match="requires the claim exp"):
        await Authenticator(Keyring(KeySources(SECRET)), require_expiry=True).verify(endless, NOW)


async def test_the_verifier_judges_alone(server: WebServer, web: WebClient) -> None:
    """Local keys are not asked: a token of theirs is refused, and one of no form we know may be good."""
    verifier = RemoteVerifier(server.url(), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET)), verifier=verifier)
    server.answer = reply_json({"valid": False, "error": "unknown"})
    with pytest.raises(AuthError, match="refuses it: unknown"):
        await authenticator.verify(_local(), NOW)
    server.answer = reply_json({"valid": True, "claims": {"sub": "x", "hostnames": ["a.example"]}})
    claims = await authenticator.verify("any text", NOW)
    assert (claims.subject, claims.hostnames, claims.key_id) == ("x", ("a.example",), "")


async def test_claims_of_the_verifier_are_read_like_any_other(server: WebServer, web: WebClient) -> None:
    """A wrong type in them is refused."""
    server.answer = reply_json({"valid": True, "claims": {"hostnames": "a.example"}})
    authenticator = Authenticator(Keyring(KeySources()), verifier=RemoteVerifier(server.url(), web))
    with pytest.raises(AuthError, match="invalid token: the claim hostnames must be a list"):
        await authenticator.verify(_local(), NOW)


@pytest.mark.parametrize("falls_back", [False, True])
async def test_the_fallback_is_off_unless_asked_for(server: WebServer, web: WebClient, falls_back: bool) -> None:
    """W28: whoever keeps the verifier out of reach must not choose the weaker way in."""
    server.answer = reply(503, b"")
    verifier = RemoteVerifier(server.url(), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET)), verifier=verifier, falls_back=falls_back)
    if falls_back:
        assert (await authenticator.verify(_local(), NOW)).subject == "shop"
        assert verifier.answers == {"down": 1, "fallback": 1}
        with pytest.raises(AuthError, match="signature"):
            await authenticator.verify(mint_token(CLAIMS, b"x" * 32), NOW)
    else:
        with pytest.raises(TokenUnverified, match="try later"):
            await authenticator.verify(_local(), NOW)
        assert verifier.answers == {"down": 1}


async def test_the_fallback_covers_no_refusal_and_no_lie(server: WebServer, web: WebClient) -> None:
    """W28: any answer but a failure of the verifier is the last word."""
    verifier = RemoteVerifier(server.url(), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET)), verifier=verifier, falls_back=True)
    for answer in (reply_json({"valid": False}), reply_json({"valid": True}), reply(404, b""), reply(200, b"<html>")):
        server.answer = answer
        with pytest.raises(AuthError):
            await authenticator.verify(_local(), NOW)
    assert verifier.answers == {"refused": 1, "no_verdict": 3}


async def test_revocation_has_the_last_word(server: WebServer, web: WebClient, tmp_path: Path) -> None:
    """Whoever verified the token, and by each of its names."""
    revoked, keys = tmp_path / "revoked", tmp_path / "keys"
    write_private(keys, key_set(jwk(private_key("EdDSA"), kid="k1")).encode())
    server.answer = reply_json({"valid": True, "claims": dict(CLAIMS)})
    token = signed(CLAIMS, "EdDSA", kid="k1")
    for line in ("sub shop", "jti 1", "kid k1", "sub shop before 1970-01-01T00:15:01Z"):
        write_private(revoked, line.encode())
        sources = KeySources(SECRET, key_file=keys, revocation_file=revoked)
        for authenticator in (
            Authenticator(Keyring(sources)),
            Authenticator(Keyring(sources), verifier=RemoteVerifier(server.url(), web)),
        ):
            with pytest.raises(AuthError, match=f"^invalid token: its {line[:3]} is revoked"):
                await authenticator.verify(token, NOW)
    write_private(revoked, b"sub shop before 1970-01-01T00:15:00Z")
    assert await Authenticator(Keyring(sources)).verify(token, NOW)


async def test_a_list_that_changes_is_told_of(tmp_path: Path) -> None:
    """Within an interval, or at once when asked to look."""
    revoked = tmp_path / "revoked"
    write_private(revoked, b"")
    authenticator = Authenticator(Keyring(KeySources(SECRET, revocation_file=revoked)))
    told: asyncio.Queue[Revocations] = asyncio.Queue()
    authenticator.look(told.put_nowait)
    assert told.empty()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(authenticator.watch(0.005, told.put_nowait))
        write_private(revoked, b"sub shop")
        assert (await told.get()).reason([TokenIdentity("shop")], NOW)
        watching.cancel()
    write_private(revoked, b"")
    authenticator.look(told.put_nowait)
    assert not told.get_nowait().reason([TokenIdentity("shop")], NOW)


# -- A key set behind a URL -------------------------------------------------------------------------------------------


async def test_keys_of_a_url_judge_beside_those_of_files(server: WebServer, web: WebClient, tmp_path: Path) -> None:
    """The unknown one is refused for good only once the newest set does not have it."""
    keys = tmp_path / "keys"
    write_private(keys, public_pem(private_key("RS256")).encode())
    server.answer = reply(200, key_set(jwk(private_key("ES256"), kid="e1")).encode())
    key_url = KeyUrl(server.url("/jwks"), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET, key_file=keys)), key_url=key_url)
    assert authenticator.unready() == ("the keys of backendsJWKSURL were not fetched yet",)
    await key_url.fetch()
    assert authenticator.unready() == ()
    tokens = (_local(), signed(CLAIMS, "RS256"), signed(CLAIMS, "ES256", kid="e1"), signed(CLAIMS, "ES256"))
    assert [(await authenticator.verify(token, NOW)).subject for token in tokens] == ["shop"] * 4
    assert (await authenticator.verify(signed(CLAIMS, "RS256", kid="of PEM"), NOW)).subject == "shop"


async def test_an_issuer_without_keys_makes_the_node_unready(server: WebServer, web: WebClient) -> None:
    """Until it publishes one."""
    server.answer = reply(200, b'{"keys": []}')
    key_url = KeyUrl(server.url("/jwks"), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET)), key_url=key_url)
    await key_url.fetch()
    assert authenticator.unready() == ("the key set of backendsJWKSURL holds no usable key",)
    server.answer = reply(200, key_set(jwk(private_key("ES256"), kid="e1")).encode())
    await key_url.fetch()
    assert authenticator.unready() == ()


async def test_a_key_that_cannot_be_looked_up_leaves_the_token_unjudged(server: WebServer, web: WebClient) -> None:
    """In words that do not make an original backend give up: the key may be a new one."""
    key_url = KeyUrl(server.url("/jwks"), web)
    authenticator = Authenticator(Keyring(KeySources(SECRET)), key_url=key_url)
    await key_url.fetch()
    for token in (signed(CLAIMS, "ES256", kid="e1"), signed(CLAIMS, "ES256")):
        with pytest.raises(TokenUnverified, match="try later"):
            await authenticator.verify(token, NOW)
    assert (await authenticator.verify(_local(), NOW)).subject == "shop"  # secrets do not wait for it
    server.answer = reply(200, key_set(jwk(private_key("ES256"), kid="e1")).encode())
    await key_url.fetch()
    with pytest.raises(TokenUnverified, match="try later"):
        await authenticator.verify(signed(CLAIMS, "ES256", private_key("ES256", 2), kid="e2"), NOW)
    with pytest.raises(AuthError, match="signature"):
        await authenticator.verify(signed(CLAIMS, "ES256", private_key("ES256", 2), kid="e1"), NOW)


async def test_a_new_key_is_fetched_when_a_token_names_it(
    server: WebServer, web: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that the issuer does not have either is a lasting refusal."""
    monkeypatch.setattr(key_url_module, "UNKNOWN_ID_PAUSE_S", 0.0)
    old, new = private_key("ES256"), private_key("ES256", 2)
    server.answer = reply(200, key_set(jwk(old, kid="old")).encode())
    key_url = KeyUrl(server.url("/jwks"), web)
    authenticator = Authenticator(Keyring(KeySources()), key_url=key_url)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(key_url.run())
        assert (await authenticator.verify(signed(CLAIMS, "ES256", old, kid="old"), NOW)).subject == "shop"
        server.answer = reply(200, json.dumps({"keys": [jwk(new, kid="new")]}).encode())
        assert (await authenticator.verify(signed(CLAIMS, "ES256", new, kid="new"), NOW)).key_id == "new"
        with pytest.raises(AuthError, match="no key of this node has its kid"):
            await authenticator.verify(signed(CLAIMS, "ES256", old, kid="old"), NOW)
        running.cancel()
    assert key_url.fetched_at is not None
    assert key_url.fetched_at <= time.time()


async def test_the_verifier_needs_no_keys_of_the_url(server: WebServer, web: WebClient) -> None:
    """Where it judges they are not asked."""
    server.answer = reply_json({"valid": True, "claims": {"sub": "x"}})
    authenticator = Authenticator(
        Keyring(KeySources()), verifier=RemoteVerifier(server.url(), web), key_url=KeyUrl(server.url("/jwks"), web)
    )
    assert (await authenticator.verify(signed(CLAIMS, "ES256", kid="k9"), NOW)).identity.key_id == "k9"
    assert [asked.path for asked in server.asked] == ["/verify"]
