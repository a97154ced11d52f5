"""What nodes say to each other on a link: announcements and requests as JSON text, the rest as short binary messages.

Strategy: a tunnel is a stream (or a UDP flow) whose far end is another node; its id is the tunnel's UUID. Binary
messages are one code octet, the id, and what the code says. Text is parsed as control messages are: known keys are
strict about their types, unknown ones and unknown types mean nothing. What ours adds (the sender's name for itself,
its features, reasons of a close, half-close, grants above 64) is used only towards a node that announced it knows.

Source: spec node-and-mesh 8, 9; docs/protocol.md, "Between nodes".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from nexus.errors import RemoteProtocolError
from nexus.protocol.constants import (
    CHALLENGES_MAX,
    CREDITS_INITIAL,
    CREDITS_MAX,
    DATA_HEADER_BYTES,
    KIND_TUNNEL_CLOSE,
    KIND_TUNNEL_CREDITS,
    KIND_TUNNEL_DATA,
    KIND_TUNNEL_HALF_CLOSE,
    KIND_TUNNEL_PAUSE,
    KIND_TUNNEL_RESUME,
    NIL_STREAM_ID,
    TUNNEL_CREDITS_BYTES,
)
from nexus.protocol.messages import Control, checked, id_text, parse_id_value, parse_object, parse_texts
from nexus.protocol.reasons import Reason
from nexus.protocol.wire import Wire

ANNOUNCE: Final = "announce"
TUNNEL_REQUEST: Final = "tunnel_request"


@dataclass(frozen=True, slots=True)
class Announce:
    """Every route that the sender's own backends serve; replaces what an earlier version said.

    ``version`` rises by each announcement of the sender. ``node_id`` (ours) names the process that sends it, nil where
    the sender is an original; ``features`` are those it knows. ``challenges`` (ours) are the key
    authorizations (token, dot, thumbprint) that a certificate authority will ask the sender for: nodes of its name
    answer with them, too.
    """

    version: int
    routes: tuple[str, ...]
    node_id: bytes = NIL_STREAM_ID
    features: tuple[str, ...] = ()
    challenges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """Open a tunnel: who the client is (``ip:port``), on which port it came, which route key it is for."""

    tunnel_id: bytes
    route_key: str
    client: str = ""
    port: int = 0
    transport: str = ""
    is_tls: bool = False


# -- Text -------------------------------------------------------------------------------------------------------------

# RFC 8555 8.1, 8.3: a token of at least 128 bits in base64url, and the thumbprint of a key, a SHA-256 (RFC 7638).
_KEY_AUTHORIZATION: Final = re.compile(r"[A-Za-z0-9_-]{22,256}\.[A-Za-z0-9_-]{43}")
_KEYS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "type": str,
        "version": int,
        "conn_port": int,
        "client_ip": str,
        "hostname": str,
        "transport": str,
        "is_tls": bool,
    }
)


def parse_text(text: str) -> Announce | TunnelRequest | None:
    """Return what a text message says, None for a type that is not known.

    Raises:
        RemoteProtocolError: not a JSON object, a known key of the wrong type, or a ``client_id`` that is no UUID.
    """
    fields: dict[str, object] = {}
    for name, value in parse_object(text):
        if name in {"client_id", "node_id"}:
            fields[name] = parse_id_value(value)
        elif name == "features":
            fields[name] = parse_texts(value)
        elif name == "hostnames":
            fields[name] = _texts(value)
        elif name == "challenges":
            fields[name] = _challenges(value)
        elif (kind := _KEYS.get(name)) is not None:
            fields[name] = checked(name, value, kind)
    build = _TYPES.get(str(fields.get("type")))
    return build(fields) if build is not None else None


def _texts(value: object) -> tuple[str, ...]:
    texts = parse_texts(value)
    if not isinstance(value, list) or len(texts) != len(value):
        raise RemoteProtocolError("hostnames is not a list of strings")
    return texts


def _challenges(value: object) -> tuple[str, ...]:
    """Return what can be a challenge, no more than a node ever waits for."""
    return tuple(text for text in parse_texts(value) if _KEY_AUTHORIZATION.fullmatch(text))[:CHALLENGES_MAX]


def _announce(fields: Mapping[str, object]) -> Announce:
    return Announce(
        fields.get("version", 0),  # type: ignore[arg-type]  # checked by _KEYS, as the others
        fields.get("hostnames", ()),  # type: ignore[arg-type]
        fields.get("node_id", NIL_STREAM_ID),  # type: ignore[arg-type]
        fields.get("features", ()),  # type: ignore[arg-type]
        fields.get("challenges", ()),  # type: ignore[arg-type]
    )


def _request(fields: Mapping[str, object]) -> TunnelRequest:
    return TunnelRequest(
        fields.get("client_id", NIL_STREAM_ID),  # type: ignore[arg-type]
        fields.get("hostname", ""),  # type: ignore[arg-type]
        fields.get("client_ip", ""),  # type: ignore[arg-type]
        fields.get("conn_port", 0),  # type: ignore[arg-type]
        fields.get("transport", ""),  # type: ignore[arg-type]
        fields.get("is_tls", False),  # type: ignore[arg-type]
    )


_TYPES: Final[Mapping[str, Callable[[Mapping[str, object]], Announce | TunnelRequest]]] = MappingProxyType(
    {ANNOUNCE: _announce, TUNNEL_REQUEST: _request}
)


def serialize_announce(announce: Announce) -> str:
    """Return the text of an announcement; an original ignores one without a ``client_id``."""
    document: dict[str, object] = {"version": announce.version, "type": ANNOUNCE}
    if announce.routes:
        document["hostnames"] = list(announce.routes)
    document["client_id"] = id_text(NIL_STREAM_ID)
    if announce.node_id != NIL_STREAM_ID:
        document["node_id"] = id_text(announce.node_id)
    if announce.features:
        document["features"] = list(announce.features)
    if announce.challenges:
        document["challenges"] = list(announce.challenges)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def serialize_request(request: TunnelRequest) -> str:
    """Return the text of a request, without zero values, as the original does."""
    document: dict[str, object] = {"type": TUNNEL_REQUEST, "client_id": id_text(request.tunnel_id)}
    if request.port:
        document["conn_port"] = request.port
    if request.client:
        document["client_ip"] = request.client
    document["hostname"] = request.route_key
    document["transport"] = request.transport
    if request.is_tls:
        document["is_tls"] = True
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


# -- Binary -----------------------------------------------------------------------------------------------------------

_EVENTS: Final = {
    KIND_TUNNEL_CLOSE: "disconnect",
    KIND_TUNNEL_PAUSE: "pause_stream",
    KIND_TUNNEL_RESUME: "resume_stream",
    KIND_TUNNEL_CREDITS: "credits",  # unlike a backend's, it ends no pause
    KIND_TUNNEL_HALF_CLOSE: "half_close",
}
_REASON_MAX_BYTES: Final = 64  # ours: the longest Reason is shorter


def parse_message(message: bytes) -> Control:
    """Return the event that a binary message other than data tells; its ``stream_id`` is the tunnel's.

    Raises:
        RemoteProtocolError: it is shorter than its code asks for, or the code is unknown.
    """
    event = _EVENTS.get(message[0] if message else 0)
    if event is None or len(message) < DATA_HEADER_BYTES:
        raise RemoteProtocolError(f"a message of {len(message)} bytes with an unknown code or no tunnel id")
    tunnel_id, rest = message[1:DATA_HEADER_BYTES], message[DATA_HEADER_BYTES:]
    if message[0] == KIND_TUNNEL_CREDITS:
        if len(rest) < TUNNEL_CREDITS_BYTES:
            raise RemoteProtocolError("a grant of credits without its count")
        count = int.from_bytes(rest[:TUNNEL_CREDITS_BYTES], "big")
        return Control(event, tunnel_id, credits=min(count, CREDITS_MAX))
    if message[0] == KIND_TUNNEL_CLOSE:
        return Control(event, tunnel_id, reason=rest[:_REASON_MAX_BYTES].decode("ascii", "replace"))
    return Control(event, tunnel_id)


def _bare(code: int) -> Callable[[bytes], bytes]:
    prefix = bytes((code,))
    return prefix.__add__


def _with_reason(tunnel_id: bytes, reason: str) -> bytes:
    return _CLOSE(tunnel_id) + (b"" if reason == Reason.NORMAL else reason.encode("ascii"))


def _credits(tunnel_id: bytes, count: int) -> bytes:
    return _CREDITS(tunnel_id) + count.to_bytes(TUNNEL_CREDITS_BYTES, "big")


_CLOSE: Final = _bare(KIND_TUNNEL_CLOSE)
_PAUSE: Final = _bare(KIND_TUNNEL_PAUSE)
_CREDITS: Final = _bare(KIND_TUNNEL_CREDITS)

TUNNEL_WIRE: Final = Wire(
    data_kind=KIND_TUNNEL_DATA,
    parse=parse_message,
    disconnect=_with_reason,
    credits=_credits,
    pause=lambda tunnel_id, _reason: _PAUSE(tunnel_id),
    resume=_bare(KIND_TUNNEL_RESUME),
    half_close=_bare(KIND_TUNNEL_HALF_CLOSE),
    grants_flows=False,
)
"""Towards a node of ours: a close says why, a window may grow."""

ORIGINAL_TUNNEL_WIRE: Final = replace(
    TUNNEL_WIRE,
    disconnect=lambda tunnel_id, _reason: _CLOSE(tunnel_id),
    window_max=CREDITS_INITIAL,  # it takes a grant above 64 for one of 64
)
"""Towards an original node: a close is bare."""
