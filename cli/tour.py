"""The steps of the lab's guided tour, as its README tells them, and whether what they print is what it shows.

Strategy: ``lab/README.md`` is the one source, for people who copy and paste, for ``nexus lab tour`` and for the
end-to-end tests. A step is a numbered heading (``## 3. Title``), text, one block of shell (``sh``) and one of what it
prints (``text``). There ``...`` stands for anything, and white space for any white space, as in Python's doctest.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass

_HEADING = re.compile(r"^## (?P<number>\d+)\. (?P<title>.+)$", re.MULTILINE)
_NEXT_SECTION = re.compile(r"^## ", re.MULTILINE)
_BLOCK = re.compile(r"^```(?P<kind>sh|text)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Step:
    """One step; ``text`` is Markdown, ``command`` is for a POSIX shell in the checkout, ``expected`` has ellipses."""

    number: int
    title: str
    text: str
    command: str
    expected: str


def parse_tour(readme: str) -> tuple[Step, ...]:
    """Return the steps of a README.

    Raises:
        ValueError: a numbered section has no command, or not exactly one command and one output.
    """
    steps = []
    for heading in _HEADING.finditer(readme):
        rest = readme[heading.end() :]
        following = _NEXT_SECTION.search(rest)
        section = rest[: following.start()] if following else rest
        blocks = list(_BLOCK.finditer(section))
        if [block["kind"] for block in blocks] != ["sh", "text"]:
            raise ValueError(f"step {heading['number']} needs one block of sh and one of text behind it")
        text = section[: blocks[0].start()].strip()
        command, expected = (block["body"] for block in blocks)
        steps.append(Step(int(heading["number"]), heading["title"], text, command, expected))
    return tuple(steps)


def is_as_shown(step: Step, printed: str) -> bool:
    """Tell whether a step printed what the README shows."""
    return doctest.OutputChecker().check_output(step.expected, printed, _FLAGS)
