"""Ask a node's admin endpoint one question: for the CLI and for container health checks."""

from __future__ import annotations

import http.client
import socket
from typing import NamedTuple

from nexus.admin.address import AdminAddress, TcpAddress, parse_address

PROBE_TIMEOUT_S = 5.0
"""Seconds allowed for connecting and for each read: a node that is alive answers within milliseconds."""

BODY_MAX_BYTES = 8 * 1024 * 1024
"""Largest answer that is read: the metrics of a node take tens of kilobytes."""


class ProbeAnswer(NamedTuple):
    """HTTP status and body of an answer."""

    status: int
    body: str


def probe(address: str | AdminAddress, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> ProbeAnswer:
    """Return the answer to ``GET path`` at an admin address such as ``127.0.0.1:9180`` or ``unix:/run/admin.sock``.

    Raises ConfigError for text that is no admin address, and OSError when nothing answers: no listener
    (ConnectionRefusedError, FileNotFoundError), too slow (TimeoutError), or no whole answer in HTTP
    (ConnectionError).
    """
    where = parse_address(address) if isinstance(address, str) else address
    connection = _connection(where, timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(BODY_MAX_BYTES + 1)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{where}: did not answer in HTTP: {error}") from error
    finally:
        connection.close()
    if len(body) > BODY_MAX_BYTES or response.length:  # length: what the head promised and never came
        raise ConnectionError(f"{where}: did not answer completely, or with more than {BODY_MAX_BYTES} bytes")
    return ProbeAnswer(response.status, body.decode(errors="replace"))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; only the connecting differs."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


def _connection(address: AdminAddress, timeout_s: float) -> http.client.HTTPConnection:
    if isinstance(address, TcpAddress):
        return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    return _UnixConnection(address.path, timeout_s)
