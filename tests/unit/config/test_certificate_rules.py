"""Where the hub's certificate comes from."""

from __future__ import annotations

import pytest

from nexus.config import rules
from nexus.config.certificate_rules import ACME_KEYS, usable_challenges
from nexus.config.keys import NODE_KEYS
from nexus.document import Record, parse, read

NODE = 'backendListenAddress: ":8443"\nbackendsJWTSecret: x\n'
HUB = "hubPublicHostname: hub.example.com\n"


def record_of(text: str, ports: str = "443, 80") -> Record:
    reading = read(parse(f"{NODE}relayPorts: [{ports}]\n{text}", "n.yaml"), NODE_KEYS)
    assert not reading.problems
    return reading.record


def found(kind: str, text: str, ports: str = "443, 80") -> list[str]:
    applied = rules.ERRORS if kind == "errors" else rules.WARNINGS
    return [str(problem).partition(": ")[2] for problem in rules.apply(applied, record_of(text, ports))]


@pytest.mark.parametrize(
    ("text", "ports", "expected"),
    [
        ("", "443", ["hubTlsCertFile: the hub needs a certificate; set hubTlsCertFile and hubTlsKeyFile, or"]),
        ("hubTlsCertFile: a", "443", ["hubTlsKeyFile: is required, because hubTlsCertFile is set; set both"]),
        ("hubTlsKeyFile: a", "443", ["hubTlsCertFile: is required, because hubTlsKeyFile is set; set both"]),
        (HUB + "hubTlsKeyFile: a", "443", ["hubPublicHostname: is set together with hubTlsCertFile or hubTlsKeyFile"]),
        ("hubPublicHostname: 192.0.2.1", "443", ["hubPublicHostname: is no name of the DNS; write the name that"]),
        ("hubPublicHostname: 'a b'", "443", ["hubPublicHostname: is no name of the DNS"]),
        ("hubPublicHostname: '../x'", "443", ["hubPublicHostname: is no name of the DNS"]),
        ("hubPublicHostname: '*.example.com'", "443", ["hubPublicHostname: is a wildcard, which HTTP cannot prove"]),
        ("hubPublicHostname: Bücher.Example.", "443", []),
        (HUB + "acmeDirectoryURL: http://ca.example.com/dir", "443", ["acmeDirectoryURL: is neither a known name nor"]),
        (HUB + "acmeDirectoryURL: letsencrypt-stagin", "443", ["acmeDirectoryURL: is neither"]),
        (HUB + "acmeDirectoryURL: 'https://['", "443", ["acmeDirectoryURL: is neither"]),
        (HUB + "acmeDirectoryURL: 'https://'", "443", ["acmeDirectoryURL: is neither"]),
        (HUB + "acmeDirectoryURL: http://127.0.0.1:14000/dir", "443", []),
        (HUB + "acmeDirectoryURL: https://ca.example.com/dir", "443", []),
        (HUB + "acmeEABKeyID: a", "443", ["acmeEABKeyFile: is required, because acmeEABKeyID is set"]),
        (HUB + "acmeEABKeyFile: a", "443", ["acmeEABKeyID: is required, because acmeEABKeyFile is set"]),
        (HUB + "acmeEmail: nobody", "443", ["acmeEmail: is not one e-mail address"]),
        (HUB + "acmeEmail: a@example.com", "443", []),
        (HUB + "acmeChallenges: [dns-01]", "443", ["acmeChallenges[0]: is no challenge that a node can answer"]),
        (HUB + "acmeChallenges: [http-01]", "443", ["acmeChallenges[0]: needs port 80 (acmeHTTPPort), and relayPorts"]),
        (HUB + "acmeChallenges: [http-01]\nacmeHTTPPort: 8080", "8080", []),
    ],
)
def test_mistakes_that_stop_the_node(text: str, ports: str, expected: list[str]) -> None:
    """Each names the key and the mend."""
    problems = found("errors", text, ports)
    assert len(problems) == len(expected), problems
    assert all(words in problem for words, problem in zip(expected, problems, strict=True)), problems


@pytest.mark.parametrize(
    ("text", "ports", "expected"),
    [
        (HUB, "443, 80", []),
        (HUB, "443", []),
        (HUB, "80", []),
        (HUB, "8443", ["hubPublicHostname: needs port 80 or 443, where the certificate authority looks"]),
        (HUB + "acmeTLSPort: 8443", "8443", []),
        ("hubTlsCertFile: a\nhubTlsKeyFile: b\nacmeEmail: a@example.com", "443", ["acmeEmail: has no effect without"]),
    ],
)
def test_oddities_are_warned_of(text: str, ports: str, expected: list[str]) -> None:
    """The node starts."""
    problems = found("warnings", text, ports)
    assert len(problems) == len(expected), problems
    assert all(words in problem for words, problem in zip(expected, problems, strict=True)), problems


@pytest.mark.parametrize(
    ("ports", "expected"), [("443, 80", ("http-01", "tls-alpn-01")), ("443", ("tls-alpn-01",)), ("1", ())]
)
def test_ports_decide_which_challenges_can_be_answered(ports: str, expected: tuple[str, ...]) -> None:
    """HTTP first: it is the one that every CA offers."""
    assert usable_challenges(record_of(HUB, ports)) == expected


def test_every_key_of_acme_is_one() -> None:
    """And the cache directory is the original's, which may stay in a file with certificates of its own."""
    keys = {spec.key for spec in NODE_KEYS if spec.key.startswith("acme")}
    assert keys - {"acmeCacheDir", "acmeKeyType"} == ACME_KEYS
