"""What stalled tunnels cost the others: download throughput across the mesh alone, and beside stalled ones.

Two nodes as processes, nginx behind one, curl at the other. Beside the measured download stand clients that stop
reading in the middle of theirs, and uploads to a service that stops reading. Runs are interleaved; the ratio of medians
is the figure.

    uv run python -m bench.mesh_stall
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator

from tests.support.fleet import mesh_settings, reserved_ports
from tests.support.processes import Client, Nginx, Node, Pki, scratch_directory, wait_for
from tests.support.programs import require

HOST, STUCK = "app.example.com", "stuck.example.com"
BYTES = 256 * 1024 * 1024
RUNS = 5
STALLED = 8  # of either kind


def download_s(node: Node) -> float:
    """Return the seconds of one download through a node."""
    command = [
        require("curl"),
        "--silent",
        "--show-error",
        "--fail",
        "--output",
        "/dev/null",
        "--header",
        f"Host: {HOST}",
    ]
    started = time.perf_counter()
    subprocess.run([*command, f"http://127.0.0.1:{node.http_port}/large"], check=True, timeout=120)
    return time.perf_counter() - started


@contextlib.contextmanager
def stalled(node: Node) -> Iterator[None]:
    """Hold clients that read nothing more, and clients whose service reads nothing more."""
    with contextlib.ExitStack() as stack:
        for number in range(2 * STALLED):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", node.http_port)))
            if number % 2:
                sock.sendall(f"GET /large HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                sock.recv(1)
            else:
                sock.sendall(f"PUT / HTTP/1.1\r\nHost: {STUCK}\r\nContent-Length: {BYTES}\r\n\r\n".encode())
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock.send(bytes(65_536))
        wait_for(lambda: node.metric('nexus_mesh_tunnels{end="origin"}') >= 2 * STALLED, "all are stalled")
        yield


@contextlib.contextmanager
def silent_service() -> Iterator[int]:
    """Accept and read nothing; give the port."""
    held = []

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield int(server.getsockname()[1])
    for sock in held:
        sock.close()


def main() -> None:
    """Print every run, and the ratio."""
    with scratch_directory() as directory, contextlib.ExitStack() as stack:
        pki = Pki.create(directory)
        ports = stack.enter_context(reserved_ports(2))
        nodes = []
        for own, other in (ports, ports[::-1]):
            (directory / str(own)).mkdir()
            settings = mesh_settings(pki, f"node-{own}", own, [other])
            nodes.append(stack.enter_context(Node(directory / str(own), pki, **settings)))
        origin, destination = nodes
        (directory / "nginx").mkdir()
        nginx = Nginx(directory / "nginx", *pki.issue("app", HOST))
        (nginx.root / "large").write_bytes(bytes(BYTES))
        stack.enter_context(nginx)
        stuck = stack.enter_context(silent_service())
        stack.enter_context(Client(directory, destination, {origin.http_port: nginx.http_port}, HOST))
        stack.enter_context(Client(directory, destination, {origin.http_port: stuck}, STUCK))
        wait_for(lambda: origin.metric("nexus_mesh_routes") == 2, "the origin knows the routes")
        download_s(origin)
        alone, beside = [], []
        for _ in range(RUNS):
            alone.append(download_s(origin))
            with stalled(origin):
                beside.append(download_s(origin))
    mib = BYTES / 2**20
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}; {mib:.0f} MiB across the mesh, MiB/s in each run:")
    print(f"alone: {', '.join(f'{mib / seconds:.0f}' for seconds in alone)}")
    print(f"beside {STALLED} stalled clients and {STALLED} stalled services: ", end="")
    print(", ".join(f"{mib / seconds:.0f}" for seconds in beside))
    print(f"ratio of medians: {statistics.median(alone) / statistics.median(beside):.2f}")


if __name__ == "__main__":
    main()
