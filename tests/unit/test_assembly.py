"""nexus.assembly: what a configuration means to each part, and whom a node trusts with tokens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nexus import app, assembly
from nexus.addresses import parse_network
from nexus.app import Node
from nexus.auth.tokens import inspect_token
from nexus.config.admission import policy_of
from nexus.errors import ConfigError, TlsFileError
from nexus.files import write_public
from nexus.hub.targets import OutboundPolicy
from nexus.limits import UNBOUNDED
from tests.support.hub import HOST, NAME, eventually
from tests.support.node import Config, configurations, running
from tests.support.ports import free_ports
from tests.support.processes import Pki
from tests.support.web_server import Asked, http, web_server

ON_BOTH_LOOPS = True


@pytest.fixture
def config(pki: Pki, tmp_path: Path) -> Config:
    """Make configurations."""
    return configurations(pki, tmp_path)


def test_a_bound_of_zero_connections_is_no_bound(config: Config) -> None:
    """As the configuration says."""
    assert assembly.peek_budget(config()).connections_per_source == UNBOUNDED
    assert assembly.peek_budget(config(maxConnectionsPerSource=7)).connections_per_source == 7


def test_the_budget_and_the_policy_are_those_of_the_configuration(config: Config) -> None:
    """Each setting reaches the place where it counts."""
    made = config(
        peekTimeouts={"firstByteSeconds": 1, "idleExtensionSeconds": 2, "absoluteMaxSeconds": 3},
        maxConcurrentPeeks=4,
        maxConcurrentPeeksPerSource=5,
        unroutedClose="silent",
        allowedTCPPortClaims=[25],
        allowedUDPPortClaims=[53],
        requireTokenExpiry=True,
        allowOutbound=True,
        allowedOutboundPorts=[25, 443],
        maxOutboundConnsPerBackend=-1,
        outboundDialTimeoutSeconds=6,
        outboundIdleTimeoutSeconds=7,
        outboundPrivateNetworks=["10.1.0.0/16", "::1"],
    )
    budget, policy = assembly.peek_budget(made), policy_of(made)
    assert (budget.first_byte_s, budget.idle_extension_s, budget.absolute_max_s) == (1, 2, 3)
    assert (budget.concurrent, budget.concurrent_per_source, budget.answers) == (4, 5, False)
    assert policy.allowed_tcp_ports == {25}
    assert policy.allowed_udp_ports == {53}
    assert policy.require_expiry
    networks = (parse_network("10.1.0.0/16"), parse_network("::1/128"))
    assert assembly.outbound_policy(made) == OutboundPolicy(True, frozenset({25, 443}), UNBOUNDED, 6, 7, networks)
    assert assembly.outbound_policy(config()) == OutboundPolicy()


async def test_files_of_keys_that_cannot_be_used_are_an_error_at_once(config: Config, tmp_path: Path) -> None:
    """Before anything listens; all of them together."""
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError) as caught:
        Node(config(additionalJWTSecretFiles=[missing], backendsJWKSFile=missing, revocationFile=missing))
    assert len(caught.value.problems) == 3
    with pytest.raises(TlsFileError, match="missing"):
        Node(config(authorizerCAFile=missing))


async def test_a_key_url_that_is_not_there_stops_no_node(pki: Pki, config: Config) -> None:
    """It says that it is not ready, takes the tokens it can judge, and tells of the failure in figures."""
    (unused,) = free_ports(1)
    async with running(pki, config(backendsJWKSURL=f"http://127.0.0.1:{unused}/jwks")) as it:
        await it.backend()
        assert it.node.readiness().reasons == ("the keys of backendsJWKSURL were not fetched yet",)
        await eventually(lambda: it.node.stats().key_set_fetches_total == {"failed": 1}, "it was tried")
        assert it.node.stats().key_set_fetched_seconds is None


async def test_a_verifier_judges_the_tokens(pki: Pki, config: Config) -> None:
    """Asked over HTTPS with the hub's certificate; its answers are in the figures."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonce = inspect_token(json.loads(asked.body)["token"]).claims.get("session_nonce", "")
        verdict = {"valid": True, "claims": {"sub": NAME, "hostnames": [HOST], "session_nonce": nonce}}
        writer.write(http(200, json.dumps(verdict).encode()))

    async with web_server(pki, answer) as verifier:
        made = config(remoteVerifierURL=verifier.url(), authorizerCAFile=str(pki.ca_file))
        async with running(pki, made) as it:
            await it.backend()
            assert [asked.client_names for asked in verifier.asked] == [("localhost",)] * 2
            assert it.node.stats().verifier_answers_total == {"accepted": 2}


async def test_a_revocation_ends_a_session_that_runs(
    pki: Pki, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the node's next look at the file, or at once on SIGHUP."""
    revoked = tmp_path / "revoked"
    revoked.write_text("# nobody\n")
    async with running(pki, config(revocationFile=str(revoked))) as it:
        backend = await it.backend()
        write_public(revoked, f"sub {NAME}\n".encode())
        it.node.reload()
        assert await backend.closed() == (1008, "revoked")
        await eventually(lambda: it.node.stats().session_ends_total == {"1008": 1}, "it is counted")
    write_public(revoked, b"")
    monkeypatch.setattr(app, "KEY_WATCH_S", 0.01)
    async with running(pki, config(revocationFile=str(revoked))) as it:
        backend = await it.backend()
        write_public(revoked, f"sub {NAME}\n".encode())
        assert await backend.closed() == (1008, "revoked")
