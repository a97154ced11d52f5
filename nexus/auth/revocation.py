"""Tokens that are no longer to be believed, by subject, token id or key id, from a list that an operator keeps.

    # one entry a line
    sub shop
    sub "a name with spaces"  before 2026-11-25T10:00:00Z
    jti 4711
    kid 2025-key

Strategy: three kinds of entry in one grammar. A value is one word, or a JSON string in quotes. ``#`` at the beginning
of a word starts a comment. Without ``before`` an entry means every token; with it those issued before that moment,
among which a token without ``iat`` counts as well, and one whose ``iat`` is in the future: neither says when it was
issued. What a line does not say plainly is a mistake, never a guess: a list
that silently revoked less than its author meant would be worse than none. All mistakes are reported together.

Source: RFC 3339 section 5.6 for the moment; RFC 7519 sections 4.1.2, 4.1.6, 4.1.7 and RFC 7515 section 4.1.4
for what is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from nexus.auth.jws import ISSUED_AHEAD_MAX_S
from nexus.errors import AuthError, ConfigError, Problem

Kind = Literal["sub", "jti", "kid"]
KINDS: Final[tuple[Kind, ...]] = ("sub", "jti", "kid")
ENTRIES_MAX: Final = 100_000  # ours: some 20 MB; a longer list wants keys of its own (kid) instead
PROBLEMS_MAX: Final = 100  # more than anyone reads

_FOREVER: Final = float("inf")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"(?!\S)|\S+')
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """By what a token can be revoked; empty where it does not say. ``issued_at`` is seconds since the epoch."""

    subject: str = ""
    token_id: str = ""
    key_id: str = ""
    issued_at: int | None = None


@dataclass(frozen=True, slots=True)
class Revocations:
    """A list as it was read: for each kind and value the moment before which tokens are revoked."""

    entries: Mapping[tuple[Kind, str], float] = field(default_factory=dict)

    def reason(self, tokens: Iterable[TokenIdentity], now: float) -> str:
        """Return by what one of the tokens is revoked, such as ``its sub is revoked``; nothing if none is.

        ``now`` is seconds since the epoch; a token that is dated more than ISSUED_AHEAD_MAX_S later is not believed.
        """
        for token in tokens if self.entries else ():
            issued_at = -_FOREVER if token.issued_at is None else token.issued_at
            if issued_at > now + ISSUED_AHEAD_MAX_S:
                issued_at = -_FOREVER
            named: tuple[tuple[Kind, str], ...] = (
                ("sub", token.subject),
                ("jti", token.token_id),
                ("kid", token.key_id),
            )
            for kind, value in named:
                before = self.entries.get((kind, value)) if value else None
                if before is not None and issued_at < before:
                    return f"its {kind} is revoked" + ("" if before == _FOREVER else " for tokens as old")
        return ""

    def narrowed(self, newer: Revocations) -> int:
        """Count the entries by which a newer list revokes fewer tokens than this one, or none."""
        return sum(newer.entries.get(key, -_FOREVER) < before for key, before in self.entries.items())

    def check(self, token: TokenIdentity, now: float) -> str:
        """Return what was found for a token that is not revoked at ``now``, in seconds since the epoch.

        Raises:
            AuthError: it is.
        """
        if reason := self.reason((token,), now):
            raise AuthError(f"invalid token: {reason}")
        return f"in none of {len(self.entries)} entries"


def parse_revocations(text: str, source: str) -> Revocations:
    """Read a list; of two entries for the same thing the wider one counts.

    Raises:
        ConfigError: with every mistake, its line, and what mends it.
    """
    entries: dict[tuple[Kind, str], float] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            parsed = _parse_line(line)
        except ValueError as error:
            problems.append(
                Problem(source, number, "", str(error), "write such as: sub NAME before 2026-01-31T00:00:00Z")
            )
            if len(problems) >= PROBLEMS_MAX:
                break
            continue
        if parsed is not None:
            key, before = parsed
            entries[key] = max(before, entries.get(key, before))
        if len(entries) > ENTRIES_MAX:
            mend = "revoke by kid or sub instead"
            problems.append(Problem(source, number, "", f"holds more than {ENTRIES_MAX} entries", mend))
            break
    if problems:
        raise ConfigError(*problems)
    return Revocations(entries)


def parse_moment(text: str) -> float:
    """Return a date and time of RFC 3339 as seconds since the epoch.

    Raises:
        ValueError: it is not one.
    """
    try:
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text.upper()).timestamp()
    except ValueError:
        pass
    raise ValueError("is no date and time of RFC 3339, such as 2026-01-31T00:00:00Z")


def _parse_line(line: str) -> tuple[tuple[Kind, str], float] | None:
    """Return an entry, None for a line without one, or raise ValueError with what is wrong."""
    words = _words(line)
    if not words:
        return None
    kind, rest = words[0], words[1:]
    if kind not in KINDS:
        raise ValueError(f"begins with none of {', '.join(KINDS)}")
    if not rest:
        raise ValueError(f"names nothing after {kind}")
    value = _value(rest[0])
    if len(rest) == 1:
        return (kind, value), _FOREVER
    if rest[1] != "before" or len(rest) != 3:
        raise ValueError("has more after its value than before and one moment; put quotes around a value with spaces")
    try:
        return (kind, value), parse_moment(rest[2])
    except ValueError as error:
        raise ValueError(f"what follows before {error}") from None


def _words(line: str) -> list[str]:
    words = []
    for match in _WORD.finditer(line):
        if match[0].startswith("#"):
            break
        words.append(match[0])
    return words


def _value(word: str) -> str:
    if not word.startswith('"'):
        return word
    try:
        value = json.loads(word)
    except ValueError:
        value = ""
    if not isinstance(value, str) or not value:
        raise ValueError("has a value in quotes that is no JSON string, or an empty one")
    return value
