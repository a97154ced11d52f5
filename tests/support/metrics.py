"""What tests of the metrics share: a mesh whose every figure is another one, and a look at samples."""

from __future__ import annotations

from prometheus_client.metrics_core import Metric

from nexus.admin.mesh_metrics import MeshStats

FULL_MESH = MeshStats(
    peers=101,
    peer_routes=102,
    round_trips_s={"wss://eu.example.com:8444/mesh": 0.103},
    tunnels={"origin": 104},
    links_total=105,
    link_ends_total={"error": 106},
    links_refused_total={"trust": 107},
    announcements_total={"sent": 108},
    tunnels_total={"destination": 109},
    tunnels_refused_total={"no_backend": 110},
    tunnels_unanswered_total={"moved": 111},
    tunnel_resets_total={"reset": 112},
    bytes_total={"to_peers": 113},
    datagrams_dropped_total={"peer_slow": 114},
)


def samples(metrics: list[Metric]) -> dict[tuple[str, str], float]:
    """Return every sample by name and label value."""
    return {(s.name, "".join(s.labels.values())): s.value for metric in metrics for s in metric.samples}
