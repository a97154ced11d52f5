"""Files and YAML texts as nodes."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.document import nodes
from nexus.document.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    MappingNode,
    Node,
    Place,
    ScalarNode,
    SequenceNode,
    load,
    parse,
)
from nexus.errors import ConfigError, Problem


def problem_of(text: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.yaml")
    (problem,) = caught.value.problems
    return problem


def value(root: Node, key: str) -> Node:
    assert isinstance(root, MappingNode)
    return next(node for name, node in root.pairs if isinstance(name, ScalarNode) and name.text == key)


def test_scalars_keep_text_line_and_quoting() -> None:
    """A node knows its source text, where it stands and whether it was plain."""
    root = parse('a: 0123\nb: "0123"\nc: |\n  x\n', "t.yaml")
    assert value(root, "a") == ScalarNode(Place("t.yaml", 1), "0123", plain=True)
    assert value(root, "b") == ScalarNode(Place("t.yaml", 2), "0123", plain=False)
    assert value(root, "c") == ScalarNode(Place("t.yaml", 3), "x\n", plain=False)


@pytest.mark.parametrize(
    ("text", "plain"), [('!!int "5"', True), ("!!str 5", False), ("! 5", False), ("!!null x", True), ("5", True)]
)
def test_known_tags_decide_over_quotes(text: str, plain: bool) -> None:
    """A tag of the core schema says more than the quotes."""
    node = parse(text, "t.yaml")
    assert isinstance(node, ScalarNode)
    assert node.plain is plain


@pytest.mark.parametrize("text", ["!foo 5", "!!binary aGk=", "!!python/object:os.system {}", "!!set {}", "!foo []"])
def test_other_tags_are_refused(text: str) -> None:
    """No tag makes anything of a node."""
    assert "means nothing here" in problem_of(text).what


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_text_is_a_null_scalar(text: str) -> None:
    """Nothing, and null, are the same."""
    node = parse(text, "t.yaml")
    assert isinstance(node, ScalarNode)
    assert node.plain


def test_only_the_first_document_counts() -> None:
    """Whatever follows the first document is not looked at, not even for its syntax."""
    root = parse("a: 1\n---\na: 2\n--- [\n", "t.yaml")
    assert value(root, "a") == ScalarNode(Place("t.yaml", 1), "1", plain=True)


def test_flow_style_and_json_work_with_tabs() -> None:
    """A JSON file indented by tabs is YAML too (with libyaml, as in the original)."""
    if not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    root = parse('{\n\t"relayPorts": [1, 2]\n}', "t.yaml")
    ports = value(root, "relayPorts")
    assert isinstance(ports, SequenceNode)
    assert [item.text for item in ports.items if isinstance(item, ScalarNode)] == ["1", "2"]


def test_the_pure_python_parser_gives_the_same_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml a usual file reads the same."""
    text = 'a: &x [1, "2"]\nb: *x\nc: {d: null}\ne: |\n  y\n'
    before = repr(parse(text, "t.yaml"))
    monkeypatch.setattr(nodes, "_LOADER", yaml.BaseLoader)
    assert repr(parse(text, "t.yaml")) == before


def test_aliases_share_the_anchored_node() -> None:
    """An alias is the node itself, and a later anchor of a name replaces an earlier one."""
    root = parse("a: &x [1]\nb: *x\nc: &x 2\nd: *x\n", "t.yaml")
    assert value(root, "a") is value(root, "b")
    assert value(root, "d") is value(root, "c")


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("a: 1\nb: *x\n", "the anchor 'x' is not defined above", 2),
        ("a: &x\n  - *x\n", "the anchor 'x' contains itself", 2),
    ],
)
def test_bad_aliases_are_refused(text: str, what: str, line: int) -> None:
    """Unknown anchors and anchors within themselves name their line."""
    problem = problem_of(text)
    assert (problem.what, problem.line) == (what, line)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: c: d\n", 2, "a ':' where no key can be"),
        ("a: 1\nb\nc: 2\n", 3, "neither 'key: value' nor"),
        ("a: @x\n", 1, "no value can start with"),
        ("a: 1\nb: 'x\n", 2, "a quote that is never closed"),
        ("a: [1,,2]\n", 1, "stray comma"),
        ("a: [1 \n", 1, "in brackets"),
        ("a: 1\n- b\n", 2, "indentation"),
        ("a:\n  - 1\n b: 2\n", 3, "indentation"),
        ("a: 1\nb: \x07\n", 2, "a control character"),
        ("%YAML 9.1\n---\na: 1\n", 1, "incompatible YAML document"),
    ],
)
def test_syntax_errors_name_the_line_in_plain_words(text: str, line: int, words: str) -> None:
    """An operator need not know the parser's terms."""
    problem = problem_of(text)
    assert words in problem.what
    assert problem.line == line
    assert problem.mend


def test_a_syntax_error_without_details_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever error the parser raises becomes a ``ConfigError``."""

    def fail(*_: object, **__: object) -> None:
        raise yaml.MarkedYAMLError

    monkeypatch.setattr(yaml, "parse", fail)
    assert problem_of("a: 1").line == 1


def test_no_syntax_error_repeats_the_file() -> None:
    """A line with a mistake may hold a secret."""
    assert "hunter2" not in str(problem_of("backendsJWTSecret: hunter2: x\n"))


def test_deep_nesting_is_refused() -> None:
    """Depth is bounded before anything recurses."""
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "t.yaml")
    assert f"deeper than {MAX_DEPTH}" in problem_of("[" * 100_000).what


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document has a bounded number of nodes."""
    monkeypatch.setattr(nodes, "MAX_NODES", 100)
    assert "more than 100 values" in problem_of("[" + "1," * 300 + "]").what
    assert MAX_NODES > 100


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab01:-[]{},&*<|>'\"!%#\n\t ~?@\x00é"), max_size=60))
def test_hostile_text_raises_config_errors_only(text: str) -> None:
    """Any text is a tree or a ``ConfigError``."""
    try:
        parse(text, "t.yaml")
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ()
    assert all(problem.line >= 1 for problem in problems)


def test_a_file_is_loaded_with_its_name(tmp_path: Path) -> None:
    """``load`` reads and parses; a byte order mark is no part of the text."""
    path = tmp_path / "node.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    root = load(path)
    assert value(root, "a").place == Place(str(path), 1)
