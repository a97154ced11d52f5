"""``nexus expose``: one hostname, or whole ports, one hub, no file."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text
from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from backend_client.backoff import PERSISTENT_REJECTIONS
from backend_client.client import BackendClient
from backend_client.config import Attestation, BackendConfig, ClientFile, PortMapping, UdpRoute
from backend_client.events import Event, EventKind, Stats
from backend_client.service import clients_of, run_clients
from cli import render
from cli.events import describe, log_event, summary
from cli.options import (
    EXIT_FAILURE,
    STDIN,
    LogFormat,
    LogLevel,
    SecretFile,
    parse_address,
    parse_port,
    parse_ports,
    shared_secret,
    split_list,
)
from nexus import logs
from nexus.hostnames import is_port_key, normalize_wildcard
from nexus.masking import mask_url
from nexus.protocol.constants import CONNECT_PATH

HTTPS_PORT: Final = 443  # RFC 9110 4.2.2
HTTP_PORT: Final = 80  # RFC 9110 4.2.1
_STATUS_INTERVAL_S: Final = 0.25
"""Time between two status lines: quick enough to look live, slow enough to cost nothing."""

_ROUTINE: Final = frozenset(
    {EventKind.STREAM_OPENED, EventKind.STREAM_CLOSED, EventKind.REAUTH_STARTED, EventKind.REAUTH_COMPLETED}
)
"""What a working session does all the time: no news for a terminal."""


def expose(  # noqa: PLR0913 — one option for each choice
    hostname: Annotated[
        str, typer.Argument(metavar="[HOST]", help="The hostname or wildcard to serve; none with claimed ports alone.")
    ] = "",
    *,
    hub: Annotated[str, typer.Option(metavar="URL", help="The hub: wss://hub.example.com:8443.")],
    to: Annotated[
        str, typer.Option(metavar="ADDR", help="The local TLS service of HOST: 8443, :8443 or 127.0.0.1:8443.")
    ] = "",
    secret_file: SecretFile = "",
    token_command: Annotated[
        str, typer.Option(metavar="CMD", help="Program, with its arguments, that prints a token; instead of a secret.")
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the roots the hub is checked against; else the system's."),
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="A public port of the node to serve; repeat it.", show_default=str(HTTPS_PORT)),
    ] = None,
    claim_tcp: Annotated[
        list[str] | None,
        typer.Option(metavar="PORT=ADDR", help="Claim a whole TCP port of the node for a local service; repeat it."),
    ] = None,
    claim_udp: Annotated[
        list[str] | None,
        typer.Option(metavar="PORT=ADDR", help="Claim a UDP port of the node for a local service; repeat it."),
    ] = None,
    http_to: Annotated[
        str, typer.Option(metavar="ADDR", help=f"A local HTTP service for the public port {HTTP_PORT}.")
    ] = "",
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Serve a hostname, or whole ports, from local services through a node, until Ctrl-C; needs no file.

    Gives up with exit code 1 when the hub refuses the token five times in a row.
    """
    tcp, udp = _claims(claim_tcp, "--claim-tcp"), _claims(claim_udp, "--claim-udp")
    names = (_checked_hostname(hostname),) if hostname or not (tcp or udp) else ()
    backend = BackendConfig(
        name=names[0] if names else "ports",
        hostnames=names,
        tcp_ports=tuple(tcp),
        udp_routes=tuple(UdpRoute(number) for number in udp),
        nexus_addresses=(hub_url(hub),),
        attestation=_attestation(secret_file, token_command),
        port_mappings=_merged(_port_mappings(to, port, http_to) if names else {}, tcp, udp),
        ca_file=str(ca_file or ""),
    )
    with _reporter(log_level, log_format) as reporter:
        run = _Run(ClientFile((backend,)), reporter)
        run_clients(run.start)
    if run.refused:
        render.fail(f"{mask_url(hub)}: gave up after {PERSISTENT_REJECTIONS} refusals: {run.refused}")
        raise typer.Exit(EXIT_FAILURE)


def hub_url(text: str) -> str:
    """Return a hub's WebSocket URL, its path added where there is none, or raise a usage error."""
    try:
        uri = parse_uri(text)
    except (InvalidURI, ValueError):
        raise typer.BadParameter(
            f"{mask_url(text)!r} is not a hub's URL; write wss://hub.example.com:8443", param_hint="--hub"
        ) from None
    return text if uri.path not in ("", "/") or uri.query else text.rstrip("/") + CONNECT_PATH


class _Reporter(Protocol):
    """Where events and figures are shown."""

    def event(self, event: Event) -> None: ...

    def figures(self, stats: Stats) -> None: ...


class _Lines:
    """Log lines, for a service manager or a file."""

    def event(self, event: Event) -> None:
        log_event(event)

    def figures(self, stats: Stats) -> None:
        del stats


class _StatusLine:
    """One line that is kept up to date, for a terminal; what happens is printed above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._trouble = ""

    def event(self, event: Event) -> None:
        if event.kind in _ROUTINE:
            return
        self._trouble = "" if event.kind is EventKind.CONNECTED else summary(event)
        self._live.console.print(Text(describe(event)), soft_wrap=True)

    def figures(self, stats: Stats) -> None:
        self._live.update(status_text(stats, self._trouble), refresh=True)


def status_text(stats: Stats, trouble: str) -> Text:
    """Return the status line: state, streams, bytes each way."""
    state = ("connected", "bold green") if stats.connected else (trouble or "connecting", "bold yellow")
    return Text.assemble(
        state,
        f"  streams {stats.streams} ({stats.streams_total} in all)",
        f"  in {render.size(stats.bytes_from_hub)}  out {render.size(stats.bytes_to_hub)}",
        no_wrap=True,
        overflow="ellipsis",
    )


class _Run:
    """The clients of one ``expose``: shows how they fare, and ends them when the hub keeps refusing."""

    def __init__(self, file: ClientFile, reporter: _Reporter) -> None:
        self.refused = ""
        self._file = file
        self._reporter = reporter
        self._refusals = 0
        self._clients: tuple[BackendClient, ...] = ()

    def start(self) -> Sequence[BackendClient]:
        """Make the clients, inside the event loop."""
        self._clients = clients_of(self._file, self._on_event)
        self._tick()
        return self._clients

    def _tick(self) -> None:
        for client in self._clients:
            self._reporter.figures(client.stats)
        asyncio.get_running_loop().call_later(_STATUS_INTERVAL_S, self._tick)

    def _on_event(self, event: Event) -> None:
        self._reporter.event(event)
        if event.kind is EventKind.CONNECTED:
            self._refusals = 0
        if event.kind is EventKind.REJECTED:
            self._refusals += 1
            if self._refusals >= PERSISTENT_REJECTIONS:
                self.refused = event.detail
                for client in self._clients:
                    client.stop()


@contextlib.contextmanager
def _reporter(log_level: LogLevel, log_format: LogFormat) -> Iterator[_Reporter]:
    """Give a status line on a terminal, else log lines; logs appear above the status line."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        logs.configure(log_level, log_format, sys.stderr)
        yield _Lines()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        # Inside, because Live puts a stream of its own in the place of stderr that prints above the line. What the
        # client does is told by the events.
        logs.configure("debug" if log_level == "debug" else "warning", log_format, sys.stderr)
        yield _StatusLine(live)


def _checked_hostname(text: str) -> str:
    name = normalize_wildcard(text)
    if not name or is_port_key(name):
        raise typer.BadParameter(f"{text!r} is not a hostname", param_hint="HOST")
    return name


def _attestation(secret_file: str, token_command: str) -> Attestation:
    if token_command:
        if secret_file:
            raise typer.BadParameter("is given together with --secret-file; keep one", param_hint="--token-command")
        try:
            command, *arguments = shlex.split(token_command)
        except ValueError as error:
            raise typer.BadParameter(f"cannot be read: {error}", param_hint="--token-command") from None
        return Attestation(command=command, args=tuple(arguments))
    secret = shared_secret(secret_file)  # also of a file, so that a wrong path is told at once
    is_file = secret_file not in ("", STDIN)
    return Attestation(hmac_secret=secret, hmac_secret_file=secret_file if is_file else "")


def _claims(items: list[str] | None, option: str) -> dict[int, str]:
    """Return the claimed ports with their targets."""
    claims: dict[int, str] = {}
    for item in split_list(items):
        port, equals, address = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r} is not PORT=ADDR, such as 25=127.0.0.1:2525", param_hint=option)
        if claims.setdefault(parse_port(port, option), target := parse_address(address, option)) != target:
            raise typer.BadParameter(f"the port {port} is claimed for two services", param_hint=option)
    return claims


def _merged(mappings: dict[int, PortMapping], *claims: dict[int, str]) -> dict[int, PortMapping]:
    """Add the targets of claimed ports; a port leads to one service, whoever asks."""
    for port, target in (pair for some in claims for pair in some.items()):
        if mappings.setdefault(port, PortMapping(target)).default != target:
            what = f"the port {port} leads to {mappings[port].default} already; different services need a client file"
            raise typer.BadParameter(what, param_hint="--claim-tcp, --claim-udp")
    return mappings


def _port_mappings(to: str, ports: list[str] | None, http_to: str) -> dict[int, PortMapping]:
    if not to:
        raise typer.BadParameter("a hostname needs the address of its local TLS service", param_hint="--to")
    target = PortMapping(parse_address(to, "--to"))
    mappings = dict.fromkeys(parse_ports(ports, "--port") or (HTTPS_PORT,), target)
    if http_to:
        mappings[HTTP_PORT] = PortMapping(parse_address(http_to, "--http-to"))
    return mappings
