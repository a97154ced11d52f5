"""What a node exports of its mesh: links, what peers serve, and tunnels at either end. See ``metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class MeshStats:
    """The mesh at one instant. Keys of mappings come from fixed sets, and peers' names from the configuration."""

    peers: int = 0
    """Links that are up."""
    peer_routes: int = 0
    """Route keys that peers serve."""
    round_trips_s: Mapping[str, float] = field(default_factory=dict)
    """Shortest round-trip time of late, by address dialled."""
    tunnels: Mapping[str, int] = field(default_factory=dict)
    """Open tunnels by the end that this node is: ``origin`` or ``destination``."""

    links_total: int = 0
    link_ends_total: Mapping[str, int] = field(default_factory=dict)
    links_refused_total: Mapping[str, int] = field(default_factory=dict)
    announcements_total: Mapping[str, int] = field(default_factory=dict)
    tunnels_total: Mapping[str, int] = field(default_factory=dict)
    tunnels_refused_total: Mapping[str, int] = field(default_factory=dict)
    tunnels_unanswered_total: Mapping[str, int] = field(default_factory=dict)
    tunnel_resets_total: Mapping[str, int] = field(default_factory=dict)
    bytes_total: Mapping[str, int] = field(default_factory=dict)
    datagrams_dropped_total: Mapping[str, int] = field(default_factory=dict)


_PLAIN_GAUGES: tuple[tuple[str, Callable[[MeshStats], int], str], ...] = (
    ("nexus_mesh_links", lambda s: s.peers, "Links to other nodes that are up."),
    ("nexus_mesh_routes", lambda s: s.peer_routes, "Route keys that other nodes serve."),
)
_GAUGES: tuple[tuple[str, str, Callable[[MeshStats], Mapping[str, float]], str], ...] = (
    (
        "nexus_mesh_round_trip_seconds",
        "peer",
        lambda s: s.round_trips_s,
        "Shortest round-trip time of late, by address dialled.",
    ),
    ("nexus_mesh_tunnels", "end", lambda s: s.tunnels, "Open tunnels, TCP and UDP, by the end that this node is."),
)
_COUNTERS: tuple[tuple[str, str, Callable[[MeshStats], Mapping[str, int]], str], ...] = (
    ("nexus_mesh_link_ends_total", "reason", lambda s: s.link_ends_total, "Links ended, by reason."),
    (
        "nexus_mesh_links_refused_total",
        "reason",
        lambda s: s.links_refused_total,
        "Connections to the peer listener that became no link, by reason.",
    ),
    (
        "nexus_mesh_announcements_total",
        "direction",
        lambda s: s.announcements_total,
        "Announcements of routes, by direction.",
    ),
    (
        "nexus_mesh_tunnels_opened_total",
        "end",
        lambda s: s.tunnels_total,
        "Tunnels opened, TCP and UDP, by the end that this node is.",
    ),
    (
        "nexus_mesh_tunnels_refused_total",
        "reason",
        lambda s: s.tunnels_refused_total,
        "Tunnels that peers asked for and did not get, by reason.",
    ),
    (
        "nexus_mesh_tunnels_unanswered_total",
        "outcome",
        lambda s: s.tunnels_unanswered_total,
        "Tunnels that a peer did not accept, by outcome: moved to another peer, or failed.",
    ),
    (
        "nexus_mesh_tunnel_resets_total",
        "reason",
        lambda s: s.tunnel_resets_total,
        "Tunnels that ended broken, by reason.",
    ),
    (
        "nexus_mesh_relayed_bytes_total",
        "direction",
        lambda s: s.bytes_total,
        "Payload bytes of tunnels, by direction.",
    ),
    (
        "nexus_mesh_udp_datagrams_dropped_total",
        "reason",
        lambda s: s.datagrams_dropped_total,
        "Datagrams dropped at the destination's end of tunnels, by reason.",
    ),
)


def mesh_families(stats: MeshStats) -> Iterable[Metric]:
    """Return the mesh's metric families with the values of ``stats``, in the order of the documentation."""
    for name, count, text in _PLAIN_GAUGES:
        yield GaugeMetricFamily(name, text, value=count(stats))
    for name, label, read, text in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=[label])
        for key, value in read(stats).items():
            gauge.add_metric([key], value)
        yield gauge
    yield CounterMetricFamily("nexus_mesh_links_opened_total", "Links that came up.", value=stats.links_total)
    for name, label, read_counter, text in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=[label])
        for key, total in read_counter(stats).items():
            counter.add_metric([key], total)
        yield counter
