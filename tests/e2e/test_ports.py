"""Whole ports: a name server at home that nobody reaches but through the nodes, by UDP and TCP, in either region."""

from __future__ import annotations

import pytest

from tests.support.lab import NODES, Lab

REGIONS = tuple(NODES)
PORTS = ("53", "5353")  # claimed in eu and in us, so each is at home in one region and tunnelled from the other
EDGE = "@edge.lab.test"


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_the_name_server_answers(lab: Lab, region: str, port: str, transport: str) -> None:
    """With authority, over either transport."""
    assert lab.dig(region, EDGE, "-p", port, transport, "intra.corp.lab.test") == ["192.0.2.10"]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("port", PORTS)
def test_an_answer_too_long_for_a_datagram_is_asked_for_again_over_tcp(lab: Lab, region: str, port: str) -> None:
    """All of its records arrive; over UDP alone it is marked as cut."""
    long = ("dig", EDGE, "-p", port, "+time=3", "long.corp.lab.test", "TXT")
    assert lab.output(f"tester-{region}", *long).count("of the long answer") == 24
    assert "flags: qr aa tc" in lab.output(f"tester-{region}", *long, "+ignore")


@pytest.mark.parametrize("region", REGIONS)
def test_a_hundred_askers_at_once_get_their_own_answers(lab: Lab, region: str) -> None:
    """Each from a port of its own, which is a flow of its own; dig checks that answer and question match."""
    ask = "dig +short +time=5 +tries=1 @edge.lab.test -p $((53 + ({n} % 2) * 5300)) {name}.corp.lab.test"
    names = ("intra", "ns")
    commands = "\n".join(f"echo {n} $({ask.format(n=n, name=names[n % 2])}) &" for n in range(100))
    said = lab.output(f"tester-{region}", "sh", "-c", f"{commands}\nwait")
    expected = {f"{n} {('192.0.2.10', '192.0.2.53')[n % 2]}" for n in range(100)}
    assert set(said.splitlines()) == expected


def test_nobody_reaches_it_but_through_a_node(lab: Lab) -> None:
    """It is on no network of a region: neither its name nor its addresses lead there."""
    addresses = lab.output("dns-backend", "hostname", "-i").split()
    assert len(addresses) == 2
    for region in REGIONS:
        for address in addresses:
            ask = ("dig", "+time=1", "+tries=1", f"@{address}", "intra.corp.lab.test")
            assert lab.run(f"tester-{region}", *ask).returncode != 0
