"""Rules of the keys that say where the hub's certificate comes from: files, or a certificate authority."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from nexus.document import Record, did_you_mean
from nexus.document.addresses import is_ip, is_loopback
from nexus.errors import Problem
from nexus.hostnames import normalize

FILES: Final = frozenset({"hubTlsCertFile", "hubTlsKeyFile"})
SOURCES: Final = FILES | {"hubPublicHostname"}
CHALLENGE_PORTS: Final = {"http-01": ("acmeHTTPPort", 80), "tls-alpn-01": ("acmeTLSPort", 443)}
"""Which key tells the local port of a challenge, and the public one (RFC 8555 8.3, RFC 8737 3)."""

DIRECTORY_NAMES: Final = ("letsencrypt", "letsencrypt-staging")
ACME_KEYS: Final = frozenset(
    {
        "acmeDirectoryURL",
        "acmeEmail",
        "acmeCAFile",
        "acmeEABKeyID",
        "acmeEABKeyFile",
        "acmeProfile",
        "acmeChallenges",
        "acmeHTTPPort",
        "acmeTLSPort",
    }
)
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_-]{1,63})*")  # RFC 1035 2.3.4
_EMAIL: Final = re.compile(r"[^@\s,?]+@[^@\s,?]+")  # RFC 8555 7.3: one address, without header fields


def one_source(record: Record) -> Iterator[Problem]:
    """Files, or a name for ACME, and not both."""
    files = record.given & FILES
    if "hubPublicHostname" in record.given:
        if files:
            what = "is set together with hubTlsCertFile or hubTlsKeyFile"
            yield record.problem("hubPublicHostname", what, "keep either the files or the name for ACME")
    elif not files:
        what = "the hub needs a certificate"
        yield record.problem("hubTlsCertFile", what, "set hubTlsCertFile and hubTlsKeyFile, or hubPublicHostname")
    elif len(files) == 1:
        missing = "hubTlsKeyFile" if "hubTlsCertFile" in files else "hubTlsCertFile"
        yield record.problem(missing, f"is required, because {next(iter(files))} is set", "set both")


def public_name(record: Record) -> Iterator[Problem]:
    """A name that a CA can issue for."""
    written = record.text("hubPublicHostname")
    name = normalize(written)
    if written and (is_ip(name) or _NAME.fullmatch(name) is None):
        what = "is no name of the DNS" if not written.startswith("*.") else "is a wildcard, which HTTP cannot prove"
        yield record.problem("hubPublicHostname", what, "write the name that backends dial, such as hub.example.com")


def directory(record: Record) -> Iterator[Problem]:
    """A known name, or a URL that nobody in between can rewrite."""
    written = record.text("acmeDirectoryURL")
    if not written or written in DIRECTORY_NAMES:
        return
    try:
        url = urlsplit(written)
        usable = url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or ""))
        if usable and url.hostname and url.port != 0:
            return
    except ValueError:
        pass
    hint = did_you_mean(written, DIRECTORY_NAMES) or f"write {' or '.join(DIRECTORY_NAMES)}, or https://host/path"
    yield record.problem("acmeDirectoryURL", "is neither a known name nor an https URL with a host", hint)


def account(record: Record) -> Iterator[Problem]:
    """Both halves of an external account; one address."""
    halves = record.given & {"acmeEABKeyID", "acmeEABKeyFile"}
    if len(halves) == 1:
        missing = "acmeEABKeyFile" if "acmeEABKeyID" in halves else "acmeEABKeyID"
        yield record.problem(missing, f"is required, because {next(iter(halves))} is set", "set both")
    email = record.text("acmeEmail")
    if email and _EMAIL.fullmatch(email) is None:
        yield record.problem("acmeEmail", "is not one e-mail address", "write one such as admin@example.com")


def challenges(record: Record) -> Iterator[Problem]:
    """Known ones, each on a port of this node."""
    for index, name in enumerate(record.texts("acmeChallenges")):
        key = f"acmeChallenges[{index}]"
        if name not in CHALLENGE_PORTS:
            yield record.problem(key, "is no challenge that a node can answer", f"write {' or '.join(CHALLENGE_PORTS)}")
        elif record.text("hubPublicHostname") and _local_port(record, name) not in record.integers("relayPorts"):
            port_key, _ = CHALLENGE_PORTS[name]
            what = f"needs port {_local_port(record, name)} ({port_key}), and relayPorts does not have it"
            yield record.problem(key, what, f"add it to relayPorts, or set {port_key}")


def challenge_ports(record: Record) -> Iterator[Problem]:
    """A port at which the CA can look."""
    if not record.text("hubPublicHostname") or record.texts("acmeChallenges"):
        return
    if not usable_challenges(record):
        what = "needs port 80 or 443, where the certificate authority looks, and relayPorts has neither"
        mend = "add them to relayPorts, or set acmeHTTPPort or acmeTLSPort to the port that they lead to"
        yield record.problem("hubPublicHostname", what, mend)


def without_name(record: Record) -> Iterator[Problem]:
    """Keys of ACME that nobody reads."""
    if not record.text("hubPublicHostname"):
        for key in sorted(record.given & ACME_KEYS):
            yield record.problem(key, "has no effect without hubPublicHostname", "set that, or delete this key")


def usable_challenges(record: Record) -> tuple[str, ...]:
    """Return the challenges whose port is one of ``relayPorts``."""
    return tuple(name for name in CHALLENGE_PORTS if _local_port(record, name) in record.integers("relayPorts"))


def _local_port(record: Record, challenge: str) -> int:
    return record.integer(CHALLENGE_PORTS[challenge][0])
