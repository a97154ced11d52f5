"""The suite's figures as text: one table for each case, with the ratio to each reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

OURS: Final = ("nexus", "nexus, mesh")
REFERENCES: Final = {"haproxy": "haproxy", "haproxy + TLS + haproxy": "two hops"}
"""References and how a row of ratios calls them."""

Medians = Mapping[str, Mapping[str, Mapping[str, float]]]


def progress(case: str, targets: Mapping[str, Mapping[str, float]]) -> str:
    """Return a line for each target, while the suite runs."""
    lines = [f"{case}"]
    for name, figures in targets.items():
        lines.append(f"  {name:24} " + "  ".join(f"{key} {_number(value)}" for key, value in figures.items()))
    return "\n".join(lines)


def as_markdown(about: Mapping[str, Any], found: Medians) -> str:
    """Return the whole report."""
    lines = [f"# {about['date']}: the suite", "", "By `uv run --group bench python -m bench.suite`.", ""]
    lines += [f"- {key}: {value}" for key, value in about.items() if key != "date"]
    lines += [
        "",
        "Medians of interleaved runs on one machine, which also runs the load; read them as ratios. *Edge* is what the",
        "public reaches, *far* the side of the service; `load cores` is what the load itself took of the machine's.",
        "",
    ]
    for case, targets in found.items():
        lines += [*_table(case, targets), ""]
    return "\n".join(lines)


def _table(case: str, targets: Mapping[str, Mapping[str, float]]) -> list[str]:
    keys = list(dict.fromkeys(key for figures in targets.values() for key in figures))
    lines = [f"## {case}", "", f"| | {' | '.join(keys)} |", "|---|" + "---|" * len(keys)]
    for name, figures in targets.items():
        lines.append(f"| {name} | {' | '.join(_number(figures[key]) if key in figures else '-' for key in keys)} |")
    for ours in OURS:
        for reference, short in {**REFERENCES, f"{ours}, before": "before"}.items():
            if ours in targets and reference in targets:
                ratios = [_ratio(targets[ours].get(key), targets[reference].get(key), key) for key in keys]
                lines.append(f"| *{ours} / {short}* | {' | '.join(ratios)} |")
    return lines


def _ratio(ours: float | None, theirs: float | None, key: str) -> str:
    if not ours or not theirs or key in {"failed", "load cores", "broken"}:
        return "-"
    return f"*{ours / theirs:.2f}*"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
