"""Fuzz nexus.protocol: hostile frames read as the ``websockets`` library alone reads them, hostile JSON is refused.

    python fuzz/fuzz_framing.py [CORPUS ...] [-max_total_time=60 and other options of libFuzzer]

The first byte of an input says which side sends (bit 0) and into how long pieces the rest is cut. Needs atheris, which
is no dependency of the project because it is built for few platforms. ``check`` is what is held true of any input; it
needs nothing but the library, and the unit tests use it too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a clone, installed or not

from nexus.errors import RemoteProtocolError
from nexus.protocol.handshake import parse_challenge
from nexus.protocol.messages import parse_control, serialize_control
from tests.support.framing import read_alone, read_with_codec


def check(data: bytes) -> None:
    """Raise AssertionError if reading ``data`` breaks a promise."""
    how, rest = data[0] if data else 0, data[1:]
    masked, size = bool(how & 1), how >> 1 or len(rest)
    expected = read_alone([rest], masked=masked)
    assert read_with_codec([rest], masked=masked) == expected
    assert read_with_codec(pieces(rest, size), masked=masked) == read_alone(pieces(rest, size), masked=masked)
    for kind, message in [*expected.events, ("text", rest)]:
        if kind in {"binary", "text"}:
            check_json(message)


def check_json(body: bytes) -> None:
    """Control messages and challenges are read, or refused by the documented error; what is read can be written."""
    with contextlib.suppress(RemoteProtocolError):
        control = parse_control(body)
        assert parse_control(serialize_control(control)[1:]) == control
    with contextlib.suppress(RemoteProtocolError):
        assert parse_challenge(body.decode(errors="replace")).nonce


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut ``data`` as a network does."""
    for at in range(0, len(data), max(size, 1)):
        yield data[at : at + max(size, 1)]


def main() -> None:
    """Hand ``check`` to atheris."""
    try:
        import atheris  # type: ignore[import-untyped]  # noqa: PLC0415 — optional: see the docstring
    except ImportError:
        sys.exit("fuzz_framing: atheris is not installed; try: pip install atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
