"""``nexus status``: how a running node is, asked at its admin endpoint; also the health check of a container."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from prometheus_client.parser import text_string_to_metric_families

from cli import render
from cli.node_file import node_config
from cli.options import EXIT_FAILURE, Json
from nexus.admin.probe import probe
from nexus.errors import ConfigError, Problem

_DAY_S: Final = 86_400
_HOUR_S: Final = 3600
_OK: Final = 200
_REGISTERED: Final = "nexus_registered_timestamp_seconds"
_REGISTRATION_NEXT: Final = "nexus_registration_next_timestamp_seconds"
_REGISTRATION_FAILURES: Final = "nexus_registration_failures"

Figures = Mapping[str, float]
"""Samples by name, those with labels added up."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the endpoint said."""

    address: str
    ready: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    version: str
    figures: Figures

    def get(self, name: str) -> float:
        return self.figures.get(name, 0.0)


def status(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The node's file, for its adminListenAddress.")
    ] = None,
    admin: Annotated[
        str, typer.Option(metavar="ADDR", help="The admin endpoint itself: host:port, or unix:/path.")
    ] = "",
    alive: Annotated[
        bool, typer.Option("--alive", help="Only ask whether the node runs, ready or not; print nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print whether a node is ready, why not, and what it does; exit code 1 unless it is ready."""
    address = admin or _admin_of(config)
    try:
        if alive:
            raise typer.Exit(0 if probe(address, "/healthz").status == _OK else EXIT_FAILURE)
        answer = _ask(address)
    except OSError as error:
        render.fail(f"{address}: {error.strerror or error}; does the node run?")
        raise typer.Exit(EXIT_FAILURE) from None
    if as_json:
        render.document(_document(answer))
    else:
        for line in _lines(answer, time.time()):
            render.data(line)
    if not answer.ready:
        raise typer.Exit(EXIT_FAILURE)


def _admin_of(config: Path | None) -> str:
    if config is None:
        raise typer.BadParameter("give --config FILE or --admin ADDR", param_hint="--config")
    address = node_config(config).admin_listen_address
    if not address:
        what, mend = "is not set, so nobody can ask the node", "set it, such as to 127.0.0.1:9464"
        raise ConfigError(Problem(str(config), 0, "adminListenAddress", what, mend))
    return address


def _ask(address: str) -> _Answer:
    readiness = json.loads(probe(address, "/readyz").body)
    figures: dict[str, float] = {}
    version = ""
    for family in text_string_to_metric_families(probe(address, "/metrics").body):
        for sample in family.samples:
            version = sample.labels.get("version", version) if sample.name == "nexus_build_info" else version
            figures[sample.name] = figures.get(sample.name, 0.0) + sample.value
    reasons, notes = tuple(readiness["reasons"]), tuple(readiness.get("notes", ()))  # older nodes know no notes
    return _Answer(address, bool(readiness["ready"]), reasons, notes, version, figures)


def _document(answer: _Answer) -> dict[str, object]:
    return {
        "admin": answer.address,
        "ready": answer.ready,
        "reasons": list(answer.reasons),
        "notes": list(answer.notes),
        "version": answer.version,
        "startedAt": answer.figures.get("nexus_start_time_seconds"),
        "certificateExpiresAt": answer.figures.get("nexus_hub_certificate_expiry_timestamp_seconds"),
        "sessions": int(answer.get("nexus_sessions")),
        "streams": int(answer.get("nexus_streams")),
        "routes": int(answer.get("nexus_routes")),
        "links": int(answer.get("nexus_mesh_links")),
        "peerRoutes": int(answer.get("nexus_mesh_routes")),
        "relayedBytes": int(answer.get("nexus_relayed_bytes_total")),
        "rejectedClients": int(answer.get("nexus_client_connections_rejected_total")),
        "registeredAt": answer.figures.get(_REGISTERED),
        "registrationNextAt": answer.figures.get(_REGISTRATION_NEXT),
    }


def _lines(answer: _Answer, now: float) -> list[str]:
    expiry = answer.figures.get("nexus_hub_certificate_expiry_timestamp_seconds")
    left = f"{render.moment(expiry)}, {(expiry - now) / _DAY_S:.0f} days left" if expiry is not None else "none yet"
    relayed = render.size(answer.get("nexus_relayed_bytes_total"))
    rows = {
        "ready": "yes" if answer.ready else "no: " + "; ".join(answer.reasons),
        "version": f"{answer.version}, up {_duration(now - answer.get('nexus_start_time_seconds'))}",
        "certificate": left,
        "backends": f"{answer.get('nexus_sessions'):.0f} sessions, {answer.get('nexus_routes'):.0f} routes",
        "streams": f"{answer.get('nexus_streams'):.0f} open, {relayed} relayed since the start",
        "peers": f"{answer.get('nexus_mesh_links'):.0f} links, {answer.get('nexus_mesh_routes'):.0f} routes",
        "rejected": f"{answer.get('nexus_client_connections_rejected_total'):.0f} clients since the start",
    }
    if _REGISTRATION_FAILURES in answer.figures:
        rows["orchestrator"] = _registration(answer.figures, now)
    lines = [f"{name:<12} {text}" for name, text in rows.items()]
    return lines + [f"{'note':<12} {note}" for note in answer.notes]


def _registration(figures: Figures, now: float) -> str:
    """Tell when the orchestrator last took the node, how often it did not since, and when it is asked next."""
    taken, following = figures.get(_REGISTERED), figures.get(_REGISTRATION_NEXT)
    failures = figures[_REGISTRATION_FAILURES]
    parts = ["never registered" if taken is None else f"registered {max(now - taken, 0):.0f} s ago"]
    if failures:
        parts.append(f"{failures:.0f} failed since")
    if following is not None:
        parts.append(f"next in {max(following - now, 0):.0f} s")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    days, rest = divmod(max(int(seconds), 0), _DAY_S)
    hours, rest = divmod(rest, _HOUR_S)
    return f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min"
