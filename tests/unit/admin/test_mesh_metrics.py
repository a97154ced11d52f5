"""nexus.admin.mesh_metrics: every field of MeshStats is exported under its name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from nexus.admin.mesh_metrics import MeshStats, mesh_families
from tests.support.metrics import FULL_MESH, samples


def test_every_figure_of_the_mesh_is_exported_under_its_name() -> None:
    """The whole mapping, value by value."""
    assert samples(list(mesh_families(FULL_MESH))) == {
        ("nexus_mesh_links", ""): 101,
        ("nexus_mesh_routes", ""): 102,
        ("nexus_mesh_round_trip_seconds", "wss://eu.example.com:8444/mesh"): 0.103,
        ("nexus_mesh_tunnels", "origin"): 104,
        ("nexus_mesh_links_opened_total", ""): 105,
        ("nexus_mesh_link_ends_total", "error"): 106,
        ("nexus_mesh_links_refused_total", "trust"): 107,
        ("nexus_mesh_announcements_total", "sent"): 108,
        ("nexus_mesh_tunnels_opened_total", "destination"): 109,
        ("nexus_mesh_tunnels_refused_total", "no_backend"): 110,
        ("nexus_mesh_tunnels_unanswered_total", "moved"): 111,
        ("nexus_mesh_tunnel_resets_total", "reset"): 112,
        ("nexus_mesh_relayed_bytes_total", "to_peers"): 113,
        ("nexus_mesh_udp_datagrams_dropped_total", "peer_slow"): 114,
    }


@pytest.mark.parametrize("name", [field.name for field in fields(MeshStats)])
def test_no_field_is_forgotten(name: str) -> None:
    """A field that is added has to be given a value, and then a family."""
    value = getattr(FULL_MESH, name)
    assert value
    shown = set(samples(list(mesh_families(FULL_MESH))).values())
    assert set(value.values() if isinstance(value, dict) else [value]) <= shown
