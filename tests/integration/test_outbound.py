"""Outbound connections through real processes: curl, its SOCKS5 proxy (the client), the node, and nginx behind it."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import socks, wire
from tests.support.ports import free_ports
from tests.support.processes import (
    SECRET,
    Client,
    Nginx,
    Node,
    Pki,
    client_process,
    is_listening,
    scratch_directory,
    wait_for,
)
from tests.support.programs import require

pytestmark = pytest.mark.programs

HOST = "app.example.com"
PAGE = "reached through the node\n"
PASSWORD = "correct horse"
MIB = 1 << 20
TRANSFERS = 16
OUTBOUND = {"hmacSecret": SECRET, "outboundAllowed": True}
LOOPBACK = {"outboundPrivateNetworks": ["127.0.0.0/8", "::1/128"]}
NOT_ALLOWED, HOST_UNREACHABLE, TTL_EXPIRED, FAILURE = 2, 4, 6, 1
CURL_PROXY_FAILED = 97  # CURLE_PROXY
HAS_IPV6 = socket.has_dualstack_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")


@dataclass(frozen=True)
class Way:
    """curl -> client -> node -> nginx."""

    directory: Path
    pki: Pki
    node: Node
    client: Client
    nginx: Nginx
    socks_port: int
    login_port: int

    def curl(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run curl with the test's CA."""
        command = [require("curl"), "--silent", "--show-error", "--cacert", str(self.pki.ca_file), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def by(self, option: str) -> tuple[str, str]:
        """Return the options that let curl use the proxy."""
        return option, f"127.0.0.1:{self.socks_port}"

    def port(self, scheme: str) -> int:
        """Return nginx's port."""
        return self.nginx.tls_port if scheme == "https" else self.nginx.http_port


def socks_client(directory: Path, node: Node, port: int, **settings: object) -> Client:
    """Start a client with a SOCKS5 listener that claims a name of its own."""
    listening = {"socks5ListenAddr": f"127.0.0.1:{port}", "attestation": OUTBOUND, **settings}
    return Client(directory, node, {node.tls_port: 1}, HOST, **listening)


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    """The whole way, with and without a login, started once; a test must leave it as it found it."""
    with scratch_directory() as directory:
        pki = Pki.create(directory)
        socks_port, login_port = free_ports(2)
        nginx = Nginx(directory, *pki.issue("app", "localhost", "127.0.0.1", "::1"))
        if HAS_IPV6:
            nginx.locations = f"listen [::1]:{nginx.tls_port} ssl; listen [::1]:{nginx.http_port};"
        password = directory / "password"
        password.write_text(PASSWORD + "\n")
        with (
            nginx,
            Node(directory, pki, allowOutbound=True, outboundDialTimeoutSeconds=2, **LOOPBACK) as node,
            socks_client(directory, node, socks_port) as client,
            socks_client(directory, node, login_port, socks5Username="alice", socks5PasswordFile=str(password)),
        ):
            (nginx.root / "page.txt").write_text(PAGE)
            yield Way(directory, pki, node, client, nginx, socks_port, login_port)


def wait_until_none(node: Node) -> None:
    """Wait until the node holds no outbound connection, open or under way."""
    wait_for(lambda: node.metric("nexus_outbound_connections") == 0, "no outbound connection is left")


# -- curl --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6), "localhost"])
def test_curl_gets_the_page_through_the_node(way: Way, option: str, scheme: str, host: str) -> None:
    """IPv4, IPv6 and a name, resolved by curl or by the hub; TLS is between curl and nginx."""
    done = way.curl(*way.by(option), f"{scheme}://{host}:{way.port(scheme)}/page.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, PAGE, "")
    wait_until_none(way.node)


@pytest.mark.parametrize(
    ("user", "status", "says"),
    [
        (f"alice:{PASSWORD}", 0, ""),
        ("alice:wrong", CURL_PROXY_FAILED, "rejected"),
        (f"bob:{PASSWORD}", CURL_PROXY_FAILED, "rejected"),
        ("", CURL_PROXY_FAILED, "authentication"),
    ],
)
def test_curl_must_log_in_where_there_is_a_login(way: Way, user: str, status: int, says: str) -> None:
    """RFC 1929, by curl's own client of it."""
    login = ["--proxy-user", user] if user else []
    url = f"https://localhost:{way.nginx.tls_port}/page.txt"
    done = way.curl("--socks5-hostname", f"127.0.0.1:{way.login_port}", *login, url)
    assert (done.returncode, done.stdout) == (status, "" if status else PAGE)
    assert says in done.stderr
    assert PASSWORD not in way.node.output() + way.client.output()


def test_curl_is_told_what_went_wrong(way: Way) -> None:
    """The codes of RFC 1928: refused, not found, no answer."""
    (unused,) = free_ports(1)
    refusals = "nexus_outbound_refusals_total"
    before = way.node.metric(f'{refusals}{{reason="timeout"}}')
    assert socks.reply_code(way.socks_port, "127.0.0.1", unused) == 5
    assert socks.reply_code(way.socks_port, "nobody.invalid", 80) == HOST_UNREACHABLE
    with socks.silent_port() as silent:
        assert socks.reply_code(way.socks_port, "127.0.0.1", silent) == TTL_EXPIRED
    assert way.node.metric(f'{refusals}{{reason="timeout"}}') == before + 1
    done = way.curl(*way.by("--socks5-hostname"), f"http://127.0.0.1:{unused}/")
    assert done.returncode == CURL_PROXY_FAILED
    assert "(5)" in done.stderr
    wait_until_none(way.node)


def test_many_transfers_at_once_arrive_whole(way: Way) -> None:
    """16 downloads and 16 uploads of 8 MiB at the same time, by HTTPS; every SHA-256 is right."""
    base = f"https://localhost:{way.nginx.tls_port}"
    sources = [way.nginx.root / f"source-{number}" for number in range(TRANSFERS)]
    digests = [wire.write_random(source, 8 * MIB) for source in sources]

    def download(number: int) -> str:
        target = way.directory / f"down-{number}"
        done = way.curl(*way.by("--socks5-hostname"), "-o", str(target), f"{base}/source-{number}")
        assert done.returncode == 0, done.stderr
        return wire.sha256_of(target)

    def upload(number: int) -> str:
        done = way.curl(*way.by("--socks5"), "-T", str(sources[number]), f"{base}/up-{number}")
        assert done.returncode == 0, done.stderr
        return wire.sha256_of(way.nginx.root / f"up-{number}")

    with ThreadPoolExecutor(2 * TRANSFERS) as pool:
        downloads = [pool.submit(download, number) for number in range(TRANSFERS)]
        uploads = [pool.submit(upload, number) for number in range(TRANSFERS)]
        assert [one.result() for one in downloads] == digests
        assert [one.result() for one in uploads] == digests
    wait_until_none(way.node)
    assert way.node.metric("nexus_buffered_bytes") == 0


# -- Giving up ---------------------------------------------------------------------------------------------------------


def test_curl_gives_up_while_the_node_dials(way: Way) -> None:
    """W27: the dial stops with it; the original connects later, for nobody, and keeps the slot."""
    before = way.node.metric('nexus_outbound_refusals_total{reason="given_up"}')
    with socks.silent_port() as silent:
        done = way.curl(*way.by("--socks5"), "--max-time", "0.5", f"http://127.0.0.1:{silent}/")
        assert done.returncode != 0
        wait_until_none(way.node)
    assert way.node.metric('nexus_outbound_refusals_total{reason="given_up"}') == before + 1
    assert way.curl(*way.by("--socks5"), f"http://127.0.0.1:{way.nginx.http_port}/page.txt").stdout == PAGE


# -- With settings of their own ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(directory: Path, pki: Pki, **settings: object) -> Iterator[tuple[Node, Client, int]]:
    """Run a node that allows outbound connections, and a client; give its SOCKS5 port, too."""
    (port,) = free_ports(1)
    with (
        Node(directory, pki, allowOutbound=True, **settings) as node,
        socks_client(directory, node, port) as client,
    ):
        yield node, client, port


@contextlib.contextmanager
def holding() -> Iterator[tuple[int, list[socket.socket]]]:
    """Give the port of a service that takes connections and holds them, and the list of these."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        pool.submit(serve)
        try:
            yield server.getsockname()[1], held
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for sock in held:
                sock.close()


def test_loopback_is_refused_by_default_in_every_spelling(directory: Path, pki: Pki) -> None:
    """W27: what the node could reach and its backends may not; nothing is ever connected."""
    spellings = [
        "127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "::127.0.0.1",
        "localhost", "LocalHost.", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "0.0.0.0", "::",
        "169.254.169.254", "10.0.0.1", "fe80::1", "fd00::1",
    ]  # fmt: skip
    with started(directory, pki) as (node, _, port), holding() as (target, held):
        codes = {spelling: socks.reply_code(port, spelling, target) for spelling in spellings}
        assert set(codes.values()) <= {NOT_ALLOWED, HOST_UNREACHABLE}, codes
        assert {codes[one] for one in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost", "0.0.0.0")} == {NOT_ALLOWED}
        assert not held
        assert node.metric("nexus_outbound_connections_opened_total") == 0
        assert node.metric('nexus_outbound_refusals_total{reason="private"}') == list(codes.values()).count(NOT_ALLOWED)


def test_the_limit_holds_for_connections_that_come_at_once(directory: Path, pki: Pki) -> None:
    """W27: five at once and a limit of two; and what was refused costs no slot."""
    with (
        started(directory, pki, maxOutboundConnsPerBackend=2, **LOOPBACK) as (node, _, port),
        holding() as (target, held),
        ThreadPoolExecutor(5) as pool,
        contextlib.ExitStack() as stack,
    ):

        def ask(_number: int) -> int:
            try:
                stack.enter_context(socks.connect(port, "127.0.0.1", target))
            except socks.SocksError as error:
                return error.code
            return 0

        assert sorted(pool.map(ask, range(5))) == [0, 0, FAILURE, FAILURE, FAILURE]
        assert node.metric("nexus_outbound_connections") == 2
        assert node.metric('nexus_outbound_refusals_total{reason="limit"}') == 3
        stack.close()
        for sock in held:
            sock.close()
        wait_until_none(node)
        assert sorted(pool.map(ask, range(2))) == [0, 0]


def test_ports_are_those_that_node_and_token_allow(directory: Path, pki: Pki) -> None:
    """Either list refuses."""
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(holding())[0] for _ in range(3))
        claims = {**OUTBOUND, "allowedOutboundPorts": [first, second]}
        settings = {"allowedOutboundPorts": [first, second, third], **LOOPBACK}
        node = stack.enter_context(Node(directory, pki, allowOutbound=True, **settings))
        stack.enter_context(socks_client(directory, node, port, attestation=claims))
        assert [socks.reply_code(port, "127.0.0.1", target) for target in (first, second, third)] == [0, 0, NOT_ALLOWED]
        assert node.metric('nexus_outbound_refusals_total{reason="token_port"}') == 1


def test_a_backend_that_claims_what_the_node_forbids_gets_no_session(directory: Path, pki: Pki) -> None:
    """Spec backend-protocol 3.2: the token is refused as a whole."""
    (port,) = free_ports(1)
    settings = {"socks5ListenAddr": f"127.0.0.1:{port}", "attestation": OUTBOUND}
    with (
        Node(directory, pki) as node,
        client_process(directory, node.hub_url, pki, {node.tls_port: 1}, HOST, **settings) as client,
    ):
        wait_for(lambda: "outbound" in node.output(), "the node has refused the token")
        wait_for(lambda: is_listening(port), "the listener listens all the same")
        assert socks.reply_code(port, "127.0.0.1", 80) == FAILURE
        assert client.popen.poll() is None


def test_a_lost_hub_is_seen_as_broken_and_comes_back(directory: Path, pki: Pki) -> None:
    """Killed in the middle of a download, the user gets a reset, no quiet end; the next one works."""
    with (
        Nginx(directory, *pki.issue("app", HOST)) as nginx,
        started(directory, pki, **LOOPBACK) as (node, _, port),
    ):
        with (nginx.root / "big").open("wb") as file:
            file.truncate(256 * MIB)
        (nginx.root / "page.txt").write_text(PAGE)
        with socks.connect(port, "localhost", nginx.http_port) as sock:
            sock.sendall(wire.request(HOST, "/big"))
            assert sock.recv(1000)
            node.kill()
            with pytest.raises(ConnectionResetError):
                wire.read_to_end(sock)
        assert socks.reply_code(port, "localhost", nginx.http_port) == FAILURE
        node.restart()
        wait_for(lambda: node.metric("nexus_sessions") == 1, "the client is back")
        wait_for(lambda: socks.reply_code(port, "localhost", nginx.http_port) == 0, "a connection is opened")
        with socks.connect(port, "localhost", nginx.http_port) as sock:
            sock.sendall(wire.request(HOST, "/page.txt"))
            assert wire.read_response(sock)[1].decode() == PAGE


def test_a_stopping_client_closes_its_listener_and_ends_its_downloads(directory: Path, pki: Pki) -> None:
    """SIGTERM in the middle: nothing new is taken, and what moves arrives whole."""
    with (
        Nginx(directory, *pki.issue("app", HOST)) as nginx,
        started(directory, pki, **LOOPBACK) as (_, client, port),
    ):
        expected = wire.write_random(nginx.root / "big", 32 * MIB)
        with socks.connect(port, "localhost", nginx.http_port) as sock:
            sock.sendall(wire.request(HOST, "/big", "GET", "Connection: close"))
            head, _, body = wire.read_head(sock).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            client.popen.send_signal(signal.SIGTERM)
            while is_listening(port):
                body += sock.recv(64 << 10)
            body += wire.read_to_end(sock)
        assert hashlib.sha256(body).hexdigest() == expected
        assert client.popen.wait(30) == 0


def test_a_listener_that_cannot_listen_stops_the_start(directory: Path, pki: Pki) -> None:
    """With status 3 and the key in question; the original only logs it and serves without."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {"socks5ListenAddr": address, "attestation": OUTBOUND}
        with client_process(directory, "wss://localhost:1/connect", pki, {443: 1}, HOST, **settings) as client:
            assert client.popen.wait(20) == 3
            assert f"socks5ListenAddr: cannot listen on {address}" in client.output()
            assert "Traceback" not in client.output()
