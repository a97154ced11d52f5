from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from nexus import memory
from nexus.memory import SLACK_BYTES, MemoryKeeper, Usage, keep_memory_low, system_keeper

PIECE_BYTES = 32_785  # a message: below what malloc maps by itself
PIECES = 4 * SLACK_BYTES // PIECE_BYTES


class Machine:
    """Memory that a test sets by hand."""

    def __init__(self) -> None:
        self.usage = Usage(resident=50_000_000, allocated=10_000_000)
        self.trims = 0
        self.keeper = MemoryKeeper(lambda: self.usage, self.trim)

    def trim(self) -> None:
        """Return everything that is not allocated, but for what was there at the start."""
        self.trims += 1
        self.usage = Usage(self.usage.allocated + 40_000_000, self.usage.allocated)

    def look_at(self, resident: int, allocated: int) -> int:
        """Let the keeper look at these figures; return how often it has trimmed."""
        self.usage = Usage(resident, allocated)
        self.keeper.look()
        return self.trims


def test_memory_in_use_is_left_alone() -> None:
    """What grows because it is needed is nothing to return."""
    machine = Machine()
    assert machine.look_at(50_000_000 + 10 * SLACK_BYTES, 10_000_000 + 10 * SLACK_BYTES) == 0


def test_freed_memory_is_returned_once_it_is_worth_it() -> None:
    """One byte less than the slack is kept, the slack is returned, and then there is nothing to do."""
    machine = Machine()
    assert machine.look_at(50_000_000 + SLACK_BYTES - 1, 10_000_000) == 0
    assert machine.look_at(50_000_000 + SLACK_BYTES, 10_000_000) == 1
    machine.keeper.look()
    assert machine.trims == 1


def test_the_slack_counts_from_the_least_memory_seen() -> None:
    """A process that has become smaller by itself is held to that size."""
    machine = Machine()
    assert machine.look_at(20_000_000, 10_000_000) == 0
    assert machine.look_at(20_000_000 + SLACK_BYTES, 10_000_000) == 1


def test_memory_that_cannot_be_returned_is_not_tried_again_and_again() -> None:
    """What is still resident after a trim is the level from which the next one counts."""
    calls = []
    usage = iter([Usage(0, 0), Usage(SLACK_BYTES, 0), Usage(SLACK_BYTES, 0), Usage(2 * SLACK_BYTES - 1, 0)])
    keeper = MemoryKeeper(lambda: next(usage), lambda: calls.append(1))
    keeper.look()
    keeper.look()
    assert calls == [1]


SCATTER = f"""
from nexus.memory import system_keeper
keeper = system_keeper()
if keeper is None:
    raise SystemExit("no keeper")
pieces = [bytes({PIECE_BYTES}) for _ in range({PIECES})]
full = keeper._usage()
kept = pieces[::20]
del pieces
keeper.look()
left = keeper._usage()
print(full.resident - left.resident, left.allocated, len(kept))
"""


def test_a_process_returns_scattered_free_memory() -> None:
    """Small pieces, every twentieth of which is kept, leave the process when they are freed.

    A process of its own: this one may have any amount of free memory already, left by other tests.
    """
    ended = subprocess.run([sys.executable, "-c", SCATTER], capture_output=True, text=True, check=False)
    if "no keeper" in ended.stderr:
        pytest.skip("only glibc needs it and can do it")
    returned, allocated, kept = (int(word) for word in ended.stdout.split())
    assert returned > 2 * SLACK_BYTES
    assert allocated >= kept * PIECE_BYTES


def test_no_keeper_without_the_functions_of_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another C library nothing is looked at."""
    monkeypatch.setattr("nexus.memory.ctypes.CDLL", lambda _name: object())
    assert system_keeper() is None
    loop = asyncio.new_event_loop()
    keep_memory_low(loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_the_loop_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look schedules the next."""
    looks = 0
    loop = asyncio.new_event_loop()

    def usage() -> Usage:
        nonlocal looks
        looks += 1
        if looks == 4:  # the first is the keeper's start
            loop.stop()
        return Usage(0, 0)

    monkeypatch.setattr(memory, "LOOK_INTERVAL_S", 0)
    monkeypatch.setattr(memory, "system_keeper", lambda: MemoryKeeper(usage, lambda: None))
    keep_memory_low(loop)
    loop.run_forever()
    loop.close()
    assert looks == 4
