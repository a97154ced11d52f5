"""Tests of nexus.auth.strict_json."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.auth.strict_json import parse_object


def test_an_object_is_returned() -> None:
    """Of keys given twice the last counts, as everywhere in JSON."""
    assert parse_object(b' {"a": [1, 2.5, null], "b": {}, "b": "\xc3\xa9"} ') == {"a": [1, 2.5, None], "b": "é"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'"a"',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"{'a':1}",
        b'{"a":1} x',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"<html></html>",
    ],
    ids=range(14),
)
def test_anything_else_is_refused(data: bytes) -> None:
    """With the one documented error."""
    with pytest.raises(ValueError):  # noqa: PT011 — its words are nobody's
        parse_object(data)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_hostile_bytes_raise_value_errors_alone(data: bytes) -> None:
    """Whatever they are."""
    try:
        assert isinstance(parse_object(data), dict)
    except ValueError as error:
        assert not isinstance(error, RecursionError)  # noqa: PT017 — both outcomes are right
