"""Checks as data, so that who enforces them and who explains them cannot disagree.

Strategy: a judgement is a row of named checks over one trial, a value of the judge that holds what is judged and
collects what later checks need. ``enforce`` stops at the first that refuses, as a hub does; ``examine`` runs them all
and tells of each. A check that ``needs`` others is skipped by ``examine`` where one of these did not pass, since what
it would look at is not there. Both accept exactly when no check refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from nexus.errors import AuthError, TokenUnverified

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One check: ``run`` returns what it found, in a few words, or raises AuthError."""

    name: str
    run: Callable[[T], str]
    needs: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of a check; a warning refuses nothing."""

    PASS = "pass"  # noqa: S105 — no password
    FAIL = "fail"
    SKIP = "skip"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what mends it."""

    name: str
    outcome: Outcome
    detail: str
    mend: str = ""


def enforce(checks: Sequence[Check[T]], trial: T) -> None:
    """Run the checks in their order.

    Raises:
        AuthError: of the first one that refuses.
    """
    for check in checks:
        check.run(trial)


def examine(checks: Sequence[Check[T]], trial: T) -> list[Finding]:
    """Run every check and tell of each, in order."""
    findings: list[Finding] = []
    missing: set[str] = set()
    for check in checks:
        finding = _examine_one(check, trial, missing)
        findings.append(finding)
        if finding.outcome is not Outcome.PASS:
            missing.add(check.name)
    return findings


def _examine_one(check: Check[T], trial: T, missing: set[str]) -> Finding:
    if lacking := [name for name in check.needs if name in missing]:
        return Finding(check.name, Outcome.SKIP, f"cannot be told without: {', '.join(lacking)}")
    try:
        return Finding(check.name, Outcome.PASS, check.run(trial))
    except TokenUnverified as error:
        return Finding(check.name, Outcome.FAIL, f"{error} ({error.detail})")
    except AuthError as error:
        return Finding(check.name, Outcome.FAIL, str(error))
