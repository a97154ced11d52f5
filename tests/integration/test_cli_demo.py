"""The command line as real processes: the demo, and the way from ``nexus init`` to curl."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.processes import Process, is_listening, wait_for
from tests.support.programs import require

TIMEOUT_S = 60


def _program() -> list[str]:
    """Return the installed ``nexus`` beside this Python, or the entry point it calls."""
    installed = shutil.which("nexus", path=str(Path(sys.executable).parent))
    return [installed] if installed else [sys.executable, "-c", "from cli.main import main; main()"]


NEXUS = _program()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NEXUS, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False
    )


def test_demo_once_shows_what_happened() -> None:
    """Exit code 0, and nothing to read on stderr."""
    done = _run("demo", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "it is the backend's own" in done.stdout
    assert "refused with the alert unrecognized_name" in done.stdout


def test_demo_once_reports_in_json() -> None:
    """The client saw the backend's certificate, and bytes went both ways."""
    done = _run("demo", "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["schema"] == 1
    assert report["ok"] is True
    assert report["status"] == 200
    assert report["tunnelled"] is True
    assert report["sees_backend"] is True
    assert report["sees_node"] is False
    assert report["bytes_to_backend"] > 0
    assert report["bytes_to_client"] > 0
    assert not Path(report["ca_file"]).exists()


@pytest.mark.programs
def test_demo_stays_up_for_the_line_it_prints(tmp_path: Path) -> None:
    """The line works as it is printed, until Ctrl-C, which leaves nothing behind."""
    require("curl")
    with Process([*NEXUS, "demo"], tmp_path / "demo.log") as demo:
        wait_for(lambda: "Ctrl-C" in demo.output(), "the demo is up")
        line = next(text for text in demo.output().splitlines() if text.startswith("curl "))
        arguments = shlex.split(line)
        answer = subprocess.run([*arguments, "-sS"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert "Hello from behind the node." in answer.stdout
        assert "GET / HTTP/1.1" in answer.stdout
        ca_file = Path(arguments[arguments.index("--cacert") + 1])
        assert ca_file.is_file()
        assert demo.stop(signal.SIGINT) == 0
        assert not ca_file.parent.exists()


def test_demo_on_a_port_in_use_fails_plainly() -> None:
    """Exit code 3 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _run("demo", "--once", "--port", str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "relayPorts" in done.stderr


@pytest.mark.programs
def test_from_nothing_to_a_running_node(tmp_path: Path) -> None:
    """``init --dev``, ``serve``, ``client run``, a TLS service, curl: each as printed, with ports of the test's own."""
    curl, openssl = require("curl"), require("openssl")
    hub_port, tls_port, http_port, target_port = free_ports(4)
    made = _run(
        *("init", str(tmp_path / "n"), "--dev", "--hub-port", str(hub_port), "--to", str(target_port)),
        *("--relay-port", str(tls_port), "--relay-port", str(http_port), "--json"),
    )
    assert made.returncode == 0
    check, serve, client, service, request = (shlex.split(line) for line in json.loads(made.stdout)["next"])
    assert _run(*check[1:]).returncode == 0
    with (
        Process([openssl, *service[1:]], tmp_path / "service.log"),
        Process([*NEXUS, *serve[1:]], tmp_path / "node.log") as node,
        Process([*NEXUS, *client[1:]], tmp_path / "client.log") as backend,
    ):
        wait_for(lambda: is_listening(target_port), "the service listens")
        wait_for(lambda: "ready: " in node.output(), "the node is ready")
        wait_for(lambda: ": connected" in backend.output(), "the client is connected")
        command = [curl, "-sS", "--noproxy", "*", *request[1:]]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert "s_server" in answer.stdout
        assert backend.stop(signal.SIGTERM) == 0
        assert node.stop(signal.SIGTERM) == 0
    secret = (tmp_path / "n" / "secret").read_text().strip()
    assert secret not in node.output() + backend.output()


@pytest.mark.programs
def test_expose_serves_without_any_file_of_settings(tmp_path: Path) -> None:
    """One line in the place of ``client run``; plain log lines, because stderr is no terminal."""
    curl, openssl = require("curl"), require("openssl")
    hub_port, tls_port, http_port, target_port = free_ports(4)
    directory = tmp_path / "n"
    ports = ("--hub-port", str(hub_port), "--relay-port", str(tls_port), "--relay-port", str(http_port))
    assert _run("init", str(directory), "--dev", *ports).returncode == 0
    certs = directory / "certs"
    service = ["s_server", "-quiet", "-www", "-accept", f"127.0.0.1:{target_port}"]
    pair = ["-cert", str(certs / "app.pem"), "-key", str(certs / "app.key")]
    expose = [
        *("expose", "app.localhost", "--to", f":{target_port}", "--hub", f"wss://localhost:{hub_port}"),
        *("--secret-file", str(directory / "secret"), "--ca-file", str(certs / "ca.pem"), "--port", str(tls_port)),
    ]
    with (
        Process([openssl, *service, *pair], tmp_path / "service.log"),
        Process([*NEXUS, "serve", "-c", str(directory / "server.yaml")], tmp_path / "node.log"),
        Process([*NEXUS, *expose], tmp_path / "expose.log") as exposing,
    ):
        wait_for(lambda: is_listening(target_port), "the service listens")
        wait_for(lambda: ": connected" in exposing.output(), "the hub has the session")
        where = f"app.localhost:{tls_port}"
        request = ["--resolve", f"{where}:127.0.0.1", "--cacert", str(certs / "ca.pem"), f"https://{where}/"]
        command = [curl, "-sS", "--noproxy", "*", *request]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert "s_server" in answer.stdout
        assert exposing.stop(signal.SIGINT) == 0
