"""backend_client.lookups: one lookup for many flows, and another address where one refuses."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from backend_client import lookups
from backend_client.lookups import Lookups, ServiceAddress
from backend_client.mapping import Target

TARGET = Target("dns.test", 53)
FIRST = ServiceAddress(socket.AF_INET6, ("::1", 53, 0, 0))
SECOND = ServiceAddress(socket.AF_INET, ("127.0.0.1", 53))
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")


class Names:
    """Stands in for the system's resolver; notes what is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: list[ServiceAddress] | Exception = [FIRST, SECOND]
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:  # noqa: A002 — the loop's word
        self.asked.append(f"{host}:{port}")
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(one.family, type, 17, "", one.address) for one in self.answer]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A resolver that a test controls."""
    return Names(monkeypatch)


async def ask(known: Lookups, count: int = 1) -> list[ServiceAddress | Exception]:
    """Ask so often at once, and return the answers."""
    answers: list[ServiceAddress | Exception] = []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            known.find(TARGET, tasks, answers.append)
    return answers


async def test_many_flows_wait_for_one_lookup(names: Names) -> None:
    """5,000 clients who come at once would otherwise be 5,000 threads' work."""
    known = Lookups()
    assert await ask(known, 100) == [FIRST] * 100
    assert await ask(known) == [FIRST]
    assert names.asked == ["dns.test:53"]


async def test_an_address_is_looked_up_again_after_a_while(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may move."""
    monkeypatch.setattr(lookups, "LOOKUP_TTL_S", 0.0)
    known = Lookups()
    await ask(known)
    names.answer = [SECOND]
    assert await ask(known) == [SECOND]


async def test_an_address_that_refuses_gives_way_to_the_others_of_its_name(names: Names) -> None:
    """Once round; a refusal of an address that is not in use any more changes nothing."""
    known = Lookups()
    known.failed(TARGET, FIRST, REFUSED)
    await ask(known)
    known.failed(TARGET, FIRST, REFUSED)
    assert await ask(known) == [SECOND]
    known.failed(TARGET, FIRST, REFUSED)
    assert await ask(known) == [SECOND]
    known.failed(TARGET, SECOND, REFUSED)
    assert await ask(known) == [FIRST]
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    ("number", "next_one"),
    [
        (errno.ENETUNREACH, SECOND),
        (errno.EHOSTUNREACH, SECOND),
        (errno.EACCES, SECOND),
        (errno.EPERM, SECOND),
        (errno.EAFNOSUPPORT, SECOND),
        (errno.EADDRNOTAVAIL, SECOND),
        (errno.EMSGSIZE, FIRST),
        (errno.EMFILE, FIRST),
        (errno.ENOBUFS, FIRST),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
async def test_only_an_address_that_leads_nowhere_gives_way(
    names: Names, number: int, next_one: ServiceAddress
) -> None:
    """Such as IPv6 where there is none; not for what is wrong with a datagram or with this machine."""
    known = Lookups()
    await ask(known)
    known.failed(TARGET, FIRST, OSError(number, "it failed"))
    assert await ask(known) == [next_one]
    assert len(names.asked) == 1


@pytest.mark.parametrize("failure", [socket.gaierror("unknown"), UnicodeError("label too long"), []])
async def test_a_name_without_an_address_is_an_error_for_all_who_wait(names: Names, failure: Any) -> None:
    """And is asked for again by the next flow."""
    names.answer = failure
    known = Lookups()
    first, second = await ask(known, 2)
    assert isinstance(first, OSError | UnicodeError)
    assert first is second
    names.answer = [FIRST]
    assert await ask(known) == [FIRST]


async def test_a_lookup_has_a_time_limit(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told; the next flow asks again."""
    never = asyncio.Event()

    async def hang(*_args: object, **_options: object) -> object:
        return await never.wait()

    loop = asyncio.get_running_loop()
    answering = loop.getaddrinfo
    known = Lookups()
    monkeypatch.setattr(lookups, "DIAL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(loop, "getaddrinfo", hang)
    async with asyncio.timeout(10):
        first, second = await ask(known, 2)
    assert isinstance(first, TimeoutError)
    assert str(first) == "no address within 0.01 s"
    assert first is second
    monkeypatch.setattr(loop, "getaddrinfo", answering)
    assert await ask(known) == [FIRST]


async def test_the_systems_resolver_is_asked_in_the_end() -> None:
    """An address needs no name service."""
    answers: list[ServiceAddress | Exception] = []
    async with asyncio.TaskGroup() as tasks:
        Lookups().find(Target("127.0.0.1", 53), tasks, answers.append)
    assert answers == [SECOND]
