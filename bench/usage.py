"""What processes use, as the kernel counts it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

# By then a process that has just started has given back what it needed for that (``nexus.memory`` looks every second).
AT_REST_S: Final = 2.5
_NS_PER_S: Final = 1e9


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of processes, all their threads together, without their children's."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / _NS_PER_S
    return total


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes: what is theirs alone, and their part of what is shared (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))) * 1024
    return total


def trees(roots: Sequence[int]) -> list[int]:
    """Return processes and all their descendants of now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found
