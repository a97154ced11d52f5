"""JSON Schema of a configuration file, from the table of its keys.

Strategy: one function per shape, recursing over the table. The schema is for editors and linters, so it asks for the
recommended spelling: integers as integers, not ``60.5``; strings also as numbers and booleans, because a string key
takes any scalar; no unknown keys, though the node only warns about them. Rules that span keys stay with the loader.

Source: JSON Schema draft 2020-12.
"""

from __future__ import annotations

from nexus.config.keys import NODE_KEYS
from nexus.document import Field, Kind

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {
    Kind.INTEGER: ["integer", "null"],
    Kind.BOOLEAN: ["boolean", "null"],
    Kind.STRING: ["string", "number", "boolean", "null"],
    Kind.INTEGERS: ["array", "null"],
    Kind.STRINGS: ["array", "null"],
    Kind.TABLES: ["array", "null"],
    Kind.STRING_MAP: ["object", "null"],
    Kind.TABLE: ["object", "null"],
    Kind.INTEGER_TABLES: ["object", "null"],
}
_PORT_PATTERN = "^[0-9]+$"


def node_schema() -> dict[str, object]:
    """Return the JSON Schema of the node's configuration file."""
    return json_schema(NODE_KEYS, "Nexus Proxy node configuration")


def json_schema(fields: tuple[Field, ...], title: str) -> dict[str, object]:
    """Return the JSON Schema of a file with these keys."""
    return {"$schema": DIALECT, "title": title, **_table(fields)}


def _table(fields: tuple[Field, ...]) -> dict[str, object]:
    required = [spec.key for spec in fields if spec.required]
    properties = {spec.key: _property(spec) for spec in fields}
    table: dict[str, object] = {"type": "object", "additionalProperties": False, "properties": properties}
    return table | ({"required": required} if required else {})


def _property(spec: Field) -> dict[str, object]:
    shape: dict[str, object] = {"description": spec.doc, "type": _TYPES[spec.kind]}
    if spec.kind is Kind.TABLE:
        return {**_table(spec.fields), **shape}
    if spec.kind is Kind.INTEGER_TABLES:
        return shape | {"patternProperties": {_PORT_PATTERN: _table(spec.fields)}, "additionalProperties": False}
    if spec.kind is Kind.STRING_MAP:
        return shape | {"additionalProperties": {"type": _TYPES[Kind.STRING]}}
    if spec.kind is Kind.TABLES:
        return shape | {"items": _table(spec.fields)}
    if spec.kind in (Kind.INTEGERS, Kind.STRINGS):
        item = Kind.INTEGER if spec.kind is Kind.INTEGERS else Kind.STRING
        return shape | {"items": {"type": _TYPES[item], **_limits(spec)}}
    if spec.choices:
        return {"description": spec.doc, "enum": [*spec.choices, "", None], "default": spec.empty()}
    return shape | _limits(spec) | ({} if spec.required else {"default": spec.empty()})


def _limits(spec: Field) -> dict[str, object]:
    limits = {"minimum": spec.minimum, "maximum": spec.maximum}
    return {name: value for name, value in limits.items() if value is not None}
