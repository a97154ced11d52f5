"""Every number of the backend protocol, with its unit and origin.

"Original" means the existing Go implementation, v0.3.x, with which all of these interoperate.
"""

from __future__ import annotations

from typing import Final

# -- Messages ---------------------------------------------------------------------------------------------------------
KIND_DATA: Final = 0x01  # original: first byte of a data message
KIND_CONTROL: Final = 0x02  # original: first byte of a control message
STREAM_ID_BYTES: Final = 16  # original: a UUID in network byte order
DATA_HEADER_BYTES: Final = 1 + STREAM_ID_BYTES
PAYLOAD_MAX_BYTES: Final = 32_768  # original: payload of one data message
MESSAGE_MAX_BYTES: Final = PAYLOAD_MAX_BYTES + DATA_HEADER_BYTES  # 32,785: original, receivers close with 1009 above it
NIL_STREAM_ID: Final = bytes(STREAM_ID_BYTES)  # RFC 9562 5.9: the nil UUID

# -- Messages between nodes -------------------------------------------------------------------------------------------
MESH_PATH: Final = "/mesh"
KIND_TUNNEL_DATA: Final = 0x11  # original
KIND_TUNNEL_CLOSE: Final = 0x12  # original; behind the id ours says why
KIND_TUNNEL_PAUSE: Final = 0x13  # original
KIND_TUNNEL_RESUME: Final = 0x14  # original
KIND_TUNNEL_CREDITS: Final = 0x15  # original, from v0.3.8 on
KIND_TUNNEL_HALF_CLOSE: Final = 0x16  # ours
TUNNEL_CREDITS_BYTES: Final = 8  # original: an unsigned 64-bit big-endian count behind the id
# Ours: twice what an original sends. It bounds nothing itself, and a reader should be no stricter than it must be.
TUNNEL_MESSAGE_MAX_BYTES: Final = 65_535
ANNOUNCE_MAX_BYTES: Final = 8 * 1024 * 1024  # ours: 100,000 names of 80 characters; the original has no bound
CHALLENGES_MAX: Final = 8  # ours: of one announcement; a node waits for one, or two while it changes over

# -- Credits (unit: one data message) ---------------------------------------------------------------------------------
CREDITS_INITIAL: Final = 64  # original: first grant in either direction
CREDITS_BATCH: Final = 8  # original: a receiver grants again after this many messages
CREDITS_MAX: Final = 1 << 20  # original: defensive clamp of any grant
WINDOW_MAX: Final = 512  # ours: a window grows with the need to 16 MiB, 1.3 Gbit/s over a round trip of 100 ms
WINDOW_MIN: Final = 16  # ours: below a batch of 8 no grant would ever follow; two batches keep the sender going
CREDITS_OVERSHOOT: Final = 64  # original: a client may exceed its grants by 8 + 1 + probes; the Go hub tolerates 64
# Until the other side granted credits it may be an older program with a queue of 64 messages that asks for a pause at
# 48. With at most this many messages not yet confirmed by a pong, its queue can never overflow: 48 + 8 + 8 = 64.
UNCREDITED_MAX: Final = 8
FIRST_GRANT_AFTER: Final = (
    4  # ours: half of that, so that the grant comes before its sender stops; most streams end first
)

# -- Handshake --------------------------------------------------------------------------------------------------------
CONNECT_PATH: Final = "/connect"
NONCE_BYTES: Final = 32  # original: base64url without padding, 43 characters
HANDSHAKE_MESSAGE_MAX_BYTES: Final = 65_536  # ours: a token; the original has no bound here
UPGRADE_HEAD_MAX_BYTES: Final = 16_384  # ours: HTTP request or response head of the upgrade
CHALLENGE_TYPE: Final = "handshake_challenge"
REAUTH_TYPE: Final = "reauth_challenge"
CLOSE_REASON_MAX_BYTES: Final = 123  # RFC 6455 5.5: control frame of 125 bytes less the code
CLOSE_NORMAL: Final = 1000  # RFC 6455 7.4.1
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009

UPGRADE_TIMEOUT_S: Final = 10.0  # ours: TLS and HTTP upgrade, each
STAGE0_TIMEOUT_S: Final = 10.0  # original: hub waits for the first token
CHALLENGE_TIMEOUT_S: Final = 15.0  # original: client waits for the challenge
# The original allows 10 s; its client's own token command may take 15 s, so a slow command could never log in.
STAGE1_TIMEOUT_S: Final = 20.0

# -- Liveness ---------------------------------------------------------------------------------------------------------
# Silence is counted from tick to tick: a dead side is found DEAD_AFTER_S to DEAD_AFTER_S + PING_INTERVAL_S later.
HUB_PING_INTERVAL_S: Final = 10.0  # original 54 s
HUB_DEAD_AFTER_S: Final = 25.0  # original 60 s
CLIENT_PING_INTERVAL_S: Final = 5.0  # original
CLIENT_DEAD_AFTER_S: Final = 10.0  # original
DIAL_TIMEOUT_S: Final = 10.0  # original: client dials the local service

# -- Outbound connections ---------------------------------------------------------------------------------------------
OUTBOUND_TARGET_MAX_BYTES: Final = 260  # original: the longest host:port a hub takes
OUTBOUND_ANSWER_TIMEOUT_S: Final = 15.0  # original: client waits for the hub's answer, which may dial for 10 s

# -- Features (ours; docs/protocol.md, "Extensions") ------------------------------------------------------------------
FEATURE_HALF_CLOSE: Final = "half_close"
FEATURE_DRAIN: Final = "drain"
FEATURES: Final = (FEATURE_HALF_CLOSE, FEATURE_DRAIN)
FEATURE_TUNNELS: Final = "tunnels_1"  # reasons of a close, refusals, windows above 64
MESH_FEATURES: Final = (FEATURE_HALF_CLOSE, FEATURE_TUNNELS)
