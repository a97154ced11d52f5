"""What a scalar means in a field that expects an integer, a boolean or a string.

Strategy: types are decided by what a field expects, never by what a scalar looks like, because the files of the
original are read by Go's yaml.v3 into a struct and must mean the same here. A string is the source text of any scalar.
An integer may be written ``1_000``, ``0x10``, ``0123`` (octal) or ``60.5`` (cut to 60), but not ``"60"``. ``yes`` is
true even when quoted, ``"true"`` is nothing. Nothing is a date, and nothing counts in base 60. Each function takes a
node and raises ``ValueError`` with a text that follows the key in a message; null is the empty value of each type.

Source: spec node-and-mesh 2 and 18.9; YAML 1.2 10.3.2 for the words of null and of numbers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from nexus.document.nodes import Node, ScalarNode

SHOWN_CHARS = 40  # of a wrong text, in a message
SUGGESTION_CUTOFF = 0.7  # similarity from which "did you mean" helps more than it misleads
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1  # what a Go int holds
_INT64_MAX_DIGITS = 64  # of the longest spelling, in binary

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def _spellings(word: str) -> tuple[str, str, str]:
    return word, word.capitalize(), word.upper()


_QUOTABLE_BOOLEANS = {spelling: True for word in ("y", "yes", "on") for spelling in _spellings(word)} | {
    spelling: False for word in ("n", "no", "off") for spelling in _spellings(word)
}
_BOOLEANS = _QUOTABLE_BOOLEANS | dict.fromkeys(_spellings("true"), True) | dict.fromkeys(_spellings("false"), False)
_INTEGER = re.compile(
    r"[-+]?(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<binary>[01]+)|0[oO]?(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*))"
)
_BASES = {"hex": 16, "binary": 2, "octal": 8, "decimal": 10}
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


def parse_integer(scalar: ScalarNode) -> int:
    """Return the integer a scalar means; raises ``ValueError`` for quoted or other text and beyond 64 bits."""
    if is_null(scalar):
        return 0
    if not scalar.plain:
        raise ValueError("must be an integer without quotes")
    digits = scalar.text.replace("_", "") if scalar.text[0] in "+-.0123456789" else ""
    if match := _INTEGER.fullmatch(digits):
        value = _signed(digits[0], match)
    elif _FLOAT.fullmatch(digits):  # also 08 and 099, which are no octal numbers
        number = float(digits)
        value = int(number) if abs(number) <= _INT64_MAX else _INT64_MAX + 1
    else:
        raise ValueError(f"must be an integer, found '{shorten(scalar.text)}'")
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise ValueError("must be an integer of at most 64 bits")
    return value


def _signed(first: str, match: re.Match[str]) -> int:
    base, digits = next((name, text.lstrip("0")) for name, text in match.groupdict().items() if text is not None)
    if len(digits) > _INT64_MAX_DIGITS:
        return _INT64_MAX + 1
    return int(digits or "0", _BASES[base]) * (-1 if first == "-" else 1)


def parse_boolean(scalar: ScalarNode) -> bool:
    """Return the truth a scalar means; raises ``ValueError`` for anything but the words of spec node-and-mesh 2."""
    if is_null(scalar):
        return False
    words = _BOOLEANS if scalar.plain else _QUOTABLE_BOOLEANS
    if scalar.text not in words:
        quotes = "" if scalar.plain else " without quotes"
        raise ValueError(f"must be true or false{quotes}, found '{shorten(scalar.text)}'")
    return words[scalar.text]


def parse_text(scalar: ScalarNode) -> str:
    """Return the source text of a scalar."""
    return "" if is_null(scalar) else scalar.text


def is_null(node: Node) -> bool:
    """Tell whether a node is a null scalar, or nothing at all."""
    return isinstance(node, ScalarNode) and node.plain and node.text in _NULLS


def shorten(text: str) -> str:
    """Return a text fit for a message: at most ``SHOWN_CHARS`` characters and an ellipsis, nothing unprintable."""
    text = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'X'?`` for the nearest known word, regardless of case, or an empty string."""
    folded = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word[: 2 * SHOWN_CHARS].lower(), folded, n=1, cutoff=SUGGESTION_CUTOFF)
    return f"did you mean '{folded[found[0]]}'?" if found else ""
