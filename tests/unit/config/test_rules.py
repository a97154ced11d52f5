"""Rules that span keys."""

import pytest

from nexus.config import rules
from nexus.config.keys import NODE_KEYS
from nexus.document import Record, parse, read

SOUND = """\
backendListenAddress: ":8443"
relayPorts: [443, 80]
backendsJWTSecret: x
hubTlsCertFile: c.pem
hubTlsKeyFile: k.pem
"""


def record_of(text: str, base: str = SOUND) -> Record:
    reading = read(parse(base + text, "n.yaml"), NODE_KEYS)
    assert not reading.problems
    return reading.record


def errors(text: str, base: str = SOUND) -> list[str]:
    record = record_of(text, base)
    found = [*rules.apply(rules.ERRORS, record), *rules.check_addresses(record, None)]
    return [f"{problem.key}: {problem.what}" for problem in found]


def warnings(text: str) -> list[str]:
    return [f"{problem.key}: {problem.what}" for problem in rules.apply(rules.WARNINGS, record_of(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("udpRelayPorts: [0, 0, 53, 53]", ["udpRelayPorts[3]: the port 53 is listed twice"]),
        (
            "hubPublicHostname: h.example.com",
            ["hubPublicHostname: is set together with hubTlsCertFile or hubTlsKeyFile"],
        ),
        ("peers: [wss://a/mesh]\npeerListenAddress: ':1'\npeerAuthentication: {trustedDomainSuffixes: [.a]}", []),
        (
            (
                "peers: ['dns+srv:example.com', 'dns+a:nodes', 'DNS+AAAA:x', 'b:1']\npeerListenAddress: ':1'\n"
                "peerAuthentication: {trustedDomainSuffixes: [.a]}"
            ),
            [
                "peers[0]: does not begin with the service and the protocol, each behind an underscore",
                "peers[1]: has no port",
                "peers[2]: has the unknown scheme 'DNS+AAAA:'",
            ],
        ),
        (
            "peers: [wss://a/mesh]\npeerAuthentication: {trustedDomainSuffixes: []}",
            [
                "peerListenAddress: is required with peers",
                "peerAuthentication.trustedDomainSuffixes: is required with peers",
            ],
        ),
        ("registrationURL: https://o.example.com/x", []),
        ("registrationURL: http://o.example.com/", ["registrationURL: must be an https URL with a host"]),
        ("registrationURL: https:///x", ["registrationURL: must be an https URL with a host"]),
        ("registrationURL: 'https://[x'", ["registrationURL: must be an https URL with a host"]),
        ("registrationURL: 'https://a:99999'", ["registrationURL: must be an https URL with a host"]),
        ("registrationURL: 'https://a:0'", ["registrationURL: must be an https URL with a host"]),
        ("stunPort: 3478\nudpRelayPorts: [3478]", ["stunPort: is also in udpRelayPorts"]),
        ("udpRelayPorts: [0]", []),
        (
            "workers: 2\ntotalBandwidthMbps: 100",
            ["workers: is more than 1, but totalBandwidthMbps is kept by one process alone"],
        ),
        ("workers: 1\ntotalBandwidthMbps: 100", []),
        (
            "peekTimeouts: {firstByteSeconds: 10, absoluteMaxSeconds: 9}",
            ["peekTimeouts.firstByteSeconds: is 10, more than absoluteMaxSeconds, which is 9"],
        ),
        ("peekTimeouts: {absoluteMaxSeconds: 9}", []),
        ("peekTimeouts: {firstByteSeconds: 0, absoluteMaxSeconds: 9}", []),
        (
            "outboundPrivateNetworks: [10.1.0.0/16, '::1', 10.1.2.3/16, x]",
            [
                "outboundPrivateNetworks[2]: is not a network: 10.1.2.3/16 has host bits set",
                "outboundPrivateNetworks[3]: is not a network: 'x' does not appear to be an IPv4 or IPv6 network",
            ],
        ),
        (
            "relayBindAddresses: ['192.0.2.1', '::1', '[::1]', '192.0.2.1']",
            ["relayBindAddresses[2]: is not an IP address", "relayBindAddresses[3]: 192.0.2.1 is listed twice"],
        ),
        ("statusPrivateNetworks: [10.0.0.0/8, 'fd00::/8', 127.0.0.1]", []),
        (
            "statusPrivateNetworks: [10.0.0.0/8, intranet, 10.0.0.1/8]",
            [
                "statusPrivateNetworks[1]: is not a network: 'intranet' does not appear to be an IPv4 or IPv6 network",
                "statusPrivateNetworks[2]: is not a network: 10.0.0.1/8 has host bits set",
            ],
        ),
        ("adminListenAddress: 127.0.0.1:9464", []),
        ("adminListenAddress: '[::1]:9464'", []),
        ("adminListenAddress: unix:/run/nexus.sock", []),
        ("adminListenAddress: unix:nexus.sock", ["adminListenAddress: needs an absolute path"]),
        (
            "adminListenAddress: 'nonsense'",
            ["adminListenAddress: has no port; write host:port"],
        ),
        (
            "adminListenAddress: ':9464'",
            ["adminListenAddress: would offer status and control to the network without any login"],
        ),
        ("remoteVerifierURL: http://v.example.com/x", []),
        ("remoteVerifierURL: https:///x", ["remoteVerifierURL: must be an https URL with a host"]),
        ("remoteVerifierURL: ftp://a/x", ["remoteVerifierURL: must be an https URL with a host"]),
        ("remoteVerifierURL: 'https://[x'", ["remoteVerifierURL: must be an https URL with a host"]),
        ("remoteVerifierURL: https://v.example.com\nremoteVerifierFallback: true", []),
        ("backendsJWKSURL: https://i.example.com/jwks", []),
        ("backendsJWKSURL: http://127.0.0.1:8000/jwks", []),
        ("backendsJWKSURL: 'http://[::1]/jwks'", []),
        (
            "backendsJWKSURL: http://i.example.com/",
            ["backendsJWKSURL: must be an https URL with a host; http only on loopback"],
        ),
        ("backendsJWKSURL: 'https://'", ["backendsJWKSURL: must be an https URL with a host; http only on loopback"]),
        ("backendsJWKSURL: 'https://[x'", ["backendsJWKSURL: must be an https URL with a host; http only on loopback"]),
        ("peerListenAddress: a:b:c", ["peerListenAddress: has an IPv6 address without brackets; write [address]:port"]),
    ],
)
def test_errors(text: str, expected: list[str]) -> None:
    """Each rule that stops the node, kept and broken."""
    assert errors(text) == expected


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (SOUND.replace("[443, 80]", "[443, 80, 443]"), ["relayPorts[2]: the port 443 is listed twice"]),
        (
            SOUND.replace("backendsJWTSecret: x", ""),
            [
                (
                    "backendsJWTSecret: is required, unless backendsJWTSecretFile, remoteVerifierURL, backendsJWKSFile"
                    " or backendsJWKSURL is set"
                )
            ],
        ),
        (
            SOUND + "backendsJWTSecretFile: f\n",
            ["backendsJWTSecretFile: is set together with backendsJWTSecret"],
        ),
        (SOUND.replace("backendsJWTSecret: x", "remoteVerifierURL: https://v.example.com/"), []),
        (SOUND.replace("backendsJWTSecret: x", "backendsJWKSURL: https://i.example.com/"), []),
        (SOUND.replace("backendsJWTSecret: x", "backendsJWKSFile: keys.json"), []),
        (
            SOUND.replace("backendsJWTSecret: x", "remoteVerifierURL: anything"),
            ["remoteVerifierURL: must be an https URL with a host"],
        ),
        (
            SOUND.replace(
                "backendsJWTSecret: x", "remoteVerifierURL: https://v.example.com/\nremoteVerifierFallback: true"
            ),
            ["remoteVerifierFallback: has no local secret or key to fall back to"],
        ),
        (SOUND.replace("hubTlsKeyFile: k.pem", ""), ["hubTlsKeyFile: is required, because hubTlsCertFile is set"]),
        (SOUND.replace("hubTlsCertFile: c.pem", ""), ["hubTlsCertFile: is required, because hubTlsKeyFile is set"]),
        (
            SOUND.replace("hubTlsCertFile: c.pem\nhubTlsKeyFile: k.pem", ""),
            ["hubTlsCertFile: the hub needs a certificate"],
        ),
        (SOUND.replace("hubTlsCertFile: c.pem\nhubTlsKeyFile: k.pem", "hubPublicHostname: h.example.com"), []),
        (
            SOUND.replace(":8443", ":http-alt") + "registrationURL: https://o.example.com/\n",
            ["backendListenAddress: needs a port from 1 to 65535 as a number, because registrationURL announces it"],
        ),
        (
            SOUND.replace(":8443", ":0") + "registrationURL: https://o.example.com/\n",
            ["backendListenAddress: needs a port from 1 to 65535 as a number, because registrationURL announces it"],
        ),
        (
            SOUND.replace('":8443"', "8443"),
            ["backendListenAddress: has no port; write host:port"],
        ),
    ],
)
def test_errors_in_required_keys(base: str, expected: list[str]) -> None:
    """The same for what a file cannot go without."""
    assert errors("", base) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (
            "allowedTCPPortClaims: [443, 25]",
            ["allowedTCPPortClaims[1]: the port 25 is not in relayPorts, so no client can reach it"],
        ),
        (
            "allowedUDPPortClaims: [53]",
            ["allowedUDPPortClaims[0]: the port 53 is not in udpRelayPorts, so no client can reach it"],
        ),
        (
            "udpRelayPorts: [53]",
            ["udpRelayPorts[0]: the port 53 is not in allowedUDPPortClaims, so no backend can claim it"],
        ),
        ("udpRelayPorts: [53]\nallowedUDPPortClaims: [53]", []),
        ("allowOutbound: true", ["allowOutbound: lets backends connect to any port"]),
        (
            "allowOutbound: true\nallowedOutboundPorts: [25]\nmaxOutboundConnsPerBackend: -1",
            ["maxOutboundConnsPerBackend: is unlimited"],
        ),
        (
            "udpFlowIdleTimeoutMinSeconds: 9\nudpFlowIdleTimeoutMaxSeconds: 8",
            [
                (
                    "udpFlowIdleTimeoutMinSeconds: is 9, more than udpFlowIdleTimeoutMaxSeconds, which is 8:"
                    " every UDP claim will be refused"
                )
            ],
        ),
        ("udpMaxDatagramBytes: 32768", []),
        (
            "udpMaxDatagramBytes: 32769",
            [
                (
                    "udpMaxDatagramBytes: is 32769, but 32768 is used: all that fits into a message between node and"
                    " backend, and a longer one ends the session"
                )
            ],
        ),
        (
            "peerListenAddress: ':8444'",
            ["peerListenAddress: has no effect without peerAuthentication.trustedDomainSuffixes"],
        ),
        ("peerListenAddress: ':8444'\npeerAuthentication: {trustedDomainSuffixes: [.a.example]}", []),
        (
            "peerListenAddress: ':8444'\npeerAuthentication: {trustedDomainSuffixes: ['', .a.example]}",
            [
                (
                    "peerAuthentication.trustedDomainSuffixes[0]: names nobody; "
                    "the original takes it for every node with a certificate of a public CA"
                )
            ],
        ),
        (
            "peerListenAddress: ':8444'\npeerAuthentication: {trustedDomainSuffixes: [''], suffixMatching: loose}",
            [],
        ),
        (
            "peers: ['wss://a/mesh', 'ws://localhost/mesh', 'ws://b/mesh', 'b:1', 'wss://']",
            [
                "peers[2]: is not encrypted",
                "peers[3]: is not a WebSocket URL with a host, and will never connect",
                "peers[4]: is not a WebSocket URL with a host, and will never connect",
            ],
        ),
        (
            "peers: ['wss://u:p@a/mesh']",
            ["peers[0]: has a user name in it, which no node asks for, and will never connect"],
        ),
        ("peers: ['wss://a', 'wss://b/?x']", ["peers[0]: has no path, and nodes refuse '/'"]),
        ("peers: ['dns+srv:_nexus._tcp.example.com', 'dns+a:nodes:8444']", []),
        ("hubPublicHostname: h.example.com", []),
        (
            "remoteVerifierURL: https://v.example.com/\nadditionalJWTSecretFiles: [f]\nbackendsJWKSFile: g",
            [
                f"{key}: has no effect: tokens are verified by remoteVerifierURL alone"
                for key in ("additionalJWTSecretFiles", "backendsJWKSFile", "backendsJWTSecret")
            ],
        ),
        ("remoteVerifierURL: https://v.example.com/\nremoteVerifierFallback: true", []),
        ("remoteVerifierFallback: true", ["remoteVerifierFallback: has no effect without remoteVerifierURL"]),
        ("remoteVerifierURL: http://localhost/\nremoteVerifierFallback: true", []),
        (
            "remoteVerifierURL: http://v.example.com/\nremoteVerifierFallback: true",
            ["remoteVerifierURL: sends tokens unencrypted, and believes whoever answers"],
        ),
    ],
)
def test_warnings(text: str, expected: list[str]) -> None:
    """Each rule that only warns."""
    assert warnings(text) == expected


def test_rules_skip_keys_that_are_broken_already() -> None:
    """One mistake, one message."""
    record = read(parse(SOUND + "stunPort: x\nudpRelayPorts: [53, 53]\n", "n.yaml"), NODE_KEYS).record
    assert [problem.key for problem in rules.apply(rules.ERRORS, record)] == ["udpRelayPorts[1]"]


def test_rules_look_only_at_keys_of_the_table() -> None:
    """A misspelt key in a rule's needs would never be skipped."""
    known = {spec.key for spec in NODE_KEYS}
    assert all(keys <= known for keys, _ in (*rules.ERRORS, *rules.WARNINGS))


def test_a_secret_is_weak_below_the_length_of_its_hash() -> None:
    """Bytes count, not characters; no secret is not a weak one."""
    assert rules.weak_secret("") == ""
    assert rules.weak_secret("é" * 16) == ""
    assert "shorter than 32 bytes" in rules.weak_secret("x" * 31)
