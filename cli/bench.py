"""``nexus bench``: how much a node relays from here, measured from both of its sides."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.table import Table
from rich.text import Text

from backend_client.api import connect
from backend_client.tokens import HmacTokenProvider
from cli import render
from cli.bench_run import MIB, Bench, Place, Result
from cli.expose import HTTPS_PORT, hub_url
from cli.options import EXIT_FAILURE, Json, LogLevel, SecretFile, parse_address, shared_secret
from nexus import logs
from nexus.auth.mint import TokenSpec
from nexus.document.addresses import split_host_port
from nexus.errors import NexusError
from nexus.eventloop import run
from nexus.hostnames import normalize_wildcard
from nexus.tls.contexts import hub_client_context

_CONNECT_TIMEOUT_S: Final = 20.0
_AT_ONCE: Final = 16


def bench(  # noqa: PLR0913 — one option for each choice
    hostname: Annotated[
        str, typer.Argument(metavar="HOST", help="A name for the test alone, that nobody else serves.")
    ],
    *,
    hub: Annotated[str, typer.Option(metavar="URL", help="The node's hub: wss://hub.example.com:8443.")],
    secret_file: SecretFile = "",
    node: Annotated[
        str,
        typer.Option(metavar="ADDR", help="A public port of a node, host:port; default: port 443 of the hub's host."),
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the roots the hub is checked against; else the system's."),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Bulk streams at once.")] = 16,
    size: Annotated[int, typer.Option(min=1, metavar="MIB", help="MiB of each transfer, over all its streams.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="Length of the other measurements.")] = 3.0,
    log_level: LogLevel = "warning",
    as_json: Json = False,
) -> None:
    """Measure what goes through a node: bulk in both directions, round trips, new connections.

    Connects to the hub as the backend of HOST, and to the public port as its client, so both ends are here: what is
    measured passes your uplink twice. Name the node of another region with --node to measure the mesh. Exit code 1 if a
    stream did not complete.
    """
    logs.configure(log_level, "text", sys.stderr)
    url = hub_url(hub)
    place = _place(node, url, hostname)
    tokens = HmacTokenProvider(shared_secret(secret_file), TokenSpec(subject="bench"))
    results: list[Result] = []

    async def main() -> None:
        context = hub_client_context(ca_file) if url.startswith("wss:") else None
        measured = Bench(place)
        async with connect(
            url, [place.name], tokens=tokens, handler=measured.handle, name="bench", context=context
        ) as client:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await client.wait_connected()
            async for result in _measure(measured, streams, size * MIB, seconds):
                results.append(result)
                if not as_json:
                    render.say(f"{result.name}: done")

    try:
        run(main)
    except* TimeoutError:
        raise NexusError(f"{hub}: no session within {_CONNECT_TIMEOUT_S:g} s; see why with --log-level info") from None
    _show(results, place, as_json=as_json)
    if any(result.failed for result in results):
        raise typer.Exit(EXIT_FAILURE)


def _place(node: str, url: str, hostname: str) -> Place:
    name = normalize_wildcard(hostname)
    if not name or name.startswith("*"):
        raise typer.BadParameter(f"{hostname!r} is not a hostname; write bench.example.com", param_hint="HOST")
    if not node:
        return Place(urlsplit(url).hostname or "", HTTPS_PORT, name)
    host, port = split_host_port(parse_address(node, "--node"))
    return Place(host, int(port), name)


async def _measure(measured: Bench, streams: int, size: int, seconds: float) -> AsyncIterator[Result]:
    for upload in (False, True):
        for count in dict.fromkeys((1, streams)):
            yield await measured.bulk(upload=upload, streams=count, size=size // count)
    yield await measured.round_trips(seconds)
    for count in (1, _AT_ONCE):
        yield await measured.connections(count, seconds)


def _show(results: list[Result], place: Place, *, as_json: bool) -> None:
    if as_json:
        listed = [result.as_object() for result in results]
        render.document({"node": f"{place.host}:{place.port}", "hostname": place.name, "results": listed})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("measurement", "figures", "failed"):
        table.add_column(column)
    for result in results:
        figures = ", ".join(f"{value:,.1f} {key}" for key, value in result.figures.items())
        failed = Text(f"{result.failed}: {'; '.join(result.reasons)}", style="red") if result.failed else Text("none")
        table.add_row(result.name, figures, failed)
    render.show(table)
