"""Documents read by tables of keys."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.document import Field, Kind, Place, Reading, ScalarNode, parse, read, tables
from nexus.document.tables import MAX_PROBLEMS
from nexus.errors import ConfigError

INNER = (
    Field(key="port", kind=Kind.INTEGER, doc="", required=True, minimum=1),
    Field(key="note", kind=Kind.STRING, doc=""),
)
FIELDS = (
    Field(key="number", kind=Kind.INTEGER, doc="", default=7, minimum=-1, maximum=99),
    Field(key="exact", kind=Kind.INTEGER, doc="", default=10, zero_is_default=False),
    Field(key="low", kind=Kind.INTEGER, doc="", maximum=5),
    Field(key="flag", kind=Kind.BOOLEAN, doc=""),
    Field(key="text", kind=Kind.STRING, doc="", default="fallback"),
    Field(key="choice", kind=Kind.STRING, doc="", default="red", choices=("red", "blue")),
    Field(key="ports", kind=Kind.INTEGERS, doc="", minimum=0, maximum=65535),
    Field(key="names", kind=Kind.STRINGS, doc=""),
    Field(key="env", kind=Kind.STRING_MAP, doc=""),
    Field(key="table", kind=Kind.TABLE, doc="", fields=(Field(key="deep", kind=Kind.INTEGER, doc="", default=3),)),
    Field(key="list", kind=Kind.TABLES, doc="", fields=INNER),
    Field(key="mapped", kind=Kind.INTEGER_TABLES, doc="", minimum=1, maximum=65535, fields=INNER[1:]),
)


def reading(text: str, **options: Any) -> Reading:
    return read(parse(text, "t.yaml"), FIELDS, **options)


def mistakes(text: str, **options: Any) -> list[str]:
    return [str(problem) for problem in reading(text, **options).problems]


def test_an_empty_document_gives_every_default() -> None:
    """Every key is present in a record, written or not."""
    for text in ("", "~", "{}"):
        record = reading(text).record
        assert record.integer("number") == 7
        assert record.integer("exact") == 10
        assert record.flag("flag") is False
        assert record.text("text") == "fallback"
        assert record.integers("ports") == ()
        assert record.text_map("env") == {}
        assert record.table("table").integer("deep") == 3
        assert record.tables("list") == ()
        assert record.port_tables("mapped") == {}
        assert not record.given


def test_null_and_zero_are_defaults_where_the_table_says_so() -> None:
    """0 means the default unless it is a value of its own; null always does."""
    record = reading("number: 0\nexact: 0\ntext: ''\nchoice: ''\nports: ~\ntable: ~\nmapped: ~\n").record
    assert record.integer("number") == 7
    assert record.integer("exact") == 0
    assert record.text("text") == "fallback"
    assert record.text("choice") == "red"
    assert record.integers("ports") == ()
    assert record.table("table").integer("deep") == 3
    assert reading("exact: null").record.integer("exact") == 10
    assert not record.given


def test_values_are_read_by_the_kind_of_their_field() -> None:
    """The same text is a number here and a string there."""
    record = reading(
        "number: 0x10\nflag: 'yes'\ntext: 0123\nports: [1_0, 2.9, ~]\nnames: [1, true, ~]\nenv: {A: 1, 2: b}\n"
        "table: {deep: 4}\nlist: [{port: 5, note: x}]\nmapped: {80: {note: y}, '443': {}}\n"
    ).record
    assert record.integer("number") == 16
    assert record.flag("flag") is True
    assert record.text("text") == "0123"
    assert record.integers("ports") == (10, 2, 0)
    assert record.texts("names") == ("1", "true", "")
    assert record.text_map("env") == {"A": "1", "2": "b"}
    assert record.table("table").integer("deep") == 4
    assert [item.integer("port") for item in record.tables("list")] == [5]
    assert {port: item.text("note") for port, item in record.port_tables("mapped").items()} == {80: "y", 443: ""}
    assert record.given == {"number", "flag", "text", "ports", "names", "env", "table", "list", "mapped"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number: '60'", "t.yaml:1: number: must be an integer without quotes"),
        ("number: 100", "t.yaml:1: number: must be from -1 to 99, found 100"),
        ("low: 6", "t.yaml:1: low: must be at most 5, found 6"),
        ("number: [1]", "t.yaml:1: number: must be one integer, found a list"),
        ("text: {a: 1}", "t.yaml:1: text: must be one string, found a map"),
        ("choice: green", "t.yaml:1: choice: must be one of red, blue, found 'green'"),
        ("flag: 1", "t.yaml:1: flag: must be true or false, found '1'"),
        ("ports:\n- 1\n- 70000", "t.yaml:3: ports[1]: must be from 0 to 65535, found 70000"),
        ("env: {A: [1]}", "t.yaml:1: env.A: must be one string, found a list"),
        ("table: 1", "t.yaml:1: table: must be a map of keys and values"),
        ("list: [{port: 0}]", "t.yaml:1: list[0].port: must be at least 1, found 0"),
        ("list:\n- {note: x}", "t.yaml:2: list[0].port: is required"),
        ("list: [~]", "t.yaml:1: list[0].port: is required"),
        ("mapped: {x: {}}", "t.yaml:1: mapped.x: must be an integer, found 'x'"),
        ("mapped: {80: {}, 0x50: {}}", "t.yaml:1: mapped.80: is set twice, here as '0x50'; delete one"),
        ("a: 1\nnumber: 1\nnumber: 2", "t.yaml:3: number: is set twice, first in line 2; delete one"),
        ("a: 1\na: 2", "t.yaml:2: a: is set twice, first in line 1; delete one"),
        ("[a]: 1", "t.yaml:1: a key must be plain text"),
        ("- 1", "t.yaml:1: must be a map of keys and values"),
        ("just text", "t.yaml:1: must be a map of keys and values"),
        ("<<: 5", "t.yaml:1: '<<' merges a map or a list of maps, nothing else"),
    ],
)
def test_mistakes_name_file_line_and_key(text: str, message: str) -> None:
    """Each kind of mistake has its words."""
    assert mistakes(text) == [message]


@pytest.mark.parametrize("text", ["ports: 443", "names: a", "list: {port: 1}"])
def test_a_list_field_must_be_a_list(text: str) -> None:
    """A bare scalar or map is no list of one."""
    (message,) = mistakes(text)
    assert "must be a list of" in message


def test_all_mistakes_are_found_at_once_in_file_order() -> None:
    """Reading goes on after a mistake, and a broken key holds a usable value."""
    result = reading("ports: [1, x, 3]\nflag: maybe\nnumber: abc\n")
    assert [problem.line for problem in result.problems] == [1, 2, 3]
    assert result.record.broken == {"ports", "flag", "number"}
    assert result.record.integers("ports") == (1, 0, 3)


def test_unknown_keys_warn_or_fail_with_a_suggestion() -> None:
    """A lenient file warns, a strict one fails; both suggest the nearest key of that table."""
    text = "Number: 1\ntable: {deeep: 1}\nzzz: {a: 1, a: 2}\n"
    lenient = reading(text)
    assert not lenient.problems
    assert [str(warning) for warning in lenient.warnings] == [
        "t.yaml:1: Number: unknown key; did you mean 'number'?",
        "t.yaml:2: table.deeep: unknown key; did you mean 'deep'?",
        "t.yaml:3: zzz: unknown key",
    ]
    assert reading(text, strict=True).problems == lenient.warnings
    assert lenient.record.integer("number") == 7


def test_merges_never_override_and_earlier_ones_win() -> None:
    """A map's own keys come first, then its merges in order, each with its own merges."""
    record = reading(
        "x: &x {number: 1, low: 1, text: x}\n"
        "y: &y {<<: *x, low: 2, flag: yes}\n"
        "z: &z {flag: no, names: [z]}\n"
        "<<: [*y, *z]\nnumber: 5\n"
    ).record
    assert record.integer("number") == 5
    assert record.integer("low") == 2
    assert record.text("text") == "x"
    assert record.flag("flag") is True
    assert record.texts("names") == ("z",)


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    """Only a plain ``<<`` merges."""
    (warning,) = reading('"<<": {number: 1}').warnings
    assert warning.key == "<<"


def test_a_map_merged_many_times_counts_once() -> None:
    """Doubling merges cost no more than their nodes."""
    levels = "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}], k{i}: 1}}\n" for i in range(1, 40))
    result = reading("m0: &m0 {number: 4}\n" + levels + "<<: *m39\n")
    assert result.record.integer("number") == 4


def test_aliases_cannot_multiply_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that stands for a huge one is refused."""
    monkeypatch.setattr(tables, "MAX_VALUES", 1000)
    text = "a: &a {port: 1, note: x}\nlist: [" + "*a," * 600 + "]\n"
    with pytest.raises(ConfigError, match="aliases make more than 1000 values"):
        reading(text)


def test_a_flood_of_mistakes_is_cut() -> None:
    """A hostile file cannot make an endless report, and keys beyond the cut still count as broken."""
    many = MAX_PROBLEMS + 20
    result = reading("ports: [" + "x," * many + "]\nnumber: x\n")
    assert len(result.problems) == MAX_PROBLEMS
    assert "number" in result.record.broken
    unknown = "".join(f"u{i}: 1\n" for i in range(many))
    assert len(reading(unknown).warnings) == MAX_PROBLEMS
    assert len(reading(unknown, strict=True).problems) == MAX_PROBLEMS


def test_overrides_replace_scalars_and_name_their_source() -> None:
    """An override wins over the file, may be absent from it, and mistakes in it name it."""
    overrides = {
        "number": ScalarNode(Place("VAR_A", 0), "x", plain=True),
        "table.deep": ScalarNode(Place("VAR_B", 0), "9", plain=True),
        "low": ScalarNode(Place("VAR_C", 0), "4", plain=True),
    }
    result = reading("number: 1\nlow: 2\nflag: 7\n", overrides=overrides)
    assert [str(problem) for problem in result.problems] == [
        "t.yaml:3: flag: must be true or false, found '7'",
        "VAR_A: number: must be an integer, found 'x'",
    ]
    assert result.record.table("table").integer("deep") == 9
    assert str(result.record.problem("low", "is odd")) == "VAR_C: low: is odd"


def test_a_record_places_its_problems() -> None:
    """A rule of the caller names keys and items, and an absent key falls back to its map."""
    record = reading("a: 1\nports: [\n 1,\n 2]\nlist:\n- port: 1\nenv:\n  A: b\n").record
    assert str(record.problem("ports[1]", "is odd", "mend it")) == "t.yaml:4: ports[1]: is odd; mend it"
    assert str(record.problem("names", "is odd")) == "t.yaml: names: is odd"
    assert str(record.problem("env.A", "is odd")) == "t.yaml:8: env.A: is odd"
    (item,) = record.tables("list")
    assert str(item.problem("note", "is odd")) == "t.yaml:6: list[0].note: is odd"
    assert str(item.problem("", "is odd")) == "t.yaml:6: list[0]: is odd"


@settings(deadline=None, max_examples=150)
@given(
    st.recursive(
        st.sampled_from(["1", "x", "~", "'q'", "true", "*nope"]),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
            | st.dictionaries(
                st.sampled_from([*(spec.key for spec in FIELDS), "<<", "deep", "port", "80"]), inner, max_size=3
            ).map(lambda pairs: "{" + ",".join(f"{key}: {node}" for key, node in pairs.items()) + "}")
        ),
        max_leaves=12,
    )
)
def test_no_document_makes_reading_fail_otherwise(text: str) -> None:
    """Any document is a record with problems or a ``ConfigError``."""
    try:
        result = reading(text)
    except ConfigError:
        return
    assert set(result.record.values) == {spec.key for spec in FIELDS}
    assert bool(result.record.broken) <= bool(result.problems)
