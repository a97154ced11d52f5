"""How sessions begin, end and come back: hub restarts, stops of either side, silence, refusals and tokens."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from backend_client.events import Event, EventKind
from backend_client.tokens import HmacTokenProvider, TokenRequest
from nexus.auth.mint import Stage, TokenSpec, build_claims, mint_token
from nexus.hub.server import HubLimits
from nexus.protocol.constants import CLOSE_REASON_MAX_BYTES
from nexus.tls.contexts import hub_client_context
from tests.support import wire
from tests.support.go_hub import GoHub, go_hub
from tests.support.hub import WAIT_S, eventually
from tests.support.loopback import (
    HOST,
    Reader,
    Writer,
    connection,
    digest,
    drain_eof,
    exchange,
    head,
    local_client,
    local_node,
    pattern,
    serve,
    standard,
)
from tests.support.processes import SECRET, Client, Node, Pki, client_process, established, wait_for

MIB = 1024 * 1024
BACKENDS = 5
STREAMS = 50
BACK_WITHIN_S = 2.0


class Diary:
    """The events of a client, with their times."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.entries.append((time.monotonic(), event))

    def of(self, *kinds: EventKind) -> list[tuple[float, Event]]:
        """Return the events of these kinds."""
        return [entry for entry in self.entries if entry[1].kind in kinds]

    def delays(self, *kinds: EventKind) -> list[float]:
        """Return how long the client said it would wait."""
        return [event.retry_s for _, event in self.of(*kinds)]


# -- The hub goes away ------------------------------------------------------------------------------------------------


async def _ticking(reader: Reader, writer: Writer) -> None:
    """Send a little, again and again."""
    await reader.readuntil(b"\n")
    while True:
        writer.write(b"tick")
        await writer.drain()
        await asyncio.sleep(0.02)


def _watch(port: int, context: ssl.SSLContext, started: Callable[[], object]) -> BaseException | None:
    """Read a stream over TLS to its end, as a browser would; return what went wrong, None for a clean end."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=HOST, suppress_ragged_eofs=False) as tls:
                tls.sendall(b"go\n")
                assert tls.recv(4)
                started()
                while tls.recv(1000):
                    pass
        except OSError as error:
            return error
    return None


def _service_context(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("service", HOST))
    return context


@contextlib.asynccontextmanager
async def _backends(node: Node, target: int) -> AsyncIterator[list[Diary]]:
    diaries = [Diary() for _ in range(BACKENDS)]
    async with contextlib.AsyncExitStack() as stack:
        for number, diary in enumerate(diaries):
            client = local_client(node.hub_url, node.pki, {node.tls_port: target}, name=f"b{number}", on_event=diary)
            await stack.enter_async_context(client)
        yield diaries


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_hub_restart_is_seen_by_every_user_and_mended_by_every_client(
    directory: Path, pki: Pki, how: signal.Signals
) -> None:
    """W7, W32, W23: streams end visibly, clients are back soon but not all at once, and new streams work."""
    context = ssl.create_default_context(cafile=str(pki.ca_file))
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python sets it before 3.11.4, and takes a cut for an end
    started: list[int] = []
    with ThreadPoolExecutor(STREAMS) as threads:
        async with serve(_ticking, context=_service_context(pki)) as target:
            with Node(directory, pki, shutdownGraceSeconds=0) as node:
                async with _backends(node, target) as diaries:
                    loop = asyncio.get_running_loop()
                    watch = functools.partial(_watch, node.tls_port, context, lambda: started.append(1))
                    users = [loop.run_in_executor(threads, watch) for _ in range(STREAMS)]
                    await eventually(lambda: len(started) == STREAMS, "streams")
                    await asyncio.to_thread(node.stop, how)
                    ends = await asyncio.gather(*users)
                    assert all(isinstance(end, ConnectionResetError | ssl.SSLError) for end in ends), ends
                    gone_at = time.monotonic()
                    await asyncio.to_thread(node.restart)
                    up_at = time.monotonic()
                    await eventually(lambda: all(len(d.of(EventKind.CONNECTED)) == 2 for d in diaries), "sessions")
                    _check_return([d.of(EventKind.CONNECTED)[1][0] for d in diaries], gone_at, up_at)
                    assert len({d.delays(EventKind.DISCONNECTED)[0] for d in diaries}) == BACKENDS
                    again = loop.run_in_executor(threads, watch)
                    await eventually(lambda: len(started) == STREAMS + 1, "a new stream")
                    await asyncio.to_thread(node.kill)
                    assert await again is not None


def _check_return(times: list[float], gone_at: float, up_at: float) -> None:
    # The delays double, so an absence longer than BACK_WITHIN_S is followed by waits of its own order.
    assert max(times) - up_at <= max(BACK_WITHIN_S, 2.5 * (up_at - gone_at))


async def test_a_stopping_node_lets_a_download_finish_and_takes_nothing_new(directory: Path, pki: Pki) -> None:
    """W32: the hub had no drain; users were cut at once."""
    async with serve(standard) as target, asyncio.timeout(WAIT_S):
        with Node(directory, pki) as node:
            async with (
                local_client(node.hub_url, pki, {node.http_port: target}),
                connection(node.http_port, slow=True) as (reader, writer),
                asyncio.TaskGroup() as tasks,
            ):
                writer.write(head("GET", f"/bytes/{16 * MIB}"))
                begun = await reader.readexactly(1000)
                stopping = tasks.create_task(asyncio.to_thread(node.stop))
                await eventually(lambda: _refuses(node.http_port), "the end of listening")
                assert digest(begun + await drain_eof(reader, paced=True)) == digest(pattern(16 * MIB))
                assert await stopping == 0


def _refuses(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_node_that_may_not_wait_breaks_a_tail_visibly(directory: Path, pki: Pki) -> None:
    """W2, W32: an answer that the backend has finished and the user has not yet read ends in an RST, not in a FIN."""
    async with serve(standard) as target:
        with (
            Node(directory, pki, shutdownGraceSeconds=0) as node,
            Client(directory, node, {node.http_port: target}, HOST),
        ):
            await asyncio.to_thread(break_a_tail, node)


def break_a_tail(node: Node) -> None:
    """Be the users: the first one reads nothing, and so finds out how much node and kernel take for such a user."""
    with ask(node, f"/bytes/{32 * MIB}"):
        taken = relayed_when_nothing_moves(node)
    wait_for(lambda: not node.metric("nexus_streams"), "the end of the first stream")
    # Less, so that the backend finishes; if the kernel takes less this time, the second user reads a little, each time
    # from full buffers. So the tail is long in any case.
    with ask(node, f"/bytes/{taken - MIB // 4}") as user:
        wait_for(lambda: node.metric("nexus_streams_opened_total") == 2, "the second stream")
        while relayed_when_nothing_moves(node) and node.metric("nexus_streams"):
            assert user.recv(MIB // 4)
        assert node.metric("nexus_buffered_bytes") > 0
        node.stop()
        with pytest.raises(ConnectionResetError):
            wire.read_to_end(user)


@contextlib.contextmanager
def ask(node: Node, path: str) -> Iterator[socket.socket]:
    """Send a whole request, FIN included, from a user with a small receive buffer."""
    with wire.connect(node.http_port, receive_buffer_bytes=65_536) as user:
        user.sendall(head("GET", path))
        user.shutdown(socket.SHUT_WR)
        yield user


def relayed_when_nothing_moves(node: Node) -> int:
    """Return the bytes relayed to users, once many looks in a row have shown the same."""
    seen: list[float] = []

    def settled() -> bool:
        seen.append(node.metric('nexus_relayed_bytes_total{direction="to_clients"}'))
        return len(seen) > 25 and len(set(seen[-25:])) == 1 and seen[-1] > MIB

    wait_for(settled, "nothing moves")
    return int(seen[-1])


# -- The client goes away ---------------------------------------------------------------------------------------------


async def test_a_client_with_an_idle_stream_stops_at_once(directory: Path, pki: Pki) -> None:
    """W6: one idle keep-alive connection held the stop for 30 s."""
    async with serve(standard) as target:
        with Node(directory, pki) as node, Client(directory, node, {node.http_port: target}, HOST) as client:
            async with asyncio.timeout(WAIT_S), connection(node.http_port) as (reader, writer):
                writer.write(head("GET", "/hold"))
                assert await reader.readexactly(4) == b"held"
                assert await asyncio.to_thread(client.stop, signal.SIGTERM, 2.0) == 0
                with pytest.raises(ConnectionResetError):
                    await drain_eof(reader)


async def test_a_client_with_a_download_stops_behind_it(directory: Path, pki: Pki) -> None:
    """W6: what moves is waited for, and nothing new is sent to a client that drains."""
    async with serve(standard) as target, asyncio.timeout(WAIT_S):
        with Node(directory, pki) as node, Client(directory, node, {node.http_port: target}, HOST) as client:
            async with connection(node.http_port, slow=True) as (reader, writer), asyncio.TaskGroup() as tasks:
                writer.write(head("GET", f"/bytes/{16 * MIB}"))
                begun = await reader.readexactly(1000)
                stopping = tasks.create_task(asyncio.to_thread(client.stop))
                await eventually(lambda: not node.metric("nexus_routes"), "the end of its routes")
                assert b"404" in await exchange(node.http_port, head("GET", "/bytes/1"))
                assert digest(begun + await drain_eof(reader, paced=True)) == digest(pattern(16 * MIB))
                assert await stopping == 0


async def test_a_stopping_client_delivers_the_tail_of_an_upload(directory: Path, pki: Pki) -> None:
    """W2, W6: the tail of an upload whose user is gone got 50 ms; then the service saw a FIN in the middle."""
    got: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    may_read = asyncio.Event()
    may_read.set()

    async def sink(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        data = b""
        while chunk := await reader.read(65_536):
            data += chunk
            await asyncio.sleep(0.002)
            await may_read.wait()
        got.set_result(digest(data))

    async with serve(sink, slow=True) as target, asyncio.timeout(WAIT_S):
        with Node(directory, pki) as node, Client(directory, node, {node.http_port: target}, HOST) as client:
            async with connection(node.http_port) as (_, writer):
                writer.write(head("PUT", "/") + pattern(16 * MIB))
                await writer.drain()
            await eventually(lambda: node.metric("nexus_streams_opened_total"), "the stream")
            await eventually(lambda: not node.metric("nexus_streams"), "the end of the stream")
            may_read.clear()
            client.popen.send_signal(signal.SIGTERM)
            await eventually(lambda: not node.metric("nexus_routes"), "the end of its routes")
            may_read.set()
            assert await got == digest(pattern(16 * MIB))
            assert await asyncio.to_thread(client.stop) == 0


async def test_a_backend_that_falls_silent_is_found_and_its_users_told(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W19: users were routed to a dead backend for up to 60 s."""
    monkeypatch.setattr("nexus.hub.server.HUB_PING_INTERVAL_S", 0.2)
    monkeypatch.setattr("nexus.hub.server.HUB_DEAD_AFTER_S", 0.6)
    async with serve(standard) as target, local_node(pki) as node, asyncio.timeout(WAIT_S):
        with client_process(directory, node.hub_url, pki, {node.port: target}, HOST) as client:
            await eventually(lambda: node.node.registry.sessions, "the session")
            async with connection(node.port) as (reader, writer):
                writer.write(head("GET", "/hold"))
                assert await reader.readexactly(4) == b"held"
                client.popen.send_signal(signal.SIGSTOP)
                with pytest.raises(ConnectionResetError):
                    await drain_eof(reader)
                assert b"404" in await exchange(node.port, head("GET", "/bytes/1"))
                client.popen.send_signal(signal.SIGCONT)
                await eventually(lambda: node.node.registry.sessions, "a new session")
                assert digest(await exchange(node.port, head("GET", "/bytes/9"))) == digest(pattern(9))


@pytest.mark.parametrize("side", ["hub", "client"])
async def test_a_cut_link_ends_its_streams_visibly_and_comes_back(pki: Pki, side: str) -> None:
    """W23: a message lost at a write error went unnoticed until the next ping."""
    diary = Diary()
    async with (
        serve(standard) as target,
        local_node(pki) as node,
        local_client(node.hub_url, pki, {node.port: target}, on_event=diary) as client,
        asyncio.timeout(WAIT_S),
    ):
        async with connection(node.port, slow=True) as (reader, writer):
            writer.write(head("GET", f"/bytes/{16 * MIB}"))
            assert await reader.readexactly(1000)
            (backend,) = node.node.registry.sessions
            assert client._session is not None
            session = backend.session if side == "hub" else client._session.session
            session.link.transport.abort()
            with pytest.raises(ConnectionResetError):
                await drain_eof(reader)
        await eventually(lambda: len(diary.of(EventKind.CONNECTED)) == 2, "a new session")
        assert digest(await exchange(node.port, head("GET", "/bytes/9"))) == digest(pattern(9))


# -- Refusals ---------------------------------------------------------------------------------------------------------


def _go_context(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("gohub", "localhost"))
    return context


async def test_a_client_refused_behind_the_handshake_backs_off(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """W7: a refused stage-1 token counted as a session and was tried again every 5 s, for ever.

    This hub answers the ping behind the token before it judges the token, so the client does believe to be connected.
    """
    base_s = 0.05
    monkeypatch.setattr("backend_client.backoff.REJECTED_BASE_S", base_s)
    diary = Diary()
    hub = GoHub(_go_context(pki))
    hub.reject_stage1 = (1008, "invalid token: nonce mismatch")
    async with go_hub(hub), local_client(hub.url, pki, {}, on_event=diary, connected=False):
        await eventually(lambda: len(diary.of(EventKind.REJECTED)) == 4, "four refusals")
    for doublings, delay_s in enumerate(diary.delays(EventKind.REJECTED)):
        assert 0.75 <= delay_s / (base_s * 2**doublings) <= 1.25
    assert not diary.of(EventKind.FAILED, EventKind.DISCONNECTED)


async def test_a_passing_failure_is_not_taken_for_a_refusal_by_its_wording(pki: Pki) -> None:
    """W30: "401" anywhere in a text made a failure permanent."""
    diary = Diary()
    hub = GoHub(_go_context(pki))
    hub.reject_stage0 = (1011, "403 from the verifier at 10.4.0.1:4031, 401 before: unauthorized")
    async with go_hub(hub), local_client(hub.url, pki, {}, on_event=diary, connected=False) as client:
        await eventually(lambda: diary.of(EventKind.FAILED), "a failure")
        hub.reject_stage0 = None
        async with asyncio.timeout(WAIT_S):
            await client.wait_connected()
    assert not diary.of(EventKind.REJECTED)


def _token(stage: Stage, nonce: str = "", *, secret: str = SECRET, drop: str = "", **claims: object) -> str:
    spec = TokenSpec("eve", (HOST,))
    made = {**build_claims(stage, nonce, spec, time.time()), **claims}
    made.pop(drop, None)
    return mint_token(made, secret.encode())


async def _refused(url: str, pki: Pki, first: str, second: Callable[[str], str] | None = None) -> tuple[int, str]:
    """Log in with these tokens and return the close code and reason; they hold no secret of the handshake."""
    sent = [first]
    async with connect(url, ssl=hub_client_context(pki.ca_file), compression=None) as websocket:
        await websocket.send(first)
        nonce = ""
        with contextlib.suppress(ConnectionClosed):
            nonce = json.loads(await websocket.recv())["nonce"]
            if second is not None:
                sent.append(second(nonce))
                await websocket.send(sent[1])
            await websocket.wait_closed()
        await websocket.wait_closed()
    code, reason = websocket.close_code, websocket.close_reason
    assert code is not None
    assert reason
    assert len(reason.encode()) <= CLOSE_REASON_MAX_BYTES
    for secret in [SECRET, nonce, *(part for token in sent for part in token.split("."))]:
        assert not secret or secret not in reason
    return code, reason


async def test_no_reason_of_a_refusal_leaks_or_gets_lost(pki: Pki) -> None:
    """W28: reasons told the expected nonce and internal text, or were too long to be sent at all."""
    async with local_node(pki, requireTokenExpiry=True) as node:
        refused = functools.partial(_refused, node.hub_url, pki)
        long_name = ".".join(["x" * 60] * 4)
        outcomes = [
            await refused("no token at all"),
            await refused(_token("handshake", secret="another secret of thirty-two bytes")),
            await refused(_token("handshake", exp=int(time.time()) - 60)),
            await refused(_token("handshake", drop="exp")),
            await refused(_token("handshake", hostnames=[f"tcp:{long_name}"])),
            await refused(_token("handshake"), lambda _: _token("attest", "wrong" * 9)),
            await refused(_token("handshake"), lambda _: _token("attest", drop="session_nonce")),
            await refused(_token("handshake"), lambda nonce: _token("attest", nonce, hostnames=[long_name])),
            await refused(_token("handshake"), lambda nonce: _token("attest", nonce, drop="exp")),
        ]
    assert {code for code, _ in outcomes} == {1008}


async def test_a_subject_may_hold_only_so_many_sessions(pki: Pki) -> None:
    """W28: one identity could open sessions without limit."""
    diary = Diary()
    async with local_node(pki, maxSessionsPerSubject=1) as node, local_client(node.hub_url, pki, {}, name="one"):
        async with local_client(node.hub_url, pki, {}, name="one", on_event=diary, connected=False):
            await eventually(lambda: diary.of(EventKind.REJECTED), "the refusal")
        async with local_client(node.hub_url, pki, {}, name="two"):
            assert len(node.node.registry.sessions) == 2


# -- Tokens -----------------------------------------------------------------------------------------------------------


class _Slow(HmacTokenProvider):
    """Takes its time, and notes how many connections the hub had when it was asked."""

    def __init__(self, delay_s: float, connections: Callable[[], int]) -> None:
        super().__init__(SECRET, TokenSpec(subject=""))
        self.delay_s = delay_s
        self.connections = connections
        self.seen: list[tuple[str, int]] = []

    async def token(self, request: TokenRequest) -> str:
        """Wait, then sign."""
        await asyncio.sleep(self.delay_s)  # a slow command: the time itself is under test
        self.seen.append((request.stage, self.connections()))
        return await super().token(request)


async def test_a_slow_token_command_still_logs_in(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """W14: the first token was fetched behind the dial, so a slow command ran into the hub's clock."""
    limits = functools.partial(HubLimits, upgrade_timeout_s=5, stage0_timeout_s=0.4, stage1_timeout_s=5)
    monkeypatch.setattr("nexus.assembly.HubLimits", limits)
    diary = Diary()
    async with local_node(pki) as node:
        provider = _Slow(0.8, lambda: established(node.hub_port))
        async with local_client(node.hub_url, pki, {}, provider=provider, on_event=diary):
            assert provider.seen == [("handshake", 0), ("attest", 1)]
    assert not diary.of(EventKind.FAILED, EventKind.REJECTED)
