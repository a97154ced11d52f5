"""``nexus expose``: options into a backend, events into a status, refusals into an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.live import Live

from backend_client.client import BackendClient
from backend_client.config import Attestation, BackendConfig, ClientFile, PortMapping
from backend_client.events import Event, EventKind, Stats
from cli import expose
from tests.support.command_line import logging_restored, nexus

SECRET = "a-secret-of-the-test-with-32-bytes"
HUB = "wss://hub.example.com:8443/connect"
ENVIRONMENT = {"NEXUS_BACKENDS_JWT_SECRET": SECRET}
STATS = Stats(
    connected=True,
    streams=2,
    streams_total=7,
    dial_failures=0,
    bytes_from_hub=1536,
    bytes_to_hub=10,
    sessions_total=1,
    failures=0,
    connected_for_s=5.0,
    last_error="",
)


@dataclass
class Exposed:
    """The backends that were run."""

    backends: list[BackendConfig] = field(default_factory=list)


@pytest.fixture
def exposed(monkeypatch: pytest.MonkeyPatch) -> Exposed:
    """Catch each run before it dials."""
    caught = Exposed()

    def clients_of(file: ClientFile, _on_event: object) -> tuple[BackendClient, ...]:
        caught.backends += file.backends
        return ()

    def run_clients(make: Callable[[], Sequence[BackendClient]]) -> None:
        async def main() -> None:
            make()

        asyncio.run(main())

    monkeypatch.setattr(expose, "clients_of", clients_of)
    monkeypatch.setattr(expose, "run_clients", run_clients)
    return caught


def test_one_line_makes_a_backend(exposed: Exposed, tmp_path: Path) -> None:
    """Without any file of settings."""
    outcome = nexus(
        *("expose", "App.Example.com", "--to", ":8443", "--hub", "wss://hub.example.com:8443"),
        *("--http-to", "8080", "--port", "443,8444", "--ca-file", str(tmp_path / "ca.pem")),
        env=ENVIRONMENT,
    )
    assert (outcome.code, outcome.stdout) == (0, "")
    (backend,) = exposed.backends
    assert backend.name == "app.example.com"
    assert backend.hostnames == ("app.example.com",)
    assert backend.nexus_addresses == (HUB,)
    assert backend.attestation.hmac_secret == SECRET
    assert backend.ca_file == str(tmp_path / "ca.pem")
    assert backend.port_mappings == {
        443: PortMapping("127.0.0.1:8443"),
        8444: PortMapping("127.0.0.1:8443"),
        80: PortMapping("127.0.0.1:8080"),
    }


def test_ports_are_claimed_with_and_without_a_hostname(exposed: Exposed) -> None:
    """Each leads to its own service; one port over both transports to the same one."""
    claims = ("--claim-tcp", "25=2525,53=10.0.0.1:53", "--claim-udp", "53=10.0.0.1:53", "--hub", HUB)
    nexus("expose", *claims, env=ENVIRONMENT)
    nexus("expose", "a.example.com", "--to", "8443", *claims, env=ENVIRONMENT)
    alone, both = exposed.backends
    assert (alone.name, alone.hostnames, both.hostnames) == ("ports", (), ("a.example.com",))
    for backend in exposed.backends:
        assert (backend.tcp_ports, [route.port for route in backend.udp_routes]) == ((25, 53), [53])
    ports = {25: PortMapping("127.0.0.1:2525"), 53: PortMapping("10.0.0.1:53")}
    assert alone.port_mappings == ports
    assert both.port_mappings == {443: PortMapping("127.0.0.1:8443"), **ports}


def test_https_port_is_the_default(exposed: Exposed) -> None:
    """Port 80 is served only with an address of its own."""
    nexus("expose", "*.example.com", "--to", "8443", "--hub", HUB, env=ENVIRONMENT)
    assert list(exposed.backends[0].port_mappings) == [443]


def test_secret_file_is_read_again_for_every_token(exposed: Exposed, tmp_path: Path) -> None:
    """So that a rotated secret works without a restart."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    nexus("expose", "a.example.com", "--to", "8443", "--hub", HUB, "--secret-file", str(file))
    assert exposed.backends[0].attestation.hmac_secret_file == str(file)


def test_secret_may_come_from_stdin(exposed: Exposed) -> None:
    """It is kept in memory then."""
    nexus("expose", "a.example.com", "--to", "8443", "--hub", HUB, "--secret-file", "-", stdin=SECRET)
    assert exposed.backends[0].attestation == Attestation(hmac_secret=SECRET)


def test_token_command_is_split_like_a_shell_does(exposed: Exposed) -> None:
    """No shell runs it."""
    nexus("expose", "a.example.com", "--to", "8443", "--hub", HUB, "--token-command", "mint --name 'a b'")
    assert exposed.backends[0].attestation == Attestation(command="mint", args=("--name", "a b"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("a.example.com", "--to", "8443", "--hub", HUB), 2),
        (("a.example.com", "--to", "8443", "--hub", HUB, "--secret-file", "/nonexistent"), 3),
        (("a.example.com", "--to", "8443", "--hub", HUB, "--secret-file", "x", "--token-command", "y"), 2),
        (("a.example.com", "--to", "8443", "--hub", HUB, "--token-command", "'open"), 2),
        (("a.example.com", "--to", "8443", "--hub", HUB, "--token-command", " "), 2),
        (("a.example.com", "--to", "x", "--hub", HUB), 2),
        (("a.example.com", "--to", "8443", "--hub", "https://hub.example.com"), 2),
        (("a.example.com", "--to", "8443", "--hub", HUB, "--port", "0"), 2),
        (("tcp:22", "--to", "8443", "--hub", HUB), 2),
        ((" ", "--to", "8443", "--hub", HUB), 2),
        (("--hub", HUB), 2),
        (("a.example.com", "--hub", HUB), 2),
        (("--claim-tcp", "25", "--hub", HUB), 2),
        (("--claim-tcp", "0=25", "--hub", HUB), 2),
        (("--claim-udp", "53=x", "--hub", HUB), 2),
        (("--claim-udp", "53=1,53=2", "--hub", HUB), 2),
        (("--claim-udp", "53=1", "--claim-tcp", "53=2", "--hub", HUB), 2),
        (("a.example.com", "--to", "8443", "--claim-tcp", "443=1", "--hub", HUB), 2),
    ],
)
def test_mistakes_are_told_before_anything_is_dialled(exposed: Exposed, arguments: tuple[str, ...], code: int) -> None:
    """Usage 2, an unreadable file 3."""
    outcome = nexus("expose", *arguments)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert exposed.backends == []


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("wss://hub.example.com", "wss://hub.example.com/connect"),
        ("wss://hub.example.com:8443/", HUB),
        (HUB, HUB),
        ("wss://h/other", "wss://h/other"),
        ("wss://h/?a=1", "wss://h/?a=1"),
        ("ws://[::1]:80", "ws://[::1]:80/connect"),
    ],
)
def test_hub_gets_its_path(written: str, url: str) -> None:
    """Where there is none."""
    assert expose.hub_url(written) == url


@pytest.mark.parametrize("written", ["", "hub.example.com", "wss://", "wss://h:99999", "wss://h#x", "wss://[::1"])
def test_odd_hubs_are_usage_errors(written: str) -> None:
    """Not stack traces, and no password is repeated."""
    with pytest.raises(typer.BadParameter):
        expose.hub_url(written)
    with pytest.raises(typer.BadParameter) as caught:
        expose.hub_url(f"u:hunter2@{written}")
    assert "hunter2" not in caught.value.message


@dataclass
class FakeClient:
    """Stands for a client that can be stopped."""

    stopped: bool = False
    stats: Stats = STATS

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True


@dataclass
class Recorder:
    """Keeps what it is told."""

    events: list[Event] = field(default_factory=list)
    shown: list[Stats] = field(default_factory=list)

    def event(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def figures(self, stats: Stats) -> None:
        """Keep figures."""
        self.shown.append(stats)


def _run(monkeypatch: pytest.MonkeyPatch) -> tuple[expose._Run, FakeClient, Recorder]:
    client, recorder = FakeClient(), Recorder()
    monkeypatch.setattr(expose, "clients_of", lambda _file, _on_event: (client,))
    return expose._Run(ClientFile(()), recorder), client, recorder


async def test_five_refusals_in_a_row_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not four, and not five with a session in between."""
    run, client, recorder = _run(monkeypatch)
    run.start()
    refusal = Event(EventKind.REJECTED, HUB, "invalid token", 5)
    for event in [refusal] * 4 + [Event(EventKind.CONNECTED, HUB)] + [refusal] * 4:
        run._on_event(event)
    assert not client.stopped
    run._on_event(refusal)
    assert client.stopped
    assert run.refused == "invalid token"
    assert len(recorder.events) == 10


async def test_figures_are_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then again and again, by the loop's clock."""
    run, _, recorder = _run(monkeypatch)
    run.start()
    assert recorder.shown == [STATS]


def test_refused_backend_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's reason, without the secret."""
    handlers: list[Callable[[Event], None]] = []

    def clients_of(_file: ClientFile, on_event: Callable[[Event], None]) -> tuple[BackendClient, ...]:
        handlers.append(on_event)
        return ()

    def run_clients(make: Callable[[], Sequence[BackendClient]]) -> None:
        async def main() -> None:
            make()
            for _ in range(5):
                handlers[0](Event(EventKind.REJECTED, HUB, "invalid token: no", 5))

        asyncio.run(main())

    monkeypatch.setattr(expose, "clients_of", clients_of)
    monkeypatch.setattr(expose, "run_clients", run_clients)
    outcome = nexus("expose", "a.example.com", "--to", "8443", "--hub", HUB, env=ENVIRONMENT)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "gave up after 5 refusals: invalid token: no" in outcome.stderr
    assert SECRET not in outcome.stderr


def test_status_line_shows_state_streams_and_bytes() -> None:
    """Trouble takes the place of the state."""
    assert expose.status_text(STATS, "").plain == "connected  streams 2 (7 in all)  in 1.5 KiB  out 10 B"
    offline = Stats(**{name: getattr(STATS, name) for name in STATS.__slots__} | {"connected": False})
    assert expose.status_text(offline, "").plain.startswith("connecting ")
    assert expose.status_text(offline, "cannot connect: no").plain.startswith("cannot connect: no ")


def test_terminal_gets_a_status_line_with_events_above_it() -> None:
    """Streams are counted in the line, not told one by one."""
    console = Console(force_terminal=True, width=100, record=True, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        line = expose._StatusLine(live)
        line.event(Event(EventKind.FAILED, HUB, "connection refused", 2))
        line.figures(Stats(**{name: getattr(STATS, name) for name in STATS.__slots__} | {"connected": False}))
        line.event(Event(EventKind.CONNECTED, HUB))
        line.event(Event(EventKind.STREAM_OPENED, HUB))
        line.figures(STATS)
    shown = console.export_text()
    assert "cannot connect: connection refused; next attempt in 2.0 s" in shown
    assert "cannot connect  streams 2 (7 in all)" in shown
    assert "connected  streams 2 (7 in all)" in shown
    assert "stream opened" not in shown


def test_reporter_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A status line on a terminal, log lines elsewhere."""
    with logging_restored(), expose._reporter("info", "text") as reporter:
        assert isinstance(reporter, expose._Lines)
        reporter.event(Event(EventKind.STREAM_OPENED, HUB))
        reporter.figures(STATS)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with logging_restored(), expose._reporter("info", "text") as reporter:
        assert isinstance(reporter, expose._StatusLine)
