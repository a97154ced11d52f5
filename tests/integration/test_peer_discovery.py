"""Nodes found in the DNS of a real name server (NSD), whose zone changes and which goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus.document.peers import HostEntry, PeerAddress, PeerEntry, SrvEntry
from nexus.mesh.answers import Bounds
from nexus.mesh.discovery import Discovery
from nexus.mesh.lookup import DnsLookup
from tests.support.dns import ZONE, Nsd, nsd
from tests.support.hub import eventually
from tests.support.name_server import resolver_at

NODES = HostEntry(f"nodes.{ZONE}", 8444)
SERVICE = SrvEntry(f"_nexus._tcp.{ZONE}")
LOOKUP_TIMEOUT_S = 1.0  # a server that is down must not take a test ten seconds
QUICK = Bounds(ttl_min_s=0.1, ttl_max_s=1.0, nobody_max_s=0.2, grace_s=0.5)


@contextlib.asynccontextmanager
async def following(port: int, *entries: PeerEntry, bounds: Bounds = QUICK) -> AsyncIterator[list[set[PeerAddress]]]:
    """Follow entries, and give the sets of addresses there were, the last of which is there now."""
    sets: list[set[PeerAddress]] = [set()]

    def changed(added: tuple[PeerAddress, ...], removed: tuple[PeerAddress, ...]) -> None:
        assert not set(added) & sets[-1]
        assert set(removed) <= sets[-1]
        sets.append(sets[-1] - set(removed) | set(added))

    lookup = DnsLookup(lambda: resolver_at(port, f"{ZONE}."), LOOKUP_TIMEOUT_S)
    discovery = Discovery(entries, changed, lambda name: name.endswith(f".{ZONE}"), lookup, bounds=bounds)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(discovery.run())
        yield sets
        task.cancel()


def at(*hosts: str, entry: HostEntry = NODES) -> set[PeerAddress]:
    """Return addresses of one name."""
    return {entry.address(host) for host in hosts}


async def test_addresses_of_both_kinds_and_targets_are_found(directory: Path) -> None:
    """Whatever the priority; a target elsewhere is not dialled, and a short name is searched for."""
    records = """
nodes IN A 192.0.2.1
nodes IN A 192.0.2.2
nodes IN AAAA 2001:db8::1
_nexus._tcp IN SRV 20 0 8444 b
_nexus._tcp IN SRV 10 0 8445 a
_nexus._tcp IN SRV 10 0 8445 evil.test.
"""
    short = HostEntry("nodes", 8445)
    with nsd(directory, records) as server:
        async with following(server.port, NODES, SERVICE, short) as sets:
            targets = {SERVICE.address(f"a.{ZONE}", 8445), SERVICE.address(f"b.{ZONE}", 8444)}
            addresses = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
            expected = at(*addresses) | at(*addresses, entry=short) | targets
            await eventually(lambda: sets[-1] == expected, "all are found")


async def test_a_change_is_seen_when_the_old_answer_is_over(directory: Path) -> None:
    """A node that came and one that went, and nothing else in between."""
    with nsd(directory, "nodes 1 IN A 192.0.2.1\nnodes 1 IN A 192.0.2.2") as server:
        async with following(server.port, NODES) as sets:
            await eventually(lambda: len(sets) == 2, "both are found")
            server.change("nodes 1 IN A 192.0.2.2\nnodes 1 IN A 192.0.2.3")
            await eventually(lambda: sets[-1] == at("192.0.2.2", "192.0.2.3"), "the change is seen")
    assert sets == [set(), at("192.0.2.1", "192.0.2.2"), at("192.0.2.2", "192.0.2.3")]


@pytest.mark.parametrize("rest", ["", "nodes 1 IN TXT x"])
async def test_a_name_that_lost_its_nodes_loses_them_here(directory: Path, rest: str) -> None:
    """Whether it is gone (NXDOMAIN) or has no address any more (NOERROR); and they are found again."""
    with nsd(directory, "nodes 1 IN A 192.0.2.1") as server:
        async with following(server.port, NODES) as sets:
            await eventually(lambda: sets[-1] == at("192.0.2.1"), "it is found")
            server.change(rest)
            await eventually(lambda: not sets[-1], "it is dropped")
            server.change("nodes 1 IN A 192.0.2.9")
            await eventually(lambda: sets[-1] == at("192.0.2.9"), "the new one is found")


async def test_a_name_server_that_is_down_takes_nobody_away(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked in vain, and the change that it brings is seen when it is back."""
    with nsd(directory, "nodes 1 IN A 192.0.2.1") as server:
        async with following(server.port, NODES) as sets:
            await eventually(lambda: sets[-1] == at("192.0.2.1"), "it is found")
            server.popen.kill()
            await eventually(lambda: "no answer from the name servers" in caplog.text, "it is asked in vain")
            assert sets[-1] == at("192.0.2.1")
            with Nsd(directory, "nodes 1 IN A 192.0.2.2", server.port):
                await eventually(lambda: sets[-1] == at("192.0.2.2"), "the change is seen")
    assert caplog.text.count("no answer from the name servers") == 1


async def test_a_fleet_that_fits_in_no_datagram_is_found_over_tcp(directory: Path) -> None:
    """All of it: 200 addresses are 3,200 bytes."""
    hosts = [f"192.0.2.{number}" for number in range(200)]
    with nsd(directory, "\n".join(f"nodes IN A {host}" for host in hosts)) as server:
        async with following(server.port, NODES) as sets:
            await eventually(lambda: sets[-1] == at(*hosts), "all are found")
