"""Links of whole nodes on loopback: who is let in, what is said to whom is not, and how links come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from nexus.places import GRACE_S
from nexus.tls import peer_contexts
from nexus.tls.contexts import hub_client_context, identified_client_context
from nexus.tls.purpose import leave_purpose_to_us
from tests.support.fleet import fleet, knows, mesh_settings, reserved_ports, serving
from tests.support.hub import HOST, eventually
from tests.support.node import Config, Running, configurations, port, running
from tests.support.peer_certificates import CODE_SIGNING, SERVER, Authority, store
from tests.support.processes import Pki


@pytest.fixture
def config(pki: Pki, tmp_path: Path) -> Config:
    """Make configurations."""
    return configurations(pki, tmp_path)


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Two ports for peer listeners."""
    with reserved_ports(2) as ports:
        yield ports


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.INFO)


def dialling(pki: Pki, name: str | None, *names: str) -> ssl.SSLContext:
    """Return the context of somebody who dials, with a certificate for some names."""
    context = hub_client_context(pki.ca_file)
    if name is not None:
        context.load_cert_chain(*pki.issue(name, *names))
    return context


def url(node: Running, path: str = "/mesh") -> str:
    return f"wss://localhost:{port(node.addresses.peer)}{path}"


async def status(node: Running, context: ssl.SSLContext, path: str = "/mesh") -> tuple[int, str]:
    """Return how the upgrade is answered."""
    try:
        async with connect(url(node, path), ssl=context, compression=None, proxy=None):
            return 101, ""
    except InvalidStatus as error:
        return error.response.status_code, error.response.body.decode()


async def test_nodes_that_list_each_other_end_with_one_link_each(pki: Pki, tmp_path: Path) -> None:
    """Three nodes, three links; a backend of one serves clients of all."""
    async with fleet(pki, tmp_path, 3) as nodes:
        backend = await nodes[0].backend()
        for node in nodes[1:]:
            await knows(node, HOST)
            reader, _writer = await node.client(b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
            connect = await backend.control()
            assert (connect.event, connect.hostname) == ("connect", HOST)
            data = await backend.receive()
            assert isinstance(data, bytes)
            await backend.websocket.send(b"\x01" + data[1:17] + b"answer")
            assert await reader.readexactly(6) == b"answer"
        assert [serving(node) for node in nodes] == [2, 2, 2]


async def test_a_node_may_accept_peers_without_dialling_any(pki: Pki, config: Config, ports: list[int]) -> None:
    """Routes go both ways over the one link."""
    own = ports[0]
    one = config(**mesh_settings(pki, "one", own, []))
    other = config(**mesh_settings(pki, "other", ports[1], [own]))
    async with running(pki, one) as accepting, running(pki, other) as dialler:
        await accepting.backend()
        await dialler.backend(hostnames=("other.example.com",))
        await knows(dialler, HOST)
        await knows(accepting, "other.example.com")


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (("node.mesh.test",), "/mesh", 101),
        (("node.mesh.test",), "/mesh?x=1", 101),
        (("node.mesh.test",), "/mesh/", 404),
        (("node.mesh.test",), "/", 404),
        (("evilmesh.test",), "/mesh", 403),
        (("mesh.test",), "/mesh", 403),
    ],
)
async def test_only_nodes_of_the_fleet_get_a_link(
    pki: Pki,
    config: Config,
    ports: list[int],
    names: tuple[str, ...],
    path: str,
    expected: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are told why, before the upgrade, and so is the operator here."""
    own = ports[0]
    async with running(pki, config(**mesh_settings(pki, "node", own, []))) as node:
        code, body = await status(node, dialling(pki, "stranger", *names), path)
        assert code == expected
        if expected == 403:
            assert f"its certificate has {names[0]}" in body
            assert "trustedDomainSuffixes (.mesh.test)" in lines(caplog)
            assert node.node.mesh.totals.refused_links == {"trust": 1}
        await eventually(lambda: not node.node.mesh.peers, "no peer is left")


@pytest.mark.parametrize("shown", [None, "a stranger's"])
async def test_without_a_certificate_of_the_ca_there_is_no_handshake(
    pki: Pki, config: Config, ports: list[int], tmp_path: Path, shown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The log here says why."""
    context = dialling(pki, None)
    if shown is not None:
        (tmp_path / "other").mkdir()
        context.load_cert_chain(*Pki.create(tmp_path / "other").issue("node", "node.mesh.test"))
    own = ports[0]
    async with running(pki, config(**mesh_settings(pki, "node", own, []))) as node:
        with pytest.raises((OSError, EOFError, InvalidMessage)):
            await status(node, context)
        await eventually(lambda: node.node.mesh.totals.refused_links == {"upgrade": 1}, "it is counted")
    assert "refused a link from 127.0.0.1" in lines(caplog)
    assert ("the node showed no certificate" if shown is None else "peerCAFile") in lines(caplog)


@pytest.mark.parametrize("after_the_handshake", [True, False])
async def test_a_certificate_for_something_else_gets_no_link(
    pki: Pki,
    config: Config,
    ports: list[int],
    tmp_path: Path,
    after_the_handshake: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the CA and the name are trusted, and whoever judges it; one for servers gets one."""
    if not after_the_handshake:
        monkeypatch.setattr(peer_contexts, "leave_purpose_to_us", lambda: False)
    root = Authority.root()
    trust = {"peerCAFile": str(root.save(tmp_path / "root.pem"))}
    async with running(pki, config(**mesh_settings(pki, "node", ports[0], []) | trust)) as node:

        async def answer(*usages: x509.ObjectIdentifier) -> str:
            shown = store(tmp_path, "peer", root.issue(("peer.mesh.test",), usages))
            try:
                code, body = await status(node, identified_client_context(shown, pki.ca_file))
            except (OSError, InvalidMessage) as error:
                return f"no answer: {error}"
            return f"{code} {body}"

        assert (await answer(SERVER)).startswith("101")
        said = await answer(CODE_SIGNING)
        assert said.startswith("403" if after_the_handshake and leave_purpose_to_us() else "no answer")
        await eventually(lambda: "is for something other than TLS" in lines(caplog), "the log says why")
        assert "the node's certificate" in lines(caplog)
        await eventually(lambda: not node.node.mesh.peers, "no peer is left")


async def test_a_node_that_waits_for_its_certificate_bothers_no_other_and_says_so(
    pki: Pki, config: Config, ports: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither dials nor accepts; what it says of itself is no riddle about the other."""
    own, other = ports
    waiting = {
        "hubTlsCertFile": "",
        "hubTlsKeyFile": "",
        "hubPublicHostname": "node.mesh.test",
        "acmeCacheDir": str(tmp_path / "acme"),
        "acmeDirectoryURL": "http://127.0.0.1:9/dir",
    }
    async with (
        running(pki, config(**mesh_settings(pki, "other", other, [own]))) as ready,
        running(pki, config(**mesh_settings(pki, "one", own, [other]) | waiting)) as one,
    ):
        await eventually(lambda: one.node.mesh.totals.refused_links["upgrade"] > 0, "the ready one is turned away")
        await eventually(lambda: f"{other}/mesh: no link: this node has no" in lines(caplog), "no dialling")
        assert "refused a link from 127.0.0.1: this node has no certificate yet" in lines(caplog)
        assert "its own log says why" not in lines(caplog)
        assert not ready.node.mesh.totals.refused_links


async def test_a_dialler_says_once_why_there_is_no_link_and_tries_again(
    pki: Pki, config: Config, ports: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node is down, then it is up."""
    monkeypatch.setattr("nexus.mesh.backoff.REDIAL_FIRST_S", 0.05)
    own, other = ports
    async with running(pki, config(**mesh_settings(pki, "one", own, [other]))) as one:
        await eventually(lambda: "no link" in lines(caplog), "the failure is logged")
        assert f"wss://localhost:{other}/mesh: no link:" in lines(caplog)
        async with running(pki, config(**mesh_settings(pki, "other", other, []))):
            await eventually(lambda: serving(one) == 1, "the link is up")
        await eventually(lambda: serving(one) == 0, "the link is gone")
        assert lines(caplog).count("Connect call failed") <= 2
        async with running(pki, config(**mesh_settings(pki, "other", other, []))):
            await eventually(lambda: serving(one) == 1, "the link is up again")


async def test_a_certificate_that_is_refused_is_named_with_the_mend(
    pki: Pki, config: Config, ports: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The dialling side checks the other one's certificate as any client does."""
    (tmp_path / "other").mkdir()
    stranger = Pki.create(tmp_path / "other")
    own, other = ports
    async with (
        running(stranger, config(**mesh_settings(stranger, "other", other, []))),
        running(pki, config(**mesh_settings(pki, "one", own, [other]))),
    ):
        await eventually(lambda: "no link" in lines(caplog), "the failure is logged")
        await eventually(lambda: "refused a link from 127.0.0.1" in lines(caplog), "the other node says so, too")
    assert "is a root that is not trusted here; add it to peerCAFile" in lines(caplog)
    assert "nothing came within" not in lines(caplog)


async def test_a_renewed_certificate_is_shown_by_the_next_link(pki: Pki, config: Config, ports: list[int]) -> None:
    """By both sides of it."""
    own = ports[0]
    settings = mesh_settings(pki, "one", own, [])
    async with running(pki, config(**settings)) as one:
        context = dialling(pki, "peer", "peer.mesh.test")

        async def serial() -> str:
            async with connect(url(one), ssl=context, compression=None, proxy=None) as websocket:
                return str(websocket.transport.get_extra_info("peercert")["serialNumber"])

        before = await serial()
        pki.issue("one", "one.mesh.test", "localhost")
        one.node.reload()
        assert await serial() != before


async def test_a_stopping_node_tells_its_peers_first(pki: Pki, tmp_path: Path) -> None:
    """No tunnel is sent to it any more while what it has goes on; then the link ends in order."""
    async with fleet(pki, tmp_path, 2, shutdownGraceSeconds=20) as (one, other):
        backend = await one.backend()
        await knows(other, HOST)
        reader, writer = await other.client(b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
        await backend.control()
        data = await backend.receive()
        assert isinstance(data, bytes)
        async with asyncio.TaskGroup() as tasks:
            one.node.stop()
            await knows(other)
            assert serving(other) == 1
            await backend.websocket.send(b"\x01" + data[1:17] + b"answer")
            assert await reader.readexactly(6) == b"answer"
            writer.transport.abort()
            tasks.create_task(one.stop())
        await eventually(lambda: serving(other) == 0, "the link has ended")
        assert set(other.node.mesh.totals.link_ends) <= {"1000", "1001"}


async def test_strangers_hold_no_more_than_their_share(pki: Pki, config: Config, ports: list[int]) -> None:
    """Connections that say nothing are bounded, and a node gets in all the same."""
    own = ports[0]
    async with (
        running(pki, config(**mesh_settings(pki, "node", own, []))) as node,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", own)))
        await eventually(lambda: node.node.mesh.totals.refused_links["limit"] >= 8, "the rest is turned away")
        await asyncio.sleep(GRACE_S)  # from now on the oldest gives way
        assert await status(node, dialling(pki, "peer", "peer.mesh.test")) == (101, "")


async def test_a_link_goes_through_the_proxy_that_the_environment_names(
    pki: Pki, config: Config, ports: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the original; loopback alone is never proxied, so the proxy here is asked for another name."""
    asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not asked.done():
            asked.set_result(head)
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        settings = mesh_settings(pki, "one", ports[0], [])
        settings["peers"] = ["wss://node.example.com:8444/mesh"]
        async with running(pki, config(**settings)):
            async with asyncio.timeout(20):
                assert (await asked).startswith(b"CONNECT node.example.com:8444 HTTP/1.1\r\n")
            await eventually(lambda: "refused a tunnel to node.example.com:8444" in lines(caplog), "it is logged")
