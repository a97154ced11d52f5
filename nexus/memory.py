"""Gives freed memory back to the system, where the C library does not do it by itself.

glibc returns only what lies free at the top of its heap. Messages that waited for slow clients are 32 KiB pieces spread
all over it, so a process keeps nearly all of a burst's memory for ever, unless it is told to return free pages
(malloc_trim(3)). How much that would be is the difference between what is resident and what is in use (mallinfo(3)).
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

LOOK_INTERVAL_S: Final = 1.0
# Below it a return is not worth the page faults when the memory is needed again.
SLACK_BYTES: Final = 16 * 1024 * 1024
_STATM: Final = Path("/proc/self/statm")
_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class Usage(NamedTuple):
    """Bytes of this process: in main memory, and handed out by malloc."""

    resident: int
    allocated: int


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


class MemoryKeeper:
    """Looks at the memory now and then, and returns what is free but still resident."""

    def __init__(self, usage: Callable[[], Usage], trim: Callable[[], object]) -> None:
        """Take the process's figures of now as the ones to come back to."""
        self._usage = usage
        self._trim = trim
        self._least = self._unused()

    def look(self) -> None:
        """Return memory if what is resident without being allocated has grown by SLACK_BYTES."""
        unused = self._unused()
        if unused - self._least >= SLACK_BYTES:
            self._trim()
            self._least = self._unused()  # code, stacks and Python's own pools are in it, and grow too
        else:
            self._least = min(self._least, unused)

    def _unused(self) -> int:
        usage = self._usage()
        return usage.resident - usage.allocated


def system_keeper() -> MemoryKeeper | None:
    """Return a keeper for this process; None where the C library lacks the functions (glibc has them from 2.33 on)."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallinfo2") and hasattr(library, "malloc_trim") and _STATM.exists()):
        return None
    mallinfo2 = library.mallinfo2
    mallinfo2.restype = _Mallinfo2

    def usage() -> Usage:
        resident_pages = int(_STATM.read_text().split()[1])
        info = mallinfo2()
        return Usage(resident_pages * mmap.PAGESIZE, info.uordblks + info.hblkhd)

    return MemoryKeeper(usage, lambda: library.malloc_trim(0))


def keep_memory_low(loop: asyncio.AbstractEventLoop) -> None:
    """Look every LOOK_INTERVAL_S for as long as the loop runs; do nothing where the system needs or allows no help."""
    keeper = system_keeper()
    if keeper is not None:
        _look_again(loop, keeper)


def _look_again(loop: asyncio.AbstractEventLoop, keeper: MemoryKeeper) -> None:
    keeper.look()
    loop.call_later(LOOK_INTERVAL_S, _look_again, loop, keeper)
