"""nexus.supervisor: several processes that are one node, as an operator sees them. All are real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.admin.probe import probe
from tests.support.processes import NEXUS, STOP_TIMEOUT_S, Client, Node, Pki, Process, scratch_directory, wait_for

HOST = "app.example.com"
REQUEST = b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
WORKERS = 3


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the test's own, with a short path."""
    with scratch_directory() as path:
        yield path


def workers_of(process: Process) -> list[int]:
    """Return the processes that a node has started."""
    return [
        int(pid) for pid in Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
    ]


@contextlib.contextmanager
def greeter() -> Iterator[int]:
    """Serve connections that get one line each, in a thread; give the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"hello\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(STOP_TIMEOUT_S)


def greeted(node: Node) -> bool:
    """Be a client; tell whether it was served."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", node.http_port), timeout=5) as client:
        client.sendall(REQUEST)
        return client.recv(100) == b"hello\n"
    return False


def test_every_worker_serves_and_one_view_shows_all(directory: Path) -> None:
    """60 clients on a socket that the kernel spreads over three processes; one backend, then one in each."""
    pki = Pki.create(directory)
    with greeter() as service, Node(directory, pki, workers=WORKERS) as node:
        assert len(workers_of(node)) == WORKERS
        with Client(directory, node, {node.http_port: service}, HOST, sessions=1):
            assert all(greeted(node) for _ in range(60))
            assert node.metric("nexus_workers") == WORKERS
            assert node.metric("nexus_streams_opened_total") == 60
            assert node.metric(f'nexus_client_connections_total{{port="{node.http_port}"}}') == 60
        wait_for(lambda: node.metric("nexus_sessions") == 0, "the backend is gone")
        with Client(directory, node, {node.http_port: service}, HOST, sessions=WORKERS):
            wait_for(lambda: node.metric("nexus_sessions") == WORKERS, "a session with each worker")
            assert all(greeted(node) for _ in range(30))
        joined = [line for line in node.output().splitlines() if ": session of" in line and "ended" not in line]
        by_worker = Counter(line.split("nexus.hub[")[1][0] for line in joined[-WORKERS:])
        assert by_worker == {"0": 1, "1": 1, "2": 1}
        assert node.stop() == 0
        assert "Traceback" not in node.output()


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_dies_is_replaced(directory: Path, index: int) -> None:
    """Nobody is turned away for longer than its start takes, and its clients' connections wait for the next one."""
    pki = Pki.create(directory)
    with greeter() as service, Node(directory, pki, workers=2) as node:
        with Client(directory, node, {node.http_port: service}, HOST, sessions=2):
            wait_for(lambda: node.metric("nexus_sessions") == 2, "a session with each worker")
            victim = workers_of(node)[index]
            os.kill(victim, signal.SIGKILL)
            wait_for(
                lambda: "was ended by a signal (Killed); another one takes its place" in node.output(), "it is said"
            )
            wait_for(lambda: len(workers_of(node)) == 2 and victim not in workers_of(node), "another one is there")
            wait_for(node.is_ready, "the node is ready again")
            wait_for(lambda: node.metric("nexus_sessions") == 2, "the backend is back")
            assert all(greeted(node) for _ in range(20))
        assert node.stop() == 0


def test_a_worker_that_hangs_is_replaced(directory: Path) -> None:
    """One that does not move for half a minute never will."""
    pki = Pki.create(directory)
    impatient = "from nexus import supervisor; supervisor.HUNG_AFTER_S = 2.0; from cli.main import main; main()"
    with Node(directory, pki, workers=2) as first:  # writes the file
        first.stop()
        with Process([*NEXUS[:-1], impatient, "serve", "-c", str(first.file)], directory / "node.log") as node:
            wait_for(lambda: answers(first.admin), "the node is ready")
            victim = workers_of(node)[1]
            os.kill(victim, signal.SIGSTOP)
            wait_for(lambda: "worker 1 has not moved for 2 s: killed" in node.output(), "it is noticed")
            wait_for(lambda: len(workers_of(node)) == 2 and victim not in workers_of(node), "another one is there")
            assert node.stop() == 0


def test_workers_that_lost_each_other_are_brought_together_again(directory: Path) -> None:
    """One that was stopped for longer than its siblings wait, and goes on."""
    pki = Pki.create(directory)
    impatient = (
        "from nexus.mesh import peer; peer.PING_INTERVAL_S, peer.DEAD_AFTER_S = 0.1, 0.5; "
        "from cli.main import main; main()"
    )
    with greeter() as service, Node(directory, pki, workers=2) as first:
        first.stop()
        with Process([*NEXUS[:-1], impatient, "serve", "-c", str(first.file)], directory / "node.log") as node:
            wait_for(lambda: answers(first.admin), "the node is ready")
            paused = workers_of(node)[1]
            os.kill(paused, signal.SIGSTOP)
            wait_for(lambda: not answers(first.admin), "the first worker misses the other")
            os.kill(paused, signal.SIGCONT)
            wait_for(lambda: answers(first.admin), "the node is ready again")
            with Client(directory, first, {first.http_port: service}, HOST):
                assert all(greeted(first) for _ in range(20))
            assert paused in workers_of(node)
            assert node.stop() == 0


def answers(admin: str) -> bool:
    """Tell whether a node is ready, whoever started it."""
    with contextlib.suppress(OSError):
        return probe(admin, "/readyz").status == 200
    return False


def test_workers_end_with_their_supervisor(directory: Path) -> None:
    """Nothing is left that holds the ports."""
    pki = Pki.create(directory)
    with Node(directory, pki, workers=2) as node:
        workers = workers_of(node)
        node.kill()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers have ended")
        node.restart()
        assert node.stop() == 0


def test_a_mistake_is_told_once(directory: Path) -> None:
    """A port that is taken, also by a node that shares its ports among its own workers; a certificate that is none."""
    pki = Pki.create(directory)
    with Node(directory, pki, workers=2) as node:
        again = subprocess.run(
            [*NEXUS, "serve", "-c", str(node.file)], capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=False
        )
        assert again.returncode == 3
        assert again.stderr.count("Address already in use") == 1
        node.stop()
        (pki.directory / "hub.key").write_text("no key")
        broken = subprocess.run(
            [*NEXUS, "serve", "-c", str(node.file)], capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=False
        )
        assert broken.returncode == 3
        assert broken.stderr.count("hub.key") == 1
        assert "Traceback" not in again.stderr + broken.stderr


def test_a_hangup_reaches_every_worker(directory: Path) -> None:
    """Each looks at the certificate: every handshake shows the new one."""
    pki = Pki.create(directory)
    with Node(directory, pki, workers=WORKERS) as node:
        cert_file, _ = pki.issue("hub", "localhost", "127.0.0.1")
        new = ssl.PEM_cert_to_DER_cert(
            cert_file.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----"
        )
        node.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: all(shown(node, pki) == new for _ in range(20)), "all show the new certificate", timeout_s=8)
        assert node.popen.poll() is None
        assert len(workers_of(node)) == WORKERS


def shown(node: Node, pki: Pki) -> bytes | None:
    """Return the certificate that the hub shows."""
    context = ssl.create_default_context(cafile=str(pki.ca_file))
    with (
        socket.create_connection(("127.0.0.1", node.hub_port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert(binary_form=True)


def test_the_service_manager_hears_of_the_node_as_a_whole(directory: Path) -> None:
    """Ready once all serve, alive while they do, stopping at the end; workers say nothing to it themselves."""
    pki = Pki.create(directory)
    address = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, pytest.MonkeyPatch.context() as patch:
        manager.bind(str(address))
        manager.settimeout(STOP_TIMEOUT_S)
        patch.setenv("NOTIFY_SOCKET", str(address))
        patch.setenv("WATCHDOG_USEC", "2000000")
        heard: list[str] = []

        def hear(what: str) -> str:
            while not heard or what not in heard[-1]:
                heard.append(manager.recv(4096).decode())
            return heard[-1]

        with Node(directory, pki, workers=2) as node:
            assert "0 backends, 0 streams, 0 peers" in hear("READY=1")
            hear("WATCHDOG=1")
            node.popen.send_signal(signal.SIGHUP)
            hear("RELOADING=1")
            hear("READY=1")
            assert node.stop() == 0
            hear("STOPPING=1")
        assert sum("READY=1" in line for line in heard) == 2
