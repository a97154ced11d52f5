"""A running node's STUN server, asked by coturn's client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.ports import free_ports
from tests.support.processes import Node, Pki, scratch_directory
from tests.support.programs import require
from tests.support.wire import run_program

pytestmark = pytest.mark.programs
_REFLEXIVE = re.compile(r"UDP reflexive addr: (\S+):(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A node, and its port for STUN."""

    node: Node
    port: int

    def reflexive(self, server: str, local: str) -> tuple[str, int]:
        """Return the address that ``local`` learns from ``server``."""
        output = run_program(require("turnutils_stunclient"), "-p", str(self.port), "-L", local, server)
        found = _REFLEXIVE.search(output)
        assert found is not None, output
        return found[1], int(found[2])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """On all addresses of both families."""
    with scratch_directory() as directory:
        (port,) = free_ports(1)
        with Node(directory, Pki.create(directory), stunPort=port, relayBindAddresses=[]) as node:
            yield Served(node, port)


@pytest.mark.parametrize(("server", "local"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.3"), ("::1", "::1")])
def test_a_client_learns_its_address(served: Served, server: str, local: str) -> None:
    """By IPv4 and IPv6; of another address of the machine, too."""
    answered = 'nexus_stun_requests_total{result="answered"}'
    before = served.node.metric(answered)
    host, port = served.reflexive(server, local)
    assert host == local
    assert port > 0
    assert served.node.metric(answered) == before + 1
