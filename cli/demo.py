"""``nexus demo``: two nodes that mesh, a TLS web backend and its client on loopback, and real HTTPS through them."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli import render
from cli.options import EXIT_FAILURE, Json, LogLevel
from cli.scene import Report, play
from nexus import logs
from nexus.eventloop import on_stop_signal, run


def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit when it is done: 0 if all went well, else 1.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Public port of the node that is asked; 0 takes a free one.")
    ] = 0,
    log_level: LogLevel = "warning",
    as_json: Json = False,
) -> None:
    """Run two nodes, a TLS web backend and its client on loopback, send HTTPS through them, and show what happened.

    The backend is connected to one node, the request comes to the other. Everything is on loopback and in a temporary
    directory, which is removed in the end. Stays up for curl until Ctrl-C.
    """
    logs.configure(log_level, "text", sys.stderr)
    reports: list[Report] = []

    async def main() -> None:
        stop = asyncio.Event()
        on_stop_signal(stop.set)
        with tempfile.TemporaryDirectory(prefix="nexus-demo-") as directory:
            async with play(Path(directory), port) as report:
                reports.append(report)
                _show(report, as_json=as_json, stays=not once)
                if not once:
                    await stop.wait()

    run(main)
    if not all(report.ok for report in reports):
        raise typer.Exit(EXIT_FAILURE)


def curl_line(report: Report) -> str:
    """Return the command that repeats the request."""
    where = f"{report.hostname}:{report.port}"
    direct = " --noproxy '*'" if urllib.request.getproxies() else ""
    return f"curl{direct} --resolve {where}:127.0.0.1 --cacert {report.ca_file} https://{where}/"


def _show(report: Report, *, as_json: bool, stays: bool) -> None:
    curl = curl_line(report) if stays else None
    if as_json:
        render.document({**report.as_object(), "curl": curl})
    else:
        render.show(Panel(_table(report), title="Nexus Proxy demo", expand=False))
    if curl is None:
        return
    if not as_json:
        render.data(curl)
    render.say("Repeat it with the line above, as often as you like. Ctrl-C ends the demo and removes its files.")
    sys.stdout.flush()


def _table(report: Report) -> Table:
    seen = report.certificate
    table = Table(box=None, show_header=False, pad_edge=False, collapse_padding=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = (
        ("node us", f"has the backend, at {report.hub}; clients come to 127.0.0.1:{report.direct_port}"),
        ("node eu", f"has none, and a link to us; clients come to 127.0.0.1:{report.port}"),
        ("backend", f"serves {report.hostname} at {report.backend}, where the TLS ends"),
        ("request", f"GET https://{report.hostname}:{report.port}/ at eu answered {report.status}"),
        ("", _verdict(report.tunnelled, "eu tunnelled it to us", "it was NOT tunnelled")),
        ("time", f"{report.ms:.1f} ms through eu and us, {report.direct_ms:.1f} ms through us alone"),
        ("certificate", f"{seen.subject}, issued by {seen.issuer}, over {report.tls_version}"),
        ("SHA-256", seen.sha256),
        ("", _verdict(report.sees_backend, "it is the backend's own", "it is NOT the backend's")),
        ("", _verdict(not report.sees_node, "the node's is another one, shown to backends only", "it is the NODE's")),
        ("bytes", f"{report.bytes_to_backend} to the backend, {report.bytes_to_client} back, all of them TLS"),
        ("other name", f"{report.unknown_hostname}: {report.unknown_outcome}"),
        ("", _verdict(report.unknown_refused, "refused with the alert unrecognized_name", "NOT refused as expected")),
    )
    for name, value in rows:
        table.add_row(name, value)
    return table


def _verdict(good: bool, yes: str, no: str) -> Text:
    return Text(f"✓ {yes}", style="green") if good else Text(f"✗ {no}", style="bold red")
