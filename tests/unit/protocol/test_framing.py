"""Tests of the hot-path codec: by itself, and held against the ``websockets`` library."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.speedups import apply_mask
from websockets.utils import apply_mask as slow_apply_mask

from fuzz.fuzz_framing import check, main
from nexus.protocol.constants import DATA_HEADER_BYTES, MESSAGE_MAX_BYTES, PAYLOAD_MAX_BYTES
from nexus.protocol.framing import FrameReader, Masker, RareFrame, data_header, frame_header
from tests.support.framing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Seen,
    frame,
    protocol,
    read_alone,
    read_with_codec,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "protocol"
STREAM_ID = bytes(range(16))
SIZES = (0, 1, 17, 125, 126, 127, 4096, PAYLOAD_MAX_BYTES, MESSAGE_MAX_BYTES)
TOO_LARGE = (MESSAGE_MAX_BYTES + 1, 65_535, 65_536, 70_000)
FAST = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
both_directions = pytest.mark.parametrize("masked", [True, False], ids=["to hub", "to backend"])

Split = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def in_chunks(sizes: list[int]) -> Split:
    def split(data: bytes) -> Iterator[bytes]:
        at = turn = 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            yield data[at : at + size]
            at += size
            turn += 1

    return split


def pattern(size: int) -> bytes:
    return bytes(at % 251 for at in range(size))


def same(data: bytes, split: Split, *, masked: bool) -> Seen:
    """Assert that both readers see the same, and return it."""
    alone = read_alone(split(data), masked=masked)
    assert read_with_codec(split(data), masked=masked) == alone
    return alone


# -- What peers send ------------------------------------------------------------------------------------------------


def fragments(payload: bytes, cuts: list[int], between: list[bytes], *, masked: bool, opcode: int = BINARY) -> bytes:
    """Return one message in fragments cut at ``cuts``, with control frames between them."""
    edges = sorted({min(cut, len(payload)) for cut in cuts} | {0, len(payload)})
    parts = [payload[start:stop] for start, stop in itertools.pairwise(edges)] or [b""]
    out = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        out += frame(opcode if number == 0 else CONTINUATION, part, masked=masked, fin=last)
        if not last and number < len(between):
            out += between[number]
    return out


@st.composite
def control_frames(draw: st.DrawFn, *, masked: bool) -> bytes:
    return frame(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), masked=masked)


@st.composite
def valid_streams(draw: st.DrawFn, *, masked: bool, small: bool = False) -> bytes:
    """A sequence of binary messages, fragments, control frames and text, perhaps with a close at the end."""
    sizes = st.integers(0, 300) if small else st.sampled_from(SIZES) | st.integers(0, 2000)
    out = b""
    for kind in draw(st.lists(st.sampled_from(["binary", "fragments", "control", "text"]), max_size=6)):
        if kind == "binary":
            out += frame(BINARY, pattern(draw(sizes)), masked=masked)
        elif kind == "fragments":
            payload = pattern(draw(sizes))
            cuts = draw(st.lists(st.integers(0, len(payload)), max_size=5))
            between = draw(st.lists(control_frames(masked=masked), max_size=3))
            out += fragments(payload, cuts, between, masked=masked)
        elif kind == "control":
            out += draw(control_frames(masked=masked))
        else:
            text = draw(st.text(max_size=60)).encode()
            cuts = draw(st.lists(st.integers(0, len(text)), max_size=2))
            out += fragments(
                text, cuts, draw(st.lists(control_frames(masked=masked), max_size=1)), masked=masked, opcode=TEXT
            )
    if draw(st.booleans()):
        reason = draw(st.text(max_size=30)).encode()
        out += frame(CLOSE, struct.pack("!H", draw(st.sampled_from([1000, 1001, 1008, 4000]))) + reason, masked=masked)
    return out


@st.composite
def hostile_frames(draw: st.DrawFn, *, masked: bool) -> bytes:
    """One frame with anything wrong: opcode, reserved bits, mask, length or its form."""
    size = draw(st.integers(0, 200) | st.sampled_from((125, 126, 127, *SIZES, *TOO_LARGE)))
    payload = bytearray(pattern(size))
    payload[:2] = draw(st.sampled_from([b"\x03\xe8", b"\x00\x01", b"\xff\xff"]))[:size]  # close codes, bad text
    forms = [None, *(form for form, most in ((0, 125), (2, 65_535), (8, 1 << 62)) if size <= most)]
    return frame(
        draw(st.integers(0, 15)),
        bytes(payload),
        masked=masked is draw(st.sampled_from([True, True, True, False])),
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 0, 0x40, 0x20, 0x10])),
        length_bytes=draw(st.sampled_from(forms)),
    )


@st.composite
def mutated_streams(draw: st.DrawFn, *, masked: bool, small: bool = False) -> bytes:
    """A valid stream with bits flipped, bytes lost or put in, cut off, and hostile frames between."""
    data = bytearray(draw(valid_streams(masked=masked, small=small)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "cut", "put", "lose"]))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at:]
        elif change == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        else:
            del data[at : at + draw(st.integers(1, 12))]
    if not small and draw(st.booleans()):
        data += draw(hostile_frames(masked=masked))
    return bytes(data)


# -- Both readers see the same --------------------------------------------------------------------------------------


@both_directions
@FAST
@given(data=st.data())
def test_valid_sequences_read_alike_whole_and_in_chunks(masked: bool, data: st.DataObject) -> None:
    """Messages, control frames and their answers are those of the library, however the bytes are cut."""
    stream = data.draw(valid_streams(masked=masked))
    seen = same(stream, whole, masked=masked)
    sizes = data.draw(st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
    assert same(stream, in_chunks(sizes), masked=masked) == seen


@both_directions
@settings(FAST, max_examples=60)
@given(data=st.data())
def test_valid_sequences_read_alike_byte_by_byte(masked: bool, data: st.DataObject) -> None:
    """One byte at a time changes nothing."""
    stream = data.draw(valid_streams(masked=masked, small=True))
    assert same(stream, byte_by_byte, masked=masked) == same(stream, whole, masked=masked)


@both_directions
@settings(FAST, max_examples=150)
@given(data=st.data())
def test_hostile_bytes_read_alike_whole_and_in_chunks(masked: bool, data: st.DataObject) -> None:
    """Mutated bytes give the messages and the close code of the library."""
    stream = data.draw(mutated_streams(masked=masked))
    same(stream, whole, masked=masked)
    same(stream, in_chunks(data.draw(st.lists(st.integers(1, 9000), min_size=1, max_size=4))), masked=masked)


@both_directions
@settings(FAST, max_examples=120)
@given(data=st.data())
def test_hostile_bytes_read_alike_byte_by_byte(masked: bool, data: st.DataObject) -> None:
    """The verdict on a wrong head comes at the same byte."""
    stream = data.draw(mutated_streams(masked=masked, small=True))
    same(stream, byte_by_byte, masked=masked)


@both_directions
@settings(FAST, max_examples=100)
@given(data=st.data())
def test_hostile_frames_read_alike(masked: bool, data: st.DataObject) -> None:
    """Frames made of wrong parts, behind good ones and inside fragmented messages, are judged alike."""
    opening = data.draw(
        st.sampled_from(
            [
                b"",
                frame(BINARY, b"first", masked=masked),
                frame(BINARY, b"first", masked=masked, fin=False),
                frame(BINARY, pattern(PAYLOAD_MAX_BYTES), masked=masked, fin=False),
                frame(TEXT, b"first", masked=masked, fin=False),
                frame(TEXT, b"\xc3", masked=masked, fin=False),
            ]
        )
    )
    stream = opening + b"".join(data.draw(st.lists(hostile_frames(masked=masked), min_size=1, max_size=3)))
    same(stream, whole, masked=masked)
    same(stream, in_chunks(data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=3))), masked=masked)


HOSTILE: dict[str, tuple[Callable[[bool], bytes], int]] = {
    "reserved bit": (lambda m: frame(BINARY, b"x", masked=m, rsv=0x40), 1002),
    "wrong mask": (lambda m: frame(BINARY, b"x", masked=not m), 1002),
    "wrong mask, long form, cut short": (lambda m: frame(BINARY, pattern(300), masked=not m)[:2], 1002),
    "reserved opcode, cut short": (lambda m: frame(0x3, pattern(300), masked=m)[:2], 1002),
    "reserved control opcode": (lambda m: frame(0xB, b"", masked=m), 1002),
    "message too large": (lambda m: frame(BINARY, bytes(MESSAGE_MAX_BYTES + 1), masked=m), 1009),
    "length of 2^63": (lambda m: bytes((0x82, 0xFF if m else 0x7F)) + b"\x80" + bytes(7), 1009),
    "fragments too large": (
        lambda m: frame(BINARY, bytes(MESSAGE_MAX_BYTES), masked=m, fin=False) + frame(CONTINUATION, b"x", masked=m),
        1009,
    ),
    "text fragments too large, cut short": (
        lambda m: (
            frame(TEXT, b"a" * MESSAGE_MAX_BYTES, masked=m, fin=False) + frame(CONTINUATION, pattern(9), masked=m)[:2]
        ),
        1009,
    ),
    "ping too large": (lambda m: frame(PING, bytes(126), masked=m), 1002),
    "fragmented ping": (lambda m: frame(PING, b"", masked=m, fin=False), 1002),
    "continuation of nothing": (lambda m: frame(CONTINUATION, b"x", masked=m), 1002),
    "second message inside a message": (
        lambda m: frame(BINARY, b"x", masked=m, fin=False) + frame(BINARY, b"y", masked=m),
        1002,
    ),
    "text inside a message": (lambda m: frame(BINARY, b"", masked=m, fin=False) + frame(TEXT, b"y", masked=m), 1002),
    "message inside a text": (lambda m: frame(TEXT, b"x", masked=m, fin=False) + frame(BINARY, b"y", masked=m), 1002),
    "fragment inside a text": (
        lambda m: frame(TEXT, b"x", masked=m, fin=False) + frame(BINARY, b"y", masked=m, fin=False),
        1002,
    ),
    "close inside a message": (
        lambda m: frame(BINARY, b"x", masked=m, fin=False) + frame(CLOSE, b"\x03\xe8", masked=m),
        1002,
    ),
    "close with one byte": (lambda m: frame(CLOSE, b"\x03", masked=m), 1002),
    "close reason not UTF-8": (lambda m: frame(CLOSE, b"\x03\xe8\xff", masked=m), 1007),
    "text not UTF-8": (lambda m: frame(TEXT, b"\xff", masked=m), 1007),
}


@both_directions
@pytest.mark.parametrize("name", HOSTILE)
def test_each_violation_closes_with_its_code(name: str, masked: bool) -> None:
    """Every kind of violation ends with the same code on both paths, however the bytes are cut."""
    build, code = HOSTILE[name]
    stream = frame(BINARY, b"before", masked=masked) + build(masked)
    seen = same(stream, whole, masked=masked)
    assert seen.close_sent == code
    assert seen.events[0] == ("binary", b"before")
    assert same(stream, in_chunks([1, 2, 500]), masked=masked) == seen


@both_directions
@pytest.mark.parametrize("size", SIZES)
def test_lengths_in_longer_forms_than_needed_are_read(size: int, masked: bool) -> None:
    """RFC 6455 asks senders for the shortest form; like the library, the codec takes every form."""
    payload = pattern(size)
    for form in (form for form, most in ((0, 125), (2, 65_535), (8, 1 << 62)) if size <= most):
        seen = same(frame(BINARY, payload, masked=masked, length_bytes=form), whole, masked=masked)
        assert seen.events == [("binary", payload)]


@both_directions
def test_a_fragmented_message_may_be_as_long_as_a_whole_one(masked: bool) -> None:
    """The limit is on the sum of the fragments, and starts anew with each message."""
    payload = pattern(MESSAGE_MAX_BYTES)
    message = fragments(payload, list(range(0, MESSAGE_MAX_BYTES, 4096)), [], masked=masked)
    assert same(message * 2, whole, masked=masked).events == [("binary", payload)] * 2


@both_directions
def test_a_text_in_fragments_leaves_the_way_free_for_binary(masked: bool) -> None:
    """Behind the last fragment of a text, messages are read as before."""
    stream = (
        frame(TEXT, b"to", masked=masked, fin=False)
        + frame(CONTINUATION, b"ken", masked=masked)
        + frame(BINARY, b"data", masked=masked)
    )
    assert same(stream, byte_by_byte, masked=masked).events == [("text", b"token"), ("binary", b"data")]


# -- The reader by itself -------------------------------------------------------------------------------------------


def receive(reader: FrameReader, data: bytes) -> tuple[list[bytes | RareFrame], int]:
    return reader.receive(memoryview(data), len(data))


def test_an_incomplete_frame_is_left_for_the_next_call() -> None:
    """Nothing is taken from a frame that is not whole, and complete ones before it are."""
    data = frame(BINARY, pattern(300), masked=True)
    for cut in range(len(data)):
        reader = FrameReader(masked=True, apply_mask=apply_mask)
        assert receive(reader, data[:cut]) == ([], 0)
        assert receive(reader, data) == ([pattern(300)], len(data))
    reader = FrameReader(masked=True, apply_mask=apply_mask)
    assert receive(reader, data + data[:5]) == ([pattern(300)], len(data))


def test_only_the_given_part_of_the_buffer_is_read() -> None:
    """Bytes behind ``end`` are what an earlier message left there."""
    data = frame(BINARY, b"x" * 10, masked=False)
    reader = FrameReader(masked=False, apply_mask=apply_mask)
    assert reader.receive(memoryview(data), len(data) - 1) == ([], 0)


def test_a_rare_frame_says_how_much_of_a_message_it_interrupts() -> None:
    """None outside a fragmented message, its size so far inside one."""
    reader = FrameReader(masked=False, apply_mask=apply_mask)
    ping = frame(PING, b"?", masked=False)
    data = (
        ping + frame(BINARY, b"", masked=False, fin=False) + ping + frame(CONTINUATION, b"abc", masked=False, fin=False)
    )
    items, used = receive(reader, data + ping)
    assert used == len(data + ping)
    limit = MESSAGE_MAX_BYTES
    assert items == [RareFrame(ping, None, limit), RareFrame(ping, 0, limit), RareFrame(ping, 3, limit)]
    assert reader.fragment_bytes == 3


@pytest.mark.parametrize("masked", [True, False])
def test_a_long_text_frame_is_handed_on_as_it_comes(masked: bool) -> None:
    """An announcement may be longer than any buffer; what follows it is read as before."""
    websocket = protocol(masked=masked)
    websocket.max_message_size = 300_000
    reader = FrameReader(masked=masked, apply_mask=apply_mask)
    reader.max_text_bytes = 300_000
    text = frame(TEXT, b"t" * 200_000, masked=masked, fin=False) + frame(CONTINUATION, b"u" * 99_000, masked=masked)
    stream = text + frame(BINARY, b"data", masked=masked)
    rest, data = b"", []
    for at in range(0, len(stream), 50_000):
        rest += stream[at : at + 50_000]
        items, used = receive(reader, rest)
        rest = rest[used:]
        assert len(rest) <= 50_014
        for item in items:
            if isinstance(item, bytes):
                data.append(item)
            else:
                assert item.message_max_bytes == 300_000
                websocket.receive_data(item.raw)
    frames = [event for event in websocket.events_received() if isinstance(event, Frame)]
    assert [(one.opcode, bytes(one.data), one.fin) for one in frames] == [
        (TEXT, b"t" * 200_000, False),
        (CONTINUATION, b"u" * 99_000, True),
    ]
    assert data == [b"data"]
    assert rest == b""


def test_text_has_a_limit_of_its_own() -> None:
    """A text frame that is longer goes to the library to be refused, under that limit."""
    reader = FrameReader(masked=False, apply_mask=apply_mask)
    reader.max_text_bytes = 100_000
    (item,), _ = receive(reader, frame(TEXT, b"t" * 100_001, masked=False))
    assert isinstance(item, RareFrame)
    assert item.message_max_bytes == 100_000
    reader = FrameReader(masked=False, apply_mask=apply_mask)
    reader.max_text_bytes = 100_000
    (item,), _ = receive(reader, frame(BINARY, b"b" * 100_000, masked=False))
    assert isinstance(item, RareFrame)
    assert item.message_max_bytes == MESSAGE_MAX_BYTES


def test_endless_empty_fragments_cost_no_memory() -> None:
    """An empty fragment is not kept."""
    reader = FrameReader(masked=False, apply_mask=apply_mask)
    receive(reader, frame(BINARY, b"a", masked=False, fin=False))
    receive(reader, frame(CONTINUATION, b"", masked=False, fin=False) * 1000)
    assert reader._fragments == [b"a"]
    assert receive(reader, frame(CONTINUATION, b"", masked=False))[0] == [b"a"]


def test_the_limit_may_change_between_messages() -> None:
    """What the handshake allows is too much for the session."""
    data = frame(BINARY, bytes(40_000), masked=True)
    reader = FrameReader(masked=True, apply_mask=apply_mask, max_message_bytes=65_536)
    assert receive(reader, data)[0] == [bytes(40_000)]
    reader.max_message_bytes = MESSAGE_MAX_BYTES
    (item,), _ = receive(reader, data)
    assert isinstance(item, RareFrame)


# -- What we send ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 108, 109, 110, 16_384, PAYLOAD_MAX_BYTES])
def test_data_frames_of_both_roles_are_read_by_the_library(size: int) -> None:
    """Header and payload make one data message, unmasked from a hub and masked from a backend."""
    payload = pattern(size)
    message = b"\x01" + STREAM_ID + payload
    from_hub = data_header(STREAM_ID, size) + payload
    assert same(from_hub, whole, masked=False).events == [("binary", message)]
    head, body = Masker(apply_mask).data_frame(STREAM_ID, memoryview(payload))
    assert same(head + body, whole, masked=True).events == [("binary", message)]
    assert len(message) == DATA_HEADER_BYTES + size


@pytest.mark.parametrize("size", [0, 1, 125, 126, MESSAGE_MAX_BYTES, 65_535])
def test_whole_frames_of_both_roles_have_the_shortest_header(size: int) -> None:
    """A header is what the independent builder makes of the same length."""
    payload = pattern(size)
    assert frame_header(size) + payload == frame(BINARY, payload, masked=False)
    made = Masker(apply_mask).frame(payload)
    assert made[: len(made) - size - 4] == frame(BINARY, payload, masked=True)[: len(made) - size - 4]
    if size <= MESSAGE_MAX_BYTES:
        assert same(made, whole, masked=True).events == [("binary", payload)]


def test_masks_differ_and_are_drawn_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame has its own key; the system is asked once in a thousand."""
    calls: list[int] = []

    def urandom(size: int) -> bytes:
        calls.append(size)
        return b"".join(struct.pack("!I", len(calls) * size + at) for at in range(size // 4))

    monkeypatch.setattr("nexus.protocol.framing.os.urandom", urandom)
    masker = Masker(apply_mask)
    keys = [masker.key() for _ in range(1500)]
    assert {len(key) for key in keys} == {4}
    assert len(set(keys)) == len(keys)
    assert len(calls) == 2


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_the_slow_mask_function_serves_as_well(payload: bytes, key: bytes) -> None:
    """A platform without the library's extension reads and writes the same."""
    assume(payload)
    assert slow_apply_mask(memoryview(payload), key) == apply_mask(memoryview(payload), key)
    head, body = Masker(slow_apply_mask).data_frame(STREAM_ID, payload)
    assert same(head + body, whole, masked=True).events == [("binary", b"\x01" + STREAM_ID + payload)]


# -- Recorded bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [whole, byte_by_byte], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(
    "vector", json.loads((VECTORS / "frames.json").read_text()), ids=lambda vector: str(vector["name"])
)
def test_wire_vectors_give_their_messages(vector: dict[str, object], split: Split) -> None:
    """Every vector is read as it says, with trailing bytes, too."""
    wire = bytes.fromhex(str(vector["wire"]))
    masked = bool(vector["masked"])
    events = [(str(kind), bytes.fromhex(str(data))) for kind, data in vector["events"]]  # type: ignore[attr-defined]
    assert same(wire, split, masked=masked).events == events
    trailing = wire + frame(BINARY, b"next", masked=masked)
    if events and events[-1][0] != "close":
        assert same(trailing, split, masked=masked).events == [*events, ("binary", b"next")]


# -- The fuzz target ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_fuzz_target_holds_for_any_bytes(data: bytes) -> None:
    """It is what runs for hours elsewhere."""
    check(data)


def test_the_fuzz_target_holds_for_the_wire_vectors() -> None:
    """They are a good first corpus; read from the wrong side they are hostile."""
    for vector in json.loads((VECTORS / "frames.json").read_text()):
        for first in (0, 1, 14, 15):
            check(bytes([first]) + bytes.fromhex(vector["wire"]))


def test_the_fuzz_target_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """atheris is no dependency."""
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="pip install atheris"):
        main()
