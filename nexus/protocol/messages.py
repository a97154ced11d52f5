"""Control messages: one flat JSON object after the byte 0x02.

Strategy: a received object becomes one frozen ``Control``; fields that the event does not use keep their zero value, as
on the wire the original drops zero values. The known keys are strict about types (the original rejects the whole
message when one is wrong), unknown keys and events are ignored by whoever reads the ``Control``. Messages are written
by plain string formatting, and one that is written as we write it is read by one regular expression; ``json`` reads
all others, and tests hold the two against each other. Keys are matched in lower case as the original matches them
without regard to case; of several spellings the last one that is not null wins. Bytes that are not UTF-8 and escaped
lone surrogates become U+FFFD, so every text that is handed out can be encoded again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Final, NamedTuple

from nexus.errors import RemoteProtocolError
from nexus.protocol.constants import KIND_CONTROL, NIL_STREAM_ID, STREAM_ID_BYTES

_CONTROL: Final = bytes([KIND_CONTROL])
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_GROUPED_TEXT_CHARS: Final = 36
_URN: Final = "urn:uuid:"
_INT64_MAX: Final = (1 << 63) - 1  # original: every integer is a Go int64
_HYPHENS: Final = (8, 13, 18, 23)


class Control(NamedTuple):
    """One control message; absent fields have their zero value."""

    event: str
    stream_id: bytes = NIL_STREAM_ID
    conn_port: int = 0
    client_ip: str = ""
    transport: str = ""
    hostname: str = ""
    is_tls: bool = False
    reason: str = ""
    target_addr: str = ""
    success: bool = False
    credits: int = 0
    features: tuple[str, ...] = ()


# JSON key -> (field of Control, accepted type). ``features`` is ours, see docs/protocol.md.
_KEYS: Final[dict[str, type]] = {
    "event": str,
    "conn_port": int,
    "client_ip": str,
    "transport": str,
    "hostname": str,
    "is_tls": bool,
    "reason": str,
    "target_addr": str,
    "success": bool,
    "credits": int,
}


# A message as ``serialize_control`` writes it, of printable ASCII without escapes and numbers that 64 bits hold.
_NUMBER: Final = "(0|[1-9][0-9]{0,17})"
_TEXT: Final = r'"([ !#-\[\]-~]*)"'
_WRITTEN: Final = re.compile(
    r'\{"event":"([a-z_]+)","client_id":"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
    rf'(?:,"conn_port":{_NUMBER})?(?:,"client_ip":{_TEXT})?(?:,"transport":{_TEXT})?(?:,"hostname":{_TEXT})?'
    rf'(?:,"is_tls":(true))?(?:,"reason":{_TEXT})?(?:,"credits":{_NUMBER})?\}}'
)


def new_stream_id() -> bytes:
    """Return 16 random bytes that form a version 4 UUID (RFC 9562 section 5.4)."""
    raw = bytearray(os.urandom(STREAM_ID_BYTES))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def id_text(stream_id: bytes) -> str:
    """Return the canonical 8-4-4-4-12 lower-case text of a stream id."""
    text = stream_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> bytes:
    """Return the 16 bytes of a UUID in any form the original accepts: grouped, bare hex, braced or ``urn:uuid:``.

    Raises:
        RemoteProtocolError: for any other text.
    """
    bare = text
    if len(bare) == _GROUPED_TEXT_CHARS + len(_URN) and bare.lower().startswith(_URN):
        bare = bare[len(_URN) :]
    elif len(bare) == _GROUPED_TEXT_CHARS + 2 and bare[0] == "{" and bare[-1] == "}":
        bare = bare[1:-1]
    if len(bare) == _GROUPED_TEXT_CHARS and all(bare[at] == "-" for at in _HYPHENS):
        bare = bare.replace("-", "", 4)
    if len(bare) != 2 * STREAM_ID_BYTES or not _HEX_DIGITS.issuperset(bare):
        raise RemoteProtocolError(f"client_id is not a UUID: {text[:64]!r}")
    return bytes.fromhex(bare)


def parse_control(body: bytes | memoryview) -> Control:
    """Parse the JSON of a control message (without the leading 0x02).

    Raises:
        RemoteProtocolError: not a JSON object, or a known key of the wrong type. The session goes on; the message is
            dropped, as the original does.
    """
    text = str(body, "utf-8", "replace")
    if (written := _WRITTEN.fullmatch(text)) is not None:
        return _control_of(*written.groups(""))
    fields: dict[str, object] = {"event": ""}
    for name, value in parse_object(text):
        if name == "client_id":
            fields["stream_id"] = parse_id_value(value)
        elif name == "features":
            fields[name] = parse_texts(value)
        elif (kind := _KEYS.get(name)) is not None:
            fields[name] = checked(name, value, kind)
    return Control(**fields)  # type: ignore[arg-type]


def _control_of(  # noqa: PLR0913, PLR0917 — the groups of _WRITTEN
    event: str, stream_id: str, port: str, client: str, transport: str, host: str, is_tls: str, reason: str, count: str
) -> Control:
    return Control(
        event,
        bytes.fromhex(stream_id.replace("-", "")),
        int(port or 0),
        client,
        transport,
        host,
        bool(is_tls),
        reason,
        credits=int(count or 0),
    )


def parse_control_message(message: bytes) -> Control:
    """Parse a whole control message, the leading 0x02 included; raises RemoteProtocolError as ``parse_control``."""
    if message[:1] != _CONTROL:
        raise RemoteProtocolError(f"a message of {len(message)} bytes is neither data nor control")
    return parse_control(memoryview(message)[1:])


def parse_object(text: str) -> Iterator[tuple[str, object]]:
    """Return the pairs of a JSON object in order, keys in lower case, without those that are null.

    Raises:
        RemoteProtocolError: not JSON, or not an object.
    """
    try:
        document = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("the message is not JSON") from error
    if not isinstance(document, tuple):
        raise RemoteProtocolError("the message is not a JSON object")
    return ((key.lower(), value) for key, value in document if value is not None)


def parse_id_value(value: object) -> bytes:
    """Return the 16 bytes of a ``client_id``; raises RemoteProtocolError for anything but a UUID's text."""
    if not isinstance(value, str):
        raise RemoteProtocolError("client_id is not a string")
    return parse_id(value)


def checked(name: str, value: object, kind: type) -> object:
    """Return the value of a known key, if it is of its type: neither a bool nor a float is an integer.

    Raises:
        RemoteProtocolError: it is of another type, or an integer that 64 bits do not hold.
    """
    if type(value) is not kind or (isinstance(value, int) and not -_INT64_MAX - 1 <= value <= _INT64_MAX):
        raise RemoteProtocolError(f"{name} is not of type {kind.__name__}")
    return replace_surrogates(value) if isinstance(value, str) else value


def replace_surrogates(text: str) -> str:
    """Return ``text`` with U+FFFD for every lone surrogate (JSON escapes can make one), as the original does."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # RFC 8259 section 6; Python would take it


# An object becomes the tuple of its pairs: a key may come twice, and null does not undo what came before.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant)


def parse_texts(value: object) -> tuple[str, ...]:
    """Return the strings in a list, such as feature names; anything that is not a list holds none."""
    if not isinstance(value, list):
        return ()
    return tuple(replace_surrogates(item) for item in value if isinstance(item, str))


def serialize_control(message: Control) -> bytes:
    """Return the whole binary message (0x02 and JSON without spaces) without zero values, as the original does."""
    members = [f'"event":{encode_basestring(message.event)},"client_id":"{id_text(message.stream_id)}"']
    for name, kind in _KEYS.items():
        value = getattr(message, name)
        if not value or name == "event":
            continue
        if kind is bool:
            members.append(f'"{name}":true')
        else:
            members.append(f'"{name}":{encode_basestring(value) if kind is str else value}')
    if message.features:
        members.append(f'"features":[{",".join(map(encode_basestring, message.features))}]')
    return f"\x02{{{','.join(members)}}}".encode()


def credit_message(stream_id: bytes, count: int) -> bytes:
    """Return ``resume_stream`` granting ``count`` messages: the one control message that accompanies every transfer."""
    return b'\x02{"event":"resume_stream","client_id":"%b","credits":%d}' % (id_text(stream_id).encode(), count)


def simple_message(event: str, stream_id: bytes, reason: str = "") -> bytes:
    """Return a control message that carries no more than an optional reason (ASCII, one of ``Reason``)."""
    tail = f',"reason":"{reason}"' if reason else ""
    return f'\x02{{"event":"{event}","client_id":"{id_text(stream_id)}"{tail}}}'.encode()
