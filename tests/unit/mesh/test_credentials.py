"""What a node shows others, and who is at the other end of a link."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.errors import TlsFileError
from nexus.mesh.credentials import PeerCredentials
from nexus.mesh.trust import NOBODY, refusal_of
from nexus.tls.certificates import CertificateFiles, read_certificate
from tests.support.fleet import SUFFIX, mesh_settings
from tests.support.node import Config, configurations
from tests.support.processes import Pki


@pytest.fixture
def config(pki: Pki, tmp_path: Path) -> Config:
    """Make configurations."""
    return configurations(pki, tmp_path)


def credentials(pki: Pki, config: Config, **settings: Any) -> PeerCredentials:
    made = config(**{**mesh_settings(pki, "node", 1, []), **settings})
    files = CertificateFiles(Path(made.hub_tls_cert_file), Path(made.hub_tls_key_file))
    return PeerCredentials(made, lambda: read_certificate(files))


def test_trust_is_that_of_the_configuration(pki: Pki, config: Config) -> None:
    """By labels, or as loosely as the original where that is asked for."""
    suffixes = {"trustedDomainSuffixes": ["mesh.test"]}
    assert not credentials(pki, config, peerAuthentication=suffixes).covers("evilmesh.test")
    loose = {**suffixes, "suffixMatching": "loose"}
    assert credentials(pki, config, peerAuthentication=loose).covers("evilmesh.test")
    assert credentials(pki, config).covers(f"a{SUFFIX}")


def test_a_renewed_certificate_is_used_and_a_bad_one_is_not(
    pki: Pki, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """New handshakes see the renewed one; the old one stays where that cannot be used."""
    made = config(**mesh_settings(pki, "node", 1, []))
    first = read_certificate(CertificateFiles(Path(made.hub_tls_cert_file), Path(made.hub_tls_key_file)))
    shown = [first]
    ours = PeerCredentials(made, lambda: shown[0])
    before = ours.server_context()
    assert ours.server_context() is before
    second = read_certificate(CertificateFiles(*pki.issue("node", "node.mesh.test")))
    shown[0] = second
    after = ours.server_context()
    assert after is not before
    other = read_certificate(CertificateFiles(*pki.issue("other", "other.mesh.test")))
    shown[0] = replace(second, key_pem=other.key_pem)
    with caplog.at_level(logging.ERROR):
        assert ours.server_context() is after
    assert "the old one stays in use towards nodes" in caplog.text


def test_roots_that_cannot_be_read_stop_the_start(pki: Pki, config: Config) -> None:
    """As every other file does."""
    with pytest.raises(TlsFileError, match=r"/nonexistent/ca\.pem: cannot be read"):
        credentials(pki, config, peerCAFile="/nonexistent/ca.pem")


def test_a_link_without_tls_is_one_to_nobody(pki: Pki, config: Config) -> None:
    """Such as one that was dialled by ``ws://``."""
    ours = credentials(pki, config)
    assert ours.identity(asyncio.Transport()) == NOBODY
    assert ours.judge(asyncio.Transport()) == (NOBODY, refusal_of(NOBODY, [SUFFIX]))
