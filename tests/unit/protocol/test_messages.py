"""Tests of the control messages: what is read, what is refused, what is written."""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.errors import RemoteProtocolError
from nexus.protocol.constants import NIL_STREAM_ID
from nexus.protocol.messages import (
    Control,
    credit_message,
    id_text,
    new_stream_id,
    parse_control,
    parse_id,
    parse_texts,
    replace_surrogates,
    serialize_control,
    simple_message,
)
from nexus.protocol.reasons import Reason

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "protocol" / "messages.json").read_text())
ID_TEXT = "d7fb6831-1ca4-441c-8b7d-bd4454396187"
ID = uuid.UUID(ID_TEXT).bytes
vectors = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))


def from_fields(fields: dict[str, object]) -> Control:
    values = dict(fields, stream_id=bytes.fromhex(str(fields["stream_id"])))
    if "features" in values:
        values["features"] = tuple(str(name) for name in fields["features"])  # type: ignore[attr-defined]
    return Control(**values)  # type: ignore[arg-type]


# -- Vectors --------------------------------------------------------------------------------------------------------


@vectors
def test_every_example_of_the_protocol_is_read(vector: dict[str, object]) -> None:
    """The JSON of each event gives its fields; absent ones are zero."""
    body = str(vector["json"]).encode()
    assert parse_control(body) == from_fields(vector["fields"])  # type: ignore[arg-type]
    assert parse_control(memoryview(b"\x02" + body)[1:]) == parse_control(body)


@vectors
def test_every_example_of_the_protocol_is_written(vector: dict[str, object]) -> None:
    """Written messages are those of the original, byte for byte."""
    message = from_fields(vector["fields"])  # type: ignore[arg-type]
    assert serialize_control(message) == b"\x02" + str(vector["json"]).encode()


@vectors
def test_a_message_that_is_cut_off_or_goes_on_is_refused(vector: dict[str, object]) -> None:
    """No prefix of a message is a message, and nothing may follow one but white space."""
    body = str(vector["json"]).encode()
    for cut in range(len(body)):
        with pytest.raises(RemoteProtocolError):
            parse_control(body[:cut])
    with pytest.raises(RemoteProtocolError):
        parse_control(body + b"{}")
    assert parse_control(body + b" \n") == parse_control(body)


def test_frequent_messages_are_formatted_as_the_general_way_does() -> None:
    """The two shortcuts give what ``serialize_control`` gives."""
    for count in (1, 8, 64, 1 << 20):
        assert credit_message(ID, count) == serialize_control(Control("resume_stream", ID, credits=count))
    assert simple_message("disconnect", ID) == serialize_control(Control("disconnect", ID))
    for reason in Reason:
        assert simple_message("disconnect", ID, reason) == serialize_control(Control("disconnect", ID, reason=reason))


# -- Stream ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ID_TEXT,
        ID_TEXT.upper(),
        ID_TEXT.replace("-", ""),
        ID_TEXT.replace("-", "").upper(),
        "{" + ID_TEXT + "}",
        "urn:uuid:" + ID_TEXT,
        "URN:UUID:" + ID_TEXT.upper(),
    ],
)
def test_every_form_of_a_uuid_that_the_original_takes_is_taken(text: str) -> None:
    """Grouped, bare, braced and URN, in either case."""
    assert parse_id(text) == ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        ID_TEXT[:-1],
        ID_TEXT + "0",
        "{" + ID_TEXT,
        ID_TEXT + "}",
        "{" + ID_TEXT.replace("-", "") + "}",
        "urn:uuid:" + ID_TEXT.replace("-", ""),
        "urn:uuid:" + "{" + ID_TEXT + "}",
        ID_TEXT.replace("-", "_"),
        ID_TEXT[:-1] + "g",
        ID_TEXT[:-1] + "\u0661",
        " " + ID_TEXT[1:],
        ID_TEXT.replace("-", "")[:-2] + "--",
        "\u0130" * 36,
    ],
)
def test_anything_else_is_not_an_id(text: str) -> None:
    """Nor is text that Python's own parser would take."""
    with pytest.raises(RemoteProtocolError, match="not a UUID"):
        parse_id(text)


@given(st.binary(min_size=16, max_size=16))
@settings(max_examples=50, deadline=None)
def test_ids_survive_their_text(stream_id: bytes) -> None:
    """The text is the canonical one of RFC 9562."""
    assert id_text(stream_id) == str(uuid.UUID(bytes=stream_id))
    assert parse_id(id_text(stream_id)) == stream_id


def test_new_ids_are_random_uuids_of_version_4() -> None:
    """RFC 9562 section 5.4."""
    made = {new_stream_id() for _ in range(64)}
    assert len(made) == 64
    assert {uuid.UUID(bytes=one).version for one in made} == {4}
    assert {uuid.UUID(bytes=one).variant for one in made} == {uuid.RFC_4122}


# -- What the original tolerates ------------------------------------------------------------------------------------


def test_keys_are_matched_without_regard_to_case() -> None:
    """As Go's decoder does."""
    body = f'{{"Event":"connect","CLIENT_ID":"{ID_TEXT}","Conn_Port":443}}'.encode()
    assert parse_control(body) == Control("connect", ID, conn_port=443)


@pytest.mark.parametrize(
    ("pairs", "credits_read"),
    [
        ('"credits":1,"credits":2', 2),
        ('"credits":1,"Credits":2', 2),
        ('"Credits":2,"credits":1', 1),
        ('"credits":1,"CREDITS":3,"credits":2', 2),
        ('"credits":5,"credits":null', 5),
    ],
)
def test_the_last_of_several_values_wins_and_null_is_none(pairs: str, credits_read: int) -> None:
    """A duplicate key replaces, whatever its case; null leaves what is there."""
    assert parse_control(f'{{"event":"resume_stream",{pairs}}}'.encode()).credits == credits_read


def test_unknown_keys_events_and_nulls_are_ignored() -> None:
    """A newer peer may say more than is understood."""
    body = b'{"event":"later","client_id":null,"hostname":null,"more":{"event":"x","a":[1,{}]},"size":1.5}'
    assert parse_control(body) == Control("later")


def test_an_empty_object_is_an_event_without_name() -> None:
    """Nobody handles it."""
    assert parse_control(b"{}") == Control("", NIL_STREAM_ID)


def test_broken_unicode_becomes_the_replacement_character() -> None:
    """Bytes that are not UTF-8 and lone surrogates can be handed on and encoded again."""
    assert parse_control(b'{"hostname":"a\xff.example"}').hostname == "a\ufffd.example"
    assert parse_control(b'{"reason":"\\ud800x"}').reason == "\ufffdx"
    assert parse_control(b'{"reason":"\\ud83d\\ude00 \xc3\xa9"}').reason == "\U0001f600 \u00e9"
    assert parse_control(b'{"features":["\\udfff"]}').features == ("\ufffd",)
    assert replace_surrogates("plain") == "plain"


def test_integers_of_64_bits_are_taken_and_larger_ones_refused() -> None:
    """Go's int64; a negative grant means that the peer knows no credits."""
    assert parse_control(b'{"credits":9223372036854775807}').credits == (1 << 63) - 1
    assert parse_control(b'{"credits":-9223372036854775808}').credits == -(1 << 63)
    for text in (b"9223372036854775808", b"-9223372036854775809", b"1" * 400, b"1" * 5000):
        with pytest.raises(RemoteProtocolError):
            parse_control(b'{"credits":%b}' % text)


# -- Hostile input --------------------------------------------------------------------------------------------------

WRONG_TYPES = [
    '"event":1',
    '"event":["connect"]',
    '"client_id":7',
    '"client_id":""',
    '"client_id":{}',
    '"conn_port":"443"',
    '"conn_port":443.0',
    '"conn_port":1e3',
    '"conn_port":true',
    '"client_ip":["x"]',
    '"transport":false',
    '"hostname":{"a":1}',
    '"is_tls":1',
    '"is_tls":"true"',
    '"success":0',
    '"credits":64.0',
    '"credits":6.4e1',
    '"credits":"64"',
    '"credits":false',
    '"reason":[]',
    '"target_addr":1',
    '"credits":"x","credits":64',
]


@pytest.mark.parametrize("pair", WRONG_TYPES)
def test_a_known_key_of_the_wrong_type_spoils_the_message(pair: str) -> None:
    """The original rejects the whole message."""
    with pytest.raises(RemoteProtocolError):
        parse_control(f"{{{pair}}}".encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'[["event","connect"]]',
        b'"connect"',
        b"7",
        b"NaN",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b"{'event':'x'}",
        b'{"event":"a\nb"}',
        b'{"event":"x",}',
        b'\xef\xbb\xbf{"event":"x"}',
        '{"event":"x"}'.encode("utf-16"),
        b'{"a":' + b"[" * 16_000,
        b'{"a":' + b'{"a":' * 6000,
        b'{"a":' + b"[" * 16_000 + b"]" * 16_000 + b"}",
        b'{"a":' + b"9" * 32_000 + b"}",
    ],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    """Wrong encodings, Python's own extensions of JSON, deep nesting and endless numbers included."""
    with pytest.raises(RemoteProtocolError):
        parse_control(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(ID_TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
known_keys = st.sampled_from([*Control._fields, "client_id", "Event", "CREDITS"])


@given(st.dictionaries(known_keys, json_values, max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_object_is_read_or_refused_and_what_is_read_can_be_written(document: dict[str, object]) -> None:
    """No other error escapes, and reading what was written changes nothing."""
    try:
        control = parse_control(json.dumps(document).encode())
    except RemoteProtocolError:
        return
    assert parse_control(serialize_control(control)[1:]) == control


plain = st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x80), max_size=8)
numbers = st.sampled_from([0, 1, 64, 65_535, 2**53 + 1, 10**18 - 1, 10**18, 2**63 - 1, -1])


@given(
    st.builds(
        Control,
        st.text(st.characters(min_codepoint=0x5E, max_codepoint=0x7B), max_size=6),
        st.binary(min_size=16, max_size=16),
        conn_port=numbers,
        client_ip=plain,
        transport=plain,
        hostname=plain,
        is_tls=st.booleans(),
        reason=plain,
        target_addr=st.sampled_from(["", "a:1"]),
        success=st.booleans(),
        credits=numbers,
    )
)
@settings(max_examples=300, deadline=None)
def test_a_message_as_we_write_it_is_read_as_every_other_one(control: Control) -> None:
    """Whether one regular expression reads it, or json: white space decides that, and means nothing."""
    body = serialize_control(control)[1:]
    assert parse_control(body) == control
    assert parse_control(b" " + body) == control


@pytest.mark.parametrize("number", ["00", "01", "1.0", "1e1", "\u0661", "-0", "+1", ""])
def test_a_number_that_json_does_not_know_as_an_integer_is_none(number: str) -> None:
    """Nor are digits of other scripts; minus nought is one."""
    body = f'{{"event":"resume_stream","client_id":"{ID_TEXT}","credits":{number}}}'.encode()
    if number == "-0":
        assert parse_control(body).credits == 0
        return
    with pytest.raises(RemoteProtocolError):
        parse_control(body)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Only the documented error."""
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(parse_control(body), Control)


@pytest.mark.parametrize("value", [None, 1, "half_close", {"a": 1}, (("a", 1),), [1, None, ["x"]]])
def test_features_that_are_not_a_list_of_names_name_none(value: object) -> None:
    """A strange value is the same as none."""
    assert parse_texts(value) == ()
