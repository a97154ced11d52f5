"""``nexus lab``: put up the two-region mesh of ``lab/docker-compose.yml``, look at it, tour it, take it down."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli import render
from cli.compose import Compose, LabError, Service, find_lab
from cli.options import EPILOG, EXIT_FAILURE, Json
from cli.tour import Step, is_as_shown, parse_tour

app = typer.Typer(
    help="A living mesh of two regions in containers: nodes, backends, DNS and a certificate authority.",
    no_args_is_help=True,
    epilog=EPILOG,
)

NODES: Final = ("node-us", "node-eu")
_LOOK_S: Final = 1.0
_SAID_LINES: Final = 4
_STEP_TIMEOUT_S: Final = 300.0
_COLOURS: Final = {"healthy": "green", "done": "green", "running": "green", "starting": "yellow", "created": "dim"}

LabFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="The lab's compose file; default: that of the checkout around you."),
]


@app.command(epilog=EPILOG)
def up(
    file: LabFile = None,
    build: Annotated[bool, typer.Option(help="Build the images anew, from this checkout.")] = True,
    timeout: Annotated[int, typer.Option(min=1, metavar="SECONDS", help="Longest time until all is healthy.")] = 300,
) -> None:
    """Build and start the lab, and wait until all of it is healthy."""
    compose = _compose(file)
    options = ["--detach", "--wait", "--wait-timeout", str(timeout), *(["--build"] if build else [])]
    _follow(compose, "up", *options)
    services = compose.services()
    if not all(service.is_well for service in services):
        raise LabError("not all of the lab is well; see `nexus lab status` and `docker compose logs`")
    render.show(_table(services, _nodes(compose)))
    render.say("Next: nexus lab tour")


@app.command(epilog=EPILOG)
def down(file: LabFile = None) -> None:
    """Take the lab down with everything it kept: containers, networks, certificates."""
    compose = _compose(file)
    _follow(compose, "down", "--volumes", "--remove-orphans", "--timeout", "5")
    render.say("The lab is gone.")


@app.command(epilog=EPILOG)
def status(
    file: LabFile = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show the lab's services and what its nodes do; exit code 1 unless all are well."""
    compose = _compose(file)
    if watch and not as_json:
        with Live(_view(compose), console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                time.sleep(_LOOK_S)
                live.update(_view(compose), refresh=True)
    services, nodes = compose.services(), _nodes(compose)
    if as_json:
        listed = [service.as_object() for service in services]
        render.document({"services": listed, "nodes": nodes})
    elif services:
        render.show(_table(services, nodes))
    else:
        render.say("The lab is not up; start it with: nexus lab up")
    if not services or not all(service.is_well for service in services):
        raise typer.Exit(EXIT_FAILURE)


@app.command(epilog=EPILOG)
def tour(
    file: LabFile = None,
    only: Annotated[
        list[int] | None, typer.Option("--step", min=1, metavar="N", help="Only this step; repeatable.")
    ] = None,
    go_on: Annotated[bool, typer.Option("--yes", "-y", help="Do not wait for Enter between steps.")] = False,
) -> None:
    """Walk through lab/README.md: show each step, run it, and compare what it prints; exit code 1 if one differs."""
    compose = _compose(file)
    steps = read_tour(compose)
    if unknown := sorted(set(only or ()) - {step.number for step in steps}):
        raise typer.BadParameter(
            f"there is no step {unknown[0]}; the last one is {steps[-1].number}", param_hint="--step"
        )
    chosen = [step for step in steps if not only or step.number in only]
    waits = not go_on and sys.stdin.isatty()
    differing = [step.number for step in chosen if not _walk(compose, step, waits=waits and step is not chosen[0])]
    if differing:
        render.fail(f"what came is not what the tour shows in step {', '.join(map(str, differing))}")
        raise typer.Exit(EXIT_FAILURE)


def read_tour(compose: Compose) -> tuple[Step, ...]:
    """Return the steps of the tour beside the compose file.

    Raises:
        LabError: there is none.
    """
    readme = compose.file.parent / "README.md"
    try:
        steps = parse_tour(readme.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{readme}: {error}") from None
    if not steps:
        raise LabError(f"{readme}: has no numbered step")
    return steps


def run_step(compose: Compose, step: Step) -> str:
    """Return what a step prints, its complaints included; it may take 5 minutes.

    Raises:
        LabError: it takes longer.
    """
    try:
        return subprocess.run(
            ["sh", "-c", step.command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            cwd=compose.checkout,
            env=compose.environment,
            timeout=_STEP_TIMEOUT_S,
        ).stdout
    except subprocess.TimeoutExpired:
        raise LabError(f"step {step.number} is not over after {_STEP_TIMEOUT_S:g} s") from None


def _compose(file: Path | None) -> Compose:
    compose = Compose(find_lab(file, Path.cwd()))
    compose.check()
    return compose


def _walk(compose: Compose, step: Step, *, waits: bool) -> bool:
    """Show a step, run it, show what it printed; return whether that is what the README shows."""
    if waits:
        render.say("Enter goes on, Ctrl-C ends the tour.")
        sys.stdin.readline()
    render.show(Group(Text(f"\n{step.number}. {step.title}", style="bold"), Markdown(step.text)))
    render.show(Text(step.command.rstrip(), style="cyan"))
    printed = run_step(compose, step)
    good = is_as_shown(step, printed)
    mark = Text("✓", style="green") if good else Text("✗ the tour shows:\n" + step.expected.rstrip(), style="red")
    render.show(Panel(Text(printed.rstrip()), expand=False))
    render.show(mark)
    return good


def _follow(compose: Compose, verb: str, *options: str) -> None:
    """Run a command of Compose; show on a terminal what becomes of the lab meanwhile, elsewhere what it says."""
    profiles = ["--profile", "*"] if verb == "down" else []  # extras may be up, too
    command = compose.command("--progress", "plain", *profiles, verb, *options)
    console = Console(stderr=True, highlight=False)
    said: deque[str] = deque(maxlen=_SAID_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        if console.is_terminal:
            _watch(compose, running, said, console)
        else:
            for line in running.stdout or ():
                render.say(line.rstrip())
    if running.returncode != 0:
        raise LabError("\n".join([*said, f"docker compose {verb}: exit code {running.returncode}"]))


def _watch(compose: Compose, running: subprocess.Popen[str], said: deque[str], console: Console) -> None:
    """Show the services, and the last lines of a command that runs."""
    reader = threading.Thread(target=partial(_read_lines, running, said), daemon=True)
    reader.start()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while running.poll() is None:
            live.update(Group(_table(compose.services(), {}), Text("\n".join(said), style="dim")), refresh=True)
            time.sleep(_LOOK_S)
    reader.join()


def _read_lines(running: subprocess.Popen[str], said: deque[str]) -> None:
    said.extend(line.rstrip() for line in running.stdout or ())


def _nodes(compose: Compose) -> dict[str, Any]:
    """Return what each node says of itself (``nexus status --json``); null where it does not answer."""
    found = {node: compose.ask("exec", "-T", node, "nexus", "status", "--json") for node in NODES}
    return {node: json.loads(text) if text else None for node, text in found.items()}


def _view(compose: Compose) -> RenderableType:
    return _table(compose.services(), _nodes(compose))


def _table(services: tuple[Service, ...], nodes: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for column in ("service", "is", "backends", "routes", "peers", "streams", "relayed"):
        table.add_column(column, justify="left" if column in {"service", "is"} else "right")
    for service in services:
        node = nodes.get(service.name) or {}
        figures = [str(node.get(key, "")) for key in ("sessions", "routes", "links", "streams")]
        relayed = render.size(node["relayedBytes"]) if "relayedBytes" in node else ""
        style = _COLOURS.get(service.summary, "red")
        table.add_row(service.name, Text(service.summary, style=style), *figures, relayed)
    return table
