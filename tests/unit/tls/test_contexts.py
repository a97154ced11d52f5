"""nexus.tls.contexts: handshakes of the hub and its callers, and renewal under a running hub."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nexus.errors import TlsFileError
from nexus.sockets import accept
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import ALPN, ReloadingCertificate, WebContext, hub_client_context, hub_server_context
from nexus.tls.localca import PemPair, create_ca, issue

HOST = "hub.example.com"


@pytest.fixture(scope="module")
def ca() -> PemPair:
    """A CA valid now: handshakes are judged by the machine's clock."""
    return create_ca("Test CA", time.time())


@pytest.fixture
def ca_file(ca: PemPair, tmp_path: Path) -> Path:
    """The CA's certificate in a file."""
    path = tmp_path / "ca.pem"
    path.write_bytes(ca.cert_pem)
    return path


@pytest.fixture
def files(ca: PemPair, tmp_path: Path) -> CertificateFiles:
    """A certificate for HOST in two files."""
    files = CertificateFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    write(files, issue(ca, [HOST], time.time(), 30))
    return files


def write(files: CertificateFiles, pair: tuple[bytes, bytes]) -> None:
    """Write both files in place, as the plainest of renewal scripts does."""
    files.cert_file.write_bytes(pair[0])
    files.key_file.write_bytes(pair[1])
    files.key_file.chmod(0o600)


def serial(pem: bytes) -> int:
    """Return the serial number of a PEM certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number


def rsa_pair(ca: PemPair) -> PemPair:
    """Return a certificate for HOST with an RSA key, signed by ``ca``."""
    issuer = x509.load_pem_x509_certificate(ca.cert_pem)
    model = x509.load_pem_x509_certificate(issue(ca, [HOST], time.time(), 30).cert_pem)
    ca_key = serialization.load_pem_private_key(ca.key_pem, None)
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(issuer.subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    names = model.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    certificate = builder.add_extension(names, critical=False).sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return PemPair(certificate.public_bytes(pem), key_pem)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = HOST) -> ssl.SSLObject:
    """Complete a handshake in memory and return the client's end; raise what the client raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(3):
        for end in (client_end, server_end):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert client_end.version() is not None
    return client_end


def presented_serial(server: ssl.SSLContext, client: ssl.SSLContext) -> int:
    """Return the serial number of the certificate that a new handshake gets to see."""
    der = handshake(server, client).getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def plain_client(ca_file: Path, *alpn: str) -> ssl.SSLContext:
    """Return a client context that is not ours."""
    context = ssl.create_default_context(cafile=ca_file)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def test_both_contexts_agree_on_http11_and_the_newest_tls(files: CertificateFiles, ca_file: Path) -> None:
    """The pair that meets in production."""
    end = handshake(hub_server_context(read_certificate(files)), hub_client_context(ca_file))
    assert end.selected_alpn_protocol() == ALPN[0] == "http/1.1"
    assert end.version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("offered", "selected"), [((), None), (("h2",), None), (("h2", "http/1.1"), "http/1.1"), (("acme-tls/1",), None)]
)
def test_the_hub_never_agrees_on_h2(
    offered: tuple[str, ...], selected: str | None, files: CertificateFiles, ca_file: Path
) -> None:
    """A client that got h2 could not make the upgrade (spec backend-protocol 1, VERIFIED)."""
    end = handshake(hub_server_context(read_certificate(files)), plain_client(ca_file, *offered))
    assert end.selected_alpn_protocol() == selected


def test_the_hub_speaks_tls12_and_nothing_older(files: CertificateFiles, ca_file: Path) -> None:
    """RFC 8996."""
    server = hub_server_context(read_certificate(files))
    client = plain_client(ca_file)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(server, client).version() == "TLSv1.2"
    for context in (server, hub_client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_hub_offers_only_authenticated_ciphers_with_forward_secrecy() -> None:
    """OpenSSL's defaults as Python sets them; this notices if they ever get worse."""
    for cipher in hub_server_context().get_ciphers():
        assert cipher["auth"] != "auth-null"
        assert cipher["kea"] in {"kx-ecdhe", "kx-dhe", "kx-any"}
        assert cipher["strength_bits"] >= 128


def test_the_hub_asks_for_no_client_certificate(files: CertificateFiles) -> None:
    """Backends authenticate by token (spec backend-protocol 1)."""
    assert hub_server_context(read_certificate(files)).verify_mode == ssl.CERT_NONE


def test_the_hub_refuses_renegotiation() -> None:
    """In TLS 1.2 one connection could otherwise cost any number of handshakes."""
    assert hub_server_context().options & ssl.OP_NO_RENEGOTIATION


def test_a_client_refuses_another_hostname(files: CertificateFiles, ca_file: Path) -> None:
    """The hub of somebody else with a certificate of the same CA."""
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(hub_server_context(read_certificate(files)), hub_client_context(ca_file), "other.example.com")


def test_a_client_refuses_a_hub_of_an_unknown_ca(files: CertificateFiles, tmp_path: Path) -> None:
    """With a CA file, that file alone is trusted; without one, the system's store, which knows no CA of ours."""
    other = tmp_path / "other.pem"
    other.write_bytes(create_ca("Other CA", time.time()).cert_pem)
    for client in (hub_client_context(other), hub_client_context()):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(hub_server_context(read_certificate(files)), client)


def test_a_client_with_a_ca_file_trusts_no_public_ca(ca: PemPair, ca_file: Path) -> None:
    """Exactly the certificates of the file are in its store."""
    store = hub_client_context(ca_file).get_ca_certs(binary_form=True)
    assert [x509.load_der_x509_certificate(der).serial_number for der in store] == [serial(ca.cert_pem)]


def test_session_keys_are_not_logged(ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SSLKEYLOGFILE`` in the environment of a proxy would open every session to whoever reads the file."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert hub_server_context().keylog_filename is None
    assert hub_client_context().keylog_filename is None
    assert hub_client_context(ca_file).keylog_filename is None


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"", "no CA"), (b"junk", "no CA")])
def test_an_unusable_ca_file_is_named(content: bytes | None, said: str, tmp_path: Path) -> None:
    """Missing, empty, or not PEM."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TlsFileError, match=said) as caught:
        hub_client_context(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unusable_pair_at_the_start_is_an_error(files: CertificateFiles) -> None:
    """A node that cannot serve its hub must not pretend to."""
    files.key_file.unlink()
    with pytest.raises(TlsFileError, match="does not exist"):
        ReloadingCertificate(files)


def test_unchanged_files_are_not_read_again(files: CertificateFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs two stat calls."""
    hub = ReloadingCertificate(files)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Path, "open", fail)
    assert not hub.reload_if_changed()


def test_a_renewed_pair_is_taken_over(files: CertificateFiles, ca: PemPair, ca_file: Path) -> None:
    """Whoever asks for the context after it gets the renewed certificate."""
    hub = ReloadingCertificate(files)
    client = hub_client_context(ca_file)
    first = issue(ca, [HOST], time.time(), 60)
    write(files, first)
    assert hub.reload_if_changed()
    assert presented_serial(hub.context, client) == serial(first.cert_pem)
    end = x509.load_pem_x509_certificate(first.cert_pem).not_valid_after_utc.timestamp()
    assert hub.certificate.expires_at == end
    assert not hub.reload_if_changed()


def rename_over(files: CertificateFiles, pair: PemPair) -> None:
    """Replace both files by new ones, as our own writers do."""
    for path, data in zip((files.cert_file, files.key_file), pair, strict=True):
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").replace(path)


def keep_times(files: CertificateFiles, pair: PemPair) -> None:
    """Replace both files and set their old modification times, as some backup tools do."""
    stats = [path.stat() for path in (files.cert_file, files.key_file)]
    rename_over(files, pair)
    for path, status in zip((files.cert_file, files.key_file), stats, strict=True):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swing_link(files: CertificateFiles, pair: PemPair) -> None:
    """Point links at files of a new generation, as certbot and Kubernetes do."""
    for path, data in zip((files.cert_file, files.key_file), pair, strict=True):
        target = path.with_name(f"{path.stem}2.pem")
        target.write_bytes(data)
        link = path.with_name(f"{path.stem}.link")
        link.symlink_to(target)
        link.replace(path)


@pytest.mark.parametrize("renew", [write, rename_over, keep_times, swing_link])
def test_every_usual_way_to_renew_is_noticed(
    renew: Callable[[CertificateFiles, PemPair], None], files: CertificateFiles, ca: PemPair
) -> None:
    """Written in place, renamed over, with an old time stamp, behind a link."""
    hub = ReloadingCertificate(files)
    pair = issue(ca, [HOST], time.time(), 60)
    renew(files, pair)
    assert hub.reload_if_changed()
    assert hub.certificate.expires_at == x509.load_pem_x509_certificate(pair.cert_pem).not_valid_after_utc.timestamp()


def test_a_half_written_pair_keeps_the_old_one_and_is_retried(
    files: CertificateFiles, ca: PemPair, ca_file: Path
) -> None:
    """Certificate first, key later: in between nothing may break, and the failure is told once."""
    hub, client = ReloadingCertificate(files), hub_client_context(ca_file)
    old, new = serial(files.cert_file.read_bytes()), issue(ca, [HOST], time.time(), 60)
    files.cert_file.write_bytes(new.cert_pem[:100])
    with pytest.raises(TlsFileError, match="no readable certificate"):
        hub.reload_if_changed()
    assert not hub.reload_if_changed()
    assert presented_serial(hub.context, client) == old
    files.cert_file.write_bytes(new.cert_pem)
    with pytest.raises(TlsFileError, match="is not the key of"):
        hub.reload_if_changed()
    assert not hub.reload_if_changed()
    assert presented_serial(hub.context, client) == old
    files.key_file.write_bytes(new.key_pem)
    assert hub.reload_if_changed()
    assert presented_serial(hub.context, client) == serial(new.cert_pem)


def test_a_failure_that_comes_back_is_told_again(files: CertificateFiles) -> None:
    """Once the files were in order in between, it is news."""
    hub = ReloadingCertificate(files)
    moved = files.key_file.with_suffix(".away")
    for _ in range(2):
        files.key_file.rename(moved)
        with pytest.raises(TlsFileError, match="does not exist"):
            hub.reload_if_changed()
        moved.rename(files.key_file)
        assert not hub.reload_if_changed()


def test_a_change_during_the_first_read_is_seen_at_the_next_look(
    files: CertificateFiles, ca: PemPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What identifies the files is taken before they are read, never after."""
    new = issue(ca, [HOST], time.time(), 60)

    def renewed_meanwhile(names: CertificateFiles) -> object:
        found = read_certificate(names)
        write(names, new)
        return found

    monkeypatch.setattr("nexus.tls.contexts.read_certificate", renewed_meanwhile)
    hub = ReloadingCertificate(files)
    monkeypatch.undo()
    assert hub.reload_if_changed()


def test_another_kind_of_key_is_taken_over_too(files: CertificateFiles, ca: PemPair, ca_file: Path) -> None:
    """OpenSSL cannot forget a pair of another kind in a context, so there is a new context."""
    hub, client = ReloadingCertificate(files), hub_client_context(ca_file)
    new = rsa_pair(ca)
    write(files, new)
    assert hub.reload_if_changed()
    assert presented_serial(hub.context, client) == serial(new.cert_pem)


async def test_watching_logs_each_thing_once(
    files: CertificateFiles, ca: PemPair, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewals, failures and warnings, each when it happens and not at every look."""
    now = time.time()
    hub = ReloadingCertificate(files, clock=lambda: now)
    caplog.set_level(logging.INFO, "nexus.tls")
    async with watching(hub) as looks:
        await looks(2)
        assert caplog.messages == []
        files.cert_file.write_bytes(b"")
        await looks(3)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "the old certificate stays in service" in record.message
        caplog.clear()
        write(files, issue(ca, [HOST], now - 28 * 86_400, 30))
        await looks(3)
        assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
        assert "expires on" in caplog.messages[1]
        caplog.clear()
        now += 3 * 86_400
        await looks(3)
        (message,) = caplog.messages
        assert "expired on" in message


@contextlib.asynccontextmanager
async def watching(hub: ReloadingCertificate) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Run ``watch`` without waiting between looks; give a function that lets it look that often."""
    original, seen, wanted = asyncio.sleep, asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def turn(_delay: float) -> None:
        seen.release()
        await wanted.acquire()

    async def looks(count: int) -> None:
        for _ in range(count):
            wanted.release()
            await seen.acquire()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nexus.tls.contexts.asyncio.sleep", turn)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(hub.watch())
            await seen.acquire()
            yield looks
            task.cancel()
    assert asyncio.sleep is original


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send lines back until the other side ends."""
    while line := await reader.readline():
        writer.write(line)
    writer.close()


class Caller:
    """A TLS client: asyncio streams and the certificate it was shown."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def serial(self) -> int:
        """Serial number of the certificate this connection was made with."""
        der = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number

    async def says(self, text: bytes) -> bytes:
        """Return what comes back for one line."""
        self.writer.write(text + b"\n")
        return (await self.reader.readline()).strip()

    async def aclose(self) -> None:
        """Close and wait until it is."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Give a loopback socket with a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


async def renew_under_a_running_server(files: CertificateFiles, ca: PemPair, ca_file: Path) -> None:
    """The whole promise, over real sockets: old connection goes on, new one gets the new certificate."""
    hub = ReloadingCertificate(files)
    old, new = serial(files.cert_file.read_bytes()), issue(ca, [HOST], time.time(), 60)
    with listening() as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)

        async def serve_one() -> None:
            loop = asyncio.get_running_loop()
            connection, _ = await accept(listener)
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)
            await loop.connect_accepted_socket(lambda: protocol, connection, ssl=hub.context)

        async def call() -> Caller:
            client = hub_client_context(ca_file)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serve_one())
                streams = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=HOST)
            return Caller(*streams)

        before = await call()
        assert await before.says(b"one") == b"one"
        write(files, new)
        assert hub.reload_if_changed()
        after = await call()
        assert (before.serial, after.serial) == (old, serial(new.cert_pem))
        assert await before.says(b"two") == b"two"
        assert await after.says(b"three") == b"three"
        await before.aclose()
        await after.aclose()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_renewed_certificate_serves_new_handshakes_while_the_old_connection_goes_on(
    new_loop: Callable[[], asyncio.AbstractEventLoop], files: CertificateFiles, ca: PemPair, ca_file: Path
) -> None:
    """On both event loops a node may run on."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(renew_under_a_running_server(files, ca, ca_file))


def test_a_node_shows_the_certificate_in_service_to_web_servers(
    files: CertificateFiles, ca: PemPair, ca_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One context while it stays, another after a renewal; one that cannot be loaded leaves the last in use."""
    current = read_certificate(files)
    context = WebContext(lambda: current, ca_file)
    first = context()
    assert context() is first
    write(files, issue(ca, [HOST], time.time(), 30))
    current = read_certificate(files)
    second = context()
    assert second is not first
    current = replace(current, key_pem=b"spoilt")
    assert context() is second
    assert context() is second
    assert len([record for record in caplog.records if "stays in use" in record.getMessage()]) == 1


def test_a_web_context_needs_its_roots_at_the_start(files: CertificateFiles, tmp_path: Path) -> None:
    """The file is named."""
    certificate = read_certificate(files)
    with pytest.raises(TlsFileError, match="missing"):
        WebContext(lambda: certificate, tmp_path / "missing.pem")
