"""What ``nexus demo`` puts up and asks: two nodes that mesh, a web backend behind one of them, and three requests.

The requests are those of a client: one at the node that has the backend, one at the other node, which tunnels it, and
one for a name that nobody serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509

from backend_client.client import BackendClient
from backend_client.config import load_client_file
from backend_client.service import clients_of
from cli.initialize import SECRET_BYTES
from cli.templates import ClientFileText, MeshText, NodeFile, client_text, node_text
from nexus.app import Node, NodeAddresses
from nexus.config.load import load_node_config
from nexus.document.addresses import split_host_port
from nexus.files import write_private, write_public
from nexus.protocol.constants import CONNECT_PATH, MESH_PATH
from nexus.tls.localca import PemPair, create_ca, issue

_T = TypeVar("_T")

HOSTNAME: Final = "app.nexus.test"  # RFC 6761 6.2: .test is never a real name
REGIONS: Final = ("us", "eu")  # the backend is connected to the first, the client to the second
NODES_SUFFIX: Final = ".nodes.nexus.test"
UNKNOWN_HOSTNAME: Final = "unknown.nexus.test"
LOOPBACK: Final = "127.0.0.1"
_LIFETIME_DAYS: Final = 30  # longer than any demo, and than the node's notice of expiry
_STEP_TIMEOUT_S: Final = 15.0
"""Longest wait for one step; on loopback each takes milliseconds."""

_POLL_S: Final = 0.01
_HEAD_MAX_BYTES: Final = 16 * 1024
_ANSWER_MAX_BYTES: Final = 1024 * 1024
_UNRECOGNIZED_NAME: Final = "UNRECOGNIZED_NAME"  # in OpenSSL's name for the alert of RFC 6066 section 3


@dataclass(frozen=True, slots=True)
class SeenCertificate:
    """A certificate as a client sees it; ``sha256`` is the fingerprint of its DER form."""

    subject: str
    issuer: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    """What happened, for people and for JSON."""

    hub: str
    backend: str
    hostname: str
    port: int
    direct_port: int
    ca_file: str
    status: int
    ms: float
    direct_ms: float
    tunnelled: bool
    tls_version: str
    certificate: SeenCertificate
    sees_backend: bool
    sees_node: bool
    bytes_to_backend: int
    bytes_to_client: int
    unknown_hostname: str
    unknown_outcome: str
    unknown_refused: bool

    @property
    def ok(self) -> bool:
        """Whether everything went as it should."""
        is_answered = self.status == 200 and self.bytes_to_backend > 0 and self.bytes_to_client > 0
        sees_right = self.sees_backend and not self.sees_node
        return is_answered and self.tunnelled and sees_right and self.unknown_refused

    def as_object(self) -> dict[str, object]:
        """Return the report for JSON."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    tls_version: str
    certificate: bytes
    ms: float


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a demo, in its own directory."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def pair(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def make(self) -> None:
        """Write a CA, the certificates of the nodes and the backend, and the secret."""
        now = time.time()
        ca = create_ca("Nexus Proxy demo CA", now)
        write_public(self.ca, ca.cert_pem)
        for region in REGIONS:
            names = (f"{region}{NODES_SUFFIX}", LOOPBACK, "localhost")
            self._write_pair(region, issue(ca, names, now, _LIFETIME_DAYS))
        self._write_pair("app", issue(ca, (HOSTNAME,), now, _LIFETIME_DAYS))
        write_private(self.directory / "secret", secrets.token_hex(SECRET_BYTES).encode())

    def _write_pair(self, name: str, pair: PemPair) -> None:
        cert, key = self.pair(name)
        write_public(cert, pair.cert_pem)
        write_private(key, pair.key_pem)


@contextlib.asynccontextmanager
async def play(directory: Path, port: int) -> AsyncIterator[Report]:
    """Put everything up, send the requests, give the report, and take it all down on leaving.

    Raises:
        ConfigError: ``port`` cannot be listened on.
        TimeoutError: a step came to nothing.
    """
    files = _Files(directory)
    files.make()
    try:
        async with asyncio.TaskGroup() as tasks, _backend(files) as backend, contextlib.AsyncExitStack() as stack:
            us = await _start_node(tasks, stack, files, REGIONS[0], 0)
            eu = await _start_node(tasks, stack, files, REGIONS[1], port, us)
            client = _make_client(files, us.addresses, eu.addresses, backend)
            running = tasks.create_task(client.run())
            try:
                await _within(client.wait_connected(), "the backend client did not get a session")
                await _within(_knows(eu.node), "the other node did not hear of the backend")
                yield await _ask(files, us, eu, backend, client)
            finally:
                client.stop()
                await asyncio.wait([running])
    except BaseExceptionGroup as group:
        raise _leaf(group) from None


@dataclass(frozen=True, slots=True)
class _Running:
    node: Node
    addresses: NodeAddresses

    @property
    def port(self) -> int:
        return _port_of(self.addresses.relay[0])


async def _start_node(
    tasks: asyncio.TaskGroup,
    stack: contextlib.AsyncExitStack,
    files: _Files,
    region: str,
    port: int,
    peer: _Running | None = None,
) -> _Running:
    """Start the node of a region, which dials the ``peer`` that is there already; ``stack`` stops it."""
    cert, key = files.pair(region)
    path = files.directory / f"{region}.yaml"
    peers = () if peer is None else (f"wss://{peer.addresses.peer}{MESH_PATH}",)
    text = node_text(
        NodeFile(
            path=path,
            hub_address=f"{LOOPBACK}:0",
            relay_ports=(port,),
            secret_file=files.directory / "secret",
            cert_file=str(cert),
            key_file=str(key),
            bind_addresses=(LOOPBACK,),
            admin_address=f"{LOOPBACK}:0",
            mesh=MeshText(f"{LOOPBACK}:0", NODES_SUFFIX, str(files.ca), peers),
        )
    )
    write_private(path, text.encode())
    node = Node(load_node_config(path, environ={}).config)
    ready: asyncio.Future[NodeAddresses] = asyncio.get_running_loop().create_future()
    tasks.create_task(node.run(ready.set_result))
    stack.callback(node.stop)
    return _Running(node, await _within(ready, "the node did not start"))


async def _knows(node: Node) -> None:
    """Wait until a node has heard of the backend."""
    while HOSTNAME not in node.mesh.routes:  # noqa: ASYNC110 — nothing else waits for it; ``_within`` bounds it
        await asyncio.sleep(_POLL_S)


def _make_client(files: _Files, own: NodeAddresses, other: NodeAddresses, backend: str) -> BackendClient:
    path = files.directory / "client.yaml"
    text = client_text(
        ClientFileText(
            path=path,
            hub_url=f"wss://{own.hub}{CONNECT_PATH}",
            hostname=HOSTNAME,
            secret_file=files.directory / "secret",
            targets={_port_of(addresses.relay[0]): backend for addresses in (own, other)},
            ca_file=str(files.ca),
        )
    )
    write_private(path, text.encode())
    (client,) = clients_of(load_client_file(path).file, None)
    return client


async def _ask(files: _Files, us: _Running, eu: _Running, backend: str, client: BackendClient) -> Report:
    """Send the requests and compare what the client saw with the files."""
    direct = await _within(_get(files.ca, us.port, HOSTNAME), "the backend did not answer")
    before = client.stats
    answer = await _within(_get(files.ca, eu.port, HOSTNAME), "the backend did not answer through the other node")
    after = client.stats
    outcome, refused = await _within(_get_refused(files.ca, eu.port), "the unknown name got no answer")
    return Report(
        hub=us.addresses.hub,
        backend=backend,
        hostname=HOSTNAME,
        port=eu.port,
        direct_port=us.port,
        ca_file=str(files.ca),
        status=answer.status,
        ms=answer.ms,
        direct_ms=direct.ms,
        tunnelled=eu.node.mesh.origin.opened == 1 and us.node.mesh.destination.served == 1,
        tls_version=answer.tls_version,
        certificate=_describe(answer.certificate),
        sees_backend=answer.certificate == _leaf_of(files.pair("app")[0]),
        sees_node=answer.certificate in {_leaf_of(files.pair(region)[0]) for region in REGIONS},
        bytes_to_backend=after.bytes_from_hub - before.bytes_from_hub,
        bytes_to_client=after.bytes_to_hub - before.bytes_to_hub,
        unknown_hostname=UNKNOWN_HOSTNAME,
        unknown_outcome=outcome,
        unknown_refused=refused,
    )


async def _get(ca_file: Path, port: int, hostname: str) -> _Answer:
    """Make one HTTPS request as any public client does: verified against the CA, name and all."""
    context = ssl.create_default_context(cafile=ca_file)
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context, server_hostname=hostname)
    try:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        request = f"GET / HTTP/1.1\r\nHost: {hostname}:{port}\r\nUser-Agent: nexus-demo\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        answer = await _read_answer(reader)
        ms = (time.perf_counter() - started) * 1000
        return _Answer(
            status=int(answer.split(b" ", 2)[1]),
            tls_version=connection.version() or "",
            certificate=connection.getpeercert(binary_form=True) or b"",
            ms=ms,
        )
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while len(answer) < _ANSWER_MAX_BYTES and (chunk := await reader.read(_ANSWER_MAX_BYTES)):
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 "):
        raise ConnectionError("the backend did not answer in HTTP")
    return bytes(answer)


async def _get_refused(ca_file: Path, port: int) -> tuple[str, bool]:
    """Ask for a name that nobody serves; return what came back, and whether it is the alert that says so."""
    try:
        await _get(ca_file, port, UNKNOWN_HOSTNAME)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        return f"TLS: {reason}", _UNRECOGNIZED_NAME in reason
    except OSError as error:
        return str(error) or type(error).__name__, False
    return "answered", False


@contextlib.asynccontextmanager
async def _backend(files: _Files) -> AsyncIterator[str]:
    """Serve the page over TLS; give the address."""
    cert, key = files.pair("app")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(_serve_page, LOOPBACK, 0, ssl=context, limit=_HEAD_MAX_BYTES)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _serve_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request with what the backend saw of it."""
    try:
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        writer.write(_page(head, writer))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the client went away, or sent no request
    finally:
        writer.close()


def _page(head: str, writer: asyncio.StreamWriter) -> bytes:
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    cipher = connection.cipher()
    body = (
        "Hello from behind the node.\n"
        f"Your TLS ends here: {connection.version()}, {cipher[0] if cipher else 'no cipher'}.\n"
        "The node relayed these bytes and could not read them.\n\n"
        f"{head.rstrip()}\n"
    ).encode()
    start = (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return start.encode() + body


async def _within(step: Awaitable[_T], otherwise: str) -> _T:
    try:
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            return await step
    except TimeoutError:
        raise TimeoutError(f"{otherwise} within {_STEP_TIMEOUT_S:g} s") from None


def _describe(der: bytes) -> SeenCertificate:
    certificate = x509.load_der_x509_certificate(der)
    return SeenCertificate(
        certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string(), hashlib.sha256(der).hexdigest()
    )


def _leaf_of(pem_file: Path) -> bytes:
    """Return the DER form of the first certificate in a file."""
    return ssl.PEM_cert_to_DER_cert(
        pem_file.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----"
    )


def _port_of(address: str) -> int:
    return int(split_host_port(address)[1])


def _leaf(error: BaseException) -> BaseException:
    """Return the first error of a group that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
