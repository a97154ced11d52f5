"""nexus.errors: one tree, and texts that tell an operator where to look."""

from __future__ import annotations

import inspect

import pytest

from nexus import errors
from nexus.errors import ConfigError, NexusError, Problem, RejectedError


@pytest.mark.parametrize(
    "kind",
    [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)],
)
def test_every_error_is_a_nexus_error_and_is_in_the_tree_of_the_docstring(kind: type[Exception]) -> None:
    """Who catches the base catches all; who reads the docstring knows all."""
    assert issubclass(kind, NexusError)
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.yaml", 12, "relayPorts", "is empty", "list some"), "a.yaml:12: relayPorts: is empty; list some"),
        (Problem("a.yaml", 0, "", "cannot be read"), "a.yaml: cannot be read"),
    ],
)
def test_a_problem_says_where_what_and_what_mends_it(problem: Problem, text: str) -> None:
    """Only what there is."""
    assert str(problem) == text


def test_a_configuration_error_has_one_line_per_problem() -> None:
    """In the order given, and the problems themselves for programs."""
    problems = (Problem("a", 1, "b", "c"), Problem("a", 2, "d", "e"))
    error = ConfigError(*problems)
    assert str(error) == "a:1: b: c\na:2: d: e"
    assert error.problems == problems


def test_a_rejection_knows_the_http_status() -> None:
    """0 where it was a close code."""
    assert (str(RejectedError("no")), RejectedError("no").http_status, RejectedError("no", 401).http_status) == (
        "no",
        0,
        401,
    )
