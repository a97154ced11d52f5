"""Which addresses are dialled, and what becomes of links whose address is not listed any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus.document.peers import PeerAddress
from nexus.mesh.fleet import Fleet
from tests.support.fleet import mesh_settings, reserved_ports, serving
from tests.support.hub import eventually
from tests.support.node import Running, configurations, port, running
from tests.support.processes import Pki


@pytest.fixture
async def pair(pki: Pki, tmp_path: Path) -> AsyncIterator[tuple[Running, Running]]:
    """Two nodes that could be peers, and dial nobody."""
    config = configurations(pki, tmp_path)
    with reserved_ports(2) as ports:
        one, other = (config(**mesh_settings(pki, f"node-{own}", own, [])) for own in ports)
        async with running(pki, one) as first, running(pki, other) as second:
            yield first, second


async def test_addresses_come_and_go_while_links_last(pair: tuple[Running, Running]) -> None:
    """One that is not listed any more may still serve: its link stays, and is not dialled again."""
    node, other = pair
    address = PeerAddress("localhost", port(other.addresses.peer), "/mesh", "localhost", is_secure=True)
    nowhere = PeerAddress("localhost", 1, "/mesh", "localhost", is_secure=True)
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(node.node.mesh, node.node._credentials, tasks)
        fleet.change([address, nowhere, address])
        assert len(fleet._diallers) == 2
        await eventually(lambda: serving(node) == 1, "the link is up")
        fleet.change([], [address, nowhere])
        fleet.change([], [address])
        assert fleet._diallers == {}
        assert serving(node) == 1
        await other.stop()
        await eventually(lambda: serving(node) == 0, "the link has ended")


async def test_a_cancelled_dialler_closes_its_link_in_order(pair: tuple[Running, Running]) -> None:
    """The other node hears why."""
    node, other = pair
    address = PeerAddress("localhost", port(other.addresses.peer), "/mesh", "localhost", is_secure=True)
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(node.node.mesh, node.node._credentials, tasks)
        fleet.change([address])
        await eventually(lambda: serving(node) == serving(other) == 1, "the link is up")
        fleet._diallers[address][1].cancel()
        await eventually(lambda: serving(other) == 0, "the link has ended")
    assert dict(other.node.mesh.totals.link_ends) == {"1000": 1}
