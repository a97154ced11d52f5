"""Rules of the node's configuration that a table cannot say.

Strategy: a rule is a function from the record to problems, filed with the keys it looks at; it is skipped when one of
them is broken already, so that one mistake is reported once. ``ERRORS`` stop the node, as in the original or because
the original fails later in an obscure way; ``WARNINGS`` do not. No rule reads a file, resolves a name or knows the
time, and no text repeats a secret.

Source: spec node-and-mesh 2 (validation column), backend-protocol 3.1, 3.5; design 6, 7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from nexus.addresses import parse_network
from nexus.config import certificate_rules
from nexus.config.keys import UNBOUNDED
from nexus.document import Record
from nexus.document.addresses import ServiceResolver, check_host_port, is_ip, is_loopback, parse_host_port
from nexus.document.peers import PeerAddress, PeerEntryError, is_dns_entry, parse_peer
from nexus.errors import Problem
from nexus.protocol.constants import PAYLOAD_MAX_BYTES

UNIX_PREFIX = "unix:"
SECRET_MIN_BYTES = 32  # RFC 7518 3.2: a key of HS256 is at least as long as its hash
_DATAGRAM_BYTES = "udpMaxDatagramBytes"

Rule: TypeAlias = Callable[[Record], Iterator[Problem]]


def check_addresses(record: Record, resolve_service: ServiceResolver | None) -> Iterator[Problem]:
    """Yield the mistakes in listen addresses; not in ``ERRORS``, because it may look up names of services."""
    for key in ("backendListenAddress", "peerListenAddress"):
        if record.text(key) and (what := check_host_port(record.text(key), resolve_service)):
            yield record.problem(key, what)
    admin = record.text("adminListenAddress")
    if admin.startswith(UNIX_PREFIX):
        if not admin.removeprefix(UNIX_PREFIX).startswith("/"):
            yield record.problem("adminListenAddress", "needs an absolute path", "write unix:/path/to/socket")
    elif admin:
        yield from _check_admin_address(record, admin, resolve_service)


def _check_admin_address(record: Record, admin: str, resolve_service: ServiceResolver | None) -> Iterator[Problem]:
    what = check_host_port(admin, resolve_service)
    if what:
        yield record.problem("adminListenAddress", what, "write 127.0.0.1:9464, [::1]:9464 or unix:/path/to/socket")
    elif not is_loopback(admin.rpartition(":")[0].strip("[]")):
        what = "would offer status and control to the network without any login"
        yield record.problem("adminListenAddress", what, "use a loopback address such as 127.0.0.1, or unix:/path")


def _duplicate_ports(key: str) -> Rule:
    def rule(record: Record) -> Iterator[Problem]:
        seen: set[int] = set()
        for index, port in enumerate(record.integers(key)):
            if port and port in seen:  # 0 binds another free port each time
                yield record.problem(f"{key}[{index}]", f"the port {port} is listed twice", "delete one")
            seen.add(port)

    return rule


def _token_key(record: Record) -> Iterator[Problem]:
    if not record.given & _TRUST_KEYS:
        what = (
            "is required, unless backendsJWTSecretFile, remoteVerifierURL, backendsJWKSFile or backendsJWKSURL is set"
        )
        yield record.problem("backendsJWTSecret", what, "set the key that backend tokens are signed with")
    if record.given >= {"backendsJWTSecret", "backendsJWTSecretFile"}:
        yield record.problem("backendsJWTSecretFile", "is set together with backendsJWTSecret", "delete one of them")


def _verifier(record: Record) -> Iterator[Problem]:
    if record.text("remoteVerifierURL"):
        url = _split(record.text("remoteVerifierURL"))
        if url is None or url.scheme not in ("https", "http") or not url.hostname:
            yield record.problem("remoteVerifierURL", "must be an https URL with a host", "write https://host/path")
        if record.flag("remoteVerifierFallback") and not record.given & _LOCAL_TRUST_KEYS:
            what, mend = "has no local secret or key to fall back to", "set backendsJWTSecretFile, or delete it"
            yield record.problem("remoteVerifierFallback", what, mend)


def _key_url(record: Record) -> Iterator[Problem]:
    if record.text("backendsJWKSURL"):
        url = _split(record.text("backendsJWKSURL"))
        host = url.hostname if url is not None else None
        if url is None or not host or not (url.scheme == "https" or (url.scheme == "http" and is_loopback(host))):
            what = "must be an https URL with a host; http only on loopback"
            yield record.problem("backendsJWKSURL", what, "write https://host/path")


def _peers(record: Record) -> Iterator[Problem]:
    if record.texts("peers"):
        if not record.text("peerListenAddress"):
            yield record.problem("peerListenAddress", "is required with peers", "set it, such as ':8444'")
        trust = record.table("peerAuthentication")
        if not trust.texts("trustedDomainSuffixes"):
            what, mend = (
                "is required with peers",
                "list the suffixes of your nodes' names, such as '.nodes.example.com'",
            )
            yield trust.problem("trustedDomainSuffixes", what, mend)


def _registration(record: Record) -> Iterator[Problem]:
    if not record.text("registrationURL"):
        return
    url = _split(record.text("registrationURL"))
    if url is None or url.scheme != "https" or not url.hostname:
        yield record.problem("registrationURL", "must be an https URL with a host", "write https://host/path")
    try:
        port = parse_host_port(record.text("backendListenAddress"))[1]
    except ValueError:
        port = 0
    if not port:
        what = "needs a port from 1 to 65535 as a number, because registrationURL announces it"
        yield record.problem("backendListenAddress", what, "write the number")


def _stun(record: Record) -> Iterator[Problem]:
    if record.integer("stunPort") and record.integer("stunPort") in record.integers("udpRelayPorts"):
        yield record.problem("stunPort", "is also in udpRelayPorts", "choose another port")


def _peek_timeouts(record: Record) -> Iterator[Problem]:
    table = record.table("peekTimeouts")
    first, longest = table.integer("firstByteSeconds"), table.integer("absoluteMaxSeconds")
    if table.given >= {"firstByteSeconds", "absoluteMaxSeconds"} and first > longest:
        what = f"is {first}, more than absoluteMaxSeconds, which is {longest}"
        yield table.problem("firstByteSeconds", what, "lower it, or raise absoluteMaxSeconds")


def _bind_addresses(record: Record) -> Iterator[Problem]:
    counts: Counter[str] = Counter()
    for index, address in enumerate(record.texts("relayBindAddresses")):
        key = f"relayBindAddresses[{index}]"
        counts[address] += 1
        if not is_ip(address):
            yield record.problem(key, "is not an IP address", "write one such as 192.0.2.1 or 2001:db8::1, no brackets")
        elif counts[address] > 1:
            yield record.problem(key, f"{address} is listed twice", "delete one")


def _networks(key: str) -> Rule:
    def rule(record: Record) -> Iterator[Problem]:
        for index, network in enumerate(record.texts(key)):
            try:
                parse_network(network)
            except ValueError as error:
                yield record.problem(f"{key}[{index}]", str(error), "write one such as 10.1.0.0/16")

    return rule


def _claims_without_port(claims: str, ports: str) -> Rule:
    def rule(record: Record) -> Iterator[Problem]:
        for index, port in enumerate(record.integers(claims)):
            if port not in record.integers(ports):
                what = f"the port {port} is not in {ports}, so no client can reach it"
                yield record.problem(f"{claims}[{index}]", what, f"add it to {ports} or delete it here")

    return rule


def _udp_port_without_claim(record: Record) -> Iterator[Problem]:
    for index, port in enumerate(record.integers("udpRelayPorts")):
        if port not in record.integers("allowedUDPPortClaims"):
            what = f"the port {port} is not in allowedUDPPortClaims, so no backend can claim it"
            yield record.problem(f"udpRelayPorts[{index}]", what, "add it to allowedUDPPortClaims or delete it here")


def _outbound(record: Record) -> Iterator[Problem]:
    if record.flag("allowOutbound"):
        if not record.integers("allowedOutboundPorts"):
            what = "lets backends connect to any port"
            yield record.problem("allowOutbound", what, "list the ports in allowedOutboundPorts")
        if record.integer("maxOutboundConnsPerBackend") == UNBOUNDED:
            yield record.problem("maxOutboundConnsPerBackend", "is unlimited", "set a limit")


def _workers(record: Record) -> Iterator[Problem]:
    if record.integer("workers") > 1 and record.integer("totalBandwidthMbps"):
        what = "is more than 1, but totalBandwidthMbps is kept by one process alone"
        yield record.problem("workers", what, "delete it, as one worker relays several Gbit/s, or delete the cap")


def _udp_idle_range(record: Record) -> Iterator[Problem]:
    low, high = record.integer("udpFlowIdleTimeoutMinSeconds"), record.integer("udpFlowIdleTimeoutMaxSeconds")
    if low > high:
        what = f"is {low}, more than udpFlowIdleTimeoutMaxSeconds, which is {high}: every UDP claim will be refused"
        yield record.problem("udpFlowIdleTimeoutMinSeconds", what, "lower it")


def _long_datagrams(record: Record) -> Iterator[Problem]:
    written = record.integer(_DATAGRAM_BYTES)
    if written > PAYLOAD_MAX_BYTES:
        what = (
            f"is {written}, but {PAYLOAD_MAX_BYTES} is used: all that fits into a message between node and backend, "
            "and a longer one ends the session"
        )
        yield record.problem(_DATAGRAM_BYTES, what, f"write {PAYLOAD_MAX_BYTES} or less")


def lowered(record: Record) -> Record:
    """Return the record with what the original's files may say, but no session carries, lowered; a warning tells."""
    usable = min(record.integer(_DATAGRAM_BYTES), PAYLOAD_MAX_BYTES)
    return replace(record, values={**record.values, _DATAGRAM_BYTES: usable})


def _mesh_without_trust(record: Record) -> Iterator[Problem]:
    trust = record.table("peerAuthentication")
    if record.text("peerListenAddress") and not trust.texts("trustedDomainSuffixes"):
        what = "has no effect without peerAuthentication.trustedDomainSuffixes"
        yield record.problem(
            "peerListenAddress", what, "list the suffixes of the names of nodes that may dial this one"
        )


def _blank_suffixes(record: Record) -> Iterator[Problem]:
    trust = record.table("peerAuthentication")
    if trust.text("suffixMatching") == "loose":
        return
    for index, suffix in enumerate(trust.texts("trustedDomainSuffixes")):
        if not suffix.strip(" .*"):
            what = "names nobody; the original takes it for every node with a certificate of a public CA"
            mend = "write the suffix of your nodes' names, or set peerAuthentication.suffixMatching to loose"
            yield trust.problem(f"trustedDomainSuffixes[{index}]", what, mend)


def _peer_names(record: Record) -> Iterator[Problem]:
    for index, text in enumerate(record.texts("peers")):
        if is_dns_entry(text):
            yield from _check_peer(record, index, text)


def _peer_urls(record: Record) -> Iterator[Problem]:
    for index, text in enumerate(record.texts("peers")):
        if not is_dns_entry(text):
            yield from _check_peer(record, index, text)


def _check_peer(record: Record, index: int, text: str) -> Iterator[Problem]:
    key = f"peers[{index}]"
    try:
        peer = parse_peer(text)
    except PeerEntryError as error:
        yield record.problem(key, error.what, error.mend)
        return
    if isinstance(peer, PeerAddress):
        if not peer.is_secure and not is_loopback(peer.host):
            yield record.problem(key, "is not encrypted", "write wss:// instead of ws://")
        if peer.path == "/":
            yield record.problem(key, "has no path, and nodes refuse '/'", "write wss://host:8444/mesh")


def _verifier_alone(record: Record) -> Iterator[Problem]:
    verifier, falls_back = record.text("remoteVerifierURL"), record.flag("remoteVerifierFallback")
    if falls_back and not verifier:
        yield record.problem("remoteVerifierFallback", "has no effect without remoteVerifierURL", "delete it")
    if verifier and not falls_back:
        for key in sorted(record.given & (_LOCAL_TRUST_KEYS | {"additionalJWTSecretFiles"})):
            what = "has no effect: tokens are verified by remoteVerifierURL alone"
            mend = "delete it, or set remoteVerifierFallback to use it while the verifier cannot be reached"
            yield record.problem(key, what, mend)


def _verifier_in_clear(record: Record) -> Iterator[Problem]:
    url = _split(record.text("remoteVerifierURL"))
    if url is not None and url.scheme == "http" and not is_loopback(url.hostname or ""):
        what = "sends tokens unencrypted, and believes whoever answers"
        yield record.problem("remoteVerifierURL", what, "write https://host/path")


def _split(url: str) -> SplitResult | None:
    try:
        split = urlsplit(url)
        port_is_usable = split.port != 0
    except ValueError:
        return None
    return split if port_is_usable else None


def weak_secret(secret: str) -> str:
    """Return what is weak about a token key, or nothing; never repeats it."""
    short = 0 < len(secret.encode()) < SECRET_MIN_BYTES
    return f"is shorter than {SECRET_MIN_BYTES} bytes and can be guessed from one token" if short else ""


_PROOF_KEYS = frozenset({"hubPublicHostname", "relayPorts", "acmeChallenges", "acmeHTTPPort", "acmeTLSPort"})
_LOCAL_TRUST_KEYS = frozenset({"backendsJWTSecret", "backendsJWTSecretFile", "backendsJWKSFile", "backendsJWKSURL"})
_TRUST_KEYS = _LOCAL_TRUST_KEYS | {"remoteVerifierURL"}
_VERIFIER_KEYS = _TRUST_KEYS | {"remoteVerifierFallback", "additionalJWTSecretFiles"}

ERRORS: tuple[tuple[frozenset[str], Rule], ...] = (
    (frozenset({"relayPorts"}), _duplicate_ports("relayPorts")),
    (frozenset({"udpRelayPorts"}), _duplicate_ports("udpRelayPorts")),
    (_TRUST_KEYS, _token_key),
    (_VERIFIER_KEYS, _verifier),
    (frozenset({"backendsJWKSURL"}), _key_url),
    (certificate_rules.SOURCES, certificate_rules.one_source),
    (frozenset({"hubPublicHostname"}), certificate_rules.public_name),
    (frozenset({"acmeDirectoryURL"}), certificate_rules.directory),
    (frozenset({"acmeEABKeyID", "acmeEABKeyFile", "acmeEmail"}), certificate_rules.account),
    (_PROOF_KEYS, certificate_rules.challenges),
    (frozenset({"peers", "peerListenAddress", "peerAuthentication"}), _peers),
    (frozenset({"peers"}), _peer_names),
    (frozenset({"registrationURL", "backendListenAddress"}), _registration),
    (frozenset({"stunPort", "udpRelayPorts"}), _stun),
    (frozenset({"workers", "totalBandwidthMbps"}), _workers),
    (frozenset({"peekTimeouts"}), _peek_timeouts),
    (frozenset({"relayBindAddresses"}), _bind_addresses),
    (frozenset({"statusPrivateNetworks"}), _networks("statusPrivateNetworks")),
    (frozenset({"outboundPrivateNetworks"}), _networks("outboundPrivateNetworks")),
)
WARNINGS: tuple[tuple[frozenset[str], Rule], ...] = (
    (frozenset({"allowedTCPPortClaims", "relayPorts"}), _claims_without_port("allowedTCPPortClaims", "relayPorts")),
    (
        frozenset({"allowedUDPPortClaims", "udpRelayPorts"}),
        _claims_without_port("allowedUDPPortClaims", "udpRelayPorts"),
    ),
    (frozenset({"allowedUDPPortClaims", "udpRelayPorts"}), _udp_port_without_claim),
    (frozenset({"allowOutbound", "allowedOutboundPorts", "maxOutboundConnsPerBackend"}), _outbound),
    (frozenset({"udpFlowIdleTimeoutMinSeconds", "udpFlowIdleTimeoutMaxSeconds"}), _udp_idle_range),
    (frozenset({_DATAGRAM_BYTES}), _long_datagrams),
    (frozenset({"peerAuthentication", "peerListenAddress"}), _mesh_without_trust),
    (frozenset({"peerAuthentication"}), _blank_suffixes),
    (frozenset({"peers"}), _peer_urls),
    (_PROOF_KEYS, certificate_rules.challenge_ports),
    (certificate_rules.ACME_KEYS | {"hubPublicHostname"}, certificate_rules.without_name),
    (_VERIFIER_KEYS, _verifier_alone),
    (frozenset({"remoteVerifierURL"}), _verifier_in_clear),
)


def apply(rules: tuple[tuple[frozenset[str], Rule], ...], record: Record) -> Iterator[Problem]:
    """Yield the findings of every rule whose keys are sound."""
    for keys, rule in rules:
        if not keys & record.broken:
            yield from rule(record)
