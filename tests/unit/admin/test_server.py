"""nexus.admin.server: pages, bounds, and sockets that are taken over or left alone rightly."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from nexus.admin import server as module
from nexus.admin.address import AdminAddress, TcpAddress, UnixAddress
from nexus.admin.metrics import NodeStats, node_registry
from nexus.admin.probe import probe
from nexus.admin.server import CONNECTIONS_MAX, HEAD_MAX_BYTES, AdminServer, Readiness
from nexus.errors import ConfigError

LOOPBACK = "127.0.0.1:0"


class Node:
    """What the pages show, changeable by a test."""

    def __init__(self) -> None:
        self.readiness = Readiness(True)
        self.is_broken = False

    def stats(self) -> NodeStats:
        """Return the stats, or fail."""
        if self.is_broken:
            raise RuntimeError("a bug with a SECRET in it")
        return NodeStats(version="1", start_time_seconds=0, sessions=42)

    def admin(self) -> AdminServer:
        """Return a server for this node."""
        return AdminServer(node_registry(self.stats), lambda: self.readiness)


@pytest.fixture
def node() -> Node:
    """A node that is ready."""
    return Node()


@pytest.fixture(params=["tcp", "unix"])
async def address(request: pytest.FixtureRequest, node: Node, tmp_path: Path) -> AsyncIterator[AdminAddress]:
    """A running endpoint, on each kind of socket."""
    async with node.admin().serve(LOOPBACK if request.param == "tcp" else f"unix:{tmp_path}/admin.sock") as bound:
        yield bound


async def open_raw(address: AdminAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and send nothing yet."""
    if isinstance(address, TcpAddress):
        return await asyncio.open_connection(address.host, address.port)
    return await asyncio.open_unix_connection(address.path)


async def exchange(address: AdminAddress, request: bytes) -> bytes:
    """Send raw bytes and return everything that comes back until the end."""
    reader, writer = await open_raw(address)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(address: AdminAddress, path: str, method: str = "GET", *lines: str) -> tuple[int, dict[str, str], str]:
    """Return status, headers (lower-case names) and body of an answer."""
    request = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""])
    head, _, body = (await exchange(address, request.encode())).decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return int(status.split()[1]), headers, body


async def test_a_running_loop_is_healthy(address: AdminAddress) -> None:
    """Liveness says nothing but that."""
    assert (await ask(address, "/healthz"))[::2] == (200, "ok\n")


async def test_a_ready_node_answers_200(address: AdminAddress, node: Node) -> None:
    """In JSON, for people and programs."""
    node.readiness = Readiness(True, notes=("look",))
    status, headers, body = await ask(address, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": [], "notes": ["look"]})
    assert headers["content-type"] == "application/json"


async def test_a_node_that_is_not_ready_says_why(address: AdminAddress, node: Node) -> None:
    """Load balancers look at the status, operators at the reasons."""
    node.readiness = Readiness(False, ("draining", 'no "backend"'))
    status, _, body = await ask(address, "/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reasons": ["draining", 'no "backend"'], "notes": []})


async def test_metrics_are_those_of_the_node(address: AdminAddress) -> None:
    """In the plain text format by default."""
    status, headers, body = await ask(address, "/metrics")
    assert status == 200
    assert "\nnexus_sessions 42.0\n" in body
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_metrics_are_negotiated(address: AdminAddress) -> None:
    """Prometheus sends one Accept header, others several."""
    accept = ["Accept: text/html", "Accept: application/openmetrics-text; version=1.0.0"]
    _, headers, body = await ask(address, "/metrics", "GET", *accept)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith("# EOF\n")


async def test_the_index_lists_every_page_and_every_page_exists(address: AdminAddress) -> None:
    """A curious operator starts at the root."""
    _, _, body = await ask(address, "/")
    paths = [line for line in body.splitlines() if line.startswith("/")]
    assert paths == ["/", "/healthz", "/readyz", "/metrics"]
    assert [(await ask(address, path))[0] for path in paths] == [200] * len(paths)


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/METRICS", "//metrics", "/..", "*", "/%68ealthz"])
async def test_anything_else_is_not_found(path: str, address: AdminAddress) -> None:
    """Paths are compared as they are."""
    assert (await ask(address, path))[0] == 404


async def test_a_query_is_ignored(address: AdminAddress) -> None:
    """Some health checkers add one to defeat caches."""
    assert (await ask(address, "/healthz?now=1"))[0] == 200


async def test_head_has_the_head_of_get_and_no_body(address: AdminAddress) -> None:
    """RFC 9110 section 9.3.2."""
    status, headers, body = await ask(address, "/healthz", "HEAD")
    assert (status, headers["content-length"], body) == (200, "3", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "X"])
async def test_other_methods_are_not_allowed(method: str, address: AdminAddress) -> None:
    """And are told what is (RFC 9110 section 15.5.6)."""
    status, headers, _ = await ask(address, "/healthz", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /healthz HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"GET / HTTP/2.0\r\n\r\n",
        b"\r\n\r\n",
        b"\x16\x03\x01\n",
    ],
)
async def test_a_request_with_a_body_or_without_sense_is_a_bad_request(request_: bytes, address: AdminAddress) -> None:
    """An answer, not a connection that just ends."""
    assert (await exchange(address, request_)).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_websocket_upgrade_gets_the_page_like_anybody(address: AdminAddress) -> None:
    """The library could upgrade; this endpoint never does."""
    key = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    nonce = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert (await ask(address, "/healthz", "GET", *key, nonce))[0] == 200
    assert (await ask(address, "/connect", "GET", *key, nonce))[0] == 404


async def test_an_answer_names_its_length_and_ends_the_connection(address: AdminAddress) -> None:
    """It is not to be cached, not to be guessed at, and does not tell what software made it."""
    _, headers, body = await ask(address, "/healthz")
    assert headers["connection"] == "close"
    assert headers["content-length"] == str(len(body))
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


@pytest.mark.parametrize("line", [b"X: " + b"x" * 8_000 + b"\r\n"])
async def test_a_head_that_is_too_large_is_refused(line: bytes, address: AdminAddress) -> None:
    """The bound is on the whole head, however many lines it has."""
    head = b"GET /healthz HTTP/1.1\r\n" + line * (HEAD_MAX_BYTES // len(line) + 1)
    reader, writer = await open_raw(address)
    writer.write(head)
    assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
    writer.close()
    assert (await ask(address, "/healthz"))[0] == 200


async def test_a_line_that_is_too_long_is_refused(address: AdminAddress) -> None:
    """The library's own bound, within ours."""
    answer = await exchange(address, b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 414 ")


async def test_a_page_that_fails_costs_one_answer(
    address: AdminAddress, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is in the log, not in the answer, and the next request is served."""
    node.is_broken = True
    status, _, body = await ask(address, "/metrics")
    assert status == 500
    assert "SECRET" not in body
    assert [record.name for record in caplog.records] == ["nexus.admin"]
    assert (await ask(address, "/healthz"))[0] == 200
    node.is_broken = False
    assert (await ask(address, "/metrics"))[0] == 200


async def test_requests_are_not_logged_one_by_one(address: AdminAddress, caplog: pytest.LogCaptureFixture) -> None:
    """A scrape every 15 s would fill the log of an idle node."""
    caplog.set_level(logging.INFO)
    await ask(address, "/metrics")
    await ask(address, "/nothing")
    await exchange(address, b"junk\r\n")
    assert caplog.messages == []


async def test_connections_beyond_the_bound_are_closed_and_room_is_found_again(address: AdminAddress) -> None:
    """Whoever holds connections open delays others, but never takes memory without end."""
    idle = [await open_raw(address) for _ in range(CONNECTIONS_MAX)]
    with contextlib.suppress(ConnectionError):  # some systems report the abort as a reset
        assert await exchange(address, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
    for reader, writer in idle[:2]:
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        await writer.wait_closed()
    assert (await ask(address, "/healthz"))[0] == 200
    for _, writer in idle[2:]:
        writer.close()


async def test_a_silent_connection_is_closed_in_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody keeps a connection without asking something."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.01)
    async with node.admin().serve(LOOPBACK) as address:
        reader, writer = await open_raw(address)
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_stopping_does_not_wait_for_idle_connections(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that shuts down has better things to do than wait for a scraper."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 3_600.0)  # waiting for it would fail the test run's own limit
    async with node.admin().serve(LOOPBACK) as address:
        reader, writer = await open_raw(address)
        writer.write(b"GET / HTTP/1.1\r\n")
        assert (await ask(address, "/healthz"))[0] == 200  # so the first connection has been accepted
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("where", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
async def test_an_address_that_others_may_reach_needs_a_word(where: str, node: Node) -> None:
    """The endpoint has no authentication."""
    with pytest.raises(ConfigError, match="loopback"):
        async with node.admin().serve(where):
            raise AssertionError


async def test_an_operator_may_say_that_word(node: Node) -> None:
    """In a container, the loopback of the container is of no use to Prometheus."""
    async with node.admin().serve("0.0.0.0:0", allow_remote=True) as bound:
        assert isinstance(bound, TcpAddress)
        assert (await ask(TcpAddress("127.0.0.1", bound.port), "/healthz"))[0] == 200


async def test_a_port_in_use_is_a_configuration_error(address: AdminAddress, node: Node) -> None:
    """So is a socket where another node listens; neither disturbs the other node."""
    with pytest.raises(ConfigError, match="in use"):
        async with node.admin().serve(address):
            raise AssertionError
    assert (await ask(address, "/healthz"))[0] == 200


async def test_an_address_object_serves_as_well_as_its_text(node: Node, tmp_path: Path) -> None:
    """Configuration may have parsed it already."""
    where = UnixAddress(f"{tmp_path}/admin.sock")
    async with node.admin().serve(where) as bound:
        assert bound is where


async def test_a_unix_socket_is_private_and_goes_with_the_server(node: Node, tmp_path: Path) -> None:
    """0600: file permissions are its only access control."""
    path = tmp_path / "admin.sock"
    async with node.admin().serve(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_a_socket_file_of_a_dead_process_is_replaced(node: Node, tmp_path: Path) -> None:
    """A crash must not need a hand to start again."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with node.admin().serve(f"unix:{path}") as bound:
        assert (await ask(bound, "/healthz"))[0] == 200


async def test_a_live_socket_with_a_full_backlog_is_left_alone(node: Node, tmp_path: Path) -> None:
    """Busy is not dead."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ConfigError, match="in use"):
            async with node.admin().serve(f"unix:{path}"):
                raise AssertionError
        assert path.exists()


async def test_a_file_that_is_no_socket_is_never_removed(node: Node, tmp_path: Path) -> None:
    """A mistyped path must not cost a file, nor what a link points at."""
    for path in (tmp_path / "precious", tmp_path / "link"):
        if path.name == "link":
            path.symlink_to(tmp_path / "precious")
        else:
            path.write_text("precious")
        with pytest.raises(ConfigError, match="in use"):
            async with node.admin().serve(f"unix:{path}"):
                raise AssertionError
        assert path.read_text() == "precious"


async def test_a_missing_directory_is_a_configuration_error(node: Node, tmp_path: Path) -> None:
    """The address is named."""
    with pytest.raises(ConfigError, match="No such file") as caught:
        async with node.admin().serve(f"unix:{tmp_path}/absent/admin.sock"):
            raise AssertionError
    assert caught.value.problems[0].key == f"unix:{tmp_path}/absent/admin.sock"


async def test_the_socket_of_a_successor_is_left_alone(node: Node, tmp_path: Path) -> None:
    """After a takeover, the old process's end must not cut the new one off."""
    path = tmp_path / "admin.sock"
    async with node.admin().serve(f"unix:{path}"):
        path.rename(tmp_path / "old.sock")
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


async def test_the_probe_and_the_server_understand_each_other(address: AdminAddress, node: Node) -> None:
    """What a container's health check does."""
    assert await asyncio.to_thread(probe, str(address), "/healthz") == (http.HTTPStatus.OK, "ok\n")
    node.readiness = Readiness(False)
    assert (await asyncio.to_thread(probe, address, "/readyz")).status == http.HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.programs
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [[], ["--head"], ["--data", "x"]], ids=["get", "head", "post"])
async def test_curl_gets_a_whole_answer(options: list[str], address: AdminAddress) -> None:
    """A client of others, over both kinds of socket, with each kind of request."""
    if isinstance(address, UnixAddress):
        target = ["--unix-socket", address.path, "http://localhost/healthz"]
    else:
        target = [f"http://{address}/healthz"]
    format_ = "%{stdout}%{http_code}"
    command = ["curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", format_, *options, *target]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, err = await process.communicate()
    assert (process.returncode, err, out) == (0, b"", b"400" if "--data" in options else b"200")


@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_both_event_loops_serve_alike(
    new_loop: Callable[[], asyncio.AbstractEventLoop], where: str, node: Node, tmp_path: Path
) -> None:
    """Pages, errors, the end, and a second start at the same place."""
    path = tmp_path / "admin.sock"

    async def scenario() -> None:
        for _ in range(2):
            async with node.admin().serve(LOOPBACK if where == "tcp" else f"unix:{path}") as bound:
                assert (await ask(bound, "/healthz"))[::2] == (200, "ok\n")
                assert (await ask(bound, "/healthz", "POST"))[0] == 405
                assert (await exchange(bound, b"junk\r\n")).startswith(b"HTTP/1.1 400 ")
            assert not path.exists()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
