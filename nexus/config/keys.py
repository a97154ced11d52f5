"""Every key of the node's configuration file, as data.

Strategy: this table is the single source for reading, defaults, ranges, environment variables, the JSON Schema and the
test of ``docs/configuration.md``. Keys of the original keep its names, types, defaults and limits, so that its files
load unchanged; our own keys are in the same style and always optional. Rules that need more than one key are in
``rules``. ``attribute_name`` and ``variable_name`` derive the other spellings of a key, so that none is written twice.

Source: spec node-and-mesh 2; design 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nexus.document import Field, Kind
from nexus.document.addresses import MAX_PORT

ENVIRONMENT_PREFIX = "NEXUS_"
MAX_SECONDS = 1_000_000_000  # 31 years; event loops cannot count much further
SCALAR_KINDS = frozenset({Kind.INTEGER, Kind.BOOLEAN, Kind.STRING})

WORKERS_MAX = 64  # ours: each knows each other, and the first has the mesh and UDP ports to itself
UNBOUNDED = -1  # the original's spelling of "no limit" where 0 means the default


def _seconds(key: str, doc: str, default: int = 0) -> Field:
    return Field(key=key, kind=Kind.INTEGER, doc=doc, default=default, minimum=0, maximum=MAX_SECONDS)


def _count(key: str, doc: str, default: int = 0, *, minimum: int = 0, maximum: int | None = None) -> Field:
    return Field(key=key, kind=Kind.INTEGER, doc=doc, default=default, minimum=minimum, maximum=maximum)


def _text(key: str, doc: str, default: str = "") -> Field:
    return Field(key=key, kind=Kind.STRING, doc=doc, default=default)


def _choice(key: str, doc: str, *choices: str) -> Field:
    return Field(key=key, kind=Kind.STRING, doc=doc, default=choices[0], choices=choices)


def _ports(key: str, doc: str, minimum: int | None = None) -> Field:
    return Field(
        key=key, kind=Kind.INTEGERS, doc=doc, minimum=minimum, maximum=MAX_PORT if minimum is not None else None
    )


NODE_KEYS: tuple[Field, ...] = (
    Field(
        key="backendListenAddress",
        kind=Kind.STRING,
        doc="host:port of the TLS listener for backends (path /connect); an empty host means all interfaces",
        required=True,
        mend="set the address that backends dial, such as ':8443'",
    ),
    _text("peerListenAddress", "host:port of the listener for other nodes (path /mesh); required with peers"),
    Field(
        key="relayPorts",
        kind=Kind.INTEGERS,
        doc="public TCP ports; 0 binds a free one",
        required=True,
        minimum=0,
        maximum=MAX_PORT,
        mend="list the public TCP ports, such as [443, 80]",
    ),
    _ports("udpRelayPorts", "public UDP ports; 0 binds a free one", minimum=0),
    _seconds(
        "idleTimeoutSeconds", "time without traffic after which a client is closed, and limit of a write; 0 = none"
    ),
    Field(key="backendsJWTSecret", kind=Kind.STRING, doc="HMAC key of backend tokens, used as written", secret=True),
    _text("remoteVerifierURL", "URL of a service that verifies backend tokens"),
    _seconds("maintenanceGraceDefaultSeconds", "how long a backend in maintenance may defer re-authentication", 1800),
    Field(
        key="peers",
        kind=Kind.STRINGS,
        doc="other nodes: URLs such as wss://node.example.com:8444/mesh, or names in the DNS whose records are nodes",
    ),
    Field(
        key="peerAuthentication",
        kind=Kind.TABLE,
        doc="which nodes may connect to this one",
        fields=(
            Field(
                key="trustedDomainSuffixes",
                kind=Kind.STRINGS,
                doc="suffixes of the names in the certificates of other nodes; required with peers",
            ),
            _choice(
                "suffixMatching",
                "labels: a suffix covers whole labels; loose: as the original compares, byte by byte, common name too",
                "labels",
                "loose",
            ),
        ),
    ),
    _text("hubTlsCertFile", "PEM file of the hub's certificate chain; together with hubTlsKeyFile"),
    _text("hubTlsKeyFile", "PEM file of the hub's private key"),
    _text("hubPublicHostname", "name to obtain the hub's certificate for by ACME, instead of files"),
    _text("acmeCacheDir", "directory of the ACME account and certificates, made with mode 0700", "acme_certs"),
    _count("totalBandwidthMbps", "cap of the node in 10^6 bit/s, both directions together; 0 = unlimited"),
    _ports("allowedTCPPortClaims", "TCP ports that backends may claim; empty = none"),
    _ports("allowedUDPPortClaims", "UDP ports that backends may claim; empty = none"),
    _text("registrationURL", "https URL of an orchestrator to register with"),
    _text("region", "region to register in"),
    _count("udpMaxFlows", "UDP flows per port, and of all peers together", 200_000),
    _count("udpMaxDatagramBytes", "larger datagrams are dropped; above 32768 it counts as 32768", 2048),
    _seconds("udpFlowIdleTimeoutDefaultSeconds", "idle time after which a UDP flow ends", 30),
    _seconds("udpFlowIdleTimeoutMinSeconds", "least idle time a backend may ask for", 5),
    _seconds("udpFlowIdleTimeoutMaxSeconds", "greatest idle time a backend may ask for", 300),
    Field(
        key="stunPort",
        kind=Kind.INTEGER,
        doc="UDP port of the STUN server; 0 = off",
        minimum=0,
        maximum=MAX_PORT,
    ),
    Field(key="allowOutbound", kind=Kind.BOOLEAN, doc="let backends open outbound connections through the node"),
    _ports("allowedOutboundPorts", "ports of outbound connections; empty = all", minimum=1),
    _count("maxOutboundConnsPerBackend", "outbound connections of one backend; -1 = unlimited", 100, minimum=UNBOUNDED),
    _seconds("outboundDialTimeoutSeconds", "limit of an outbound dial", 10),
    _seconds("outboundIdleTimeoutSeconds", "idle time after which an outbound connection ends; 0 = none"),
    Field(
        key="peekTimeouts",
        kind=Kind.TABLE,
        doc="how long a client may take to show its first bytes",
        fields=(
            _seconds("firstByteSeconds", "until the first byte, at most absoluteMaxSeconds", 15),
            _seconds("idleExtensionSeconds", "from one byte to the next", 5),
            _seconds("absoluteMaxSeconds", "in all", 30),
        ),
    ),
    _count("maxConcurrentPeeks", "clients being peeked at once; -1 = unbounded", 256, minimum=UNBOUNDED),
    # Keys of our own.
    _text("adminListenAddress", "host:port on loopback, or unix:/path, for status and metrics; empty = off"),
    Field(
        key="relayBindAddresses",
        kind=Kind.STRINGS,
        doc="IP addresses the public ports bind to; empty = all interfaces, IPv4 and IPv6",
    ),
    Field(
        key="outboundPrivateNetworks",
        kind=Kind.STRINGS,
        doc="networks that are not public and that outbound connections may reach all the same, such as 10.1.0.0/16",
    ),
    _choice(
        "unroutedClose",
        "what a client without a backend sees: a TLS alert or an HTTP page, or a silent close as in the original",
        "answer",
        "silent",
    ),
    _count(
        "maxConcurrentPeeksPerSource",
        "clients of one source address being peeked at once; -1 = unbounded",
        32,
        minimum=UNBOUNDED,
    ),
    _count("maxConnectionsPerSource", "client connections, and UDP flows, per source address; 0 = unlimited"),
    _ports(
        "serverFirstPorts",
        "claimed ports on which the server speaks first, so that no client is waited for; empty = the usual ones "
        "(21, 22, 23, 25, 110, 119, 143, 587, 2222, 2525, 3306, 4190, 5900), [0] = none",
        minimum=0,
    ),
    _seconds("portClaimWaitSeconds", "how long a client of any other claimed port may stay silent", 3),
    _count("maxUnauthenticatedSessions", "sessions whose backend is not yet authenticated", 256),
    _count("maxUnauthenticatedSessionsPerSource", "such sessions of one source address", 32),
    Field(
        key="shutdownGraceSeconds",
        kind=Kind.INTEGER,
        doc="how long open connections may go on after a stop signal; 0 = none",
        default=10,
        zero_is_default=False,
        minimum=0,
        maximum=MAX_SECONDS,
    ),
    Field(key="requireTokenExpiry", kind=Kind.BOOLEAN, doc="refuse backend tokens without exp"),
    _count("maxSessionsPerSubject", "sessions of one token subject; 0 = unlimited"),
    Field(
        key="logLevel",
        kind=Kind.STRING,
        doc="least severe level that is logged",
        default="info",
        choices=("debug", "info", "warning", "error"),
    ),
    _choice("logFormat", "text for people, or JSON, one object per line", "text", "json"),
    Field(
        key="statusPrivateNetworks",
        kind=Kind.STRINGS,
        doc="networks besides the public internet in which an authorizer_status_uri may lie, such as 10.1.0.0/16",
    ),
    _text("backendsJWTSecretFile", "file that holds backendsJWTSecret; one trailing newline is dropped"),
    Field(
        key="additionalJWTSecretFiles",
        kind=Kind.STRINGS,
        doc="files of further secrets that tokens may be signed with, one in each, while a secret is being replaced",
    ),
    _text("backendsJWKSFile", "file of public keys that tokens may be signed with: a JSON key set (JWKS), or PEM"),
    _text("backendsJWKSURL", "URL of a JSON key set (JWKS) that tokens may be signed with: https, or http on loopback"),
    Field(
        key="remoteVerifierFallback",
        kind=Kind.BOOLEAN,
        doc="verify with local secrets and keys while remoteVerifierURL cannot be reached",
    ),
    _text(
        "authorizerCAFile",
        "PEM file of roots for checking verifier, key URL, status URIs and orchestrator; empty = system",
    ),
    _text(
        "peerCAFile", "PEM file of the roots that other nodes are checked against, in both directions; empty = system"
    ),
    _text("revocationFile", "list of revoked tokens, one entry a line: sub, jti or kid and a value"),
    _text("acmeDirectoryURL", "the CA: letsencrypt, letsencrypt-staging, or the URL of its directory", "letsencrypt"),
    _text("acmeEmail", "address at which the CA may write to the operator"),
    _text("acmeCAFile", "PEM file of the roots that the CA's own server is checked against; empty = system"),
    _text("acmeEABKeyID", "key identifier of an account at the CA's web site (External Account Binding)"),
    _text("acmeEABKeyFile", "file of that account's key (base64url), for its owner only"),
    _choice("acmeKeyType", "kind of the certificate's key", "ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096"),
    _text("acmeProfile", "profile to ask the CA for, such as shortlived; empty = the CA's default"),
    Field(
        key="acmeChallenges",
        kind=Kind.STRINGS,
        doc="how to prove the name, in turn: http-01, tls-alpn-01; empty = both, as relayPorts allow",
    ),
    _count(
        "acmeHTTPPort",
        "the one of relayPorts that port 80 of the public address leads to",
        80,
        minimum=1,
        maximum=MAX_PORT,
    ),
    _count(
        "acmeTLSPort",
        "the one of relayPorts that port 443 of the public address leads to",
        443,
        minimum=1,
        maximum=MAX_PORT,
    ),
    _count(
        "maxRefusalsPerSource",
        "refusals of one source address in a minute, after which it is turned away for a minute; -1 = unbounded",
        10,
        minimum=UNBOUNDED,
    ),
    _count(
        "workers",
        "processes that serve on the same ports, at best one for each core; not together with totalBandwidthMbps",
        1,
        minimum=1,
        maximum=WORKERS_MAX,
    ),
)

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def attribute_name(key: str) -> str:
    """Return the attribute of a key: ``idleTimeoutSeconds`` is ``idle_timeout_s``."""
    name = _WORD.sub("_", key).lower()
    return name.removesuffix("_seconds") + "_s" if name.endswith("_seconds") else name


def variable_name(path: str) -> str:
    """Return the environment variable of a dotted key: ``a.bSeconds`` is ``NEXUS_A_B_SECONDS``."""
    return ENVIRONMENT_PREFIX + _WORD.sub("_", path.replace(".", "_")).upper()


def scalar_paths(fields: tuple[Field, ...] = NODE_KEYS, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every scalar key: those that an environment variable can set."""
    for spec in fields:
        if spec.kind in SCALAR_KINDS:
            yield path + spec.key
        elif spec.kind is Kind.TABLE:
            yield from scalar_paths(spec.fields, f"{path}{spec.key}.")
