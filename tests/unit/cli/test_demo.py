"""``nexus demo``: what it prints and how it ends. The scene itself is in test_scene.py."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from cli import demo
from cli.scene import Report
from nexus.errors import ConfigError, Problem
from tests.support.command_line import GOOD_REPORT, nexus

Play = Callable[[Report], list[int]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Put a ready report in the place of the scene; the stop signal comes at once."""

    def runs(main: Callable[[], Coroutine[object, object, None]]) -> None:
        asyncio.run(main())

    def prepare(report: Report) -> list[int]:
        ports: list[int] = []

        @contextlib.asynccontextmanager
        async def ready(directory: Path, port: int) -> AsyncIterator[Report]:
            assert directory.name.startswith("nexus-demo-")
            ports.append(port)
            yield report

        monkeypatch.setattr(demo, "play", ready)
        return ports

    monkeypatch.setattr(demo, "run", runs)
    monkeypatch.setattr(demo, "on_stop_signal", lambda stop: stop())
    return prepare


def test_once_exits_with_0_when_all_went_well(play: Play) -> None:
    """The panel says whose certificate the client saw."""
    ports = play(GOOD_REPORT)
    outcome = nexus("demo", "--once", "--port", "4443")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "it is the backend's own" in outcome.stdout
    assert "eu tunnelled it to us" in outcome.stdout
    assert "refused with the alert unrecognized_name" in outcome.stdout
    assert "curl" not in outcome.stdout
    assert ports == [4443]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sees_backend": False}, "it is NOT the backend's"),
        ({"sees_node": True}, "it is the NODE's"),
        ({"tunnelled": False}, "it was NOT tunnelled"),
        ({"unknown_refused": False}, "NOT refused as expected"),
    ],
)
def test_flaw_is_said_and_exits_with_1(play: Play, change: dict[str, bool], says: str) -> None:
    """Nothing is glossed over."""
    play(dataclasses.replace(GOOD_REPORT, **change))  # type: ignore[arg-type]
    outcome = nexus("demo", "--once")
    assert outcome.code == 1
    assert says in outcome.stdout


def test_staying_up_prints_the_line_to_repeat_it(play: Play) -> None:
    """As the last line of stdout, whole."""
    play(GOOD_REPORT)
    outcome = nexus("demo")
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[-1] == demo.curl_line(GOOD_REPORT)
    assert "Ctrl-C" in outcome.stderr


def test_json_has_the_documented_keys(play: Play) -> None:
    """The line for curl is null when nothing stays up."""
    play(GOOD_REPORT)
    document = nexus("demo", "--once", "--json").document()
    fields = [spec.name for spec in dataclasses.fields(Report)]
    assert list(document) == ["schema", "ok", *fields, "curl"]
    assert document["curl"] is None
    assert document["certificate"] == {"subject": "CN=app.nexus.test", "issuer": "CN=demo CA", "sha256": "00ff"}
    assert nexus("demo", "--json").document()["curl"] == demo.curl_line(GOOD_REPORT)


def test_scene_that_cannot_start_is_an_error_of_one_line(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 for a port that is in use."""
    play(GOOD_REPORT)

    @contextlib.asynccontextmanager
    async def broken(_directory: Path, _port: int) -> AsyncIterator[Report]:
        raise ConfigError(Problem("listen", 0, "relayPorts", "cannot listen on 127.0.0.1:443"))
        yield GOOD_REPORT

    monkeypatch.setattr(demo, "play", broken)
    outcome = nexus("demo", "--port", "443")
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.stderr == "error: listen: relayPorts: cannot listen on 127.0.0.1:443\n"


def test_curl_line_avoids_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy could not reach loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    line = "--resolve app.nexus.test:3:127.0.0.1 --cacert /demo/ca.pem https://app.nexus.test:3/"
    assert demo.curl_line(GOOD_REPORT) == f"curl {line}"
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert demo.curl_line(GOOD_REPORT) == f"curl --noproxy '*' {line}"
