"""Nodes as typed values, by tables that say which keys there are.

Strategy: a ``Field`` is data: key, kind, default, limits, meaning. ``read`` lays a table of them over a document and
gives a ``Record``; the same tables make the JSON Schema and are checked against the reference page. What a table can
say (type, range, choice, required) is checked here; rules that span keys are plain functions of the caller on the
``Record``, which knows where each key was written.

Every mistake becomes a ``Problem`` and reading goes on with a default, so that one run names them all; a record says
which of its keys are broken, so that no rule complains again. Keys match exactly and a key given twice is a mistake,
as in the original; a merge (``<<``) never overrides a map's own key and visits each map once. Aliases share nodes, so
a small file may stand for a huge one: a budget bounds the values read.

Source: spec node-and-mesh 2; yaml.org/type/merge.html.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, Union, cast

from nexus.document.nodes import MappingNode, Node, Place, ScalarNode, SequenceNode, refusal
from nexus.document.scalars import did_you_mean, is_null, parse_boolean, parse_integer, parse_text, shorten
from nexus.errors import Problem

MAX_VALUES = 200_000  # read from one document with its aliases followed; as many as it may have nodes
MAX_PROBLEMS = 100  # more than anyone reads; bounds the work on a hostile file
_MERGE_KEY = "<<"


class Kind(Enum):
    """What a field holds; the value says it in words."""

    INTEGER = "integer"
    BOOLEAN = "boolean"
    STRING = "string"
    INTEGERS = "list of integers"
    STRINGS = "list of strings"
    STRING_MAP = "map of strings"
    TABLE = "map"
    TABLES = "list of maps"
    INTEGER_TABLES = "map of ports to maps"


_Lists: TypeAlias = Union[tuple[int, ...], tuple[str, ...], "tuple[Record, ...]"]
_Maps: TypeAlias = Union[Mapping[str, str], "Mapping[int, Record]"]
Value: TypeAlias = Union[int, str, "Record", _Lists, _Maps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a table.

    ``default`` holds when the key is omitted or null and, with ``zero_is_default``, also when an integer is 0 or a
    string empty; None stands for the empty value of the kind. ``minimum`` and ``maximum`` bound an integer, each item
    of a list of integers, and the keys of a map of ports. ``fields`` is the table of a map. ``doc`` says what the key
    does, ``mend`` what to do about a missing or refused value.
    """

    key: str
    kind: Kind
    doc: str
    default: int | str | None = None
    zero_is_default: bool = True
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    fields: tuple[Field, ...] = ()
    mend: str = ""

    def empty(self) -> Value:
        """Return the value of an omitted key (a ``Kind.TABLE`` has none: it is a record of defaults)."""
        return _EMPTY[self.kind] if self.default is None else self.default


@dataclass(frozen=True, slots=True)
class Record:
    """The values of one table, every key present: what was written, or its default.

    ``given`` names the keys written with a value other than null, zero or empty; ``broken`` those with a mistake in
    them. The accessors trust the table: ask for a key by the accessor of its kind.
    """

    path: str
    place: Place
    values: Mapping[str, Value]
    given: frozenset[str]
    broken: frozenset[str]
    places: Mapping[str, Place] = field(repr=False)

    def problem(self, key: str, what: str, mend: str = "") -> Problem:
        """Return a problem of ``key`` (``peers``, ``peers[2]``, ``hosts.a.example``) at the place it was written."""
        path = _join(self.path, key)
        place = self.places.get(path, self.place)
        return Problem(place.source, place.line, path, what, mend)

    def integer(self, key: str) -> int:
        """Return an integer."""
        return cast("int", self.values[key])

    def flag(self, key: str) -> bool:
        """Return a boolean."""
        return cast("bool", self.values[key])

    def text(self, key: str) -> str:
        """Return a string."""
        return cast("str", self.values[key])

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of integers."""
        return cast("tuple[int, ...]", self.values[key])

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        return cast("tuple[str, ...]", self.values[key])

    def text_map(self, key: str) -> Mapping[str, str]:
        """Return a map of strings."""
        return cast("Mapping[str, str]", self.values[key])

    def table(self, key: str) -> Record:
        """Return the record of a map."""
        return cast("Record", self.values[key])

    def tables(self, key: str) -> tuple[Record, ...]:
        """Return the records of a list of maps."""
        return cast("tuple[Record, ...]", self.values[key])

    def port_tables(self, key: str) -> Mapping[int, Record]:
        """Return the records of a map of ports."""
        return cast("Mapping[int, Record]", self.values[key])


@dataclass(frozen=True, slots=True)
class Reading:
    """What ``read`` found: the record, the mistakes, and what is merely odd, both in file order."""

    record: Record
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


@dataclass(slots=True)
class _Run:
    """One call of ``read``: what was reported, where each path was written, and the budget left."""

    strict: bool
    overrides: Mapping[str, ScalarNode]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    mistakes: int = 0
    budget: int = field(default_factory=lambda: MAX_VALUES)

    def spend(self, place: Place) -> None:
        """Count one value against the budget."""
        self.budget -= 1
        if self.budget < 0:
            raise refusal(place, f"aliases make more than {MAX_VALUES} values of it", "write the values out")

    def refuse(self, path: str, place: Place, what: str, mend: str = "") -> None:
        """Report a mistake; beyond ``MAX_PROBLEMS`` it only counts."""
        self.mistakes += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(place.source, place.line, path, what, mend))

    def unknown(self, path: str, place: Place, key: str, known: Iterable[str]) -> None:
        """Report a key that is in no table: a warning, or a mistake when strict."""
        if len(self.warnings) + len(self.problems) >= MAX_PROBLEMS:
            self.mistakes += self.strict
            return
        what, mend = "unknown key", did_you_mean(key, known)
        if self.strict:
            self.refuse(_join(path, shorten(key)), place, what, mend)
        else:
            self.warnings.append(Problem(place.source, place.line, _join(path, shorten(key)), what, mend))


def read(
    root: Node, fields: tuple[Field, ...], *, strict: bool = False, overrides: Mapping[str, ScalarNode] | None = None
) -> Reading:
    """Read a document by the table of its keys.

    ``overrides`` replaces scalars by their dotted path, present in the file or not. Unknown keys are warnings, or with
    ``strict`` mistakes. Mistakes are returned, not raised, so that the caller can add those of its own rules; only a
    document whose aliases multiply beyond ``MAX_VALUES`` raises ``ConfigError``.
    """
    run = _Run(strict=strict, overrides=overrides or {})
    record = _table(run, fields, root, "")
    return Reading(record, in_file_order(run.problems), in_file_order(run.warnings))


def in_file_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return problems by line; those without a line come last."""
    return tuple(sorted(problems, key=lambda problem: (problem.line == 0, problem.line)))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _own_entries(run: _Run, node: MappingNode, path: str) -> tuple[dict[str, tuple[Place, Node]], list[Node]]:
    """Return a map's own pairs by key, and the nodes it merges."""
    found: dict[str, tuple[Place, Node]] = {}
    merges: list[Node] = []
    lines: dict[str, int] = {}
    for key, value in node.pairs:
        run.spend(key.place)
        if not isinstance(key, ScalarNode):
            run.refuse(path, key.place, "a key must be plain text")
            continue
        if key.text in lines:
            what = f"is set twice, first in line {lines[key.text]}"
            run.refuse(_join(path, shorten(key.text)), key.place, what, "delete one")
        elif key.plain and key.text == _MERGE_KEY:
            merges.append(value)
        else:
            found[key.text] = (key.place, value)
        lines.setdefault(key.text, key.place.line)
    return found, merges


def _entries(run: _Run, node: Node, path: str) -> dict[str, tuple[Place, Node]]:
    """Return a map's values by key with its merges applied: its own keys win, then earlier merges."""
    if not isinstance(node, MappingNode):
        if not is_null(node):
            run.refuse(path, node.place, "must be a map of keys and values")
        return {}
    found, merges = _own_entries(run, node, path)
    waiting = deque(merges)
    visited = {id(node)}
    while waiting:
        source = waiting.popleft()
        if id(source) in visited:
            continue
        visited.add(id(source))
        if isinstance(source, SequenceNode):
            waiting.extendleft(reversed(source.items))
        elif isinstance(source, MappingNode):
            own, merges = _own_entries(run, source, path)
            waiting.extendleft(reversed(merges))
            for key, entry in own.items():
                found.setdefault(key, entry)
        else:
            run.refuse(path, source.place, "'<<' merges a map or a list of maps, nothing else")
    return found


def _table(run: _Run, fields: tuple[Field, ...], node: Node, path: str) -> Record:
    """Read a map of known keys."""
    entries = _entries(run, node, path)
    home = node.place if path else Place(node.place.source, 0)
    known = {spec.key for spec in fields}
    for key, (place, _) in entries.items():
        if key not in known:
            run.unknown(path, place, key, known)
    values: dict[str, Value] = {}
    given: set[str] = set()
    broken: set[str] = set()
    for spec in fields:
        full = _join(path, spec.key)
        before = run.mistakes
        place, value_node = entries.get(spec.key, (home, ScalarNode(home, "", plain=True)))
        if full in run.overrides:
            value_node = run.overrides[full]
            place = value_node.place
        run.places[full] = place
        written, values[spec.key] = _value(run, spec, value_node, full)
        if spec.required and not written and run.mistakes == before:
            run.refuse(full, place, "is required", spec.mend)
        given.update([spec.key] if written else [])
        broken.update([spec.key] if run.mistakes > before else [])
    return Record(path, home, values, frozenset(given), frozenset(broken), run.places)


def _value(run: _Run, spec: Field, node: Node, path: str) -> tuple[bool, Value]:
    """Return whether a key was written with more than null, zero or nothing, and the value it has."""
    if is_null(node):
        return False, _table(run, spec.fields, node, path) if spec.kind is Kind.TABLE else spec.empty()
    value = _READERS[spec.kind](run, spec, node, path)
    if not value and spec.zero_is_default and spec.kind in (Kind.INTEGER, Kind.STRING):
        return False, spec.empty()
    return bool(value), value


def _scalar(run: _Run, spec: Field, node: Node, path: str) -> int | str:
    """Read one scalar of a field of scalars, and check it against the field's limits."""
    run.spend(node.place)
    kind = _ITEMS.get(spec.kind, spec.kind)
    nothing = cast("int | str", _EMPTY[kind])
    if not isinstance(node, ScalarNode):
        found = "list" if isinstance(node, SequenceNode) else "map"
        run.refuse(path, node.place, f"must be one {kind.value}, found a {found}", spec.mend)
        return nothing
    try:
        value = _SCALARS[kind](node)
    except ValueError as error:
        run.refuse(path, node.place, str(error), spec.mend)
        return nothing
    what = _limit(spec, value)
    if what:
        run.refuse(path, node.place, what, spec.mend)
    return value


def _limit(spec: Field, value: int | str) -> str:
    """Return what is wrong with a value by its field's limits, or nothing."""
    low, high = spec.minimum, spec.maximum
    if isinstance(value, int):
        if (low is None or value >= low) and (high is None or value <= high):
            return ""
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        return f"must be {bounds}, found {value}"
    if spec.choices and value and value not in spec.choices:
        return f"must be one of {', '.join(spec.choices)}, found '{shorten(value)}'"
    return ""


def _items(run: _Run, spec: Field, node: Node, path: str) -> Iterable[tuple[str, Node]]:
    """Yield the paths and nodes of a list."""
    if not isinstance(node, SequenceNode):
        run.refuse(path, node.place, f"must be a {spec.kind.value}", "write it as a list: [ ... ] or lines with '- '")
        return
    for index, item in enumerate(node.items):
        full = f"{path}[{index}]"
        run.places[full] = item.place
        yield full, item


def _scalars(run: _Run, spec: Field, node: Node, path: str) -> Value:
    return cast("Value", tuple(_scalar(run, spec, item, full) for full, item in _items(run, spec, node, path)))


def _tables(run: _Run, spec: Field, node: Node, path: str) -> Value:
    return tuple(_table(run, spec.fields, item, full) for full, item in _items(run, spec, node, path))


def _string_map(run: _Run, spec: Field, node: Node, path: str) -> Value:
    values: dict[str, str] = {}
    for key, (place, item) in _entries(run, node, path).items():
        full = _join(path, shorten(key))
        run.places[full] = place
        values[key] = cast("str", _scalar(run, spec, item, full))
    return values


def _port_tables(run: _Run, spec: Field, node: Node, path: str) -> Value:
    """Read a map by integers; a quoted key counts as well, because a JSON file can have no other."""
    values: dict[int, Record] = {}
    for key, (place, item) in _entries(run, node, path).items():
        port = cast("int", _scalar(run, spec, ScalarNode(place, key, plain=True), _join(path, shorten(key))))
        full = _join(path, str(port))
        if port in values:
            run.refuse(full, place, f"is set twice, here as '{shorten(key)}'", "delete one")
        run.places[full] = place
        values[port] = _table(run, spec.fields, item, full)
    return values


_EMPTY: Mapping[Kind, Value] = {
    Kind.INTEGER: 0,
    Kind.BOOLEAN: False,
    Kind.STRING: "",
    Kind.INTEGERS: (),
    Kind.STRINGS: (),
    Kind.STRING_MAP: {},
    Kind.TABLES: (),
    Kind.INTEGER_TABLES: {},
}
_ITEMS = {
    Kind.INTEGERS: Kind.INTEGER,
    Kind.STRINGS: Kind.STRING,
    Kind.STRING_MAP: Kind.STRING,
    Kind.INTEGER_TABLES: Kind.INTEGER,
}
_SCALARS: Mapping[Kind, Callable[[ScalarNode], int | str]] = {
    Kind.INTEGER: parse_integer,
    Kind.BOOLEAN: parse_boolean,
    Kind.STRING: parse_text,
}
_READERS: Mapping[Kind, Callable[[_Run, Field, Node, str], Value]] = {
    Kind.INTEGER: _scalar,
    Kind.BOOLEAN: _scalar,
    Kind.STRING: _scalar,
    Kind.INTEGERS: _scalars,
    Kind.STRINGS: _scalars,
    Kind.STRING_MAP: _string_map,
    Kind.TABLE: lambda run, spec, node, path: _table(run, spec.fields, node, path),
    Kind.TABLES: _tables,
    Kind.INTEGER_TABLES: _port_tables,
}
