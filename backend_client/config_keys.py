"""Every key of the backend client's configuration file, as data.

Strategy: this table is the single source for reading, defaults, ranges, the JSON Schema and the test of
``docs/configuration.md``. Keys of the original keep its names, types, defaults and limits; ``caFile`` and the
login of the SOCKS5 listener are ours. Rules that need more than one key are in ``config``.

Source: spec backend-protocol 16.
"""

from __future__ import annotations

from nexus.document import Field, Kind
from nexus.document.addresses import MAX_PORT

DEFAULT_WEIGHT = 1
DEFAULT_COMMAND_TIMEOUT_S = 15
DEFAULT_TOKEN_TTL_S = 30
DEFAULT_INACTIVITY_TIMEOUT_S = 60
DEFAULT_PONG_TIMEOUT_S = 5
DEFAULT_HIGH_WATER_MARK, DEFAULT_LOW_WATER_MARK, DEFAULT_MAX_BUFFER = 48, 16, 64  # messages
MAX_SECONDS = 1_000_000_000  # 31 years; event loops cannot count much further


def _seconds(key: str, doc: str, default: int = 0) -> Field:
    return Field(key=key, kind=Kind.INTEGER, doc=doc, default=default, minimum=0, maximum=MAX_SECONDS)


def _text(key: str, doc: str) -> Field:
    return Field(key=key, kind=Kind.STRING, doc=doc)


def _messages(key: str, doc: str, default: int) -> Field:
    return Field(key=key, kind=Kind.INTEGER, doc=doc, default=default, minimum=0)


def _ports(key: str, doc: str) -> Field:
    return Field(key=key, kind=Kind.INTEGERS, doc=doc, minimum=1, maximum=MAX_PORT)


SESSIONS_MAX = 64  # ours: as many as a node may have workers

_UDP_ROUTE_KEYS = (
    Field(key="port", kind=Kind.INTEGER, doc="the public UDP port", required=True, minimum=1, maximum=MAX_PORT),
    _seconds("flowIdleTimeoutSeconds", "idle time after which a flow ends; 0 = the hub's default"),
)
_ATTESTATION_KEYS = (
    _text("command", "program that prints a token; wins over the secret"),
    Field(key="args", kind=Kind.STRINGS, doc="its arguments", secret=True),
    Field(key="env", kind=Kind.STRING_MAP, doc="variables added to its environment", secret=True),
    _seconds("timeoutSeconds", "time it may take", DEFAULT_COMMAND_TIMEOUT_S),
    _seconds("cacheHandshakeSeconds", "how long a handshake token is used again; 0 = never"),
    Field(key="hmacSecret", kind=Kind.STRING, doc="the hub's backendsJWTSecret, to sign tokens with", secret=True),
    _text("hmacSecretFile", "file that holds it; wins over hmacSecret"),
    _seconds("tokenTTLSeconds", "life of a signed token", DEFAULT_TOKEN_TTL_S),
    _seconds("handshakeMaxAgeSeconds", "claim: greatest age of the handshake token; 0 = not claimed"),
    _seconds("reauthIntervalSeconds", "claim: time between re-authentications; 0 = not claimed"),
    _seconds("reauthGraceSeconds", "claim: time to answer one; 0 = not claimed"),
    _seconds("maintenanceGraceCapSeconds", "claim: cap of the maintenance grace; 0 = not claimed"),
    _text("authorizerStatusUri", "claim: https URL the hub asks during maintenance"),
    _text("policyVersion", "claim: a note for the hub"),
    Field(key="outboundAllowed", kind=Kind.BOOLEAN, doc="claim: this backend opens outbound connections"),
    _ports("allowedOutboundPorts", "claim: to these ports only; sent with outboundAllowed"),
)
_PORT_MAPPING_KEYS = (
    _text("default", "local host:port for every host without an override"),
    Field(key="hosts", kind=Kind.STRING_MAP, doc="local host:port by hostname or wildcard"),
)
_HEALTH_CHECK_KEYS = (
    Field(key="enabled", kind=Kind.BOOLEAN, doc="ask the hub whether silent clients are still there"),
    _seconds("inactivityTimeout", "seconds of silence before asking", DEFAULT_INACTIVITY_TIMEOUT_S),
    _seconds("pongTimeout", "seconds to wait for the answer", DEFAULT_PONG_TIMEOUT_S),
)
_FLOW_CONTROL_KEYS = (
    _messages(
        "highWaterMark", "messages in a stream's buffer at which the hub is asked to pause", DEFAULT_HIGH_WATER_MARK
    ),
    _messages("lowWaterMark", "messages at which it is asked to resume", DEFAULT_LOW_WATER_MARK),
    _messages("maxBuffer", "messages a buffer holds", DEFAULT_MAX_BUFFER),
)
BACKEND_KEYS = (
    Field(key="name", kind=Kind.STRING, doc="name of the backend, subject of its tokens", required=True),
    Field(key="hostnames", kind=Kind.STRINGS, doc="hostnames and wildcards (*.example.com) to serve"),
    _text("hostname", "one hostname, as older files have it; read only without hostnames"),
    _ports("tcpPorts", "public TCP ports to claim"),
    Field(key="udpRoutes", kind=Kind.TABLES, doc="public UDP ports to claim", fields=_UDP_ROUTE_KEYS),
    Field(
        key="nexusAddresses",
        kind=Kind.STRINGS,
        doc="WebSocket URLs of the hubs, such as wss://hub.example.com:8443/connect; `sessions` each",
        required=True,
        mend="list the hubs, such as [wss://hub.example.com:8443/connect]",
    ),
    Field(key="weight", kind=Kind.INTEGER, doc="share of the clients among backends of a name", default=DEFAULT_WEIGHT),
    Field(
        key="sessions",
        kind=Kind.INTEGER,
        doc="sessions with each hub, at best as many as the node has workers; the hub spreads them over its workers",
        default=1,
        minimum=1,
        maximum=SESSIONS_MAX,
    ),
    Field(
        key="attestation", kind=Kind.TABLE, doc="where tokens come from and what they claim", fields=_ATTESTATION_KEYS
    ),
    Field(
        key="portMappings",
        kind=Kind.INTEGER_TABLES,
        doc="local targets by public port",
        required=True,
        minimum=1,
        maximum=MAX_PORT,
        fields=_PORT_MAPPING_KEYS,
        mend="map each public port, such as 443: {default: 'localhost:8443'}",
    ),
    Field(key="healthChecks", kind=Kind.TABLE, doc="checks for clients that vanished", fields=_HEALTH_CHECK_KEYS),
    Field(key="flowControl", kind=Kind.TABLE, doc="marks of a stream's buffer", fields=_FLOW_CONTROL_KEYS),
    _text("socks5ListenAddr", "host:port of a SOCKS5 listener for outbound connections; empty = off"),
    _text("socks5Username", "name that clients of the SOCKS5 listener must give; together with a password"),
    Field(key="socks5Password", kind=Kind.STRING, doc="password that they must give", secret=True),
    _text("socks5PasswordFile", "file that holds it; wins over socks5Password"),
    _text("caFile", "PEM file of the roots that the hub's certificate is checked against; empty = the system's"),
)
CLIENT_KEYS = (
    Field(
        key="backends",
        kind=Kind.TABLES,
        doc="the backends of this process",
        required=True,
        fields=BACKEND_KEYS,
        mend="describe at least one backend",
    ),
)
