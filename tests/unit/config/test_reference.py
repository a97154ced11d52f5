"""docs/configuration.md against the tables of keys."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from backend_client.config_keys import CLIENT_KEYS
from nexus.config.keys import NODE_KEYS
from nexus.document import Field, Kind

TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
INNER = {Kind.TABLE: ".", Kind.TABLES: "[].", Kind.INTEGER_TABLES: ".PORT."}
MAPS = (Kind.TABLE, Kind.STRING_MAP, Kind.INTEGER_TABLES)


def default_of(spec: Field) -> str:
    if spec.required:
        return "required"
    if spec.kind in MAPS:
        return "`{}`"
    value = spec.empty()
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def expected_rows(fields: tuple[Field, ...], path: str = "") -> Iterator[tuple[str, str, str]]:
    for spec in fields:
        yield path + spec.key, spec.kind.value, default_of(spec)
        if spec.fields:
            yield from expected_rows(spec.fields, path + spec.key + INNER[spec.kind])


def test_the_reference_names_every_key_with_its_type_and_default() -> None:
    """The page has exactly the keys of both tables, in their order."""
    rows = [(key, kind, default) for key, kind, default, _ in ROW.findall(TEXT)]
    assert rows == [*expected_rows(NODE_KEYS), *expected_rows(CLIENT_KEYS)]


def test_the_reference_gives_the_choices_of_every_key_that_has_them() -> None:
    """An operator need not guess the words."""
    meanings = {key: meaning for key, _, _, meaning in ROW.findall(TEXT)}
    for spec in NODE_KEYS:
        assert all(f"`{choice}`" in meanings[spec.key] for choice in spec.choices)
