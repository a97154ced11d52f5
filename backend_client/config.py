"""The backend client's configuration file.

Strategy: as for the node, a table (``config_keys``) reads the file and rules check what spans keys, so that one run
names every mistake; unlike in the node's file an unknown key is a mistake. The result is frozen and complete: names
normalised and without duplicates, defaults resolved, targets checked, the HMAC secret read from its file. The only I/O
is reading these files. The defaults of the table serve whoever builds a ``BackendConfig`` in code as well.

Source: spec backend-protocol 15, 16, 18, 19; design 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from backend_client.config_keys import (
    CLIENT_KEYS,
    DEFAULT_COMMAND_TIMEOUT_S,
    DEFAULT_HIGH_WATER_MARK,
    DEFAULT_INACTIVITY_TIMEOUT_S,
    DEFAULT_LOW_WATER_MARK,
    DEFAULT_MAX_BUFFER,
    DEFAULT_PONG_TIMEOUT_S,
    DEFAULT_TOKEN_TTL_S,
    DEFAULT_WEIGHT,
)
from backend_client.secret_files import exposed_secrets, read_secret
from backend_client.socks5 import LOGIN_MAX_BYTES, Login
from nexus.auth.trial import REAUTH_GRACE_DEFAULT_S
from nexus.document import Record, in_file_order, load, read
from nexus.document.addresses import check_host_port, is_loopback, parse_host_port
from nexus.errors import ConfigError, Problem
from nexus.hostnames import is_port_key, normalize_wildcard
from nexus.masking import MASK, shown

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class UdpRoute:
    """A claimed UDP port; ``flow_idle_timeout_s`` 0 leaves the idle time to the hub."""

    port: int
    flow_idle_timeout_s: int = 0


@dataclass(frozen=True, slots=True)
class PortMapping:
    """Local targets (``host:port``) of one public port: by normalised host pattern, else ``default`` (may be empty)."""

    default: str
    hosts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Whether, and after how many seconds, a silent client is asked for by ``ping_client``."""

    enabled: bool = False
    inactivity_timeout_s: int = DEFAULT_INACTIVITY_TIMEOUT_S
    pong_timeout_s: int = DEFAULT_PONG_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class FlowControl:
    """Marks of a stream's buffer towards its local target, in messages."""

    high_water_mark: int = DEFAULT_HIGH_WATER_MARK
    low_water_mark: int = DEFAULT_LOW_WATER_MARK
    max_buffer: int = DEFAULT_MAX_BUFFER


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """Where tokens come from (``command`` if set, else ``hmac_secret``) and what they claim; 0 omits a claim."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    timeout_s: int = DEFAULT_COMMAND_TIMEOUT_S
    cache_handshake_s: int = 0
    hmac_secret: str = ""
    hmac_secret_file: str = ""
    token_ttl_s: int = DEFAULT_TOKEN_TTL_S
    handshake_max_age_s: int = 0
    reauth_interval_s: int = 0
    reauth_grace_s: int = 0
    maintenance_grace_cap_s: int = 0
    authorizer_status_uri: str = ""
    policy_version: str = ""
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Show every attribute, the secret, arguments and values of the environment masked, passwords in URLs, too."""
        values = {spec.name: shown(getattr(self, spec.name)) for spec in fields(self)}
        values["hmac_secret"] = MASK if self.hmac_secret else ""
        values["args"] = (MASK,) * len(self.args)
        values["env"] = dict.fromkeys(self.env, MASK)
        return f"Attestation({', '.join(f'{name}={value!r}' for name, value in values.items())})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """One backend: what it claims, where its hubs are, and where its streams go."""

    name: str
    nexus_addresses: tuple[str, ...] = field(repr=False)  # a URL may hold a password
    attestation: Attestation
    port_mappings: Mapping[int, PortMapping]
    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: tuple[UdpRoute, ...] = ()
    weight: int = DEFAULT_WEIGHT
    sessions: int = 1
    health_checks: HealthChecks = HealthChecks()
    flow_control: FlowControl = FlowControl()
    socks5_listen_addr: str = ""
    socks5_login: Login | None = None
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class ClientFile:
    """A client configuration file."""

    backends: tuple[BackendConfig, ...]


@dataclass(frozen=True, slots=True)
class LoadedClientFile:
    """A client configuration file and what is odd about it."""

    file: ClientFile
    warnings: tuple[Problem, ...]


def load_client_file(path: Path | str) -> LoadedClientFile:
    """Read and check a client configuration file, and the files of HMAC secrets it names.

    Raises ``ConfigError`` with every mistake found.
    """
    reading = read(load(Path(path)), CLIENT_KEYS, strict=True)
    problems = list(reading.problems)
    warnings: list[Problem] = []
    backends = []
    for record in reading.record.tables("backends"):
        problems += _mistakes(record)
        warnings += (*_oddities(record), *exposed_secrets(record, Path(path)))
        backends.append(_backend(record, problems))
    if problems:
        raise ConfigError(*in_file_order(problems))
    return LoadedClientFile(ClientFile(tuple(backends)), in_file_order(warnings))


def _mistakes(record: Record) -> Iterator[Problem]:
    """Yield the mistakes in one backend that its table cannot know."""
    if not record.broken & {"hostnames", "hostname", "tcpPorts", "udpRoutes"}:
        yield from _claim_mistakes(record)
    for index, address in enumerate(record.texts("nexusAddresses")):
        if what := _url_mistake(address):
            mend = "write wss://host:8443/connect"
            yield record.problem(f"nexusAddresses[{index}]", what, mend)
    attestation = record.table("attestation")
    sources = ("command", "hmacSecret", "hmacSecretFile")
    if "attestation" not in record.broken and not any(attestation.text(key).strip() for key in sources):
        yield record.problem("attestation", "names no source of tokens", "set command, hmacSecret or hmacSecretFile")
    for mapping in record.port_tables("portMappings").values():
        if not mapping.given and "portMappings" not in record.broken:
            yield mapping.problem("", "has no target", "set default or hosts")
        yield from _mapping_mistakes(mapping)
    if "flowControl" not in record.broken:
        yield from _flow_mistakes(record.table("flowControl"))
    socks = record.text("socks5ListenAddr")
    if socks and (what := check_host_port(socks)):
        yield record.problem("socks5ListenAddr", what)
    yield from _login_mistakes(record)


def _login_mistakes(record: Record) -> Iterator[Problem]:
    name = record.text("socks5Username")
    has_password = bool(record.text("socks5Password") or record.text("socks5PasswordFile"))
    if name and not has_password:
        yield record.problem("socks5Username", "has no password", "set socks5PasswordFile")
    if has_password and not name:
        key = "socks5PasswordFile" if record.text("socks5PasswordFile") else "socks5Password"
        yield record.problem(key, "belongs to no name", "set socks5Username")
    for key in ("socks5Username", "socks5Password"):
        if what := _login_mistake(record.text(key)):
            yield record.problem(key, what, "shorten it")


def _login_mistake(text: str) -> str:
    """Return what is wrong with a name or password, without repeating it."""
    return (
        f"is longer than the {LOGIN_MAX_BYTES} bytes that SOCKS5 allows" if len(text.encode()) > LOGIN_MAX_BYTES else ""
    )


def _claim_mistakes(record: Record) -> Iterator[Problem]:
    for key, name in _written_hostnames(record):
        normal = normalize_wildcard(name)
        if not normal:
            yield record.problem(key, "is empty", "write a hostname or delete it")
        elif is_port_key(normal):
            yield record.problem(key, "is a port, not a hostname", "claim ports with tcpPorts or udpRoutes")
    ports: set[int] = set()
    for route in record.tables("udpRoutes"):
        if route.integer("port") in ports:
            yield route.problem("port", f"{route.integer('port')} is claimed twice", "delete one")
        ports.add(route.integer("port"))
    if not record.given & {"hostnames", "hostname", "tcpPorts", "udpRoutes"}:
        yield record.problem("hostnames", "nothing is claimed", "set hostnames, tcpPorts or udpRoutes")


def _url_mistake(address: str) -> str:
    try:
        url = urlsplit(address.strip())
        port = url.port
    except ValueError:  # its text would repeat parts of the URL
        return "is not a URL: its host or port cannot be read"
    if url.scheme not in ("ws", "wss") or not url.hostname:
        return "must be a ws:// or wss:// URL with a host"
    if port == 0 or url.fragment:  # RFC 6455 3: no fragment
        return "must have no fragment and no port 0"
    return ""


def _mapping_mistakes(mapping: Record) -> Iterator[Problem]:
    if mapping.text("default") and (what := _target_mistake(mapping.text("default"))):
        yield mapping.problem("default", what)
    patterns: set[str] = set()
    for pattern, target in mapping.text_map("hosts").items():
        key, normal = f"hosts.{pattern}", normalize_wildcard(pattern)
        if not normal:
            yield mapping.problem(key, "has an empty name", "write a hostname or a wildcard")
        elif normal in patterns:
            yield mapping.problem(key, f"is '{normal}' once more", "delete one")
        patterns.add(normal)
        if what := _target_mistake(target):
            yield mapping.problem(key, what)


def _target_mistake(target: str) -> str:
    if not target.strip():
        return "has an empty target"
    try:
        port = parse_host_port(target.strip())[1]
    except ValueError as error:
        return str(error)
    return "" if port else "has the port 0; write one from 1 to 65535"


def _flow_mistakes(flow: Record) -> Iterator[Problem]:
    low, high, most = (flow.integer(key) for key in ("lowWaterMark", "highWaterMark", "maxBuffer"))
    if not low < high < most:
        what = f"must have lowWaterMark < highWaterMark < maxBuffer, found {low}, {high}, {most}"
        yield flow.problem(
            "", what, f"the defaults are {DEFAULT_LOW_WATER_MARK}, {DEFAULT_HIGH_WATER_MARK}, {DEFAULT_MAX_BUFFER}"
        )


def _oddities(record: Record) -> Iterator[Problem]:
    """Yield what works but is probably not meant."""
    mapped = record.port_tables("portMappings")
    claimed = [(f"tcpPorts[{index}]", port) for index, port in enumerate(record.integers("tcpPorts"))]
    claimed += [
        (f"udpRoutes[{index}]", route.integer("port")) for index, route in enumerate(record.tables("udpRoutes"))
    ]
    for key, port in claimed:
        if port not in mapped:
            yield record.problem(
                key, f"the port {port} has no entry in portMappings", "its clients will be closed; add one"
            )
    for index, address in enumerate(record.texts("nexusAddresses")):
        if _url_mistake(address):
            continue
        url = urlsplit(address.strip())
        if url.scheme == "ws" and not is_loopback(url.hostname or ""):
            yield record.problem(f"nexusAddresses[{index}]", "sends tokens and data in the clear", "write wss://")
        if url.path in ("", "/"):
            yield record.problem(f"nexusAddresses[{index}]", "has no path", "a hub answers at /connect")
    yield from _slow_token_oddities(record.table("attestation"))
    yield from _socks_oddities(record)


def _socks_oddities(record: Record) -> Iterator[Problem]:
    key, attestation = "socks5ListenAddr", record.table("attestation")
    host = record.text(key).rpartition(":")[0].strip("[]")
    has_login = bool(record.text("socks5Username"))
    if not record.text(key):
        if has_login:
            yield record.problem("socks5Username", "has no effect without socks5ListenAddr", "set that, or delete it")
        return
    if not is_loopback(host) and not has_login:
        what = "offers the hub's network to others without any login"
        yield record.problem(key, what, "use 127.0.0.1, or set socks5Username and socks5PasswordFile")
    if not attestation.flag("outboundAllowed") and not attestation.text("command").strip():
        what = "is of no use: the token does not claim outbound connections"
        yield record.problem(key, what, "set attestation.outboundAllowed")


def _slow_token_oddities(attestation: Record) -> Iterator[Problem]:
    """Yield that a token command may take longer than the hub waits for a fresh token (W8)."""
    grace_s = attestation.integer("reauthGraceSeconds") or REAUTH_GRACE_DEFAULT_S
    timeout_s = attestation.integer("timeoutSeconds")
    if attestation.text("command") and attestation.integer("reauthIntervalSeconds") and timeout_s > grace_s:
        what = f"is {timeout_s}, but the hub waits {grace_s} s for a fresh token and then ends the session"
        mend = f"set reauthGraceSeconds, and reauth_grace_seconds in the tokens, to {timeout_s} or more, or lower it"
        yield attestation.problem("timeoutSeconds", what, mend)


def _written_hostnames(record: Record) -> list[tuple[str, str]]:
    """Return the keys and names of ``hostnames``, or of the older ``hostname`` if there are none."""
    names = [(f"hostnames[{index}]", name) for index, name in enumerate(record.texts("hostnames"))]
    return names or [("hostname", record.text("hostname"))] * ("hostname" in record.given)


def _backend(record: Record, problems: list[Problem]) -> BackendConfig:
    """Build one backend; ``problems`` receives what is wrong with the files of its secrets."""
    health, flow = record.table("healthChecks"), record.table("flowControl")
    return BackendConfig(
        name=record.text("name"),
        nexus_addresses=tuple(address.strip() for address in record.texts("nexusAddresses")),
        attestation=_attestation(record.table("attestation"), problems),
        port_mappings=MappingProxyType(
            {port: _port_mapping(mapping) for port, mapping in record.port_tables("portMappings").items()}
        ),
        hostnames=tuple(dict.fromkeys(normalize_wildcard(name) for _, name in _written_hostnames(record))),
        tcp_ports=tuple(dict.fromkeys(record.integers("tcpPorts"))),
        udp_routes=tuple(
            UdpRoute(route.integer("port"), route.integer("flowIdleTimeoutSeconds"))
            for route in record.tables("udpRoutes")
        ),
        weight=max(DEFAULT_WEIGHT, record.integer("weight")),
        sessions=record.integer("sessions"),
        health_checks=HealthChecks(
            health.flag("enabled"), health.integer("inactivityTimeout"), health.integer("pongTimeout")
        ),
        flow_control=FlowControl(*(flow.integer(key) for key in ("highWaterMark", "lowWaterMark", "maxBuffer"))),
        socks5_listen_addr=record.text("socks5ListenAddr"),
        socks5_login=_login(record, problems),
        ca_file=record.text("caFile"),
    )


def _port_mapping(mapping: Record) -> PortMapping:
    hosts = {normalize_wildcard(pattern): _target(text) for pattern, text in mapping.text_map("hosts").items()}
    return PortMapping(_target(mapping.text("default")), MappingProxyType(hosts))


def _target(text: str) -> str:
    """Return a target with its host; an empty one is this machine, as for Go's dialler."""
    return "localhost" + text.strip() if text.strip().startswith(":") else text.strip()


def _attestation(record: Record, problems: list[Problem]) -> Attestation:
    command = record.text("command").strip()
    secret = record.text("hmacSecret").strip()
    secret_file = record.text("hmacSecretFile").strip()
    if secret_file and not command:
        secret = read_secret(record, "hmacSecretFile", problems)
    return Attestation(
        command=command,
        args=record.texts("args"),
        env=MappingProxyType(dict(record.text_map("env"))),
        timeout_s=record.integer("timeoutSeconds"),
        cache_handshake_s=record.integer("cacheHandshakeSeconds"),
        hmac_secret=secret,
        hmac_secret_file=secret_file,
        token_ttl_s=record.integer("tokenTTLSeconds"),
        handshake_max_age_s=record.integer("handshakeMaxAgeSeconds"),
        reauth_interval_s=record.integer("reauthIntervalSeconds"),
        reauth_grace_s=record.integer("reauthGraceSeconds"),
        maintenance_grace_cap_s=record.integer("maintenanceGraceCapSeconds"),
        authorizer_status_uri=record.text("authorizerStatusUri").strip(),
        policy_version=record.text("policyVersion").strip(),
        outbound_allowed=record.flag("outboundAllowed"),
        allowed_outbound_ports=record.integers("allowedOutboundPorts"),
    )


def _login(record: Record, problems: list[Problem]) -> Login | None:
    name, password = record.text("socks5Username"), record.text("socks5Password")
    if record.text("socks5PasswordFile"):
        password = read_secret(record, "socks5PasswordFile", problems)
        if what := _login_mistake(password):
            problems.append(record.problem("socks5PasswordFile", f"the password {what}", "shorten it"))
    return Login(name, password) if name else None
