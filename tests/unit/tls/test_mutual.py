"""The listener that judges client certificates itself: real handshakes on loopback, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import ObjectIdentifier

from nexus.errors import TlsFileError
from nexus.tls.certificates import Certificate, CertificateFiles, read_certificate
from nexus.tls.contexts import hub_client_context
from nexus.tls.localca import PemPair, create_ca, issue
from nexus.tls.mutual import MutualContext, is_for_tls
from tests.support.programs import require

HOST = "node.example.com"
WAIT_S = 20.0
UNSET: list[ObjectIdentifier] = []


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop of either kind."""
    made: asyncio.AbstractEventLoop = request.param()
    yield made
    made.close()


class Authority:
    """A CA and what it signs, as files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = create_ca("Mesh CA", time.time())
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(self.ca.cert_pem)

    def pair(self, usages: Sequence[ObjectIdentifier] | None = UNSET, days: int = 30) -> CertificateFiles:
        """Sign a certificate with these extended key usages (None: without any), dated ``days`` ahead."""
        made = issue(self.ca, [HOST], time.time(), 30)
        if usages is not UNSET or days != 30:
            made = self._rebuilt(made, usages, days)
        return self.write(made)

    def write(self, pair: PemPair) -> CertificateFiles:
        """Write a pair."""
        number = len(list(self.directory.glob("cert*")))
        files = CertificateFiles(self.directory / f"cert{number}.pem", self.directory / f"key{number}.pem")
        files.cert_file.write_bytes(pair.cert_pem)
        files.key_file.touch(mode=0o600)
        files.key_file.write_bytes(pair.key_pem)
        return files

    def _rebuilt(self, made: PemPair, usages: Sequence[ObjectIdentifier] | None, days: int) -> PemPair:
        model = x509.load_pem_x509_certificate(made.cert_pem)
        end = model.not_valid_after_utc + timedelta(days=days - 30)
        builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(model.issuer)
        builder = builder.public_key(model.public_key()).serial_number(model.serial_number)
        builder = builder.not_valid_before(min(model.not_valid_before_utc, end - timedelta(hours=1))).not_valid_after(
            end
        )
        for extension in model.extensions:
            if not isinstance(extension.value, x509.ExtendedKeyUsage):
                builder = builder.add_extension(extension.value, extension.critical)
        if usages is UNSET:
            usages = [Usage.SERVER_AUTH]
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        key = serialization.load_pem_private_key(self.ca.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return PemPair(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), made.key_pem)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA."""
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> MutualContext:
    """The context under test."""
    return MutualContext(read_certificate(authority.pair()), authority.ca_file)


def client_context(authority: Authority, shown: CertificateFiles | None) -> ssl.SSLContext:
    """Return the context of a node that dials."""
    context = hub_client_context(authority.ca_file)
    if shown is not None:
        context.load_cert_chain(shown.cert_file, shown.key_file)
    return context


class Seen(asyncio.Protocol):
    """What a server connection came to."""

    def __init__(self) -> None:
        self.up = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.up.set_result(transport.get_extra_info("ssl_object"))

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@contextlib.asynccontextmanager
async def connected(
    context: ssl.SSLContext, client: ssl.SSLContext
) -> AsyncIterator[tuple[Seen, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Accept one connection as the peer listener does."""
    loop = asyncio.get_running_loop()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    seen = Seen()

    async def accept() -> None:
        connection, _ = await loop.sock_accept(listening)
        await loop.connect_accepted_socket(lambda: seen, connection, ssl=context, ssl_handshake_timeout=WAIT_S)

    with contextlib.closing(listening):
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(accept())
            reader, writer = await asyncio.open_connection(*listening.getsockname(), ssl=client, server_hostname=HOST)
            try:
                await accepting
                yield seen, reader, writer
            finally:
                writer.transport.abort()
                if seen.up.done():
                    cast(asyncio.Transport, seen.transport).abort()
                    await seen.lost


def refusal(loop: asyncio.AbstractEventLoop, server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Return what the accepting side says of a handshake that must fail there."""

    async def main() -> str:
        try:
            async with connected(server, client):
                return "accepted"
        except ExceptionGroup as group:
            return "; ".join(str(error) for error in group.exceptions)

    return loop.run_until_complete(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    "usages",
    [
        [Usage.SERVER_AUTH],
        [Usage.CLIENT_AUTH],
        [Usage.SERVER_AUTH, Usage.CLIENT_AUTH],
        [Usage.ANY_EXTENDED_KEY_USAGE],
        None,
    ],
    ids=["server", "client", "both", "any", "none"],
)
def test_a_certificate_for_tls_of_either_side_is_accepted(
    loop: asyncio.AbstractEventLoop,
    authority: Authority,
    server: MutualContext,
    usages: list[ObjectIdentifier] | None,
    version: ssl.TLSVersion,
) -> None:
    """Public CAs issue them for servers only; original nodes of old show one of clients."""
    shown = authority.pair(usages)
    client = client_context(authority, shown)
    client.minimum_version = client.maximum_version = version

    async def main() -> None:
        async with connected(server, client) as (seen, _reader, writer):
            tls = await seen.up
            certificate = x509.load_der_x509_certificate(tls.getpeercert(True))
            expected = x509.load_pem_x509_certificate(shown.cert_file.read_bytes())
            assert certificate == expected
            assert tls.version() == writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
            assert tls.cipher()[0] == writer.get_extra_info("ssl_object").cipher()[0]

    loop.run_until_complete(main())


@pytest.mark.parametrize(
    ("usages", "days", "why"),
    [
        ([Usage.CODE_SIGNING], 30, "something other than TLS"),
        ([Usage.SERVER_AUTH], -1, "expired"),
    ],
)
def test_what_is_not_for_tls_or_out_of_date_is_refused_with_the_reason(
    loop: asyncio.AbstractEventLoop,
    authority: Authority,
    server: MutualContext,
    usages: list[ObjectIdentifier],
    days: int,
    why: str,
) -> None:
    """The purpose is the only verdict of OpenSSL that is replaced."""
    assert why in refusal(loop, server, client_context(authority, authority.pair(usages, days)))


def test_a_certificate_of_another_ca_is_refused(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext, tmp_path: Path
) -> None:
    """With the reason."""
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").pair([Usage.SERVER_AUTH])
    assert "not issued by a trusted CA" in refusal(loop, server, client_context(authority, stranger))


def test_no_certificate_is_refused(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext
) -> None:
    """Nobody is anonymous here."""
    assert "peer did not return a certificate" in refusal(loop, server, client_context(authority, None))


def test_megabytes_pass_in_both_directions_unchanged(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext
) -> None:
    """Through both memory buffers, with pauses."""
    data = hashlib.shake_256(b"mutual").digest(8 * 1024 * 1024)

    async def main() -> None:
        async with connected(server, client_context(authority, authority.pair())) as (seen, reader, writer):
            transport = cast(asyncio.Transport, seen.transport)
            transport.write(data)
            writer.write(data)
            transport.pause_reading()
            assert await reader.readexactly(len(data)) == data
            transport.resume_reading()
            writer.write(b"end")
            while not seen.received.endswith(b"end"):  # noqa: ASYNC110 — bounded by the connection's time
                await asyncio.sleep(0.01)
            assert bytes(seen.received) == data + b"end"

    loop.run_until_complete(main())


@pytest.mark.parametrize("orderly", [True, False])
def test_both_kinds_of_end_are_seen(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext, orderly: bool
) -> None:
    """A goodbye in TLS, and a connection that is cut."""

    async def main() -> None:
        async with connected(server, client_context(authority, authority.pair())) as (seen, _reader, writer):
            await seen.up
            if orderly:
                writer.close()
                await writer.wait_closed()
            else:
                writer.transport.abort()
            await seen.lost

    loop.run_until_complete(main())


def test_an_end_of_ours_is_seen_by_the_other_side(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext
) -> None:
    """Behind the last byte."""

    async def main() -> None:
        async with connected(server, client_context(authority, authority.pair())) as (seen, reader, _writer):
            transport = cast(asyncio.Transport, seen.transport)
            transport.write(b"last")
            transport.close()
            assert await reader.read() == b"last"

    loop.run_until_complete(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext, version: ssl.TLSVersion
) -> None:
    """So the certificate is judged in every handshake."""
    client = client_context(authority, authority.pair())
    client.minimum_version = client.maximum_version = version

    def handshake(port: int, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain,
            client.wrap_socket(plain, server_hostname=HOST, session=session) as tls,
        ):
            tls.sendall(b"x")
            tls.recv(1)
            return tls.session, tls.session_reused

    async def main() -> None:
        loop = asyncio.get_running_loop()

        class Echo(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                cast(asyncio.Transport, self.transport).write(data)

        serving = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server)
        port = serving.sockets[0].getsockname()[1]
        async with asyncio.timeout(WAIT_S):
            session, _ = await loop.run_in_executor(None, handshake, port, None)
            _, reused = await loop.run_in_executor(None, handshake, port, session)
        assert not reused
        serving.close()
        await serving.wait_closed()

    loop.run_until_complete(main())


@pytest.mark.programs
def test_openssl_sees_an_empty_list_of_cas_and_no_renegotiation(
    loop: asyncio.AbstractEventLoop, authority: Authority, server: MutualContext
) -> None:
    """An original sends no certificate at all to a list that does not name its issuer."""
    shown = authority.pair([Usage.SERVER_AUTH])
    command = [
        require("openssl"), "s_client", "-tls1_2", "-CAfile", str(authority.ca_file),
        "-cert", str(shown.cert_file), "-key", str(shown.key_file), "-servername", HOST,
    ]  # fmt: skip

    async def main() -> str:
        serving = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=server)
        address = f"127.0.0.1:{serving.sockets[0].getsockname()[1]}"
        run = subprocess.run
        done = await asyncio.get_running_loop().run_in_executor(
            None,
            lambda: run(
                [*command, "-connect", address], input=b"R\n", capture_output=True, timeout=WAIT_S, check=False
            ),
        )
        serving.close()
        await serving.wait_closed()
        return (done.stdout + done.stderr).decode(errors="replace")

    output = loop.run_until_complete(main())
    assert "Verify return code: 0 (ok)" in output
    assert "No client certificate CA names sent" in output
    assert "no renegotiation" in output


@pytest.mark.parametrize(
    ("usages", "good"),
    [
        (None, True),
        ([Usage.SERVER_AUTH], True),
        ([Usage.CODE_SIGNING, Usage.CLIENT_AUTH], True),
        ([Usage.CODE_SIGNING], False),
        ([], False),
    ],
)
def test_the_purpose_is_a_plain_decision(usages: list[ObjectIdentifier] | None, good: bool) -> None:
    """RFC 5280 4.2.1.12: without the extension any purpose is allowed."""
    assert is_for_tls(usages) is good


@pytest.mark.parametrize(("content", "why"), [("no PEM", "holds no CA certificate"), (None, "cannot be read")])
def test_a_file_of_roots_that_cannot_be_used_is_named(
    authority: Authority, tmp_path: Path, content: str | None, why: str
) -> None:
    """With the mend."""
    roots = tmp_path / "roots.pem"
    if content is not None:
        roots.write_text(content)
    certificate: Certificate = read_certificate(authority.pair())
    with pytest.raises(TlsFileError, match=f"{roots}: {why}"):
        MutualContext(certificate, roots)


def test_without_a_file_the_roots_are_the_systems(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the environment names them."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    loop = asyncio.new_event_loop()
    server = MutualContext(read_certificate(authority.pair()))
    assert refusal(loop, server, client_context(authority, authority.pair([Usage.SERVER_AUTH]))) == "accepted"
    loop.close()
