"""One view of what several workers have counted.

Strategy: sums, but for what concerns the node as a whole, which the first worker knows. A worker that ends leaves its
counters behind, so that a counter never falls; its gauges end with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Final

from nexus.admin.metrics import NodeStats

# What only the first worker has, or has for all.
_OF_THE_FIRST: Final = frozenset(
    {
        "version",
        "start_time_seconds",
        "workers",
        "routes",
        "mesh",
        "hub_certificate_expiry_seconds",
        "hub_certificate_renewal_seconds",
        "registered_seconds",
        "registration_next_seconds",
        "registration_failures",
        "key_set_fetched_seconds",
        "bandwidth_limit_bytes_per_second",
        "bandwidth_waiting_bytes",
        "bandwidth_waiting_backends",
    }
)
_SUMMED: Final = tuple(spec.name for spec in fields(NodeStats) if spec.name not in _OF_THE_FIRST)
_BY_NUMBER: Final = frozenset({"client_connections_total"})  # the labels are ports


def figures_of(stats: NodeStats) -> dict[str, Any]:
    """Return what is to be summed, as JSON can carry it."""
    values = asdict(stats)
    return {name: values[name] for name in _SUMMED}


def left_behind(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stays of a worker's figures when it has ended: its counters."""
    return {name: value for name, value in values.items() if name.endswith("_total")}


def merged(first: NodeStats, others: Iterable[Mapping[str, Any]]) -> NodeStats:
    """Return the first worker's figures with those of others (``figures_of``, or a part of that) added."""
    sums: dict[str, Any] = {name: getattr(first, name) for name in _SUMMED}
    for values in others:
        for name, value in values.items():
            sums[name] = _sum(name, sums[name], value)
    return replace(first, **sums)


def _sum(name: str, one: Any, other: Any) -> Any:
    if not isinstance(other, Mapping):
        return one + other
    labels = {int(label): count for label, count in other.items()} if name in _BY_NUMBER else other
    total = Counter(one)
    total.update(labels)
    return dict(total)
