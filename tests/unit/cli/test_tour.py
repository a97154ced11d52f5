"""The tour as its README tells it: what is a step, and what counts as the output that it shows."""

from __future__ import annotations

import pytest

from cli.tour import Step, is_as_shown, parse_tour
from tests.support.docker import ROOT

README = """\
# A lab

```sh
docker compose up
```

## Up

Nothing numbered.

## 1. First things

Some *text*.

```sh
echo one
echo two
```

More text.

```text
one
t...
```

## 2. Second

```sh
true
```

```text
```

## Down

```sh
docker compose down
```
"""


def step(expected: str) -> Step:
    return Step(1, "One", "", "true", expected)


def test_steps_are_the_numbered_sections() -> None:
    """Others have commands, too; they are not part of the tour."""
    assert parse_tour(README) == (
        Step(1, "First things", "Some *text*.", "echo one\necho two\n", "one\nt...\n"),
        Step(2, "Second", "", "true\n", ""),
    )


@pytest.mark.parametrize(
    "body", ["", "```sh\ntrue\n```\n", "```text\nyes\n```\n", "```text\n```\n```sh\n```\n", "```sh\n```\n```sh\n```\n"]
)
def test_a_step_without_command_or_output_is_a_mistake(body: str) -> None:
    """It names which one."""
    with pytest.raises(ValueError, match="step 7 needs one block of sh and one of text behind it"):
        parse_tour(f"## 7. Title\n\n{body}\n## 8. Next\n\n```sh\n```\n\n```text\n```\n")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("one\n", "one\n", True),
        ("one\n", "two\n", False),
        ("one\n", "one\ntwo\n", False),
        ("up ... min\n", "up 3 h 12 min\n", True),
        ("   ...  ok\n", "    182  ok\n", True),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("", "", True),
        ("", "something\n", False),
    ],
)
def test_dots_stand_for_anything(expected: str, printed: str, same: bool) -> None:
    """White space for white space, and nothing else for anything else."""
    assert is_as_shown(step(expected), printed) is same


def test_the_tour_of_this_checkout_has_its_steps_in_order() -> None:
    """What they print is a matter of the end-to-end tests."""
    steps = parse_tour((ROOT / "lab" / "README.md").read_text())
    assert [found.number for found in steps] == list(range(1, len(steps) + 1))
    assert len(steps) >= 9
    assert all(found.text and found.command and found.expected for found in steps)
