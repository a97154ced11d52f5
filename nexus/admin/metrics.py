"""What a node exports to Prometheus, and how it comes to be true.

Strategy: nothing here counts. The node keeps plain integers where it works; a scrape asks for one ``NodeStats`` and
the table below turns each of its fields into a metric family. A gauge is thus read from the thing it describes at the
instant of the scrape and cannot drift from it, the data plane never calls a metrics library, and two nodes in one
process have two registries. Names follow the Prometheus conventions: base units (seconds, bytes) in the name,
``_total`` for counters, no label that a client could fill with values of its own. A counter and a gauge of one noun
would share a family name in OpenMetrics, hence ``nexus_streams`` beside ``nexus_streams_opened_total``.
``docs/metrics.md`` documents exactly these families; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from nexus.admin.mesh_metrics import MeshStats, mesh_families

ACCEPT_PLAIN = ""
"""What to pass ``render`` for the text format that every Prometheus version reads (0.0.4)."""


@dataclass(frozen=True, slots=True)
class NodeStats:
    """One node at one instant: gauges are its state now, counters run since its start.

    Counters end in ``_total`` and never fall. Mapping keys become label values, so they come from fixed sets of the
    node (listener ports, reasons, stages), never from what a client or backend sent.
    """

    version: str
    start_time_seconds: float
    """Unix time at which the node started."""

    workers: int = 1
    """Processes that serve."""
    sessions: int = 0
    """Backend sessions that are authenticated and open."""
    unauthenticated: int = 0
    """Connections to the hub that have not finished TLS, upgrade and handshake yet."""
    streams: int = 0
    """Open streams, TCP and UDP."""
    udp_flows: int = 0
    """Open UDP flows, which are among the streams."""
    peeking: int = 0
    """Client connections whose first bytes are still awaited."""
    paused_streams: int = 0
    """Streams whose reading waits for credit or for a full buffer to drain."""
    buffered_bytes: int = 0
    """Bytes accepted from one side and not yet written to the other, over all streams."""
    routes: int = 0
    """Route keys that backends of this node serve."""
    hub_certificate_expiry_seconds: float | None = None
    """Unix time at which the hub's certificate expires; None while there is none."""
    hub_certificate_renewal_seconds: float | None = None
    """Unix time at which the certificate is to be renewed by ACME; None without ACME, or without a certificate."""
    registered_seconds: float | None = None
    """Unix time of the last registration that the orchestrator took; None where there was none."""
    registration_next_seconds: float | None = None
    """Unix time of the next registration; None where there was none yet, or is no orchestrator."""
    registration_failures: int | None = None
    """Registrations that failed since the orchestrator last took the node; None without an orchestrator."""
    key_set_fetched_seconds: float | None = None
    """Unix time at which the key set of ``backendsJWKSURL`` was fetched last; None where it never was."""
    bandwidth_limit_bytes_per_second: int | None = None
    """The cap of both directions together; None without one, as the next two."""
    bandwidth_waiting_bytes: int | None = None
    """Bytes that wait for their turn under the cap."""
    bandwidth_waiting_backends: int | None = None
    """Backend sessions that such bytes belong to."""

    sessions_total: int = 0
    streams_total: int = 0
    bandwidth_charged_bytes_total: int = 0
    """Bytes charged to the cap: payload and header of each data message."""
    bytes_to_backends_total: int = 0
    """Payload bytes that clients sent, as passed on to backends."""
    bytes_to_clients_total: int = 0
    """Payload bytes that backends sent, as passed on to clients."""
    client_connections_total: Mapping[int, int] = field(default_factory=dict)
    """Accepted client connections by listener port."""
    rejected_total: Mapping[str, int] = field(default_factory=dict)
    """Client connections closed without a stream, by reason."""
    session_ends_total: Mapping[str, int] = field(default_factory=dict)
    """Ended sessions by reason."""
    auth_failures_total: Mapping[str, int] = field(default_factory=dict)
    """Refused backends by stage of the handshake."""
    verifier_answers_total: Mapping[str, int] = field(default_factory=dict)
    """What the remote verifier said, or that it said nothing, by result."""
    key_set_fetches_total: Mapping[str, int] = field(default_factory=dict)
    """Fetches of the key set of ``backendsJWKSURL``, by result."""
    registrations_total: Mapping[str, int] = field(default_factory=dict)
    """Registrations with the orchestrator, by result: registered, refused, failed."""
    acme_attempts_total: Mapping[str, int] = field(default_factory=dict)
    """Attempts to obtain the hub's certificate, by result: issued, refused, unreachable."""
    streams_reset_total: Mapping[str, int] = field(default_factory=dict)
    """Streams that ended broken rather than with both directions finished, by reason."""
    datagrams_to_backends_total: int = 0
    datagrams_to_clients_total: int = 0
    datagrams_dropped_total: Mapping[str, int] = field(default_factory=dict)
    """Datagrams of either direction that were dropped, by reason."""
    udp_flow_ends_total: Mapping[str, int] = field(default_factory=dict)
    """Ended UDP flows by reason."""
    stun_requests_total: Mapping[str, int] = field(default_factory=dict)
    """Datagrams to the STUN server, by result: answered, ignored, limited, unsent."""
    reauthentications_total: Mapping[str, int] = field(default_factory=dict)
    """Re-authentications by outcome: renewed, refused, unverified, timeout; deferred counts what was put off."""
    ignored_texts_total: int = 0
    """Texts of backends that nobody had asked for."""
    session_faults_total: int = 0
    """What backends did against the protocol: malformed control messages, overrun credits."""

    outbound_connections: int = 0
    """Outbound connections of backends, those being dialled and those not quite closed included."""
    outbound_total: int = 0
    outbound_refusals_total: Mapping[str, int] = field(default_factory=dict)
    """Outbound connections that were asked for and not opened, by reason."""

    mesh: MeshStats = field(default_factory=MeshStats)


_GAUGES: tuple[tuple[str, Callable[[NodeStats], float | None], str], ...] = (
    ("nexus_workers", lambda s: s.workers, "Processes that serve on the node's ports, as `workers` says."),
    ("nexus_sessions", lambda s: s.sessions, "Backend sessions that are authenticated and open."),
    (
        "nexus_sessions_unauthenticated",
        lambda s: s.unauthenticated,
        "Connections to the hub that have not finished TLS, upgrade and handshake yet.",
    ),
    ("nexus_streams", lambda s: s.streams, "Open streams, TCP and UDP."),
    ("nexus_udp_flows", lambda s: s.udp_flows, "Open UDP flows, which are among the streams."),
    ("nexus_streams_paused", lambda s: s.paused_streams, "Streams whose reading waits for credit or buffer space."),
    (
        "nexus_client_connections_peeking",
        lambda s: s.peeking,
        "Client connections whose first bytes are still awaited.",
    ),
    (
        "nexus_buffered_bytes",
        lambda s: s.buffered_bytes,
        "Bytes accepted from one side and not yet written to the other, over all streams.",
    ),
    ("nexus_routes", lambda s: s.routes, "Route keys that backends of this node serve."),
    ("nexus_start_time_seconds", lambda s: s.start_time_seconds, "Unix time at which the node started."),
    (
        "nexus_hub_certificate_expiry_timestamp_seconds",
        lambda s: s.hub_certificate_expiry_seconds,
        "Unix time at which the hub's certificate expires; absent while there is none.",
    ),
    (
        "nexus_hub_certificate_renewal_timestamp_seconds",
        lambda s: s.hub_certificate_renewal_seconds,
        "Unix time at which the hub's certificate is to be renewed; absent where the node does not renew it.",
    ),
    (
        "nexus_outbound_connections",
        lambda s: s.outbound_connections,
        "Outbound connections of backends, those being dialled and those not quite closed included.",
    ),
    (
        "nexus_registered_timestamp_seconds",
        lambda s: s.registered_seconds,
        "Unix time of the last registration that the orchestrator took; absent where there was none.",
    ),
    (
        "nexus_registration_next_timestamp_seconds",
        lambda s: s.registration_next_seconds,
        "Unix time at which the node registers next; absent before its first attempt.",
    ),
    (
        "nexus_registration_failures",
        lambda s: s.registration_failures,
        "Registrations that failed since the orchestrator last took the node; absent without registrationURL.",
    ),
    (
        "nexus_key_set_fetched_timestamp_seconds",
        lambda s: s.key_set_fetched_seconds,
        "Unix time at which the key set of backendsJWKSURL was last fetched; absent where it never was.",
    ),
    (
        "nexus_bandwidth_limit_bytes_per_second",
        lambda s: s.bandwidth_limit_bytes_per_second,
        "The bandwidth cap, both directions together; absent without one.",
    ),
    (
        "nexus_bandwidth_waiting_bytes",
        lambda s: s.bandwidth_waiting_bytes,
        "Bytes that wait for their turn under the cap; absent without one.",
    ),
    (
        "nexus_bandwidth_waiting_backends",
        lambda s: s.bandwidth_waiting_backends,
        "Backend sessions with bytes that wait for their turn under the cap; absent without one.",
    ),
)

_COUNTERS: tuple[tuple[str, Callable[[NodeStats], float], str], ...] = (
    ("nexus_sessions_opened_total", lambda s: s.sessions_total, "Backend sessions that were authenticated."),
    ("nexus_streams_opened_total", lambda s: s.streams_total, "Streams opened to backends, TCP and UDP."),
    ("nexus_ignored_texts_total", lambda s: s.ignored_texts_total, "Texts of backends that nobody had asked for."),
    (
        "nexus_session_faults_total",
        lambda s: s.session_faults_total,
        "Malformed control messages of backends, and credits that they overran.",
    ),
    (
        "nexus_outbound_connections_opened_total",
        lambda s: s.outbound_total,
        "Outbound connections opened for backends.",
    ),
    (
        "nexus_bandwidth_charged_bytes_total",
        lambda s: s.bandwidth_charged_bytes_total,
        "Bytes charged to the bandwidth cap: payload and 17 bytes of header of each data message, both directions.",
    ),
)

_LABELLED_COUNTERS: tuple[tuple[str, str, Callable[[NodeStats], Mapping[str, int] | Mapping[int, int]], str], ...] = (
    (
        "nexus_relayed_bytes_total",
        "direction",
        lambda s: {"to_backends": s.bytes_to_backends_total, "to_clients": s.bytes_to_clients_total},
        "Payload bytes relayed, by direction.",
    ),
    (
        "nexus_client_connections_total",
        "port",
        lambda s: s.client_connections_total,
        "Client connections accepted, by listener port.",
    ),
    (
        "nexus_client_connections_rejected_total",
        "reason",
        lambda s: s.rejected_total,
        "Client connections closed without a stream, by reason.",
    ),
    ("nexus_session_ends_total", "reason", lambda s: s.session_ends_total, "Sessions ended, by reason."),
    (
        "nexus_auth_failures_total",
        "stage",
        lambda s: s.auth_failures_total,
        "Backends refused, by stage of the handshake.",
    ),
    (
        "nexus_verifier_answers_total",
        "result",
        lambda s: s.verifier_answers_total,
        "Tokens sent to the remote verifier, by result.",
    ),
    (
        "nexus_key_set_fetches_total",
        "result",
        lambda s: s.key_set_fetches_total,
        "Fetches of the key set of backendsJWKSURL, by result.",
    ),
    (
        "nexus_registrations_total",
        "result",
        lambda s: s.registrations_total,
        "Registrations with the orchestrator, heartbeats included, by result.",
    ),
    (
        "nexus_acme_attempts_total",
        "result",
        lambda s: s.acme_attempts_total,
        "Attempts to obtain the hub's certificate, by result.",
    ),
    (
        "nexus_stream_resets_total",
        "reason",
        lambda s: s.streams_reset_total,
        "Streams that ended broken, by reason.",
    ),
    (
        "nexus_stun_requests_total",
        "result",
        lambda s: s.stun_requests_total,
        "Datagrams to the STUN server, by result.",
    ),
    (
        "nexus_udp_datagrams_total",
        "direction",
        lambda s: {"to_backends": s.datagrams_to_backends_total, "to_clients": s.datagrams_to_clients_total},
        "Datagrams relayed, by direction.",
    ),
    (
        "nexus_udp_datagrams_dropped_total",
        "reason",
        lambda s: s.datagrams_dropped_total,
        "Datagrams dropped, by reason.",
    ),
    ("nexus_udp_flow_ends_total", "reason", lambda s: s.udp_flow_ends_total, "UDP flows ended, by reason."),
    (
        "nexus_reauthentications_total",
        "outcome",
        lambda s: s.reauthentications_total,
        "Re-authentications of sessions, and deferrals of them, by outcome.",
    ),
    (
        "nexus_outbound_refusals_total",
        "reason",
        lambda s: s.outbound_refusals_total,
        "Outbound connections asked for and not opened, by reason.",
    ),
)


def families(stats: NodeStats) -> list[Metric]:
    """Return the node's metric families with the values of ``stats``, in the order of the documentation."""
    return [
        _build(stats),
        *_gauges(stats),
        *_counters(stats),
        *_labelled_counters(stats),
        *mesh_families(stats.mesh),
    ]


class NodeCollector:
    """A Prometheus collector that asks ``snapshot`` at every scrape.

    What ``snapshot`` raises fails that scrape only.
    """

    def __init__(self, snapshot: Callable[[], NodeStats]) -> None:
        """Remember ``snapshot``, which is called in the thread of the scrape."""
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return the families without calling ``snapshot``: registering a collector must not need a running node."""
        return families(NodeStats(version="", start_time_seconds=0))

    def collect(self) -> Iterable[Metric]:
        """Return the families with the values of this instant."""
        return families(self._snapshot())


def node_registry(snapshot: Callable[[], NodeStats]) -> CollectorRegistry:
    """Return a registry of its own for one node: its metrics, and those of process, platform and garbage collector."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(snapshot))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the exposition and its content type, in the format that the HTTP ``Accept`` header prefers.

    An ``Accept`` header that makes no sense gets the plain text format. Raises what a collector raises.
    """
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # the library compares version numbers without checking that they are numbers
        encoder, content_type = choose_encoder(ACCEPT_PLAIN)
    return encoder(registry), content_type


def _build(stats: NodeStats) -> Metric:
    return InfoMetricFamily("nexus_build", "Version of the node; the value is always 1.", {"version": stats.version})


def _gauges(stats: NodeStats) -> Iterable[Metric]:
    for name, read, text in _GAUGES:
        yield GaugeMetricFamily(name, text, value=read(stats))  # no sample for None


def _counters(stats: NodeStats) -> Iterable[Metric]:
    for name, read, text in _COUNTERS:
        yield CounterMetricFamily(name, text, value=read(stats))


def _labelled_counters(stats: NodeStats) -> Iterable[Metric]:
    for name, label, read, text in _LABELLED_COUNTERS:
        family = CounterMetricFamily(name, text, labels=[label])
        for key, value in read(stats).items():
            family.add_metric([str(key)], value)
        yield family
