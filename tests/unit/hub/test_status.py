"""nexus.hub.status: an authorizer that is up, down, slow, elsewhere, or where no backend may send a node (W27)."""

from __future__ import annotations

import asyncio
import importlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nexus.addresses import parse_network
from nexus.hub import status as module
from nexus.hub.status import REDIRECTS_MAX, StatusClient
from tests.support.hub import WAIT_S
from tests.support.loopback import Reader, Writer, serve
from tests.support.ports import free_ports
from tests.support.processes import Pki
from tests.support.wire import trusting

ON_BOTH_LOOPS = True
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Authorizer:
    """An HTTPS server that answers by the path: ``/status/503``, ``/to/URL``, ``/body``, ``/silent``."""

    def __init__(self, pki: Pki) -> None:
        self.paths: list[str] = []
        self.heads: list[bytes] = []
        self.certificates: list[object] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.trust = trusting(pki.ca_file)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.ca_file)
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.load_cert_chain(*pki.issue("authorizer", "localhost", "127.0.0.1"))
        self.port = 0

    @property
    def url(self) -> str:
        """Its origin."""
        return f"https://localhost:{self.port}"

    async def handle(self, reader: Reader, writer: Writer) -> None:
        """Answer one request, then wait for the other side to leave."""
        self.connections += 1
        self.certificates.append(writer.get_extra_info("peercert"))
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        path = self.heads[-1].split(b" ", 2)[1].decode()
        self.paths.append(path)
        kind, _, rest = path[1:].partition("/")
        answers = {
            "status": f"HTTP/1.1 {rest} x\r\nContent-Length: 0\r\nSet-Cookie: a=b; Secure\r\n\r\n",
            "to": f"HTTP/1.1 307 x\r\nLocation: {rest}\r\nContent-Length: 0\r\n\r\n",
            "loop": "HTTP/1.1 302 x\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n",
            "body": "HTTP/1.1 200 OK\r\n\r\nendless",
            "nonsense": "what?\r\n\r\n",
        }
        writer.write(answers.get(kind, "").encode())
        await writer.drain()
        await reader.read()
        self.gone.set()


@pytest.fixture
async def authorizer(pki: Pki) -> AsyncIterator[Authorizer]:
    """A running authorizer."""
    authorizer = Authorizer(pki)
    async with serve(authorizer.handle, context=authorizer.context) as port:
        authorizer.port = port
        yield authorizer


@asynccontextmanager
async def client(trust: ssl.SSLContext | None, networks: Iterable[str] = LOOPBACK) -> AsyncIterator[StatusClient]:
    """Give a client that may ask loopback, unless told otherwise."""
    status = StatusClient(trust, map(parse_network, networks))
    try:
        yield status
    finally:
        await status.aclose()
        await status.aclose()


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("/status/200", ""),
        ("/status/204", "status 204"),
        ("/status/206", "status 206"),
        ("/status/302", "status 302"),
        ("/status/304", "status 304"),
        ("/status/401", "status 401"),
        ("/status/500", "status 500"),
        ("/status/503", "status 503"),
        ("/to//status/200", ""),
        ("/to/../status/503", "status 503"),
        ("/to/https://127.0.0.1:{port}/status/200", "it redirects elsewhere"),
        ("/to/https://localhost:1/status/200", "it redirects elsewhere"),
        ("/to/http://localhost:{port}/status/200", "it redirects elsewhere"),
        ("/to///127.0.0.1:{port}/status/200", "it redirects elsewhere"),
        ("/loop", f"it redirects more than {REDIRECTS_MAX} times"),
    ],
)
async def test_up_is_exactly_200_of_the_same_origin(authorizer: Authorizer, path: str, trouble: str) -> None:
    """Everything else is down, and no other host is ever asked."""
    async with client(authorizer.trust) as status:
        assert await status.ask(authorizer.url + path.format(port=authorizer.port)) == trouble
    assert len(authorizer.paths) <= 1 + REDIRECTS_MAX
    if trouble == "it redirects elsewhere":
        assert authorizer.connections == 1


async def test_a_question_carries_nothing_of_the_node(authorizer: Authorizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No certificate though one is asked for, no cookie of an earlier answer, no proxy of the environment between."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with client(authorizer.trust) as status:
        assert [await status.ask(f"{authorizer.url}/status/200") for _ in range(2)] == ["", ""]
    assert authorizer.certificates == [None, None]
    assert not [head for head in authorizer.heads if b"cookie" in head.lower()]


async def test_a_public_address_is_used_where_another_one_is_private(
    authorizer: Authorizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may have addresses of both kinds."""
    monkeypatch.setattr(module, "is_refused", lambda address, _allowed: ":" in address)
    async with client(authorizer.trust) as status:
        assert await status.ask(f"{authorizer.url}/status/200") == ""


async def test_the_body_is_not_read(authorizer: Authorizer) -> None:
    """However long it is: the connection is closed behind the head."""
    async with client(authorizer.trust) as status:
        assert await status.ask(f"{authorizer.url}/body") == ""
        async with asyncio.timeout(10):
            await authorizer.gone.wait()


async def test_an_authorizer_that_does_not_answer_is_down(
    authorizer: Authorizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limit for everything together."""
    monkeypatch.setattr(module, "STATUS_TIMEOUT_S", 0.1)
    async with client(authorizer.trust) as status:
        assert await status.ask(f"{authorizer.url}/silent") == "no answer within 0.1 s"


async def test_the_time_limit_covers_the_loading_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded in a thread, and those may all be busy."""
    loaded = threading.Event()
    monkeypatch.setattr(importlib, "import_module", lambda _name: loaded.wait(2 * WAIT_S))
    monkeypatch.setattr(module, "STATUS_TIMEOUT_S", 0.05)
    async with client(None) as status:
        try:
            async with asyncio.timeout(WAIT_S):
                assert await status.ask("https://localhost:1/") == "no answer within 0.05 s"
        finally:
            loaded.set()


async def test_names_that_hang_hold_up_no_other_lookup_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup goes on when nobody waits any more, and must not take everybody's thread."""
    answered, ask = threading.Event(), socket.getaddrinfo

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host == "slow.example" and not options.get("flags", 0) & socket.AI_NUMERICHOST:
            answered.wait(2 * WAIT_S)
            return []
        return ask(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(module, "STATUS_TIMEOUT_S", 0.05)
    async with client(None) as status:
        try:
            await asyncio.gather(*(status.ask("https://slow.example/") for _ in range(100)))
            async with asyncio.timeout(WAIT_S):
                assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        finally:
            answered.set()


@pytest.mark.parametrize(
    "uri",
    [
        "https://localhost:{free}/",
        "https://localhost:{port}/nonsense",
        "https://no.such.host.invalid/",
        "https://a..b/",
    ],
)
async def test_what_cannot_be_asked_is_down(authorizer: Authorizer, uri: str) -> None:
    """The words name the kind of failure and never the URI."""
    (free,) = free_ports(1)
    async with client(authorizer.trust) as status:
        trouble = await status.ask(uri.format(free=free, port=authorizer.port))
    assert trouble.startswith("no connection (")
    assert not [part for part in ("localhost", "such", "a..b", str(free)) if part in trouble]


async def test_an_authorizer_with_an_unknown_certificate_is_down(authorizer: Authorizer) -> None:
    """It might be anybody."""
    async with client(None) as status:
        assert await status.ask(f"{authorizer.url}/status/200") == "its certificate is refused"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_private_addresses_are_refused(authorizer: Authorizer, host: str) -> None:
    """W27: a token cannot send the node into its own network, neither by a name nor by an address."""
    async with client(authorizer.trust, ()) as status:
        trouble = await status.ask(f"https://{host}:{authorizer.port}/status/200")
    assert trouble == "its address is not public (statusPrivateNetworks)"
    assert authorizer.connections == 0


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "017700000001"])
async def test_odd_spellings_of_an_address_reach_nothing(authorizer: Authorizer, host: str) -> None:
    """W27: whoever resolves them, the result is judged."""
    async with client(authorizer.trust, ()) as status:
        assert await status.ask(f"https://{host}:{authorizer.port}/status/200")
    assert authorizer.connections == 0


async def test_many_may_ask_at_once(authorizer: Authorizer) -> None:
    """One session of requests serves all sessions of the hub."""
    async with client(authorizer.trust) as status:
        answers = await asyncio.gather(*(status.ask(f"{authorizer.url}/status/{code}") for code in (200, 503) * 10))
    assert answers == ["", "status 503"] * 10
