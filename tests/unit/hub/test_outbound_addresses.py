"""nexus.hub.outbound: which addresses of a target are dialled, and names that are slow to say them."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from nexus.limits import UNBOUNDED
from nexus.protocol.messages import Control, serialize_control
from nexus.protocol.reasons import OutboundRefusal
from nexus.resolver import LOOKUPS_PER_OWNER_MAX, WAITING_PER_OWNER_MAX, Found
from tests.support.hub import WAIT_S, eventually
from tests.support.outbound import POLICY, setup

ON_BOTH_LOOPS = True
PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "[fe80::1%lo]",
    ],
)
async def test_private_targets_are_refused_in_every_spelling(host: str) -> None:
    """W27: the original dials its own loopback for a backend since v0.3.13."""
    async with setup(replace(POLICY, private_networks=())) as it:
        it.ask(1, f"{host}:{it.port}")
        answer = await it.answer()
        assert not answer.success
        # A resolver may not know a spelling at all, which is as good.
        assert answer.reason in {OutboundRefusal.PRIVATE, OutboundRefusal.NAME}
        assert it.nobody_came()
        await eventually(lambda: not it.held, "the slot is free")


@dataclass
class Zone:
    """A resolver whose answers change, and what was dialled."""

    answers: list[tuple[str, ...]]
    asked: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    def look_up(self, host: str, port: int) -> Found:
        self.asked.append(host)
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in self.answers.pop(0)
        ]

    async def sock_connect(self, _sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address[0])
        raise ConnectionRefusedError(111, "no route to this test")


@pytest.fixture
async def zone(monkeypatch: pytest.MonkeyPatch) -> Zone:
    """The resolver and the network of a test."""
    it = Zone([])
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", it.sock_connect)
    return it


@pytest.mark.parametrize("answer", ["127.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "fd00::1"])
async def test_a_name_of_a_private_address_is_refused(zone: Zone, answer: str) -> None:
    """W27: whoever owns a zone can point a name anywhere."""
    zone.answers = [(answer,)]
    async with setup(replace(POLICY, private_networks=()), lookup=zone.look_up) as it:
        it.ask(1, "innocent.example:80")
        assert (await it.answer()).reason == OutboundRefusal.PRIVATE
    assert not zone.dialled


async def test_a_name_is_resolved_once_and_what_was_judged_is_dialled(zone: Zone) -> None:
    """W27: an answer that changes between the check and the dial (DNS rebinding) changes nothing."""
    zone.answers = [(PUBLIC,), ("127.0.0.1",)]
    async with setup(replace(POLICY, private_networks=()), lookup=zone.look_up) as it:
        it.ask(1, "rebind.example:80")
        assert (await it.answer()).reason == OutboundRefusal.REFUSED
    assert (zone.asked, zone.dialled) == (["rebind.example"], [PUBLIC])


async def test_of_several_addresses_only_the_public_ones_are_dialled(zone: Zone) -> None:
    """A private one among them is neither dialled nor a reason to refuse the others."""
    zone.answers = [("127.0.0.1", PUBLIC, "::1", "2606:4700::1111", "10.0.0.1")]
    async with setup(replace(POLICY, private_networks=()), lookup=zone.look_up) as it:
        it.ask(1, "mixed.example:80")
        await it.answer()
    assert sorted(zone.dialled) == sorted(["2606:4700::1111", PUBLIC])


async def test_of_many_addresses_few_are_dialled(zone: Zone) -> None:
    """Of both families, however many there are of one; else a name were a way to dial hundreds with one request."""
    zone.answers = [(*(f"2606:4700::{number:x}" for number in range(100)), "10.0.0.1", PUBLIC)]
    async with setup(replace(POLICY, private_networks=()), lookup=zone.look_up) as it:
        it.ask(1, "many.example:80")
        await it.answer()
    assert sorted(zone.dialled) == sorted([PUBLIC, "2606:4700::0", "2606:4700::1", "2606:4700::2"])


async def test_names_that_hang_hold_up_no_other_lookup_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup cannot be stopped: it goes on when nobody waits any more, and must not take everybody's thread."""
    answered, ask = threading.Event(), socket.getaddrinfo

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host == "slow.example" and not options.get("flags"):
            answered.wait(2 * WAIT_S)
            return []
        return ask(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with setup() as it:
        try:
            for number in range(1, 100):
                it.ask(number, "slow.example:80")
                await asyncio.sleep(0)
                it.receive("disconnect", number)
            async with asyncio.timeout(WAIT_S):
                assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
            resolver = it.registry.resolver
            assert (resolver.running, resolver.waiting) == (LOOKUPS_PER_OWNER_MAX, 0)
        finally:
            answered.set()


async def test_names_beyond_what_may_wait_are_refused() -> None:
    """In words; an address in place of a name is dialled all the same."""
    answered = threading.Event()

    def hang(_host: str, _port: int) -> Found:
        answered.wait(2 * WAIT_S)
        return []

    most = LOOKUPS_PER_OWNER_MAX + WAITING_PER_OWNER_MAX
    async with setup(replace(POLICY, connections=UNBOUNDED), lookup=hang) as it:
        for number in range(most + 1):
            request = Control("outbound_connect", (1000 + number).to_bytes(16), target_addr=f"slow.example:{it.port}")
            it.backend.session.message_received(serialize_control(request))
        try:
            assert (await it.answer()).reason == OutboundRefusal.LOOKUPS
            assert it.held == most
            await it.opened(1)
        finally:
            answered.set()
        await it.answer(most + 2)
        assert it.registry.totals.outbound_refusals == {"lookups": 1, "name": most}
