"""nexus.web: requests of the node, and the addresses they never reach."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nexus.web import RefusedAddressError, open_session
from tests.support.loopback import Reader, Writer, serve
from tests.support.processes import Pki
from tests.support.wire import trusting

ON_BOTH_LOOPS = True


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A CA for all tests of this module."""
    return Pki.create(Path(tmp_path_factory.mktemp("pki")))


class Site:
    """An HTTPS server that answers 200 and remembers what it was asked."""

    def __init__(self, pki: Pki) -> None:
        self.requests: list[bytes] = []
        self.certificates: list[object] = []
        self.trust = trusting(pki.ca_file)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.ca_file)
        self.context.load_cert_chain(*pki.issue("site", "localhost", "127.0.0.1"))
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.port = 0

    async def handle(self, reader: Reader, writer: Writer) -> None:
        """Answer one request."""
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        self.certificates.append(writer.get_extra_info("peercert"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b; Secure\r\n\r\nok")
        await writer.drain()
        await reader.read()


@pytest.fixture
async def site(pki: Pki) -> AsyncIterator[Site]:
    """A running site."""
    site = Site(pki)
    async with serve(site.handle, context=site.context) as port:
        site.port = port
        yield site


async def test_a_request_carries_nothing_of_the_node(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client certificate, no cookie of an earlier answer, and no proxy of the environment in between."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with open_session(site.trust, lambda _address: False) as session:
        for _ in range(2):
            async with session.get(f"https://localhost:{site.port}/x") as response:
                assert (response.status, await response.text()) == (200, "ok")
    assert len(site.requests) == 2
    assert site.certificates == [None, None]
    assert not [request for request in site.requests if b"cookie" in request.lower()]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_refused_address_is_not_connected_to(site: Site, host: str) -> None:
    """W27: neither where a name leads there nor where the address is written out, which asks no resolver."""
    judged: list[str] = []

    def refuse(address: str) -> bool:
        judged.append(address)
        return True

    async with open_session(site.trust, refuse) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get(f"https://{host}:{site.port}/")
    assert isinstance(caught.value.os_error, RefusedAddressError)
    assert judged
    assert not site.requests


async def test_an_address_that_is_good_is_used_where_another_is_refused(site: Site) -> None:
    """A name may have addresses of both kinds."""
    async with (
        open_session(site.trust, lambda address: ":" in address) as session,
        session.get(f"https://localhost:{site.port}/") as response,
    ):
        assert response.status == 200


async def test_a_server_is_verified(site: Site) -> None:
    """By the system's roots, unless told otherwise."""
    async with open_session(None, lambda _address: False) as session, asyncio.timeout(10):
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"https://localhost:{site.port}/")
