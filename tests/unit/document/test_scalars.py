"""What scalars mean, against the table of quirks of spec node-and-mesh 2."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.document.nodes import Place, ScalarNode, SequenceNode
from nexus.document.scalars import (
    SHOWN_CHARS,
    did_you_mean,
    is_null,
    parse_boolean,
    parse_integer,
    parse_text,
    shorten,
)

HERE = Place("t.yaml", 1)


def plain(text: str) -> ScalarNode:
    return ScalarNode(HERE, text, plain=True)


def quoted(text: str) -> ScalarNode:
    return ScalarNode(HERE, text, plain=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("60", 60),
        ("-7", -7),
        ("+7", 7),
        ("1_000", 1000),
        ("0x10", 16),
        ("0XfF", 255),
        ("-0x10", -16),
        ("0o17", 15),
        ("0b101", 5),
        ("0123", 83),
        ("00", 0),
        ("0", 0),
        ("08", 8),
        ("099", 99),
        ("60.5", 60),
        ("-0.9", 0),
        ("1e3", 1000),
        (".5", 0),
        ("5.", 5),
        ("0x" + "0" * 5000 + "1", 1),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("~", 0),
        ("null", 0),
        ("", 0),
    ],
)
def test_integers_take_every_spelling_of_go(text: str, value: int) -> None:
    """Decimal, hexadecimal, octal, binary, underscores, cut floats and null."""
    assert parse_integer(plain(text)) == value


@pytest.mark.parametrize(
    "text", ["x", "12 s", "1:30", "0x", "0b2", "0o8", ".inf", ".nan", "2024-01-01", "true", "_1", "0x1p4", "٣", "."]
)
def test_integers_refuse_other_text(text: str) -> None:
    """Neither base 60, dates, infinities nor words are integers."""
    with pytest.raises(ValueError, match="must be an integer, found"):
        parse_integer(plain(text))


@pytest.mark.parametrize(
    "text", [str(2**63), str(-(2**63) - 1), "1e19", "-1e300", "9" * 5000, "0b" + "1" * 65, "1e999"]
)
def test_integers_refuse_more_than_64_bits(text: str) -> None:
    """What a Go int cannot hold is refused, quickly."""
    with pytest.raises(ValueError, match="at most 64 bits"):
        parse_integer(plain(text))


def test_a_quoted_integer_is_refused() -> None:
    """Quotes make a string."""
    with pytest.raises(ValueError, match="without quotes"):
        parse_integer(quoted("60"))


@settings(deadline=None)
@given(st.integers(min_value=-(2**63), max_value=2**63 - 1), st.sampled_from(["d", "#x", "#o", "#b", "_"]))
def test_any_int64_survives_any_spelling(value: int, spelling: str) -> None:
    """Writing a number in any base and reading it gives the number."""
    assert parse_integer(plain(format(value, spelling))) == value


@settings(deadline=None)
@given(st.text(max_size=20), st.booleans(), st.sampled_from([parse_integer, parse_boolean]))
def test_no_text_makes_scalars_fail_otherwise(text: str, is_plain: bool, parse: Callable[[ScalarNode], int]) -> None:
    """Any text has a meaning or is a ``ValueError`` whose text can be shown."""
    message = ""
    try:
        parse(ScalarNode(HERE, text, is_plain))
    except ValueError as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"])
def test_true_words_are_true(word: str) -> None:
    """The words of YAML 1.1 in three spellings."""
    assert parse_boolean(plain(word)) is True


@pytest.mark.parametrize("word", ["false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF", "", "~"])
def test_false_words_and_null_are_false(word: str) -> None:
    """The words of YAML 1.1 in three spellings, and null."""
    assert parse_boolean(plain(word)) is False


def test_yes_and_no_may_be_quoted() -> None:
    """The original takes them quoted as well."""
    assert parse_boolean(quoted("yes")) is True
    assert parse_boolean(quoted("Off")) is False


@pytest.mark.parametrize("scalar", [plain("1"), plain("tRue"), plain("yEs"), quoted("true"), quoted("")])
def test_other_booleans_are_refused(scalar: ScalarNode) -> None:
    """Numbers, odd case and a quoted true are mistakes."""
    with pytest.raises(ValueError, match="must be true or false"):
        parse_boolean(scalar)


@pytest.mark.parametrize("text", ["12345", "true", "0123", "1:30", "2024-01-01", "a b"])
def test_strings_are_source_text(text: str) -> None:
    """Whatever a scalar looks like, a string field takes it as written."""
    assert parse_text(plain(text)) == text


def test_null_strings_are_empty_unless_quoted() -> None:
    """A bare null is nothing, a quoted one is a word."""
    assert parse_text(plain("null")) == ""
    assert parse_text(quoted("null")) == "null"


def test_only_plain_null_words_are_null() -> None:
    """A list is not null, nor is a quoted empty string."""
    assert is_null(plain("Null"))
    assert not is_null(quoted(""))
    assert not is_null(SequenceNode(HERE, ()))


def test_shortened_text_fits_a_message() -> None:
    """Long text is cut and unprintable text escaped."""
    assert shorten("a" * SHOWN_CHARS) == "a" * SHOWN_CHARS
    assert shorten("a" * 100) == "a" * SHOWN_CHARS + "..."
    assert shorten("a\nb") == "a\\nb"


def test_suggestions_ignore_case_and_stay_silent_when_far() -> None:
    """The nearest known word is named as it is spelt, or nothing."""
    assert did_you_mean("IdleTimeoutSecond", ["idleTimeoutSeconds", "region"]) == "did you mean 'idleTimeoutSeconds'?"
    assert did_you_mean("zzz", ["idleTimeoutSeconds"]) == ""
