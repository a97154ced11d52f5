"""nexus.admin.probe: one question, one answer, one kind of error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexus.admin.address import TcpAddress
from nexus.admin.probe import probe
from nexus.errors import ConfigError

Answering = Callable[[bytes], str]


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def answering(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Answering]:
    """Give a function that prepares one raw answer and returns the address it will be given at."""
    families = {"tcp": (socket.AF_INET, "127.0.0.1"), "tcp6": (socket.AF_INET6, "::1")}
    path = str(tmp_path / "s")
    if request.param == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        address = f"unix:{path}"
    else:
        family, host = families[request.param]
        try:
            listener = socket.create_server((host, 0), family=family)
        except OSError:  # pragma: no cover
            pytest.skip("no IPv6 here")
        address = str(TcpAddress(host, listener.getsockname()[1]))
    threads = []

    def answer(raw: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            connection.sendall(raw.replace(b"REQUEST", head.partition(b"\r\n")[0]))

    def prepare(raw: bytes) -> str:
        threads.append(threading.Thread(target=answer, args=[raw]))
        threads[-1].start()
        return address

    yield prepare
    for thread in threads:
        thread.join()
    listener.close()


def test_the_answer_is_status_and_body(answering: Answering) -> None:
    """Over TCP and over a Unix socket."""
    body = "GET /readyz?x=1 HTTP/1.1 no"
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\n\r\n"
    assert probe(answering(f"{head}REQUEST no".encode()), "/readyz?x=1") == (503, body)


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"])
def test_what_is_not_http_is_an_oserror(raw: bytes, answering: Answering) -> None:
    """Callers catch one kind of error."""
    with pytest.raises(ConnectionError, match="did not answer"):
        probe(answering(raw), "/healthz")


def test_an_answer_without_end_is_cut_off(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listens at that address cannot fill the memory of a health check."""
    monkeypatch.setattr("nexus.admin.probe.BODY_MAX_BYTES", 4)
    with pytest.raises(ConnectionError, match="more than 4 bytes"):
        probe(answering(b"HTTP/1.1 200 OK\r\n\r\n12345"), "/healthz")


def test_nobody_listening_is_an_oserror(tmp_path: Path) -> None:
    """Refused or missing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        probe(TcpAddress("127.0.0.1", port), "/")
    with pytest.raises(FileNotFoundError):
        probe(f"unix:{tmp_path}/absent", "/")


def test_a_silent_listener_is_a_timeout() -> None:
    """A node whose loop hangs still accepts, by the kernel."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError):
        probe(TcpAddress("127.0.0.1", listener.getsockname()[1]), "/", timeout_s=0.01)


def test_an_address_that_is_none_is_a_configuration_error() -> None:
    """With the forms that are."""
    with pytest.raises(ConfigError):
        probe("admin", "/")
