"""The suite's figures as one picture: throughput, CPU, connections and round trips, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from bench.report import Medians

PANELS: Final = (
    ("MiB/s, download", "MiB/s", [f"download, {n} streams" for n in (1, 4, 16, 64)]),
    ("MiB/s, upload", "MiB/s", [f"upload, {n} streams" for n in (1, 4, 16, 64)]),
    ("edge CPU s/GiB, 16 streams", "edge CPU s/GiB", ["download, 16 streams", "upload, 16 streams"]),
    ("new connections/s", "connections/s", [f"connections, {n} at once" for n in (1, 16, 64, 256)]),
    ("edge CPU us/connection", "edge CPU us/connection", ["connections, 16 at once", "connections, 256 at once"]),
    ("round trip p50 us", "p50 us", ["round trips, 1 streams", "round trips, 1 stream, bulk beside"]),
)


def draw(found: Medians, file: Path) -> None:
    """Write an SVG; matplotlib comes with the dependency group ``bench``."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    names: Sequence[str] = list(dict.fromkeys(name for targets in found.values() for name in targets))
    for axis, (title, key, wanted) in zip(axes.flat, PANELS, strict=True):
        shown = [case for case in wanted if case in found]
        for index, name in enumerate(names):
            values = [found[case].get(name, {}).get(key, 0) for case in shown]
            width = 0.8 / max(len(names), 1)
            axis.bar([place + index * width for place in range(len(shown))], values, width, label=name)
        axis.set_title(title)
        axis.set_xticks([place + 0.4 for place in range(len(shown))], [case.replace(", ", "\n", 1) for case in shown])
        axis.tick_params(labelsize=8)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(file)
