"""nexus.tls.peer_contexts: real handshakes over loopback, on both event loops, with every kind of certificate."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from OpenSSL import crypto

from nexus.errors import TlsFileError
from nexus.tls.certificates import Certificate
from nexus.tls.contexts import hub_client_context, identified_client_context
from nexus.tls.links import accept_tls
from nexus.tls.localca import PemPair
from nexus.tls.peer_contexts import PeerContexts, accepting_context, peer_certificate, peer_refusal
from nexus.tls.pyopenssl_context import PeerServerContext
from nexus.tls.verdict import words_of
from tests.support.hub import eventually
from tests.support.peer_certificates import (
    ANY,
    CLIENT,
    CODE_SIGNING,
    DAY_S,
    NODE,
    SERVER,
    SIGNS_CERTIFICATES,
    Authority,
    Usages,
    der,
    store,
)
from tests.support.peer_links import BufferedEnd, CopiedEnd, End, RefusedError, meet

ON_BOTH_LOOPS = True
MIB = 1024 * 1024
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def root() -> Authority:
    """The CA that every node believes."""
    return Authority.root()


@pytest.fixture
def ca_file(root: Authority, tmp_path: Path) -> Path:
    """Its certificate in a file."""
    return root.save(tmp_path / "ca.pem")


@pytest.fixture
def hub(root: Authority, tmp_path: Path) -> Certificate:
    """The certificate of the node that accepts."""
    return store(tmp_path, "hub", root.issue())


Make = Callable[..., ssl.SSLContext]


@pytest.fixture(params=[accepting_context, PeerServerContext], ids=["ssl", "pyOpenSSL"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes its context in either way; tests run on a Python that has both."""
    made: Make = request.param
    return made


@pytest.fixture
def accepting(make: Make, hub: Certificate, ca_file: Path) -> ssl.SSLContext:
    """Its context."""
    return make(hub, ca_file)


def dialling(
    directory: Path, pair: PemPair | None, ca_file: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """Return the context of a node that shows ``pair``."""
    context = identified_client_context(store(directory, "dialler", pair) if pair else None, ca_file)
    context.maximum_version = version
    return context


def in_memory(accepting: ssl.SSLContext, dialling: ssl.SSLContext) -> None:
    """Complete a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accepting.wrap_bio(to_server, to_client, server_side=True)
    client = dialling.wrap_bio(to_client, to_server, server_hostname=NODE)
    for _ in range(3):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("usages", [(SERVER,), (CLIENT,), (SERVER, CLIENT), (), (ANY,), (CODE_SIGNING, SERVER)])
async def test_a_node_is_accepted_with_a_certificate_of_either_role(
    root: Authority,
    accepting: ssl.SSLContext,
    hub: Certificate,
    ca_file: Path,
    tmp_path: Path,
    usages: Usages,
    version: ssl.TLSVersion,
) -> None:
    """Both ends know the other's certificate afterwards, in the same form."""
    pair = root.issue(usages=usages)
    async with meet(accepting, dialling(tmp_path, pair, ca_file, version)) as (server, client):
        assert peer_certificate(server.transport) == der(pair)
        assert peer_certificate(client.transport) == ssl.PEM_cert_to_DER_cert(hub.files.cert_file.read_text())
        tls = server.transport.get_extra_info("ssl_object")
        assert tls.version() == version.name.replace("_", ".")
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert server.transport.get_extra_info("cipher") == client.transport.get_extra_info("cipher")
        assert server.transport.get_extra_info("compression") is None
        assert peer_refusal(server.transport) == ""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("usages", [(), (SERVER,), (CLIENT,)])
async def test_a_chain_is_believed_whatever_role_its_issuers_are_for(
    root: Authority,
    accepting: ssl.SSLContext,
    ca_file: Path,
    tmp_path: Path,
    usages: Usages,
    version: ssl.TLSVersion,
) -> None:
    """Intermediates of public CAs are for servers alone."""
    pair = root.intermediate("One", usages).intermediate("Two", usages).issue()
    async with meet(accepting, dialling(tmp_path, pair, ca_file, version)) as (server, _):
        assert peer_certificate(server.transport) == der(pair)
        assert peer_refusal(server.transport) == ""


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "purpose": ("is for something other than TLS; issue it with", {"usages": (CODE_SIGNING,)}),
    "expired": ("has expired; renew it", {"until_s": -1.0}),
    "early": ("is not valid yet; check the clocks", {"from_s": DAY_S / 2}),
    "signing": ("may not sign handshakes; issue it with the key usage", {"key_usage": SIGNS_CERTIFICATES}),
    "long": ("has expired", {"until_s": -1.0, "common_name": "n" * 64}),
}


async def refusal(accepting: ssl.SSLContext, context: ssl.SSLContext) -> str:
    """Return what the accepting side says of a node that it refuses, during the handshake or right after it."""
    try:
        async with meet(accepting, context) as (server, _):
            return peer_refusal(server.transport)
    except RefusedError as refused:
        error = refused.accepting
    assert isinstance(error, ssl.SSLError)
    return words_of(error)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", REFUSED)
async def test_a_certificate_that_is_no_good_is_refused_in_words(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, case: str, version: ssl.TLSVersion
) -> None:
    """The error says whose certificate it is, what is wrong and what mends it."""
    words, terms = REFUSED[case]
    said = await refusal(accepting, dialling(tmp_path, root.issue(**terms), ca_file, version))  # type: ignore[arg-type]
    assert said.startswith("the node's certificate")
    assert words in said


def _strange(root: Authority) -> PemPair:
    return Authority.root("Another").issue()


def _incomplete(root: Authority) -> PemPair:
    return root.intermediate().issue(with_chain=False)


def _for_code(root: Authority) -> PemPair:
    return root.intermediate(usages=(CODE_SIGNING,)).issue()


def _by_a_node(root: Authority) -> PemPair:
    return root.intermediate(usages=(SERVER,), is_ca=False).issue()


@pytest.mark.parametrize(
    ("pair_of", "words"),
    [
        (_strange, "was issued by a CA that is not known here; add its root to peerCAFile"),
        (_incomplete, "or have the node show its whole chain"),
        (_for_code, r"a CA certificate above the node's (CN=Intermediate) is for something other than TLS"),
        (_by_a_node, "signed another one without being that of a CA"),
    ],
)
async def test_a_chain_that_is_no_good_is_refused_in_words(
    root: Authority,
    accepting: ssl.SSLContext,
    ca_file: Path,
    tmp_path: Path,
    pair_of: Callable[[Authority], PemPair],
    words: str,
) -> None:
    """An unknown root, a missing link, an issuer for other things, an issuer that is none."""
    assert words in await refusal(accepting, dialling(tmp_path, pair_of(root), ca_file))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_node_without_a_certificate_is_refused(
    accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """It hears what to do."""
    assert "showed no certificate; it has to dial with" in await refusal(
        accepting, dialling(tmp_path, None, ca_file, version)
    )


async def test_what_is_no_tls_is_refused_at_once(accepting: ssl.SSLContext) -> None:
    """Not after as many bytes as a record of that length would have."""
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0, ssl=accepting)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()
    assert loop.is_running()


async def test_without_a_certificate_of_its_own_a_node_accepts_nobody(
    root: Authority, make: Make, ca_file: Path, tmp_path: Path
) -> None:
    """Such as while the first one is being obtained."""
    said = await refusal(make(None, ca_file), dialling(tmp_path, root.issue(), ca_file))
    reason = said.lower().replace("_", " ")
    assert "no suitable" in reason or "no shared cipher" in reason


@pytest.mark.parametrize("offered", [["h2"], []])
async def test_no_other_application_protocol_is_agreed_on(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, offered: Sequence[str]
) -> None:
    """The handshake succeeds all the same, as the original's does without any."""
    context = dialling(tmp_path, root.issue(), ca_file)
    context.set_alpn_protocols(offered)
    async with meet(accepting, context) as (server, client):
        assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None
        assert server.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None


async def test_peers_are_believed_by_the_file_alone(
    root: Authority, make: Make, hub: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root of the system does not count beside ``peerCAFile``, in either direction."""
    private = Authority.root("Private")
    private_file = private.save(tmp_path / "private.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(root.save(tmp_path / "system.pem")))
    context = dialling(tmp_path, root.issue(), tmp_path / "system.pem")
    assert "add it to peerCAFile" in await refusal(make(hub, private_file), context)
    with pytest.raises(ssl.SSLCertVerificationError):
        in_memory(make(hub, private_file), hub_client_context(private_file))


@pytest.mark.parametrize("way", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_without_a_file_the_system_s_roots_are_believed(
    root: Authority, make: Make, hub: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Those that the environment names, as for every other connection of the node; a directory may be one of a list."""
    directory = tmp_path / "roots"
    directory.mkdir()
    name = f"{crypto.X509.from_cryptography(root.certificate).subject_name_hash():08x}.0"  # as openssl rehash does
    root.save(directory / name)
    elsewhere = {"SSL_CERT_FILE": str(tmp_path / "none.pem"), "SSL_CERT_DIR": str(tmp_path / "none")}
    given = {"SSL_CERT_FILE": str(directory / name), "SSL_CERT_DIR": f"{tmp_path / 'none'}{os.pathsep}{directory}"}
    for variable, value in (elsewhere | {way: given[way]}).items():
        monkeypatch.setenv(variable, value)
    pair = root.issue()
    context = identified_client_context(store(tmp_path, "dialler", pair))
    async with meet(make(hub), context) as (server, _):
        assert peer_certificate(server.transport) == der(pair)


async def test_a_system_without_roots_believes_nobody_and_stops_nobody(
    root: Authority, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node has these contexts, with or without other nodes."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    shown = store(tmp_path, "node", root.issue())
    contexts = PeerContexts(lambda: shown)
    assert "not trusted here; add it to peerCAFile" in await refusal(
        contexts.accepting(), dialling(tmp_path, root.issue(), ca_file)
    )


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read: No such file"), (b"", "holds no CA certificate"), (b"x", "holds no")]
)
async def test_roots_that_cannot_be_used_are_named(
    make: Make, hub: Certificate, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """Before a node listens."""
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
    for attempt in (lambda: make(hub, path), lambda: PeerContexts(lambda: hub, path)):
        with pytest.raises(TlsFileError, match=f"{path}: {words}"):
            attempt()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [BufferedEnd, CopiedEnd])
@pytest.mark.parametrize("piece", [1000, 16 * 1024, 33_000, MIB])
async def test_large_transfers_arrive_unchanged_both_ways_at_once(
    root: Authority,
    accepting: ssl.SSLContext,
    ca_file: Path,
    tmp_path: Path,
    kind: type[BufferedEnd] | type[CopiedEnd],
    piece: int,
    version: ssl.TLSVersion,
) -> None:
    """Whatever the pieces, and whether the loop reads into its own memory or the protocol's."""
    data = os.urandom(MIB) * (16 if piece > 1000 else 2)
    async with meet(accepting, dialling(tmp_path, root.issue(), ca_file, version), kind) as (server, client):
        await asyncio.gather(server.send(data, piece), client.send(data, piece))
        for end in (server, client):
            await eventually(lambda end=end: end.received == len(data), "all bytes are there")  # type: ignore[misc]
            assert end.hash.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("kind", [BufferedEnd, CopiedEnd])
async def test_short_messages_arrive_as_they_are_sent(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, kind: type[BufferedEnd]
) -> None:
    """Also several that come in one piece: none waits for bytes that come later."""
    async with meet(accepting, dialling(tmp_path, root.issue(), ca_file), kind) as (server, client):
        for sender, receiver in ((client, server), (server, client)):
            for number in range(100):
                sender.transport.writelines([b"one,", b"", b"two,", f"{number}".encode()])
                wanted = f"one,two,{number}".encode()
                await eventually(lambda r=receiver, w=wanted: r.tail.endswith(w), "it arrived")  # type: ignore[misc]


@pytest.mark.parametrize("kind", [BufferedEnd, CopiedEnd])
async def test_a_side_that_does_not_read_stops_the_other(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, kind: type[BufferedEnd]
) -> None:
    """What waits is bounded; everything arrives once it reads again."""
    data = os.urandom(MIB) * 32
    async with meet(accepting, dialling(tmp_path, root.issue(), ca_file), kind) as (server, client):
        server.transport.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(client.send(data, 33_000))
            await eventually(lambda: client.is_paused and _is_full(server), "nothing more is taken")
            assert not sending.done()
            assert server.received == 0
            server.transport.resume_reading()
        await eventually(lambda: server.received == len(data), "all bytes are there")
        assert server.hash.digest() == hashlib.sha256(data).digest()


def _is_full(server: End) -> bool:
    """Where the loop drives TLS it reads on into its own memory (256 KiB); aiofastnet leaves all in the kernel."""
    incoming = getattr(server.transport, "get_read_buffer_size", None)
    return incoming is None or incoming() >= 256 * 1024


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("closes", ["server", "client"])
async def test_an_orderly_close_delivers_everything_before_it(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, closes: str, version: ssl.TLSVersion
) -> None:
    """The other side reads all bytes, then the end."""
    data = os.urandom(MIB)
    async with meet(accepting, dialling(tmp_path, root.issue(), ca_file, version)) as (server, client):
        leaver, stayer = (server, client) if closes == "server" else (client, server)
        leaver.transport.write(data)
        leaver.transport.close()
        assert await asyncio.wait_for(stayer.lost, 20) is None
        assert stayer.saw_eof
        assert stayer.hash.digest() == hashlib.sha256(data).digest()
        assert await asyncio.wait_for(leaver.lost, 20) is None


@pytest.mark.parametrize("breaks", ["server", "client"])
async def test_an_end_without_a_goodbye_is_no_orderly_end(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, breaks: str
) -> None:
    """The connection ends on both sides."""
    async with meet(accepting, dialling(tmp_path, root.issue(), ca_file)) as (server, client):
        breaker, other = (server, client) if breaks == "server" else (client, server)
        breaker.transport.write(b"half a mess")
        await eventually(lambda: other.received, "it arrived")
        breaker.transport.abort()
        await asyncio.wait_for(other.lost, 20)
        assert other.tail == b"half a mess"


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_resumes_a_session_is_no_node(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Its certificate would not be looked at. ``ssl`` may keep sessions of TLS 1.2 even so; pyOpenSSL keeps none."""
    context = dialling(tmp_path, root.issue(), ca_file, version)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)

        def dial(session: ssl.SSLSession | None) -> ssl.SSLSocket:
            sock = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
            tls = stack.enter_context(context.wrap_socket(sock, server_hostname=NODE, session=session))
            assert tls.recv(1) == b"x"  # tickets of TLS 1.3 would have come before
            return tls

        async def accept() -> str:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            end = BufferedEnd()
            await accept_tls(end, connection, accepting, 20)
            end.transport.write(b"x")
            stack.callback(end.transport.abort)
            return peer_refusal(end.transport)

        first, judged = await asyncio.gather(asyncio.to_thread(dial, None), accept())
        assert judged == ""
        assert first.session is not None
        second, judged = await asyncio.gather(asyncio.to_thread(dial, first.session), accept())
        assert ("resumed a TLS session" in judged) is bool(second.session_reused)
        may_keep = type(accepting) is ssl.SSLContext and version is ssl.TLSVersion.TLSv1_2
        assert may_keep or not second.session_reused


async def test_a_renewed_certificate_is_for_the_next_handshake(
    root: Authority, ca_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In both directions; connections that run go on, and one that cannot be loaded leaves the last in use."""
    current = store(tmp_path, "node", root.issue())
    first = ssl.PEM_cert_to_DER_cert(current.files.cert_file.read_text())
    contexts = PeerContexts(lambda: current, ca_file)
    async with meet(contexts.accepting(), contexts.dialling()) as (server, client):
        assert {peer_certificate(end.transport) for end in (server, client)} == {first}
        pair = root.issue()
        current = store(tmp_path, "node", pair)
        async with meet(contexts.accepting(), contexts.dialling()) as (newer, newer_client):
            assert {peer_certificate(end.transport) for end in (newer, newer_client)} == {der(pair)}
        client.transport.write(b"still there")
        await eventually(lambda: server.tail == b"still there", "the old connection goes on")
    kept = contexts.accepting()
    assert contexts.accepting() is kept
    current = replace(current, key_pem=root.issue().key_pem)  # a pair that no longer fits together
    assert contexts.accepting() is kept
    assert contexts.accepting() is kept
    assert [record.getMessage() for record in caplog.records if "stays in use towards nodes" in record.getMessage()]


async def test_whoever_dials_verifies_the_name(
    root: Authority, accepting: ssl.SSLContext, ca_file: Path, tmp_path: Path
) -> None:
    """RFC 9525: the certificate of another host is none."""
    with pytest.raises(RefusedError) as caught:
        async with meet(accepting, dialling(tmp_path, root.issue(), ca_file), host="b.mesh.test"):
            pytest.fail("it was believed")
    assert isinstance(caught.value.dialling, ssl.SSLCertVerificationError)


async def test_a_link_without_tls_has_no_certificate() -> None:
    """Such as one to a ``ws://`` address."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        assert peer_certificate(writer.transport) is None
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        assert peer_certificate(writer.transport) is None
        writer.close()
