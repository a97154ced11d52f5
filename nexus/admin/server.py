"""The admin endpoint: plain HTTP on loopback or a Unix socket, read-only, and never able to harm the node.

The HTTP/1.1 of ``websockets`` does the work, as at the hub; no WebSocket is ever accepted here. Each connection
carries one request and is closed; heads, time and number of connections are bounded. Whatever a page raises becomes a
500 and a log line. No page knows a secret: they see only what the composition root passes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from websockets.asyncio.server import Server, ServerConnection, serve, unix_serve
from websockets.exceptions import InvalidMessage
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from nexus.admin.address import AdminAddress, TcpAddress, UnixAddress, is_loopback, parse_address
from nexus.admin.metrics import render
from nexus.errors import ConfigError, Problem

HEAD_MAX_BYTES = 16 * 1024
"""Largest request head: twice the usual limit of servers for one line; Prometheus sends about 500 bytes."""

REQUEST_TIMEOUT_S = 10.0
"""Seconds from accept to the end of the answer, the limit Prometheus sets itself for a scrape by default."""

CONNECTIONS_MAX = 32
"""Connections open at once; more are closed unanswered. A scraper, a health check and a few ``nexus top`` need 5."""

BACKLOG = 64
"""Connections the kernel may queue: twice those served at once."""

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_METRICS_PATH = "/metrics"
_ALLOWED_METHODS = ("GET", "HEAD")

_logger = logging.getLogger("nexus.admin")
_http_logger = logging.getLogger("nexus.admin.http")
_http_logger.setLevel(logging.WARNING)  # the library logs every request at INFO


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node should be given traffic; ``reasons`` say why not, in words for operators.

    ``notes`` are what an operator should know besides: of a node that is ready, too.
    """

    ready: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    status: http.HTTPStatus
    content_type: str
    body: bytes


_Handler = Callable[[Request], Page]


class AdminServer:
    """Serves ``/healthz``, ``/readyz``, ``/metrics`` and an index at ``/`` while its context is open.

    ``readiness`` and the collectors of ``registry`` are called in the event loop's thread, once per request.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        readiness: Callable[[], Readiness],
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take what the pages show; nothing is called before the first request.

        ``refresh`` is awaited before the metrics are read, where they are not all in this process.
        """
        self._refresh = refresh
        self._registry = registry
        self._readiness = readiness
        self._connections: set[_Connection] = set()
        self._pages: Mapping[str, _Handler] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            _METRICS_PATH: self._metrics,
        }

    @contextlib.asynccontextmanager
    async def serve(self, address: str | AdminAddress, *, allow_remote: bool = False) -> AsyncIterator[AdminAddress]:
        """Listen at ``address`` for the time of the context; give the address with the port that port 0 became.

        A Unix socket gets mode 0600; a socket file left by a dead process is replaced. Raises ConfigError when the
        address is not one, is reachable from other machines without ``allow_remote``, or cannot be bound.
        """
        where = parse_address(address) if isinstance(address, str) else address
        if not allow_remote and not is_loopback(where):
            raise _problem(where, "is not a loopback address", "use 127.0.0.1, [::1] or unix:/path")
        with _bound(where) as listener:
            async with self._serve(listener):
                bound = TcpAddress(where.host, listener.getsockname()[1]) if isinstance(where, TcpAddress) else where
                _logger.info("admin endpoint at %s", bound)
                yield bound

    @contextlib.asynccontextmanager
    async def _serve(self, listener: socket.socket) -> AsyncIterator[Server]:
        start: Callable[..., Server] = unix_serve if listener.family == socket.AF_UNIX else serve
        async with start(
            _refuse_websocket,
            sock=listener,
            backlog=BACKLOG,
            process_request=self._answer,
            server_header=None,
            compression=None,
            open_timeout=REQUEST_TIMEOUT_S,
            close_timeout=REQUEST_TIMEOUT_S,
            logger=_http_logger,
            create_connection=functools.partial(_Connection, self._connections),
        ) as server:
            try:
                yield server
            finally:
                for connection in tuple(self._connections):
                    connection.transport.abort()

    async def _answer(self, connection: ServerConnection, request: Request) -> Response:
        try:
            if self._refresh is not None and request.path.startswith(_METRICS_PATH):
                await self._refresh()
            page = self._page(request)
        except Exception:  # a page that fails costs one answer, never the endpoint
            _logger.exception("the page %s failed", request.path)
            page = _text(http.HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; the node's log has the reason\n")
        response = connection.respond(page.status, "")
        del response.headers["Content-Type"], response.headers["Content-Length"]
        response.headers.update(
            {
                "Content-Type": page.content_type,
                "Content-Length": str(len(page.body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            }
        )
        if page.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(_ALLOWED_METHODS)
        response.body = b"" if request.method == "HEAD" else page.body
        return response

    def _page(self, request: Request) -> Page:
        handler = self._pages.get(request.path.partition("?")[0])
        if handler is None:
            return _text(http.HTTPStatus.NOT_FOUND, "no such page; / lists them\n")
        if request.method not in _ALLOWED_METHODS:
            return _text(http.HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n")
        return handler(request)

    def _index(self, _request: Request) -> Page:
        return _text(
            http.HTTPStatus.OK, "Nexus Proxy admin endpoint\n\n" + "".join(f"{path}\n" for path in self._pages)
        )

    def _healthz(self, _request: Request) -> Page:
        return _text(http.HTTPStatus.OK, "ok\n")

    def _readyz(self, _request: Request) -> Page:
        readiness = self._readiness()
        status = http.HTTPStatus.OK if readiness.ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(dataclasses.asdict(readiness)) + "\n"
        return Page(status, _JSON, body.encode())

    def _metrics(self, request: Request) -> Page:
        body, content_type = render(self._registry, ", ".join(request.headers.get_all("Accept")))
        return Page(http.HTTPStatus.OK, content_type, body)


class _Connection(ServerConnection):
    """One connection: counted, its head bounded as a whole, and answered even when the request is malformed."""

    def __init__(self, peers: set[_Connection], protocol: ServerProtocol, server: Server, **limits: Any) -> None:
        super().__init__(protocol, server, **limits)
        self._peers = peers
        self._head_bytes = 0
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._peers) >= CONNECTIONS_MAX:
            self.transport.abort()
        else:
            self._peers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if self.request is None and self._head_bytes > HEAD_MAX_BYTES:
            self._answer_directly(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large\n")
            self.transport.close()
            return
        super().data_received(data)

    def send_data(self) -> None:
        # The library drops a request that it cannot parse, or that has a body, without a word.
        if self.request is None and isinstance(self.protocol.handshake_exc, InvalidMessage):
            self._answer_directly(http.HTTPStatus.BAD_REQUEST, "only GET and HEAD without a body\n")
        super().send_data()

    def _answer_directly(self, status: http.HTTPStatus, text: str) -> None:
        if not self._is_answered:
            self._is_answered = True
            self.transport.write(self.protocol.reject(status, text).serialize())


async def _refuse_websocket(_connection: ServerConnection) -> None:
    """Stand where the library wants a handler; never called, as every request is answered in plain HTTP."""


def _text(status: http.HTTPStatus, text: str) -> Page:
    return Page(status, _TEXT, text.encode())


@contextlib.contextmanager
def _bound(address: AdminAddress) -> Iterator[socket.socket]:
    """Give a bound socket; take a Unix socket's file away again in the end."""
    try:
        listener = _bind_tcp(address) if isinstance(address, TcpAddress) else _bind_unix(address)
    except OSError as error:
        raise _problem(address, f"cannot be bound: {error.strerror or error}", "choose another address") from error
    with listener:
        if isinstance(address, TcpAddress):
            yield listener
            return
        inode = os.stat(address.path).st_ino  # noqa: PTH116
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if Path(address.path).stat().st_ino == inode:  # not that of a node that took over meanwhile
                    Path(address.path).unlink()


def _bind_tcp(address: TcpAddress) -> socket.socket:
    family, kind, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_unix(address: UnixAddress) -> socket.socket:
    path = Path(address.path)
    _remove_stale(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address.path)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # nobody can have connected: that needs listen(), which comes later
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket file that nobody listens at; leave anything else for bind() to refuse."""
    path = Path(address.path)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            knock.connect(address.path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:  # for example a full backlog: somebody listens
            return


def _problem(address: AdminAddress, what: str, mend: str) -> ConfigError:
    return ConfigError(Problem(source="admin address", line=0, key=str(address), what=what, mend=mend))
