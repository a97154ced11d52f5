"""Questions to the DNS: every kind of answer, and what stands in place of one; NSD answers in the integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dns.asyncresolver import Resolver
from dns.rcode import Rcode

from nexus.document.peers import DnsEntry, HostEntry, SrvEntry
from nexus.mesh.answers import Answer, questions
from nexus.mesh.lookup import LOOKUP_TIMEOUT_S, DnsLookup
from tests.support.hub import eventually
from tests.support.name_server import DENIAL_S, LIFE_S, NameServer, name_server

ON_BOTH_LOOPS = True
NODES = HostEntry("nodes.test", 8444)
SERVICE = SrvEntry("_nexus._tcp.test")


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    """A name server."""
    async with name_server() as running:
        yield running


def descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def ask(server: NameServer, entry: DnsEntry, index: int = 0, timeout_s: float = LOOKUP_TIMEOUT_S) -> Answer:
    """Ask one question of an entry."""
    return await DnsLookup(server.resolver, timeout_s)(questions(entry)[index])


async def test_addresses_of_both_kinds(server: NameServer) -> None:
    """With the least life of all, in the same order whichever way the server turns them."""
    server.records["nodes.test"] = {"A": ["192.0.2.2", "192.0.2.1"], "AAAA": ["2001:db8::1"]}
    expected = tuple(map(NODES.address, ("192.0.2.1", "192.0.2.2")))
    assert await ask(server, NODES) == Answer(expected, LIFE_S)
    assert await ask(server, NODES, 1) == Answer((NODES.address("2001:db8::1"),), LIFE_S)


async def test_targets_in_the_order_of_their_priorities(server: NameServer) -> None:
    """Without a target that says that there is none, and without a port that nobody listens on."""
    records = ["20 0 8444 b.test.", "10 5 8445 c.test.", "30 0 8444 .", "10 9 8444 C.test.", "5 0 0 d.test."]
    server.records[SERVICE.name] = {"SRV": records}
    expected = (SERVICE.address("c.test", 8444), SERVICE.address("c.test", 8445), SERVICE.address("b.test", 8444))
    assert await ask(server, SERVICE) == Answer(expected, LIFE_S)


async def test_a_name_that_is_not_there_and_one_without_records_are_nobody(server: NameServer) -> None:
    """For as long as the zone says that its denials hold."""
    server.records["nodes.test"] = {}
    assert await ask(server, NODES) == Answer((), DENIAL_S)
    assert await ask(server, HostEntry("nowhere.test", 1)) == Answer((), DENIAL_S)


async def test_an_alias_is_followed(server: NameServer) -> None:
    """The chain comes with the answer or not at all; here it leads nowhere, which is nobody."""
    server.records["nodes.test"] = {"CNAME": ["other.test."]}
    assert (await ask(server, NODES)).peers == ()


async def test_short_names_are_searched_for(server: NameServer) -> None:
    """As Kubernetes has its pods do it; the certificate is that of the short name."""
    server.records["nodes.prod.svc.test"] = {"A": ["192.0.2.1"]}
    short = HostEntry("nodes", 8444)
    lookup = DnsLookup(lambda: server.resolver("svc.test", "prod.svc.test", ndots=5))
    assert (await lookup(questions(short)[0])).peers == (short.address("192.0.2.1"),)
    assert server.asked == ["nodes.svc.test A", "nodes.prod.svc.test A"]


async def test_a_last_dot_keeps_search_lists_out(server: NameServer) -> None:
    """One question, and the certificate has no dot."""
    server.records["nodes.test"] = {"A": ["192.0.2.1"]}
    lookup = DnsLookup(lambda: server.resolver("prod.svc.test", ndots=5))
    (address,) = (await lookup(questions(HostEntry("nodes.test.", 8444))[0])).peers
    assert address.server_name == "nodes.test"
    assert server.asked == ["nodes.test A"]


async def test_an_answer_longer_than_a_datagram_comes_over_tcp(server: NameServer) -> None:
    """All of it."""
    server.records["nodes.test"] = {"A": [f"192.0.2.{number}" for number in range(200)]}
    assert len((await ask(server, NODES)).peers) == 200
    assert server.asked == ["nodes.test A"] * 2


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.FORMERR, Rcode.YXDOMAIN])
async def test_a_server_that_cannot_tell_has_failed(server: NameServer, rcode: Rcode) -> None:
    """Which is not the same as nobody; the words name the trouble."""
    server.rcodes["nodes.test"] = rcode
    answer = await ask(server, NODES)
    assert answer.peers == ()
    assert rcode.name in answer.failure or "DNAME" in answer.failure


async def test_silence_is_a_failure(server: NameServer) -> None:
    """After its time."""
    server.is_silent = True
    assert "0.05 s" in (await ask(server, NODES, timeout_s=0.05)).failure


async def test_a_question_that_was_lost_is_asked_again(server: NameServer) -> None:
    """Datagrams may be; the resolver's own time is for one attempt."""
    server.records["nodes.test"] = {"A": ["192.0.2.1"]}
    server.is_silent = True

    def impatient() -> Resolver:
        resolver = server.resolver()
        resolver.timeout = 0.05
        return resolver

    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(DnsLookup(impatient)(questions(NODES)[0]))
        await eventually(lambda: server.asked, "the first is out")
        server.is_silent = False
    assert answer.result().peers == (NODES.address("192.0.2.1"),)
    assert len(server.asked) > 1


@pytest.mark.parametrize("turns", range(8))
async def test_a_question_given_up_at_any_moment_leaves_no_socket(server: NameServer, turns: int) -> None:
    """The library's own sockets leave one open under uvloop, where closing the event loop then never ends."""
    server.is_silent = True
    before = descriptors()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ask(server, NODES))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("text", "failure"),
    [(None, "cannot open"), ("search example.com\n", "no nameservers"), ("nameserver x\n", "is not a")],
)
async def test_a_resolv_conf_that_says_nothing_is_a_failure(tmp_path: Path, text: str | None, failure: str) -> None:
    """It may be there the next time."""
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    answer = await DnsLookup(lambda: Resolver(str(path)))(questions(NODES)[0])
    assert failure in answer.failure
