"""A DNS server behind a node's claimed port 53 (by another number), over UDP and TCP, asked by real resolvers."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.dns import LARGE, LARGE_BYTES, ZONE, Nsd, address_in, nsd, question
from tests.support.ports import free_ports
from tests.support.processes import Client, Node, Pki, scratch_directory
from tests.support.programs import require

FLOWS = 5_000
AT_ONCE = 200
ANSWER_S = 20.0


@dataclass(frozen=True)
class Dns:
    """dig -> node -> backend client -> NSD."""

    node: Node
    server: Nsd
    port: int

    def dig(self, *arguments: str, address: str = "127.0.0.1") -> str:
        """Ask the node, once, and return what dig prints."""
        options = ["+tries=1", "+time=10", "-p", str(self.port), f"@{address}"]
        done = subprocess.run(
            [require("dig"), *options, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def dns() -> Iterator[Dns]:
    """One node whose port is claimed over both transports by one token, which also claims a name."""
    with scratch_directory() as directory, nsd(directory) as server:
        pki = Pki.create(directory)
        (port,) = free_ports(1)
        settings = {"relayPorts": [port], "udpRelayPorts": [port], "relayBindAddresses": ["127.0.0.1", "::1"]}
        claims = {"allowedTCPPortClaims": [port], "allowedUDPPortClaims": [port]}
        with (
            Node(directory, pki, **settings, **claims) as node,
            Client(
                directory,
                node,
                {port: server.port},
                "dns.example.com",
                tcpPorts=[port],
                udpRoutes=[{"port": port, "flowIdleTimeoutSeconds": 60}],
            ),
        ):
            yield Dns(node, server, port)


def test_dig_is_answered_over_udp_and_over_tcp(dns: Dns) -> None:
    """IPv4 and IPv6, the same answer over each; DNS over TCP on a claimed port is decided by its first bytes."""
    for options in ([], ["+tcp"]):
        for address in ("127.0.0.1", "::1"):
            assert dns.dig(f"9.hosts.{ZONE}", "A", "+short", *options, address=address) == "192.0.2.9\n"


def test_an_answer_larger_than_a_datagram_falls_back_to_tcp(dns: Dns) -> None:
    """The truncated answer comes over UDP, the whole one over the TCP claim of the same port."""
    printed = dns.dig(f"{LARGE}.{ZONE}", "TXT")
    assert "Truncated, retrying in TCP mode" in printed
    assert printed.count("\tTXT\t") == LARGE_BYTES // 200
    assert f"#{dns.port}(127.0.0.1) (TCP)" in printed


async def test_five_thousand_clients_are_answered_each_in_its_flow(dns: Dns) -> None:
    """Every client has a port of its own; each gets the answer to its question, and no datagram is lost."""
    _allow_descriptors(FLOWS + 500)
    before = dns.node.metrics()
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(FLOWS)]
    try:
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for number, sock in enumerate(sockets):
                tasks.create_task(_ask(sock, dns.port, number, room))
        after = dns.node.metrics()
        assert after["nexus_udp_flows"] >= FLOWS
        for direction in ("to_backends", "to_clients"):
            name = f'nexus_udp_datagrams_total{{direction="{direction}"}}'
            assert after[name] - before.get(name, 0) == FLOWS
        assert _drops(after) == _drops(before)
    finally:
        for sock in sockets:
            sock.close()


async def _ask(sock: socket.socket, port: int, number: int, room: asyncio.Semaphore) -> None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    async with room, asyncio.timeout(ANSWER_S):
        sock.connect(("127.0.0.1", port))
        await loop.sock_sendall(sock, question(number, number % 256))
        assert address_in(await loop.sock_recv(sock, 512), number) == f"192.0.2.{number % 256}"


def _drops(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("nexus_udp_datagrams_dropped_total"))


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
