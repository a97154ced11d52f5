"""nexus.workers.figures: sums of what several processes have counted."""

from __future__ import annotations

import json
from dataclasses import fields

from nexus.admin.metrics import NodeStats
from nexus.workers.figures import figures_of, left_behind, merged
from tests.unit.admin.test_metrics import FULL

ONES = NodeStats(
    version="another",
    start_time_seconds=1,
    sessions=10,
    sessions_total=100,
    client_connections_total={443: 1000, 25: 1},
    rejected_total={"no_route": 1, "timeout": 2},
)


def test_figures_are_summed_label_by_label() -> None:
    """As they come out of JSON, where a port is a string."""
    total = merged(FULL, [json.loads(json.dumps(figures_of(ONES))), figures_of(ONES)])
    assert (total.sessions, total.sessions_total) == (1 + 20, 8 + 200)
    assert total.client_connections_total == {443: 12 + 2000, 80: 13, 25: 2}
    assert total.rejected_total == {"no_route": 14 + 2, "timeout": 4}


def test_what_is_the_nodes_is_the_first_workers() -> None:
    """Version, routes, certificate, mesh: nothing that a sum would make sense of."""
    total = merged(FULL, [figures_of(FULL)])
    for name in ("version", "start_time_seconds", "workers", "routes", "mesh", "hub_certificate_expiry_seconds"):
        assert getattr(total, name) == getattr(FULL, name)


def test_what_may_be_missing_is_not_summed() -> None:
    """A sum needs numbers: a field that may be None is the first worker's alone."""
    optional = {spec.name for spec in fields(NodeStats) if spec.default is None}
    assert optional
    assert not optional & figures_of(FULL).keys()
    assert merged(FULL, []) == FULL


def test_a_worker_that_ends_leaves_its_counters() -> None:
    """They must not fall; its sessions are gone."""
    total = merged(FULL, [left_behind(figures_of(ONES))])
    assert (total.sessions, total.sessions_total) == (1, 108)
