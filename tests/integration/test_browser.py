"""A real browser loads a page with its parts through the node and trusts nothing but nginx's own key."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.programs import require

pytestmark = pytest.mark.programs

PARTS = 20
LOADED = f"{PARTS} parts came by h2"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def page(chain: Chain) -> None:
    """A page whose parts count themselves."""
    root = chain.nginx.root
    parts = "".join(f'<script src="/part{number}.js"></script>' for number in range(PARTS))
    protocol = 'performance.getEntriesByType("navigation")[0].nextHopProtocol'
    say = f'document.getElementById("out").textContent = window.count + " parts came by " + {protocol}'
    (root / "index.html").write_text(f'<!doctype html><p id="out">nothing yet</p>{parts}<script>{say}</script>')
    for number in range(PARTS):
        (root / f"part{number}.js").write_text(f"window.count = (window.count || 0) + 1; // {number}\n")


def key_hash(cert_file: Path) -> str:
    """Return how Chromium names a certificate's key: base64 of SHA-256 of its SubjectPublicKeyInfo (RFC 7469 2.4)."""
    certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def document_seen(chain: Chain, profile: Path, trusted: Path) -> str:
    """Return the document as Chromium has it when all is loaded, if it trusts only the key of one certificate."""
    pin = f"--ignore-certificate-errors-spki-list={key_hash(trusted)}"
    return wire.run_program(
        require("chromium"), *_FLAGS, f"--user-data-dir={profile}", pin, "--dump-dom", chain.url("/index.html")
    )


def test_chromium_loads_a_page_with_twenty_parts(chain: Chain, directory: Path) -> None:
    """Every script ran, and the browser agreed with nginx on HTTP/2."""
    assert LOADED in document_seen(chain, directory / "profile", chain.nginx.cert_file)


def test_chromium_is_not_shown_the_key_of_the_hub(chain: Chain, directory: Path) -> None:
    """The same browser, told to trust the hub's key instead, reaches the backend but refuses what it is shown."""
    before = chain.node.metric("nexus_streams_opened_total")
    assert "<p" not in document_seen(chain, directory / "profile", chain.pki.directory / "hub.pem")
    assert chain.node.metric("nexus_streams_opened_total") > before
