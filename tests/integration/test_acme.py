"""The hub's certificate from a real certificate authority (Pebble), on a real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pebble import Pebble, Zone, zone
from tests.support.processes import Client, Node, Pki, free_ports

HUB = "hub.example.test"


@pytest.fixture
def names(directory: Path) -> Iterator[Zone]:
    """The name server that the CA asks."""
    with zone(directory) as made:
        yield made


def test_first(directory: Path, names: Zone) -> None:
    pki = Pki.create(directory)
    http_port, tls_port = free_ports(2)
    with Pebble(directory, pki, names, http_port=http_port, tls_port=tls_port) as ca:
        settings = ca.settings(directory, HUB, relayPorts=[http_port, tls_port], acmeHTTPPort=http_port, acmeTLSPort=tls_port)
        with Node(directory, pki, **settings) as node:
            print(node.output())
            print(ca.log[-3000:])
            print(list((directory / "acme").iterdir()))
