"""Fuzz nexus.peek: no bytes raise, name a port key, or mean something else when they come in pieces.

    python fuzz/fuzz_peek.py [CORPUS ...] [-max_total_time=60 and other options of libFuzzer]

Start from the recorded hellos: ``mkdir corpus && cp tests/vectors/client_hello/*.bin corpus``. Needs atheris, which is
no dependency of the project because it is built for few platforms. ``check`` is what is held true of any input; it
needs nothing, and the unit tests use it too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a clone, installed or not

from nexus.hostnames import is_port_key, normalize
from nexus.peek import PEEK_MAX_BYTES, Peeked, PeekStatus, peek

PIECES = 16  # reads that one input is cut into


def check(data: bytes) -> None:
    """Raise AssertionError if peeking at ``data`` breaks a promise."""
    whole = peek(data)
    assert isinstance(whole, Peeked | PeekStatus)
    assert peek(bytearray(data)) == peek(memoryview(data)) == whole
    if isinstance(whole, Peeked) and whole.host is not None:
        assert whole.host == whole.host.lower()
        assert not is_port_key(normalize(whole.host))
    if len(data) >= PEEK_MAX_BYTES:
        assert whole is not PeekStatus.NEED_MORE
    assert in_pieces(data, len(data) // PIECES + 1) == whole


def in_pieces(data: bytes, size: int) -> Peeked | PeekStatus:
    """Read ``size`` bytes at a time as a listener does; return the first answer that asks for no more."""
    seen = 0
    answer = peek(b"")
    while answer is PeekStatus.NEED_MORE and seen < len(data):
        end = seen + size
        answer = peek(data[:end], seen=seen)
        seen = end
    return answer


def main() -> None:
    """Hand ``check`` to atheris."""
    try:
        import atheris  # type: ignore[import-untyped]  # noqa: PLC0415 — optional: see the docstring
    except ImportError:
        sys.exit("fuzz_peek: atheris is not installed; try: pip install atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
