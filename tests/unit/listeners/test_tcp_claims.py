"""Claimed TCP ports: clients that name no host are served by the port, without needless waiting or loss."""

from __future__ import annotations

from typing import Any

import pytest

from nexus.listeners.answers import UNRECOGNIZED_NAME_ALERT
from nexus.peek import HTTP_HEAD_MAX_BYTES
from nexus.protocol.constants import PAYLOAD_MAX_BYTES
from nexus.routing.decide import RejectReason
from tests.support.client_hello import hello_of, record, sni
from tests.support.hub import eventually
from tests.support.listeners import Setup, listening

ON_BOTH_LOOPS = True
HOST = "app.example.com"
NEVER_S = 1000.0
SHORT_S = 0.05
DNS_QUERY = bytes.fromhex("001d12340100000100000000000003777777076578616d706c6503636f6d0000010001")
NAMELESS = {
    "a binary protocol": (DNS_QUERY, RejectReason.UNRECOGNISED, False),
    "SSH, where the client speaks too": (b"SSH-2.0-OpenSSH_9.2\r\n", RejectReason.UNRECOGNISED, False),
    "TLS without SNI": (hello_of(), RejectReason.NO_NAME, True),
    "bytes that only begin like TLS": (record(b"\x00" * 40), RejectReason.UNRECOGNISED, False),
    "HTTP without a host": (b"GET / HTTP/1.0\r\n\r\n", RejectReason.NO_NAME, False),
    "the preface of h2c": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", RejectReason.NO_NAME, False),
    "no line end at all": (b"x" * (HTTP_HEAD_MAX_BYTES + 9), RejectReason.UNRECOGNISED, False),
}


def claim(setup: Setup) -> None:
    """Let the port be claimed."""
    setup.dialer.claimed.add(setup.port)


@pytest.mark.parametrize("case", NAMELESS)
async def test_a_client_that_names_no_host_is_the_claims_at_once(case: str) -> None:
    """W12, node W3, W11: nothing is waited for, and nothing that was read is lost."""
    data, why, is_tls = NAMELESS[case]
    patience: dict[str, Any] = {"first_byte_s": NEVER_S, "idle_extension_s": NEVER_S, "absolute_max_s": NEVER_S}
    async with listening(claim_wait_s=NEVER_S, **patience) as setup:
        claim(setup)
        client = await setup.connect(data)
        stream = await setup.stream()
        (request,) = setup.dialer.requests
        assert (request.host, request.nameless, request.is_tls, request.local_port) == (None, why, is_tls, setup.port)
        client.writer.write(b" and more")
        await eventually(lambda: setup.dialer.received() == data + b" and more", "all has arrived, in order")
        assert max(map(len, setup.dialer.side.link.data())) <= PAYLOAD_MAX_BYTES
        stream.receive(b"answer")
        assert await client.reader.readexactly(6) == b"answer"
        assert not setup.rejected


async def test_a_name_goes_first_on_a_claimed_port() -> None:
    """A claim serves only whom no name was read of."""
    async with listening() as setup:
        claim(setup)
        await setup.connect(hello_of(sni(HOST.encode())))
        await setup.stream()
        assert [request.host for request in setup.dialer.requests] == [HOST]


async def test_a_named_host_that_nobody_serves_is_refused_on_a_claimed_port() -> None:
    """The answer is that of any port."""
    async with listening() as setup:
        claim(setup)
        setup.dialer.refusal = RejectReason.NO_BACKEND
        client = await setup.connect(hello_of(sni(HOST.encode())))
        assert await client.rest() == UNRECOGNIZED_NAME_ALERT


async def test_a_server_that_speaks_first_is_asked_at_once() -> None:
    """W12, node W11: on such a port no first byte is waited for, and no place of the peeks is taken."""
    async with listening(server_first=True, concurrent=0) as setup:
        claim(setup)
        client = await setup.connect()
        stream = await setup.stream()
        stream.receive(b"220 hello\r\n")
        assert await client.reader.readline() == b"220 hello\r\n"
        client.writer.write(b"QUIT\r\n")
        await eventually(lambda: setup.dialer.received() == b"QUIT\r\n", "the client's words arrive")
        assert len(setup.listeners.peeks) == 0


async def test_without_a_claim_a_server_first_port_is_as_any_other() -> None:
    """A name can still be served there."""
    async with listening(server_first=True) as setup:
        await setup.connect(hello_of(sni(HOST.encode())))
        await setup.stream()
        assert [request.host for request in setup.dialer.requests] == [HOST]


async def test_a_place_of_a_source_is_held_and_given_back_on_a_server_first_port() -> None:
    """``maxConnectionsPerSource`` holds there as well."""
    async with listening(server_first=True, connections_per_source=1) as setup:
        claim(setup)
        await setup.connect()
        stream = await setup.stream()
        second = await setup.connect()
        assert await second.rest() is None
        stream.receive_disconnect("dial_failed")
        await eventually(lambda: not setup.listeners.connections.held, "the place is free")


async def test_a_silent_client_of_a_claimed_port_is_not_waited_out() -> None:
    """Node W11: a claim is decided after ``portClaimWaitSeconds``."""
    async with listening(first_byte_s=NEVER_S, idle_extension_s=NEVER_S, claim_wait_s=SHORT_S) as setup:
        claim(setup)
        await setup.connect()
        await setup.stream()
        assert setup.dialer.requests[0].nameless is RejectReason.TIMEOUT


@pytest.mark.parametrize("data", [b"\x16\x03", b"QUI"], ids=["like TLS", "like HTTP"])
async def test_a_client_of_a_claimed_port_that_began_to_speak_has_the_time_of_any_port(data: bytes) -> None:
    """When that is over, the claim gets every byte that was read."""
    async with listening(claim_wait_s=NEVER_S, idle_extension_s=SHORT_S) as setup:
        claim(setup)
        await setup.connect(data)
        await setup.stream()
        assert setup.dialer.requests[0].nameless is RejectReason.TIMEOUT
        await eventually(lambda: setup.dialer.received() == data, "what was read has arrived")


async def test_a_silent_client_of_an_unclaimed_port_is_given_up() -> None:
    """As everywhere."""
    async with listening(first_byte_s=SHORT_S, claim_wait_s=NEVER_S) as setup:
        client = await setup.connect()
        assert await client.rest() == b""
        assert setup.rejected == {"timeout": 1}


@pytest.mark.parametrize("data", [b"", b"QUIT"], ids=["nothing", "a little"])
async def test_a_client_that_ends_at_once_still_gets_the_services_words(data: bytes) -> None:
    """``nc -N`` sends its FIN and reads on: to a claim an end is only an end."""
    async with listening(claim_wait_s=NEVER_S) as setup:
        claim(setup)
        client = await setup.connect(data)
        client.writer.write_eof()
        stream = await setup.stream()
        await eventually(lambda: setup.dialer.side.link.controls("half_close"), "the FIN is told")
        assert setup.dialer.received() == data
        stream.receive(b"bye\r\n")
        stream.receive_disconnect("normal")
        assert await client.rest() == b"bye\r\n"


async def test_a_claim_that_goes_while_its_client_is_peeked_at_leaves_an_ordinary_client() -> None:
    """It is refused for what it did."""
    async with listening(claim_wait_s=SHORT_S) as setup:
        claim(setup)
        client = await setup.connect()
        await eventually(lambda: len(setup.listeners.peeks) == 1, "it is peeked at")
        setup.dialer.claimed.clear()
        assert await client.rest() == b""
        assert setup.rejected == {"timeout": 1}


async def test_a_claim_whose_backend_is_going_down_refuses_its_client() -> None:
    """The dialer has the last word."""
    async with listening(claim_wait_s=SHORT_S) as setup:
        claim(setup)
        setup.dialer.refusal = RejectReason.TIMEOUT
        client = await setup.connect()
        assert await client.rest() == b""
        assert setup.rejected == {"timeout": 1}
