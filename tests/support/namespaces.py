"""Network namespaces of a test's own: two machines with one cable between them, which can be cut."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

FIRST, SECOND = "10.213.7.1", "10.213.7.2"


@dataclass(frozen=True)
class Wire:
    """Namespaces ``first`` and ``second`` at the addresses FIRST and SECOND."""

    first: str
    second: str

    @staticmethod
    def inside(namespace: str) -> tuple[str, ...]:
        """Return what runs a command in a namespace."""
        return ("ip", "netns", "exec", namespace)

    def cut(self) -> None:
        """Let nothing pass, without a word to either side."""
        self._set("down")

    def mend(self) -> None:
        """Let everything pass."""
        self._set("up")

    def _set(self, state: str) -> None:
        _ip("-n", self.second, "link", "set", "wire", state)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Lay a cable between two new namespaces; needs root, else the test is skipped (in CI it fails)."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("network namespaces need root and iproute2")
    tag = secrets.token_hex(3)
    made = Wire(f"nx{tag}a", f"nx{tag}b")
    with contextlib.ExitStack() as stack:
        for namespace in (made.first, made.second):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
        _ip("-n", made.first, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", made.second)
        for namespace, address in ((made.first, FIRST), (made.second, SECOND)):
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _ip("-n", namespace, "link", "set", device, "up")
        yield made


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
