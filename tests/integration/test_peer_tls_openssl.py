"""The listener for nodes as OpenSSL's own client sees it: what it asks for, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from nexus.sockets import accept
from nexus.tls.links import accept_tls
from nexus.tls.peer_contexts import accepting_context, peer_refusal
from nexus.tls.pyopenssl_context import PeerServerContext
from tests.support.peer_certificates import CLIENT, Authority, store
from tests.support.programs import require

pytestmark = pytest.mark.programs
WAIT_S = 20.0


class Client:
    """``openssl s_client`` against the listener; what it prints is in ``output``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.output = ""

    async def until(self, text: str) -> None:
        """Read until ``text`` was printed."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while text not in self.output:
                chunk = await self._process.stdout.read(4096)
                assert chunk, f"it ended without {text!r}: {self.output}"
                self.output += chunk.decode(errors="replace")

    async def end(self) -> str:
        """Read all that is left."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            self.output += (await self._process.stdout.read()).decode(errors="replace")
        return self.output

    def type(self, text: str) -> None:
        """Type a line; a lone letter may be a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())


class Echo(asyncio.Protocol):
    """Answers nodes in upper case, so that it differs from what was typed; hangs up on others."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if peer_refusal(transport):
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Listener:
    """Echoes what nodes send."""

    def __init__(self, directory: Path, make: Callable[..., ssl.SSLContext]) -> None:
        self._directory = directory
        root = Authority.root()
        self.ca_file = root.save(directory / "ca.pem")
        self.context = make(store(directory, "hub", root.issue()), self.ca_file)
        store(directory, "peer", root.issue(usages=(CLIENT,)))
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]

    async def serve(self) -> None:
        """Accept until cancelled."""
        while True:
            connection, _ = await accept(self.sock)
            with contextlib.suppress(OSError):
                await accept_tls(Echo(), connection, self.context, WAIT_S)

    @contextlib.asynccontextmanager
    async def client(self, *options: str, certificate: bool = True) -> AsyncIterator[Client]:
        """Connect ``openssl s_client``."""
        shown = ["-cert", "peer.pem", "-key", "peer.key"] if certificate else []
        process = await asyncio.create_subprocess_exec(
            require("openssl"),
            *("s_client", "-connect", f"127.0.0.1:{self.port}", "-servername", "a.mesh.test", "-CAfile", "ca.pem"),
            *(*shown, *options),
            cwd=self._directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield Client(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture(params=[accepting_context, PeerServerContext], ids=["ssl", "pyOpenSSL"])
async def listener(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Listener]:
    """A listener on loopback."""
    found = Listener(tmp_path, request.param)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(found.serve())
        yield found
        serving.cancel()
    found.sock.close()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_it_asks_for_a_certificate_without_naming_authorities(listener: Listener, version: str) -> None:
    """Nodes of the original show none where a list of names lacks their issuer's."""
    async with listener.client(version, "-alpn", "h2,http/1.1") as client:
        client.type("hello there\n")
        await client.until("HELLO THERE")
        assert "No client certificate CA names sent" in client.output
        assert "Verify return code: 0 (ok)" in client.output
        assert "ALPN protocol: http/1.1" in client.output
        assert "Secure Renegotiation IS" in client.output


async def test_a_key_update_is_answered(listener: Listener) -> None:
    """And what follows is read with the new keys, in both directions."""
    async with listener.client("-tls1_3", "-msg") as client:
        client.type("hello there\n")
        await client.until("HELLO THERE")
        client.type("K\n")
        await client.until("KEYUPDATE")
        client.type("hello again\n")
        await client.until("HELLO AGAIN")
        await client.until("<<< TLS 1.3, Handshake [length 0005], KeyUpdate")


async def test_renegotiation_is_refused(listener: Listener) -> None:
    """A certificate that was verified stays the one of the connection."""
    async with listener.client("-tls1_2") as client:
        client.type("hello there\n")
        await client.until("HELLO THERE")
        client.type("R\n")
        await client.until("RENEGOTIATING")
        assert "no renegotiation" in await client.end()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_a_client_without_a_certificate_reads_nothing(listener: Listener, version: str) -> None:
    """With TLS 1.3 it thinks for a moment that it is connected."""
    async with listener.client(version, certificate=False) as client:
        client.type("hello there\n")
        assert "HELLO THERE" not in await client.end()


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_old_versions_of_tls_are_refused(listener: Listener, version: str) -> None:
    """RFC 8996."""
    async with listener.client(version, "-cipher", "ALL:@SECLEVEL=0") as client:
        client.type("hello there\n")
        output = await client.end()
        assert "HELLO THERE" not in output
        assert "Cipher is (NONE)" in output


@pytest.mark.parametrize(
    ("listener", "version"),
    [(accepting_context, "-tls1_3"), (PeerServerContext, "-tls1_2"), (PeerServerContext, "-tls1_3")],
    indirect=["listener"],
)
async def test_no_session_is_given_to_resume(listener: Listener, version: str) -> None:
    """Five connections with the session of the first: five new ones. (``ssl`` gives some with TLS 1.2: unit tests.)"""
    async with listener.client(version, "-reconnect") as client:
        await client.until("drop connection and then reconnect")
        client.type("hello there\n")
        await client.until("HELLO THERE")
        assert "New, TLSv1" in client.output
        assert "Reused, TLSv1" not in client.output
