"""nexus.hub.server: who is let in, who is not and is told why, and what a stranger can take up meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
from websockets.exceptions import ConnectionClosed

from nexus.auth.claims import Claims
from nexus.auth.grants import Policy, check_stage1
from nexus.hub import server as module
from nexus.hub.server import HubLimits
from nexus.limits import STRANGERS_LINES_MAX
from nexus.link.connection import Link, LinkEnd
from nexus.places import Bursts
from nexus.protocol.constants import FEATURES, HANDSHAKE_MESSAGE_MAX_BYTES, UPGRADE_HEAD_MAX_BYTES
from tests.support.hub import HOST, NAME, WAIT_S, Backend, Hub, eventually, running_hub, token, verify
from tests.support.processes import SECRET, Pki

ON_BOTH_LOOPS = True
OTHER = "other.example.com"
SHORT_S = 0.05
UPGRADE = (
    b"GET /connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
async def hub(pki: Pki) -> AsyncIterator[Hub]:
    """A hub with the limits of a node's defaults that allows one TCP port claim."""
    async with running_hub(pki, policy=Policy(allowed_tcp_ports=frozenset({25}))) as running:
        yield running


# -- Acceptance ------------------------------------------------------------------------------------------------------


async def test_the_pong_behind_the_second_token_tells_of_acceptance(hub: Hub) -> None:
    """The session serves its routes at the moment the pong arrives."""
    backend = await hub.dial()
    nonce = await backend.challenge()
    assert hub.server.unauthenticated == 1
    assert not hub.registry.sessions
    await backend.websocket.send(token("attest", nonce))
    await backend.pong()
    assert hub.registry.table.routes() == (HOST,)
    assert hub.session().grant.subject == NAME
    assert hub.server.unauthenticated == 0
    assert hub.registry.totals.sessions == 1
    assert not hub.registry.totals.auth_failures


async def test_the_challenge_has_a_fresh_nonce_and_names_the_features(hub: Hub) -> None:
    """Two handshakes never get the same nonce."""
    first, second = await hub.dial(), await hub.dial()
    nonces = {await first.challenge(), await second.challenge()}
    assert [len(nonce) for nonce in nonces] == [43, 43]
    challenge = json.loads(first.texts[0])
    assert challenge["type"] == "handshake_challenge"
    assert challenge["features"] == list(FEATURES)


async def test_a_port_claim_that_the_policy_allows_is_served(hub: Hub) -> None:
    """Names and ports go into one table."""
    await hub.backend(tcp_ports=(25,))
    assert hub.registry.table.routes() == (HOST, "tcp:25")


async def test_a_session_that_ends_leaves_no_route_behind(hub: Hub) -> None:
    """What it served is free, how it ended is counted."""
    backend = await hub.backend()
    await backend.websocket.close(1000)
    await eventually(lambda: not hub.registry.sessions, "the session is gone")
    assert len(hub.registry.table) == 0
    assert hub.registry.totals.session_ends == {"1000": 1}


async def test_a_message_above_the_session_limit_ends_the_session_with_1009(hub: Hub) -> None:
    """The handshake's larger limit holds no longer."""
    backend = await hub.backend()
    await backend.websocket.send(b"\x01" + bytes(32_785))
    assert (await backend.closed())[0] == 1009
    await eventually(lambda: not hub.registry.sessions, "the session is gone")
    assert hub.registry.totals.session_ends == {"error": 1}


# -- Refusals --------------------------------------------------------------------------------------------------------

Attempt = Callable[[Backend], Awaitable[object]]


async def _wrong_nonce(backend: Backend) -> None:
    await backend.challenge()
    await backend.websocket.send(token("attest", "n" * 43))


async def _no_nonce(backend: Backend) -> None:
    await backend.challenge()
    await backend.websocket.send(token("attest", ""))


async def _changed_claims(backend: Backend) -> None:
    await backend.websocket.send(token("attest", await backend.challenge(), hostnames=(HOST, OTHER)))


async def _changed_weight(backend: Backend) -> None:
    await backend.websocket.send(token("attest", await backend.challenge(), weight=9))


async def _bad_second_signature(backend: Backend) -> None:
    await backend.websocket.send(token("attest", await backend.challenge(), secret="x" * 32))


async def _binary_second(backend: Backend) -> None:
    await backend.challenge()
    await backend.websocket.send(b"\x02{}")


async def _empty_second(backend: Backend) -> None:
    await backend.challenge()
    await backend.websocket.send("")


async def _two_at_once(backend: Backend) -> None:
    await backend.websocket.send(token())
    await backend.websocket.send(token("attest", "guessed"))


REFUSALS: Mapping[str, tuple[str, str, Attempt]] = {
    "bad signature": ("stage0", "signature", lambda b: b.websocket.send(token(secret="x" * 32))),
    "not a token": ("stage0", "invalid token", lambda b: b.websocket.send("let me in")),
    "expired": ("stage0", "expired", lambda b: b.websocket.send(token(ttl_s=-1))),
    "nothing claimed": ("stage0", "claims no hostname", lambda b: b.websocket.send(token(hostnames=()))),
    "port not allowed": ("stage0", "allowedTCPPortClaims", lambda b: b.websocket.send(token(tcp_ports=(26,)))),
    "outbound not allowed": ("stage0", "allowOutbound", lambda b: b.websocket.send(token(outbound_allowed=True))),
    "binary": ("stage0", "binary", lambda b: b.websocket.send(token().encode())),
    "empty": ("stage0", "empty", lambda b: b.websocket.send("")),
    "wrong nonce": ("stage1", "nonce", _wrong_nonce),
    "no nonce": ("stage1", "nonce", _no_nonce),
    "changed claims": ("stage1", "other hostnames", _changed_claims),
    "changed weight": ("stage1", "weight", _changed_weight),
    "bad second signature": ("stage1", "signature", _bad_second_signature),
    "binary second": ("stage1", "binary", _binary_second),
    "empty second": ("stage1", "empty", _empty_second),
    "two at once": ("stage1", "nonce", _two_at_once),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refused_backend_is_told_why(hub: Hub, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """It gets a close frame with 1008 and a reason, no pong, and one line in the log; one failure is counted."""
    stage, words, attempt = REFUSALS[case]
    caplog.set_level(logging.INFO)
    backend = await hub.dial()
    await attempt(backend)
    pong: Awaitable[float] | None = None
    with contextlib.suppress(ConnectionClosed):  # it may have gone already
        pong = await backend.websocket.ping(b"accepted?")
    code, reason = await backend.closed()
    assert code == 1008
    assert words in reason
    if pong is not None:
        with pytest.raises(ConnectionClosed):
            await pong
    assert hub.registry.totals.auth_failures == {stage: 1}
    assert hub.registry.totals.sessions == 0
    refusals = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().startswith("refused a backend from 127.0.0.1:") for record in refusals] == [True]
    await eventually(lambda: hub.server.unauthenticated == 0, "its place is free again")


async def test_refusals_do_not_flood_the_log(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """The first ones are warnings; a stranger who tries again and again fills no disk."""
    caplog.set_level(logging.INFO)
    for _ in range(STRANGERS_LINES_MAX + 3):
        backend = await hub.dial()
        await backend.websocket.send("no token")
        await backend.closed()
    assert hub.registry.totals.auth_failures == {"stage0": STRANGERS_LINES_MAX + 3}
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == STRANGERS_LINES_MAX


@pytest.mark.parametrize("case", REFUSALS)
async def test_no_secret_is_in_a_log_record_or_a_close_reason(
    hub: Hub, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the token, the hub's nonce nor the shared secret is told to anyone, at any log level."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("nexus.websocket").setLevel(logging.DEBUG)
    backend = await hub.dial()
    await REFUSALS[case][2](backend)
    _, reason = await backend.closed()
    told = [reason, *(record.getMessage() for record in caplog.records if record.name.startswith("nexus"))]
    assert len(told) > 1
    nonces = [json.loads(text)["nonce"] for text in backend.texts]
    for secret in (SECRET, "eyJ", "let me in", "n" * 43, *nonces):
        assert not [text for text in told if secret in text]


async def test_an_accepted_backend_leaves_no_secret_in_the_log(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """The log says who serves what, at every level nothing more."""
    caplog.set_level(logging.DEBUG)
    backend = await hub.backend(weight=3)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("nexus")]
    assert [text for text in messages if NAME in text and HOST in text and "weight 3" in text]
    nonce = json.loads(backend.texts[0])["nonce"]
    assert not [text for text in messages for secret in (SECRET, "eyJ", nonce) if secret in text]


async def test_a_token_that_is_too_large_is_refused_with_1009(hub: Hub) -> None:
    """A stranger's message is bounded, whatever a real token needs."""
    backend = await hub.dial()
    with contextlib.suppress(ConnectionClosed):
        await backend.websocket.send("x" * (HANDSHAKE_MESSAGE_MAX_BYTES + 1))
    assert (await backend.closed())[0] == 1009
    await eventually(lambda: hub.registry.totals.auth_failures == {"stage0": 1}, "it is counted")


async def test_a_token_may_have_any_allowed_size_and_come_in_fragments(hub: Hub) -> None:
    """Original clients fragment whatever is longer than 4096 bytes."""
    backend = await hub.dial()
    names = tuple(f"host-{number}.example.com" for number in range(1000))
    text = token(hostnames=names)
    assert 4096 < len(text) <= HANDSHAKE_MESSAGE_MAX_BYTES
    await backend.websocket.send([text[at : at + 4096] for at in range(0, len(text), 4096)])
    nonce = json.loads(str(await backend.receive()))["nonce"]
    await backend.websocket.send(token("attest", nonce, hostnames=names))
    await backend.pong()
    assert len(hub.registry.table) == len(names)


@pytest.mark.parametrize("code", [1000, 1008])
async def test_a_backend_that_leaves_in_the_middle_is_counted(hub: Hub, code: int) -> None:
    """Whatever close code it gives."""
    backend = await hub.dial()
    await backend.challenge()
    await backend.websocket.close(code)
    await eventually(lambda: hub.registry.totals.auth_failures == {"stage1": 1}, "it is counted")
    await eventually(lambda: hub.server.unauthenticated == 0, "its place is free again")


async def test_a_second_token_whose_sender_is_gone_makes_no_session(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that nobody would tell of its end must not be made."""
    checked = check_stage1

    def check_late(*args: object) -> object:
        (link,) = links
        if not link.lost.done():
            link.lost.set_result(LinkEnd(1006, ""))
        return checked(*args)  # type: ignore[arg-type]

    links: list[Link] = []
    made = Link.connection_made

    def note(link: Link, transport: asyncio.BaseTransport) -> None:
        if not hasattr(link, "transport") and link.websocket.side.name == "SERVER":
            links.append(link)
        made(link, transport)

    monkeypatch.setattr(Link, "connection_made", note)
    monkeypatch.setattr(module, "check_stage1", check_late)
    backend = await hub.dial()
    await backend.websocket.send(token("attest", await backend.challenge()))
    await eventually(lambda: hub.registry.totals.auth_failures == {"stage1": 1}, "it is counted")
    assert not hub.registry.sessions
    assert hub.registry.sessions_of(NAME) == 0


# -- Upgrade ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (UPGRADE.replace(b"/connect", b"/"), 404),
        (UPGRADE.replace(b"/connect", b"/connect/more"), 404),
        (UPGRADE.replace(b"GET", b"POST"), 405),
        (b"GET /connect HTTP/1.1\r\nHost: localhost\r\n\r\n", 426),
        (UPGRADE.replace(b"Version: 13", b"Version: 8"), 400),
        (UPGRADE.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * UPGRADE_HEAD_MAX_BYTES + b"\r\n\r\n"), 431),
        (UPGRADE.replace(b"/connect", b"/connect?from=test"), 101),
    ],
)
async def test_an_upgrade_is_answered_as_http_says(hub: Hub, request_bytes: bytes, status: int) -> None:
    """The whole answer arrives, then the connection ends; one failure is counted under the upgrade."""
    reader, writer = await hub.connection()
    writer.write(request_bytes)
    async with asyncio.timeout(WAIT_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert int(head.split(b" ")[1]) == status
        if status == 101:
            return
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        assert len(await reader.readexactly(length)) == length
        with contextlib.suppress(ConnectionError):  # unread bytes of the request may turn the end into a reset
            assert await reader.read() == b""
    assert hub.registry.totals.auth_failures == {"upgrade": 1}
    await eventually(lambda: hub.server.unauthenticated == 0, "its place is free again")


async def test_a_client_without_tls_is_dropped(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Plain bytes are a failed upgrade; only the debug log tells."""
    caplog.set_level(logging.DEBUG, "nexus")
    reader, writer = await hub.connection(tls=False)
    writer.write(UPGRADE)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    await eventually(lambda: hub.registry.totals.auth_failures == {"upgrade": 1}, "it is counted")
    assert [record.levelname for record in caplog.records if "came to nothing" in record.getMessage()] == ["DEBUG"]


async def test_a_connection_that_is_reset_at_once_does_no_harm(hub: Hub) -> None:
    """The next backend is served."""
    for _ in range(5):
        sock = socket.create_connection(("127.0.0.1", hub.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    await hub.backend()
    await eventually(lambda: hub.server.unauthenticated == 0, "no place is taken")


async def test_a_bug_in_the_check_ends_one_connection_and_is_logged(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    """The hub goes on, nothing is left open."""
    healthy = False

    async def check(text: str, now: float) -> Claims:
        if not healthy:
            raise RuntimeError("a bug")
        return await verify(text, now)

    async with running_hub(pki, check=check) as hub:
        backend = await hub.dial()
        await backend.websocket.send(token())
        assert (await backend.closed())[0] == 1006
        assert [record.levelname for record in caplog.records if "unexpected failure" in record.getMessage()] == [
            "ERROR"
        ]
        assert hub.server.unauthenticated == 0
        healthy = True
        await hub.backend()


# -- Limits ----------------------------------------------------------------------------------------------------------


async def _silent(hub: Hub) -> None:
    reader, _ = await hub.connection(tls=False)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""


async def _no_request(hub: Hub) -> None:
    reader, _ = await hub.connection()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""


async def _half_a_request(hub: Hub) -> None:
    reader, writer = await hub.connection()
    writer.write(UPGRADE[:-2])
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""


async def _no_token(hub: Hub) -> None:
    backend = await hub.dial()
    assert await backend.closed() == (1008, f"no token within {SHORT_S:g} s")


async def _no_second_token(hub: Hub) -> None:
    backend = await hub.dial()
    await backend.challenge()
    assert await backend.closed() == (1008, f"no token within {SHORT_S:g} s")


@pytest.mark.parametrize(
    ("limits", "stage", "dawdle"),
    [
        (HubLimits(upgrade_timeout_s=SHORT_S), "upgrade", _silent),
        (HubLimits(upgrade_timeout_s=SHORT_S), "upgrade", _no_request),
        (HubLimits(upgrade_timeout_s=SHORT_S), "upgrade", _half_a_request),
        (HubLimits(stage0_timeout_s=SHORT_S), "stage0", _no_token),
        (HubLimits(stage1_timeout_s=SHORT_S), "stage1", _no_second_token),
    ],
)
async def test_every_stage_has_a_time_limit(
    pki: Pki, limits: HubLimits, stage: str, dawdle: Callable[[Hub], Awaitable[None]]
) -> None:
    """Who dawdles is cut off and counted, and holds no place any more."""
    async with running_hub(pki, limits=limits) as hub:
        async with asyncio.timeout(WAIT_S):
            await dawdle(hub)
        await eventually(lambda: hub.registry.totals.auth_failures == {stage: 1}, "it is counted")
        await eventually(lambda: hub.server.unauthenticated == 0, "its place is free again")


@pytest.mark.parametrize(
    "limits", [HubLimits(unauthenticated=2), HubLimits(unauthenticated_per_source=2)], ids=["total", "per source"]
)
async def test_strangers_are_limited_in_number(pki: Pki, limits: HubLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed at once; authenticated backends do not count, and a place given back can be taken."""
    monkeypatch.setattr(module, "BURSTS", Bursts(1, 1))
    monkeypatch.setattr("nexus.places.GRACE_S", WAIT_S)
    async with running_hub(pki, limits=limits) as hub:
        await hub.backend()
        await hub.backend()
        waiting = [await hub.connection(tls=False) for _ in range(2)]
        await eventually(lambda: hub.server.unauthenticated == 2, "both have a place")
        reader, _ = await hub.connection(tls=False)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        assert hub.registry.totals.auth_failures == {"limit": 1}
        waiting[0][1].close()
        await eventually(lambda: hub.server.unauthenticated == 1, "a place is free")
        await hub.backend()
        assert len(hub.registry.sessions) == 3


@pytest.mark.parametrize(
    "limits", [HubLimits(unauthenticated=2), HubLimits(unauthenticated_per_source=2)], ids=["total", "per source"]
)
async def test_silent_strangers_give_way_to_backends(
    pki: Pki, limits: HubLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was silent longest is cut off, in whatever state it is; the places lock nobody out."""
    monkeypatch.setattr("nexus.places.GRACE_S", 0.0)
    async with running_hub(pki, limits=limits) as hub:
        silent, _ = await hub.connection(tls=False)
        await eventually(lambda: hub.server.unauthenticated == 1, "it has a place")
        waiting = await hub.dial()
        await hub.backend()
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                assert await silent.read() == b""
        await hub.dial()
        await hub.backend()
        assert (await waiting.closed())[0] == 1006
        assert hub.registry.totals.auth_failures == {"limit": 2}
        assert len(hub.registry.sessions) == 2


async def test_a_backend_that_has_spoken_gives_way_to_nobody(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while it is judged or asked for its second token; once it is refused it does."""
    monkeypatch.setattr("nexus.places.GRACE_S", 0.0)
    monkeypatch.setattr(module, "BURSTS", Bursts(1, 1))
    async with running_hub(pki, limits=HubLimits(unauthenticated=1)) as hub:
        backend = await hub.dial()
        nonce = await backend.challenge()
        reader, _ = await hub.connection(tls=False)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        await backend.websocket.send(token("attest", nonce))
        await backend.pong()
        reader, writer = await hub.connection()
        writer.write(UPGRADE + b"\x81\x80\0\0\0\0")  # an empty text, and no answer to the hub's close frame
        await eventually(lambda: hub.registry.totals.auth_failures["stage0"] == 1, "it is refused")
        assert hub.server.unauthenticated == 1
        await hub.backend()
        assert hub.registry.totals.auth_failures["limit"] == 2


async def test_sessions_of_one_subject_are_limited(pki: Pki) -> None:
    """Others are let in, and so is the subject itself once a session of its own has ended."""
    async with running_hub(pki, limits=HubLimits(sessions_per_subject=1)) as hub:
        first = await hub.backend()
        second = await hub.dial()
        await second.websocket.send(token("attest", await second.challenge()))
        code, reason = await second.closed()
        assert (code, "maxSessionsPerSubject" in reason) == (1008, True)
        assert hub.registry.totals.auth_failures == {"stage1": 1}
        await hub.backend(subject="somebody else")
        await first.websocket.close()
        await eventually(lambda: hub.registry.sessions_of(NAME) == 0, "the first session is gone")
        await hub.backend()


# -- End -------------------------------------------------------------------------------------------------------------


async def test_a_hub_that_stops_cuts_every_connection(pki: Pki) -> None:
    """Backends, those in the handshake and silent ones: nothing is left open."""
    async with running_hub(pki) as hub:
        accepted, waiting = await hub.backend(), await hub.dial()
        await waiting.challenge()
        reader, _ = await hub.connection(tls=False)
        await eventually(lambda: hub.server.unauthenticated == 2, "two have a place")
        hub.serving.cancel()
        assert (await accepted.closed())[0] == 1006
        assert (await waiting.closed())[0] == 1006
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await eventually(hub.serving.done, "the hub has ended")
        assert not hub.registry.sessions
        assert hub.server.unauthenticated == 0
