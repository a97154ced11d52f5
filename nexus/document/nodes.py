"""A YAML text as a tree of nodes that remember their line.

Strategy: PyYAML's parser gives events; a stack of ours turns those of the first document into nodes. No type is
resolved here and nothing is constructed, so no text can make more than strings. Depth and size are bounded while the
events arrive, before anything recurses over the tree. An alias is the anchored node itself, shared; an anchor is known
only once its node is complete, so the tree has no cycles. Later documents of the file are not looked at.

No message repeats text of the file except names of anchors and tags: a line may hold a secret.

Source: spec node-and-mesh 2; YAML 1.1, as libyaml reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml

from nexus.errors import ConfigError, Problem
from nexus.files import read_file

MAX_DEPTH = 64  # our deepest key is at depth 6; the rest is room for unknown keys of other versions
MAX_NODES = 200_000  # of one document; a node is a few hundred bytes in memory
_SHOWN_NAME_CHARS = 40

# libyaml accepts what yaml.v3, a port of it, accepts; the pure-Python scanner refuses tabs between tokens.
_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
_TAG_PREFIX = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG_PREFIX + name for name in ("str", "int", "float", "bool", "null"))
_COLLECTION_TAGS = frozenset({_TAG_PREFIX + "seq", _TAG_PREFIX + "map"})
_SYNTAX_IN_PLAIN_WORDS = (  # a piece of the parser's text, what it means, the mend
    ("mapping values are not allowed", "a ':' where no key can be", "check the indentation; quote a value with ': '"),
    ("could not find expected ':'", "a line that is neither 'key: value' nor '- item'", "add the ':'"),
    ("cannot start any token", "a character that no value can start with", "quote the value; indent with spaces"),
    ("unexpected end of stream", "a quote that is never closed", "close it"),
    ("node content", "a list or map in brackets with a stray comma or no end", "close the bracket"),
    ("',' or", "a list or map in brackets without a comma or an end", "close the bracket"),
    ("expected key", "a line whose indentation fits nothing above it", "align it with its neighbours"),
    ("'-' indicator", "a line whose indentation fits nothing above it", "align it with its neighbours"),
    ("<block end>", "a line whose indentation fits nothing above it", "align it with its neighbours"),
    ("characters are not allowed", "a control character", "delete it"),
    # libyaml looks ahead with a bound of its own, so it may be the first to see it.
    ("nesting depth", f"it is nested deeper than {MAX_DEPTH} levels", "no configuration needs so many"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node was written: a file and its line from 1, or an environment variable and line 0."""

    source: str
    line: int


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar's text; ``plain`` unless it was quoted, a block, or tagged ``!!str``."""

    place: Place
    text: str
    plain: bool


@dataclass(frozen=True, slots=True, eq=False)
class SequenceNode:
    """A list; compared by identity, because aliases share nodes."""

    place: Place
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MappingNode:
    """A map: its pairs in file order, duplicates and merges not yet looked at; compared by identity."""

    place: Place
    pairs: tuple[tuple[Node, Node], ...]


Node: TypeAlias = ScalarNode | SequenceNode | MappingNode


@dataclass(slots=True)
class _Opened:
    """A list or map whose end is not yet seen; a map's parts are keys and values in turn."""

    place: Place
    anchor: str | None
    is_mapping: bool
    parts: list[Node] = field(default_factory=list)


def parse(text: str, source: str) -> Node:
    """Return the first document of a YAML text; an empty text is a null scalar.

    ``source`` is the name of the file in messages. Raises ``ConfigError`` for a syntax error, an unknown anchor or tag,
    and a document beyond ``MAX_DEPTH`` or ``MAX_NODES``.
    """
    anchors: dict[str, Node] = {}
    opened: list[_Opened] = []
    root: Node = ScalarNode(Place(source, 1), "", plain=True)
    for count, event in enumerate(_first_document(text, source)):
        place = Place(source, event.start_mark.line + 1 if event.start_mark else 0)
        if count > 2 * MAX_NODES:  # a list or map is two events
            raise refusal(place, f"holds more than {MAX_NODES} values", "no configuration needs so many")
        if isinstance(event, yaml.CollectionStartEvent):
            if len(opened) >= MAX_DEPTH:
                raise refusal(place, f"is nested deeper than {MAX_DEPTH} levels", "no configuration needs so many")
            _check_tag(event.tag, _COLLECTION_TAGS, place)
            opened.append(_Opened(place, event.anchor, isinstance(event, yaml.MappingStartEvent)))
            continue
        node, anchor = _completed(event, place, opened, anchors)
        if anchor:
            anchors[anchor] = node
        if opened:
            opened[-1].parts.append(node)
        else:
            root = node
    return root


def load(path: Path) -> Node:
    """Return the first document of a YAML file; raises ``ConfigError`` as ``read_file`` and ``parse`` do."""
    return parse(read_file(path), str(path))


def refusal(place: Place, what: str, mend: str) -> ConfigError:
    """Return the error for a document that cannot be read at all."""
    return ConfigError(Problem(place.source, place.line, "", what, mend))


def _first_document(text: str, source: str) -> Iterator[yaml.Event]:
    """Yield the node events of the first document; syntax errors become ``ConfigError``."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentEndEvent):
                return
            if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                yield event
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or ""
        line = (error.problem_mark.line if error.problem_mark else 0) + 1
    else:  # a reader error counts bytes or characters, according to the loader: near enough for a line
        problem = getattr(error, "reason", "")
        line = text.encode().count(b"\n", 0, getattr(error, "position", 0)) + 1
    place = Place(source, min(line, text.rstrip("\n").count("\n") + 1))
    for sign, what, mend in _SYNTAX_IN_PLAIN_WORDS:
        if sign in problem:
            return refusal(place, f"is not valid YAML: {what}", mend)
    return refusal(place, f"is not valid YAML: {problem}", "check this line and the one above")


def _completed(
    event: yaml.Event, place: Place, opened: list[_Opened], anchors: Mapping[str, Node]
) -> tuple[Node, str | None]:
    """Return the node that an event completes, and its anchor."""
    if isinstance(event, yaml.ScalarEvent):
        _check_tag(event.tag, _SCALAR_TAGS, place)
        plain = event.implicit[0] if event.tag is None else event.tag not in ("!", _TAG_PREFIX + "str")
        return ScalarNode(place, event.value, plain), event.anchor
    if isinstance(event, yaml.AliasEvent):
        return _aliased(event.anchor or "", place, opened, anchors), None
    done = opened.pop()
    parts = done.parts
    if done.is_mapping:
        return MappingNode(done.place, tuple(zip(parts[::2], parts[1::2], strict=True))), done.anchor
    return SequenceNode(done.place, tuple(parts)), done.anchor


def _aliased(name: str, place: Place, opened: list[_Opened], anchors: Mapping[str, Node]) -> Node:
    shown = name[:_SHOWN_NAME_CHARS]
    if any(part.anchor == name for part in opened):
        raise refusal(place, f"the anchor '{shown}' contains itself", "write the value out")
    if name not in anchors:
        raise refusal(place, f"the anchor '{shown}' is not defined above", "write the value out")
    return anchors[name]


def _check_tag(tag: str | None, known: frozenset[str], place: Place) -> None:
    if tag is not None and tag != "!" and tag not in known:
        raise refusal(place, f"the tag '{tag[:_SHOWN_NAME_CHARS]}' means nothing here", "delete it")
