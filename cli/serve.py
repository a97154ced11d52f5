"""``nexus serve``: run a node in the foreground."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from cli import render
from cli.checks import check_node
from cli.options import LogFormatName, LogLevelName
from nexus import logs
from nexus.app import NodeAddresses
from nexus.mesh.peers_file import PeersFile
from nexus.supervisor import serve as serve_node

_log = logging.getLogger("nexus.node")


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The node's configuration file.")],
    check: Annotated[bool, typer.Option("--check", help="Only check the file, as config check does.")] = False,
    log_level: Annotated[
        LogLevelName | None,
        typer.Option("--log-level", envvar="NEXUS_LOG_LEVEL", help="Replaces logLevel of the file."),
    ] = None,
    log_format: Annotated[
        LogFormatName | None,
        typer.Option("--log-format", envvar="NEXUS_LOG_FORMAT", help="Replaces logFormat of the file."),
    ] = None,
) -> None:
    """Run a node until SIGINT or SIGTERM; SIGHUP looks at certificate, keys and peers at once. Logs go to stderr."""
    checked = check_node(config)
    for warning in checked.warnings:
        render.warn(warning)
    if check:
        render.data(f"{config}: ok")
        return
    served = dataclasses.replace(
        checked.config,
        log_level=log_level or checked.config.log_level,
        log_format=log_format or checked.config.log_format,
    )
    logs.configure(served.log_level, cast('Literal["text", "json"]', served.log_format), sys.stderr)
    serve_node(served, _log_addresses, PeersFile(config, lambda: check_node(config).config.peers))


def _log_addresses(addresses: NodeAddresses) -> None:
    relay, admin = ", ".join(addresses.relay), addresses.admin or "off"
    stun = f", STUN at {', '.join(addresses.stun)}" if addresses.stun else ""
    nodes = f", nodes at {addresses.peer}" if addresses.peer else ""
    _log.info("ready: backends at %s, clients at %s%s%s, admin %s", addresses.hub, relay, nodes, stun, admin)
