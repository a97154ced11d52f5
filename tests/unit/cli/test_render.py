"""Numbers and times for people."""

from __future__ import annotations

import pytest

from cli.render import moment, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (3 * 1024**3, "3.0 GiB"),
        (5000 * 1024**3, "5000.0 GiB"),
    ],
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    """With one decimal from a kibibyte on."""
    assert size(count) == text


def test_moment_is_in_utc() -> None:
    """So that it means the same on every machine."""
    assert moment(0) == "1970-01-01 00:00:00 UTC"


@pytest.mark.parametrize("number", [1e300, float("nan"), -(10**18)])
def test_moment_of_a_number_that_is_no_date_is_the_number(number: float) -> None:
    """A hostile token cannot break the display."""
    assert moment(number) == str(number)
