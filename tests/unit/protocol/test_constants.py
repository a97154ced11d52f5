"""Tests of the numbers of the protocols: pinned here, and the same as in docs/protocol.md and docs/mesh.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from nexus.protocol import constants

PAGES = [Path(__file__).parents[3] / "docs" / name for name in ("protocol.md", "mesh.md")]
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]+)` \| (.+?) \| (\w[\w ]*) \| (.+) \|$", re.MULTILINE)

# What other programs rely on; a change here is a change of the protocol.
PINNED: dict[str, object] = {
    "KIND_DATA": 1,
    "KIND_CONTROL": 2,
    "STREAM_ID_BYTES": 16,
    "DATA_HEADER_BYTES": 17,
    "PAYLOAD_MAX_BYTES": 32_768,
    "MESSAGE_MAX_BYTES": 32_785,
    "NIL_STREAM_ID": bytes(16),
    "CREDITS_INITIAL": 64,
    "CREDITS_BATCH": 8,
    "CREDITS_MAX": 1_048_576,
    "CREDITS_OVERSHOOT": 64,
    "WINDOW_MAX": 512,
    "WINDOW_MIN": 16,
    "UNCREDITED_MAX": 8,
    "FIRST_GRANT_AFTER": 4,
    "CONNECT_PATH": "/connect",
    "NONCE_BYTES": 32,
    "HANDSHAKE_MESSAGE_MAX_BYTES": 65_536,
    "UPGRADE_HEAD_MAX_BYTES": 16_384,
    "CHALLENGE_TYPE": "handshake_challenge",
    "REAUTH_TYPE": "reauth_challenge",
    "CLOSE_REASON_MAX_BYTES": 123,
    "CLOSE_GOING_AWAY": 1001,
    "CLOSE_PROTOCOL_ERROR": 1002,
    "CLOSE_POLICY": 1008,
    "CLOSE_TOO_BIG": 1009,
    "UPGRADE_TIMEOUT_S": 10.0,
    "STAGE0_TIMEOUT_S": 10.0,
    "CHALLENGE_TIMEOUT_S": 15.0,
    "STAGE1_TIMEOUT_S": 20.0,
    "HUB_PING_INTERVAL_S": 10.0,
    "HUB_DEAD_AFTER_S": 25.0,
    "CLIENT_PING_INTERVAL_S": 5.0,
    "CLIENT_DEAD_AFTER_S": 10.0,
    "DIAL_TIMEOUT_S": 10.0,
    "OUTBOUND_TARGET_MAX_BYTES": 260,
    "OUTBOUND_ANSWER_TIMEOUT_S": 15.0,
    "FEATURE_HALF_CLOSE": "half_close",
    "FEATURE_DRAIN": "drain",
    "FEATURES": ("half_close", "drain"),
    "MESH_PATH": "/mesh",
    "TUNNEL_MESSAGE_MAX_BYTES": 65_535,
    "ANNOUNCE_MAX_BYTES": 8_388_608,
    "CHALLENGES_MAX": 8,
    "KIND_TUNNEL_DATA": 0x11,
    "KIND_TUNNEL_CLOSE": 0x12,
    "KIND_TUNNEL_PAUSE": 0x13,
    "KIND_TUNNEL_RESUME": 0x14,
    "KIND_TUNNEL_CREDITS": 0x15,
    "KIND_TUNNEL_HALF_CLOSE": 0x16,
    "TUNNEL_CREDITS_BYTES": 8,
    "CLOSE_NORMAL": 1000,
    "FEATURE_TUNNELS": "tunnels_1",
    "MESH_FEATURES": ("half_close", "tunnels_1"),
}
UNITS = {"_S": "seconds", "_BYTES": "bytes"}


def defined() -> dict[str, object]:
    return {name: getattr(constants, name) for name in vars(constants) if name.isupper()}


def documented() -> dict[str, tuple[object, str]]:
    """Read value and unit of every constant from the tables of the pages."""
    rows = [row for page in PAGES for row in ROW.findall(page.read_text())]
    names = [name for name, *_ in rows]
    assert len(names) == len(set(names)), "a constant is in two tables"
    return {name: (_value(text, unit), unit) for name, text, unit, _ in rows}


def _value(text: str, unit: str) -> object:
    if unit == "bytes" and text.startswith("0x"):
        return bytes.fromhex(text[2:])
    return ast.literal_eval(text.strip("`"))


def test_wire_constants() -> None:
    """Every number is what other programs rely on, and none is missing here."""
    assert defined() == PINNED


def test_the_tables_of_the_protocol_pages_are_true_and_complete() -> None:
    """Each constant is in one table, with its value."""
    assert {name: value for name, (value, _) in documented().items()} == defined()


def test_the_tables_give_the_unit_that_the_name_has() -> None:
    """Seconds are seconds, bytes are bytes."""
    for name, (_, unit) in documented().items():
        for suffix, expected in UNITS.items():
            if name.endswith(suffix):
                assert unit == expected, name


def test_numbers_fit_together() -> None:
    """What follows from something else, does."""
    assert constants.MESSAGE_MAX_BYTES < constants.HANDSHAKE_MESSAGE_MAX_BYTES
    assert constants.CREDITS_BATCH * 2 <= constants.CREDITS_INITIAL
    assert constants.HUB_PING_INTERVAL_S * 2 < constants.HUB_DEAD_AFTER_S
    assert constants.CLIENT_PING_INTERVAL_S * 2 <= constants.CLIENT_DEAD_AFTER_S
    assert 48 + 2 * constants.UNCREDITED_MAX <= 64  # the queue of a backend without credits and its pause
    assert 0 < constants.FIRST_GRANT_AFTER < constants.UNCREDITED_MAX  # it comes before the hub stops, and before
    assert constants.FIRST_GRANT_AFTER < constants.CREDITS_BATCH  # any other grant
