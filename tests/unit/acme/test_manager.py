"""The certificate that looks after itself, with a CA that answers as a test wants and a clock that it sets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nexus.acme.challenges import ChallengePorts, Challenges
from nexus.acme.manager import SHARE_S, AcmeCertificate
from nexus.acme.orders import Issued, Publish, RenewalAdvice
from nexus.acme.settings import AcmeSettings
from nexus.acme.store import State, Store
from nexus.errors import AcmeError
from nexus.tls.localca import PemPair, create_ca, issue
from tests.support.hub import eventually

HOST, URL, OTHER_URL = "hub.example.com", "https://ca.example.com/dir", "https://staging.example.com/dir"
DAY = 86_400.0
CA = create_ca("Test CA", time.time())


def pair(name: str = HOST, ago_s: float = 0.0) -> PemPair:
    return issue(CA, [name], time.time() - ago_s, 90)


@dataclass
class Ca:
    """What the certificate authority says, and what it was asked."""

    outcomes: list[PemPair | Exception] = field(default_factory=list)
    advice: RenewalAdvice | Exception = field(default_factory=lambda: RenewalAdvice(None, time.time() + DAY))
    challenges: list[str] = field(default_factory=list)
    replaced: list[bytes | None] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    look: Callable[[], str] = lambda: ""

    def obtain(self, challenge: str, publish: Publish, replaced: bytes | None = None) -> Issued:
        self.challenges.append(challenge)
        self.replaced.append(replaced)
        publish("token", "token.thumbprint")
        self.seen.append(self.look())
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return Issued(outcome.key_pem, outcome.cert_pem)

    def advise(self, certificate_pem: bytes) -> RenewalAdvice:
        assert certificate_pem
        if isinstance(self.advice, Exception):
            raise self.advice
        return self.advice


@dataclass
class World:
    """A cache, a CA and a clock."""

    store: Store
    ca: Ca = field(default_factory=Ca)
    ahead_s: float = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def made(self, url: str = URL, *, renews: bool = True) -> AcmeCertificate:
        challenges = Challenges(HOST, ChallengePorts(80, 443))
        it = AcmeCertificate(AcmeSettings(HOST, url), self.store, challenges, clock=self.now, renews=renews)
        it._authority = lambda: self.ca  # type: ignore[method-assign,return-value,assignment]
        self.ca.look = lambda: str(dict(challenges.known))
        return it

    @contextlib.asynccontextmanager
    async def running(
        self, url: str = URL, *, renews: bool = True, interval_s: float = 0.01
    ) -> AsyncIterator[AcmeCertificate]:
        it = self.made(url, renews=renews)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(it.watch(interval_s))
            yield it
            task.cancel()

    def keep(self, found: PemPair, state: State | None = None) -> None:
        self.store.prepare()
        self.store.save_pair(found.key_pem, found.cert_pem)
        if state is not None:
            self.store.save_state(state)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty cache."""
    return World(Store(tmp_path / "acme", HOST))


async def test_without_a_certificate_one_is_obtained(world: World) -> None:
    """The challenge is answered while the CA looks, and no longer; the state knows the CA."""
    world.ca.outcomes = [pair()]
    async with world.running() as it:
        assert it.unready() == ("the hub waits for its certificate",)
        bare = it.context
        await eventually(lambda: it.certificate is not None, "there is a certificate")
        assert it.context is not bare
        assert it.unready() == ()
        assert (world.ca.challenges, world.ca.replaced) == (["http-01"], [None])
        assert world.ca.seen == ["{'token': 'token.thumbprint'}"]
        assert it.challenges.known == {}
        assert it.attempts == {"issued": 1}
        assert world.store.state().directory == URL


async def test_a_warm_cache_is_served_at_once(world: World) -> None:
    """Without the CA, and with a time to renew that is kept."""
    world.keep(pair())
    async with world.running() as it:
        assert it.unready() == ()
        await eventually(lambda: world.store.state().renew_at > 0, "the time to renew is known")
        planned = world.store.state().renew_at
        certificate = it.certificate
        assert certificate is not None
        assert certificate.not_before < planned < certificate.expires_at
        assert it.renew_at == planned
    async with world.running() as it:
        assert it.renew_at == planned
    assert world.ca.challenges == []


@pytest.mark.parametrize(
    ("found", "state", "why"),
    [
        (pair(name="other.example.com"), None, "is for other.example.com, not for hub.example.com"),
        (pair(), State(directory=OTHER_URL), "was issued by https://staging"),
        (pair(ago_s=100 * DAY), None, "has expired"),
    ],
)
async def test_a_pair_of_the_cache_that_is_none_for_this_hub_counts_as_absent(
    world: World, found: PemPair, state: State | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of once, and replaced."""
    world.keep(found, state)
    world.ca.outcomes = [AcmeError("later"), pair()]
    async with world.running() as it:
        assert it.certificate is None
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        world.store.ask_to_renew()
        await eventually(lambda: it.certificate is not None, "there is a certificate")
    assert caplog.text.count(why) == 1


async def test_a_failure_is_told_and_waited_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In health and in the log; a restart does not repeat it, and another configuration forgets it."""
    world.ca.outcomes = [AcmeError("the port is closed; open it"), pair()]
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        assert it.unready() == ("the hub waits for its certificate: the port is closed; open it",)
        assert "no certificate: the port is closed; open it (tried again in " in caplog.text
    caplog.clear()
    async with world.running() as it:
        await eventually(lambda: "or at once by `nexus cert renew`" in caplog.text, "the start tells, too")
        assert it.unready() == ("the hub waits for its certificate: the port is closed; open it",)
        world.ahead_s = 59
        it.look()
    assert len(world.ca.challenges) <= 2
    world.ahead_s = 0
    async with world.running(OTHER_URL) as it:
        world.ca.outcomes = [pair()]
        await eventually(lambda: it.certificate is not None, "the other CA is asked at once")


async def test_after_a_failure_the_next_challenge_has_its_turn(world: World) -> None:
    """When its time has come."""
    world.ca.outcomes = [AcmeError("no"), AcmeError("no"), pair()]
    async with world.running() as it:
        for failures, ahead_s in ((1, 100.0), (2, 600.0)):
            await eventually(lambda failures=failures: it.attempts["refused"] == failures, "an attempt is made")  # type: ignore[misc]
            world.ahead_s += ahead_s
        await eventually(lambda: it.certificate is not None, "there is a certificate")
    assert world.ca.challenges == ["http-01", "tls-alpn-01", "http-01"]


async def test_a_look_tries_again_what_may_be_mended(world: World) -> None:
    """As SIGHUP does."""
    world.ca.outcomes = [AcmeError("no"), pair()]
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        it.look()
        await eventually(lambda: it.certificate is not None, "there is a certificate")


async def test_a_ca_that_asks_to_wait_is_not_asked_by_a_look(world: World) -> None:
    """But by an operator who insists."""
    world.ca.outcomes = [AcmeError("too many", retry_after_s=3600), pair()]
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        for _ in range(3):
            it.look()
            await eventually(lambda: not it._woken.is_set(), "it was looked")
        assert len(world.ca.challenges) == 1
        assert world.store.state().retry_at == pytest.approx(time.time() + 3600, abs=60)
        world.store.ask_to_renew()
        await eventually(lambda: it.certificate is not None, "the wish is heard")


async def test_a_certificate_is_renewed_when_its_time_has_come(world: World) -> None:
    """The CA is told which one it replaces; the old one is served until then."""
    world.keep(pair())
    world.ca.outcomes = [AcmeError("no", reached=False), pair(ago_s=-61 * DAY)]
    async with world.running() as it:
        old = it.certificate
        assert old is not None
        world.ahead_s = 61 * DAY
        await eventually(lambda: it.attempts["unreachable"] == 1, "an attempt is made")
        assert it.certificate is old
        assert it.unready() == ()
        world.ahead_s += 60
        await eventually(lambda: it.certificate is not old, "it is renewed")
        assert world.ca.replaced == [old.pem, old.pem]


async def test_the_cas_advice_counts(world: World) -> None:
    """Early renewal, as after an incident of the CA."""
    world.keep(pair(), State(directory=URL))
    world.ca.advice = RenewalAdvice(time.time() + DAY, time.time() + 3600)
    world.ca.outcomes = [pair()]
    async with world.running() as it:
        old = it.certificate
        await eventually(lambda: it.renew_at == world.ca.advice.renew_at, "the advice is taken")  # type: ignore[union-attr]
        world.ahead_s = 1.1 * DAY
        await eventually(lambda: it.certificate is not old, "it is renewed")


@pytest.mark.parametrize("failure", [AcmeError("no", reached=False), OSError("disk")])
async def test_without_advice_the_lifetime_tells(world: World, failure: Exception) -> None:
    """Whatever fails."""
    world.keep(pair(), State(directory=URL))
    world.ca.advice = failure
    async with world.running() as it:
        await eventually(lambda: it._ask_at > time.time(), "the CA was asked")
        assert it.renew_at is not None
        assert it.attempts == {}


async def test_a_pair_that_an_operator_puts_there_is_taken_up(world: World) -> None:
    """As ``nexus cert import`` does, while the node waits."""
    world.ca.outcomes = [AcmeError("no")]
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        world.keep(pair())
        await eventually(lambda: it.certificate is not None, "it is in service")


async def test_a_directory_that_cannot_be_written_to_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate would be lost with the process; so it counts as a failure, with the mend."""
    world.ca.outcomes = [pair()]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "save_pair", full)
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        assert "No space left on device; check its owner and the disk" in it.unready()[0]


async def test_a_retry_that_a_wrong_clock_noted_is_not_waited_for(world: World) -> None:
    """A machine that once believed to be in another century."""
    world.store.prepare()
    world.store.save_state(State(asked=URL, failures=1, error="why", retry_at=time.time() + 1000 * DAY))
    world.ca.outcomes = [pair()]
    it = world.made()
    assert it._due_at(world.now()) <= world.now() + 7 * DAY


async def test_a_node_that_is_too_busy_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the CA, and no attempt that counts."""
    monkeypatch.setattr("nexus.acme.manager._PUBLISH_TIMEOUT_S", 0.01)
    monkeypatch.setattr("nexus.acme.manager.SHARE_S", 0.5)
    it = world.made()
    it.has_peers = lambda: True
    await it._attempt()
    assert it.attempts == {"unreachable": 1}
    assert "too busy" in it.unready()[0]


async def test_a_fault_nobody_thought_of_does_not_end_the_node(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is a failed attempt, and its trace is in the log."""
    world.ca.outcomes = [IndexError("a fault of the library"), pair()]
    async with world.running() as it:
        await eventually(lambda: it.attempts["refused"] == 1, "an attempt is made")
        assert "IndexError" in it.unready()[0]
        assert "Traceback" in caplog.text
        it.look()
        await eventually(lambda: it.certificate is not None, "there is a certificate")


async def test_peers_have_time_to_hear_of_a_challenge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CA is asked to look only then."""
    world.ca.outcomes = [pair(), pair()]
    slept: list[float] = []
    sleep = asyncio.sleep

    async def spy(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    monkeypatch.setattr("nexus.acme.manager.asyncio.sleep", spy)
    it = world.made()
    await it._attempt()
    assert slept == []
    it.has_peers = lambda: True
    await it._attempt()
    assert slept == [SHARE_S]


async def test_a_follower_takes_up_what_another_process_obtains(world: World) -> None:
    """It asks nobody, writes nothing, and hears of a new certificate when it is told to look."""
    world.ca.outcomes = [pair()]
    async with world.running(renews=False, interval_s=600) as follower:
        assert follower.unready() == ("the hub waits for its certificate",)
        async with world.running() as it:
            it.changed = follower.look
            await eventually(lambda: follower.certificate is not None, "it is taken up")
            assert it.certificate is not None
            assert follower.certificate is not None
            assert follower.certificate.pem == it.certificate.pem
        assert world.ca.challenges == ["http-01"]
        before = world.store.state()
        assert (follower.renew_at, follower.attempts, follower.unready()) == (None, {}, ())
        assert world.store.state() == before
