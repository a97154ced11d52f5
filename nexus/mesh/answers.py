"""What the DNS says about an entry of ``peers``, and what follows from it.

Strategy: an entry is one question or two (A and AAAA), and every answer holds for its time to live, within bounds, also
the answer that there is nobody. Each question keeps what it last knew, because what is not said is no reason to leave a
node that works:

- name servers that fail, or do not answer, take nothing away, however long it lasts; they are asked again soon, and
  less and less often;
- "nobody" (the name does not exist, or has no such record: Kubernetes says either of a service without pods, and for a
  moment also of one that is made anew) takes everything away, but only when nothing else was said for ``grace_s``;
- any other answer counts at once, also for those who are in it no more.

The order of priorities is kept; weights mean nothing, since every target is dialled. A target of an SRV record is
taken only where ``trusts`` agrees: the name that its certificate is checked for comes from the DNS, which anybody
between here and there can forge (RFC 6125 1.8), while the name of a ``dns+a:`` entry was written by the operator.

Source: RFC 1035 (A), RFC 2308 (negative answers), RFC 2782 (SRV), RFC 3596 (AAAA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nexus.document.peers import DnsEntry, HostEntry, PeerAddress, is_host_name
from nexus.mesh.backoff import RetryDelay, Rng

ADDRESSES_MAX: Final = 256
"""Nodes of one question, ours: a full mesh of more would spend itself on announcements; bounds a hostile answer."""

RETRY_FIRST_S: Final = 1.0
"""Longest wait after the first failure, ours: a name server that restarts is back within seconds."""

SPREAD: Final = 0.1
"""Share of its life by which an answer is asked for later, ours: a fleet that asks one cache does not ask at once."""

RecordType: TypeAlias = Literal["A", "AAAA", "SRV"]
Trust: TypeAlias = Callable[[str], bool]
"""Tells whether a name from the DNS is that of a node of ours."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits in seconds, ours.

    ``ttl_min_s``: an answer without life must not make a loop. ``ttl_max_s``: so late at most is a change seen, and so
    often at least are name servers asked that fail. ``nobody_max_s``: the same where there is nobody, as when a fleet
    starts; as long as CoreDNS keeps a denial. ``grace_s``: for how long "nobody" takes nobody away.
    """

    ttl_min_s: float = 5.0
    ttl_max_s: float = 300.0
    nobody_max_s: float = 30.0
    grace_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the DNS."""

    entry: DnsEntry
    record: RecordType


@dataclass(frozen=True, slots=True)
class Answer:
    """What name servers said: nodes in the order of priorities, none where there are none, and for how long it holds.

    With a ``failure`` they said nothing, and it says why.
    """

    peers: tuple[PeerAddress, ...] = ()
    ttl_s: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Picked:
    """The nodes of an answer that are dialled, and the names that are not: not trusted, or no names."""

    peers: tuple[PeerAddress, ...]
    refused: tuple[str, ...]
    beyond: int


def questions(entry: DnsEntry) -> tuple[Question, ...]:
    """Return what is asked for an entry."""
    if isinstance(entry, HostEntry):
        return (Question(entry, "A"), Question(entry, "AAAA"))
    return (Question(entry, "SRV"),)


def pick(question: Question, answer: Answer, trusts: Trust) -> Picked:
    """Return which nodes of an answer are dialled, each once."""
    peers = tuple(dict.fromkeys(answer.peers))
    if question.record == "SRV":
        trusted = tuple(peer for peer in peers if is_host_name(peer.host) and trusts(peer.host))
    else:
        trusted = peers
    refused = tuple(sorted({peer.host for peer in peers} - {peer.host for peer in trusted}))
    return Picked(trusted[:ADDRESSES_MAX], refused, max(0, len(trusted) - ADDRESSES_MAX))


class Memory:
    """What one question is known to have for an answer."""

    __slots__ = ("_grace_s", "_nobody_since", "peers")

    def __init__(self, grace_s: float) -> None:
        """Know nothing yet."""
        self.peers: tuple[PeerAddress, ...] = ()
        self._grace_s = grace_s
        self._nobody_since: float | None = None

    def take(self, peers: tuple[PeerAddress, ...], now: float) -> None:
        """Take what was picked from an answer that is no failure; ``now`` is in seconds and never goes back."""
        if peers:
            self.peers = peers
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
        elif now - self._nobody_since >= self._grace_s:
            self.peers = ()


def wait_after(answers: Sequence[Answer], retry: RetryDelay, bounds: Bounds, rng: Rng) -> float:
    """Return after how many seconds the questions of an entry, all answered now, are asked again."""
    said = [answer for answer in answers if not answer.failure]
    longest_s = bounds.ttl_max_s if any(answer.peers for answer in said) else bounds.nobody_max_s
    lives = [min(max(answer.ttl_s, bounds.ttl_min_s), longest_s) * rng.uniform(1, 1 + SPREAD) for answer in said]
    if len(said) == len(answers):
        retry.reset()
    else:
        lives.append(retry.after_failure(rng))
    return min(lives)
