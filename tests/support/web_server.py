"""An HTTPS server of a test: it records what it is asked, and answers as told, also in ways no server should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import WebContext
from tests.support.processes import Pki


@dataclass(frozen=True)
class Asked:
    """One request, and the names in the certificate that the client showed."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    client_names: tuple[str, ...]


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: bytes, **headers: str) -> bytes:
    """Return an answer as it goes over the wire."""
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(head).encode() + body


def reply(status: int, body: bytes, **headers: str) -> Answer:
    """Answer every request alike."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        del asked
        writer.write(http(status, body, **headers))

    return answer


def reply_json(document: object, **headers: str) -> Answer:
    """Answer with 200 and a JSON document."""
    return reply(200, json.dumps(document).encode(), **headers)


async def silence(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    del asked, writer
    await asyncio.get_running_loop().create_future()


@dataclass
class WebServer:
    """A running server; set ``answer`` to change what it does."""

    port: int
    answer: Answer
    asked: list[Asked] = field(default_factory=list)
    open_requests: int = 0
    most_requests: int = 0

    def url(self, path: str = "/verify", scheme: str = "https") -> str:
        """Return a URL of it."""
        return f"{scheme}://localhost:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection with one request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, path, _ = first.split(" ")
            asked = Asked(method, path, headers, body, _names(writer))
            self.asked.append(asked)
            self.open_requests += 1
            self.most_requests = max(self.most_requests, self.open_requests)
            try:
                await self.answer(asked, writer)
                await writer.drain()
            finally:
                self.open_requests -= 1
        writer.transport.abort() if writer.is_closing() else writer.close()


def _names(writer: asyncio.StreamWriter) -> tuple[str, ...]:
    tls = writer.get_extra_info("ssl_object")
    shown = tls.getpeercert() if tls is not None else None
    return tuple(value for kind, value in (shown or {}).get("subjectAltName", ()) if kind == "DNS")


@contextlib.asynccontextmanager
async def web_server(pki: Pki, answer: Answer, *, tls: bool = True) -> AsyncIterator[WebServer]:
    """Run a server on loopback that asks its clients for a certificate, and takes those without one too."""
    context = None
    if tls:
        cert_file, key_file = pki.issue("web", "localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        context.load_verify_locations(pki.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
    running = WebServer(0, answer)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio's server logs a handler that was cancelled
                await running.serve(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):  # closed before the event loop may be
                await writer.wait_closed()
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, limit=2**20)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        if connections:
            await asyncio.wait(tuple(connections))
        await server.wait_closed()


def web_context(pki: Pki, *, trusted: bool = True) -> WebContext:
    """Return the context of a node whose hub has a certificate for hub.example.com."""
    certificate = read_certificate(CertificateFiles(*pki.issue("node", "hub.example.com")))
    return WebContext(lambda: certificate, pki.ca_file if trusted else None)
