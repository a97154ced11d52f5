"""One node, one backend client and nginx, as real processes, for the tests that need no settings of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexus.eventloop import new_event_loop
from tests.support.processes import Client, Nginx, Node, Pki, scratch_directory, wait_for

HOST = "app.example.com"


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what stands in the test's own event loop on the one of production."""
    del config, item
    return {"production": new_event_loop}


@dataclass(frozen=True)
class Chain:
    """client -> node -> backend client -> nginx."""

    directory: Path
    pki: Pki
    node: Node
    client: Client
    nginx: Nginx

    def curl_options(self, host: str = HOST) -> list[str]:
        """Return the options that let curl reach ``host`` through the node and trust the test CA."""
        ports = (self.node.tls_port, self.node.http_port)
        resolve = [option for port in ports for option in ("--resolve", f"{host}:{port}:127.0.0.1")]
        return ["--silent", "--show-error", "--cacert", str(self.pki.ca_file), *resolve]

    def url(self, path: str = "/", host: str = HOST) -> str:
        """Return an HTTPS address of nginx through the node."""
        return f"https://{host}:{self.node.tls_port}{path}"

    def http_url(self, path: str = "/", host: str = HOST) -> str:
        """Return a plain HTTP address of nginx through the node."""
        return f"http://{host}:{self.node.http_port}{path}"

    def wait_until_quiet(self) -> None:
        """Wait until the node holds no stream and no byte."""
        wait_for(lambda: self.node.metric("nexus_streams") == 0, "every stream has ended")
        wait_for(lambda: self.node.metric("nexus_buffered_bytes") == 0, "no byte waits")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the test's own."""
    with scratch_directory() as path:
        yield path


@pytest.fixture
def pki(directory: Path) -> Pki:
    """A CA of the test's own."""
    return Pki.create(directory)


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """The whole chain, started once a module; a test must leave it as it found it."""
    with scratch_directory() as directory:
        pki = Pki.create(directory)
        with (
            Nginx(directory, *pki.issue("app", HOST, "*.wild.example.com")) as nginx,
            Node(directory, pki) as node,
            Client(
                directory,
                node,
                {node.tls_port: nginx.tls_port, node.http_port: nginx.http_port},
                HOST,
                "*.wild.example.com",
            ) as client,
        ):
            yield Chain(directory, pki, node, client, nginx)
