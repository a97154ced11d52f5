"""JSON from strangers: one object in UTF-8, nothing that only Python's parser takes.

Source: RFC 8259.
"""

from __future__ import annotations

import json
from typing import NoReturn


def parse_object(data: bytes) -> dict[str, object]:
    """Return a JSON object.

    Raises:
        ValueError: it is not one: not UTF-8, not JSON, another kind of value, nested too deep, or with a number that
            JSON does not know. The error may carry what was parsed; do not chain it.
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 — the one documented error
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259 section 6)")
