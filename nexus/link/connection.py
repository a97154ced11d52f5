"""A link: one WebSocket on one asyncio transport, as callbacks without a task.

The ``websockets`` library (sans-I/O) does the HTTP upgrade and every rare frame; ``nexus.protocol.framing`` takes the
binary messages straight from the receive buffer. The owner is told what arrives and when the transport is full.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from nexus.errors import NexusError, RemoteProtocolError
from nexus.link.hold import Hold
from nexus.link.upgrade import Upgrade
from nexus.protocol.constants import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY,
    CLOSE_REASON_MAX_BYTES,
    HANDSHAKE_MESSAGE_MAX_BYTES,
    KIND_DATA,
    MESSAGE_MAX_BYTES,
)
from nexus.protocol.framing import Buffer, FrameReader, Masker, RareFrame, data_header, frame_header

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover — a platform without the compiled extension
    from websockets.utils import apply_mask

# Twice the longest frame, so that a whole one always fits behind the rest of another.
RECEIVE_BUFFER_BYTES: Final = 2 * HANDSHAKE_MESSAGE_MAX_BYTES
# Above HIGH no stream sends; the TLS layer and the kernel hold about as much again (``nexus.tls.links``). All of it is
# 2 ms of a gigabit path, longer than a turn of the event loop, and 200 ms of one of 10 Mbit/s: so long a stream's bytes
# wait for what is ahead of them, whatever the other streams have.
WRITE_HIGH_BYTES: Final = 128 * 1024
WRITE_LOW_BYTES: Final = 32 * 1024
# Control messages and pongs are written even above HIGH; a peer that makes us queue this much is not reading.
WRITE_MAX_BYTES: Final = 16 * 1024 * 1024
# A token of 64 KiB in fragments of 4 KiB (the original's) is 16 frames, and pings come every few seconds; a stranger
# may not keep us busy with empty fragments.
HANDSHAKE_FRAMES_MAX: Final = 256
# What gathers in one turn of the event loop is written at the latest at this size: two full messages.
WRITE_BATCH_BYTES: Final = 64 * 1024
ROUND_TRIPS_KEPT: Final = 32  # ours: a path that has become longer is believed after so many pings
CLOSE_TIMEOUT_S: Final = 2.0  # RFC 6455 7.1.1: the closing handshake, before TCP is cut anyway
# The library tells of every connection at INFO; ``nexus.logs`` raises this logger's level.
WEBSOCKET_LOG: Final = logging.getLogger("nexus.websocket")
# Not empty, so that a pong that answers nothing (``hold``) is not taken for its answer.
KEEP_ALIVE_PING: Final = b"alive?"
_ABNORMAL: Final = 1006  # RFC 6455 7.4.1: no close frame was received
_INVALID_TEXT: Final = 1007
_NAMED_CODES: Final = frozenset(code.value for code in CloseCode)


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """How a link ended: the close code the peer sent (1006 without one), its reason, and what went wrong here."""

    code: int
    reason: str
    error: str = ""

    @property
    def label(self) -> str:
        """Why, for a metric: ``error``, or the close code; the other side chooses it, so only registered ones count."""
        if self.error:
            return "error"
        return str(self.code) if self.code in _NAMED_CODES else "other"

    def __str__(self) -> str:
        """Short text for a log line."""
        return self.error or f"closed with code {self.code}" + (f" ({self.reason})" if self.reason else "")


Admit = Callable[[asyncio.Transport], str]
"""Says why whoever connected is refused, before the upgrade is answered; "" admits."""


class LinkOwner(Protocol):
    """What a link tells; every call is made from the event loop and must not block or raise."""

    def message_received(self, message: bytes) -> None:
        """One whole binary message."""

    def text_received(self, text: str) -> None:
        """One whole text message."""

    def pong_received(self, payload: bytes) -> None:
        """The answer to a ping with this payload."""

    def writable_changed(self) -> None:
        """``link.writable`` changed."""

    def link_lost(self, end: LinkEnd) -> None:
        """The link is gone; called exactly once."""


class Link(asyncio.BufferedProtocol):
    """One WebSocket. ``opened`` completes with the upgrade, or raises RejectedError / RemoteProtocolError."""

    transport: asyncio.Transport  # from connection_made on

    def __init__(
        self,
        websocket: ServerProtocol | ClientProtocol,
        owner: LinkOwner,
        *,
        path: str,
        data_kind: int = KIND_DATA,
        admit: Admit | None = None,
    ) -> None:
        """Take a fresh sans-I/O protocol of either role; a server answers only ``path``, and whom it admits.

        ``data_kind`` is the first octet of the data messages that are sent.
        """
        self.websocket = websocket
        websocket.debug = False  # the library would log every frame, tokens among them
        self.owner = owner
        self.writable = True
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[LinkEnd] = asyncio.get_running_loop().create_future()
        self._upgrade = Upgrade(websocket, path)
        self._is_server = isinstance(websocket, ServerProtocol)
        self._data_kind = data_kind
        self._admit = admit
        self._masker = None if self._is_server else Masker(apply_mask, data_kind)
        self._reader = FrameReader(masked=self._is_server, apply_mask=apply_mask)
        self._view = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._end = 0
        self._in_session = False
        self._handshake_frames = 0
        self._closing = False
        self._deaf = False
        self._hold = Hold(self._give_sign_of_life)
        self._heard = True
        self._silent_s = 0.0
        self._step_s = 0.0
        self._pinged_at: float | None = None
        self.round_trip_s: float | None = None
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)
        self._backlog: list[bytes | RareFrame] = []
        self._unwritten: list[Buffer] = []
        self._unwritten_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._text: list[bytes] = []
        self._error = ""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.limit_messages(HANDSHAKE_MESSAGE_MAX_BYTES)

    # -- asyncio callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade request where this side is the client, or see who the client is."""
        self.transport = cast(asyncio.Transport, transport)
        if self._admit is not None:
            self._upgrade.refusal = self._admit(self.transport)
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        if isinstance(self.websocket, ClientProtocol):
            self.websocket.send_request(self.websocket.connect())
            self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Offer the free rest of the receive buffer."""
        del sizehint
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what arrived."""
        self._end += nbytes
        self._heard = True
        if self._upgrade.done:
            self._receive_frames()
        else:
            self._receive_head()

    def eof_received(self) -> None:
        """Let the transport close: TLS has no half-close."""
        self._stop_sending()

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self.writable = False
        self.owner.writable_changed()

    def resume_writing(self) -> None:
        """Note that the transport's buffer has room again."""
        if not self._closing:
            self.writable = True
            self.owner.writable_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, once."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._hold.stop()
        self._closing = self._deaf = True
        self.writable = False
        self._backlog.clear()
        self._upgrade.receive_eof()
        received = self.websocket.close_rcvd
        end = LinkEnd(
            received.code if received else _ABNORMAL,
            received.reason if received else "",
            self._error or (str(exc) if exc else ""),
        )
        ended = RemoteProtocolError(f"the connection ended during the upgrade: {end}")
        self._fail_upgrade(self._upgrade.failure or ended)
        if not self.lost.done():  # a waiter that was cancelled took the future with it
            self.lost.set_result(end)
        self.owner.link_lost(end)

    # -- Sending ----------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Tell whether nothing more will be sent: the link is gone, or its end has begun on either side."""
        return self._closing or self.transport.is_closing()

    def waiting_bytes(self) -> int:
        """Return how many bytes wait to be written."""
        return self._unwritten_bytes + self.transport.get_write_buffer_size()

    def send_data(self, stream_id: bytes, payload: Buffer) -> None:
        """Send one data message of at most PAYLOAD_MAX_BYTES; call only while ``writable``."""
        if self._masker is None:
            self._write(data_header(stream_id, len(payload), self._data_kind), payload)
        else:
            self._write(*self._masker.data_frame(stream_id, payload))

    def send_message(self, message: bytes) -> None:
        """Send one small binary message (a control message), also above the high-water mark.

        A no-op once the link is closing: nothing may follow a close frame (RFC 6455 section 5.5.1).
        """
        if self._closing or self.transport.is_closing():
            return
        if self._masker is None:
            self._write(frame_header(len(message)), message)
        else:
            self._write(self._masker.frame(message), b"")

    def send_text(self, text: str) -> None:
        """Send one text message; a no-op once the link is closing."""
        if self.websocket.state is State.OPEN:
            self.websocket.send_text(text.encode())
            self._flush()

    def now(self) -> float:
        """Return the event loop's clock, in seconds."""
        return self._loop.time()

    def next_turn(self, callback: Callable[[], None]) -> None:
        """Call back in the event loop's next turn, when everybody else had one."""
        self._loop.call_soon(callback)

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping; a no-op once the link is closing."""
        if self.websocket.state is State.OPEN:
            self.websocket.send_ping(payload)
            self._flush()

    # -- Control ----------------------------------------------------------------------------------------------------

    def start_session(self) -> None:
        """Bound messages as the session does; call once the handshake is over."""
        self._in_session = True
        self.limit_messages(MESSAGE_MAX_BYTES)

    def limit_messages(self, limit: int, text_limit: int | None = None) -> None:
        """Close with 1009 when a message is longer than this, all its fragments together; text has a limit of its own.

        A binary ``limit`` is at most HANDSHAKE_MESSAGE_MAX_BYTES: such a message must fit into the receive buffer.
        """
        self._reader.max_message_bytes = limit
        self._reader.max_text_bytes = limit if text_limit is None else text_limit

    def keep_alive(self, interval_s: float, dead_after_s: float) -> None:
        """Ping every ``interval_s``; abort the link when nothing at all arrived for ``dead_after_s``.

        Silence is counted from tick to tick, so it may last one interval more. A held link counts as alive: nobody
        looks at what arrives there.
        """
        if self.transport.is_closing():
            return
        self._silent_s = 0.0 if self._heard or self._hold.on else self._silent_s + self._step_s
        self._heard = False
        if self._silent_s >= dead_after_s:
            self.abort(f"no sign of life for {self._silent_s:.0f} s")
            return
        self._pinged_at = self.now()
        self.ping(KEEP_ALIVE_PING)
        self._step_s = min(interval_s, dead_after_s - self._silent_s)
        self._later("keep-alive", self._step_s, lambda: self.keep_alive(interval_s, dead_after_s))

    @property
    def silent_s(self) -> float:
        """For how long nothing has come, in whole intervals of ``keep_alive``."""
        return self._silent_s

    @property
    def held(self) -> bool:
        """Whether nothing is read at present."""
        return self._hold.on

    def held_until(self, now: float) -> float:
        """Return the last moment, ``now`` at the latest, at which the link was held; minus infinity if it never was.

        What the other side sent before it may have been here, unseen, until then.
        """
        return self._hold.until(now)

    def hold(self) -> None:
        """Stop reading and delivering, at once, also what was read already; the other side gets signs of life."""
        if not self._hold.on:
            self._hold.begin()
            self.transport.pause_reading()

    def release(self) -> None:
        """Undo ``hold``."""
        if self._hold.on:
            self._hold.end()
            backlog, self._backlog = self._backlog, []
            self._deliver(backlog)
            if not self._hold.on and not self.transport.is_closing():
                self.transport.resume_reading()

    def close(self, code: int = CLOSE_GOING_AWAY, reason: str = "") -> None:
        """Start the closing handshake; TCP follows within CLOSE_TIMEOUT_S. A reason too long for its frame is cut."""
        if self.websocket.state is State.OPEN and not self.is_closing():
            fitting = reason.encode("utf-8", "replace")[:CLOSE_REASON_MAX_BYTES].decode("utf-8", "ignore")
            self.websocket.send_close(code, fitting)
            self._flush()
        self._stop_sending()
        self.release()

    def abort(self, error: str) -> None:
        """Cut the connection; ``error`` says why in the LinkEnd."""
        self._error = self._error or error
        self._unwritten.clear()
        self._unwritten_bytes = 0
        self._stop_sending()
        self.transport.abort()

    def _stop_sending(self) -> None:
        """Send nothing more, and cut the connection if the other side does not end it either."""
        if self._closing:
            return
        self._closing = True
        self._later("close", CLOSE_TIMEOUT_S, lambda: self.abort(""))
        if self.writable:
            self.writable = False
            self.owner.writable_changed()

    def _give_sign_of_life(self) -> bool:
        if self.websocket.state is not State.OPEN or self.is_closing():
            return False
        self.websocket.send_pong(b"")
        self._flush()
        return True

    # -- Receiving --------------------------------------------------------------------------------------------------

    def _receive_head(self) -> None:
        upgrade = self._upgrade
        while self._end and not upgrade.done and upgrade.failure is None:
            used = upgrade.receive(self._view, self._end)
            if not used:
                return
            self._consume(used)
        self._flush()
        if upgrade.failure is not None:
            self._fail_upgrade(upgrade.failure)
            self._end = 0
            self._stop_sending()
            self.transport.close()
        elif upgrade.done:
            if not self.opened.done():
                self.opened.set_result(None)
            self._receive_frames()

    def _fail_upgrade(self, error: NexusError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # whoever does not wait for it is not warned

    def _consume(self, used: int) -> None:
        rest = self._end - used
        if rest and used:
            self._view[:rest] = self._view[used : self._end]
        self._end = rest

    def _receive_frames(self) -> None:
        if self._deaf:
            self._end = 0
            return
        items, used = self._reader.receive(self._view, self._end)
        if used:
            self._consume(used)
        if self._hold.on:
            self._backlog.extend(items)
        else:
            self._deliver(items)

    def _deliver(self, items: list[bytes | RareFrame]) -> None:
        for position, item in enumerate(items):
            if self._deaf:
                return
            if isinstance(item, bytes):
                self.owner.message_received(item)
            else:
                self._receive_rare(item)
            if self._hold.on:
                self._backlog[:0] = items[position + 1 :]
                return

    def _receive_rare(self, frame: RareFrame) -> None:
        websocket = self.websocket
        if not self._in_session:
            self._handshake_frames += 1
            if self._handshake_frames > HANDSHAKE_FRAMES_MAX and websocket.state is State.OPEN:
                websocket.fail(CLOSE_POLICY, "too many frames before the session")
                self._fail(f"more than {HANDSHAKE_FRAMES_MAX} frames before the session")
                self._flush()
                return
        websocket.max_message_size = frame.message_max_bytes
        if frame.fragment_bytes is not None:
            websocket.current_size = frame.fragment_bytes
        websocket.receive_data(frame.raw)
        if frame.fragment_bytes is not None:
            websocket.current_size = None
        for event in websocket.events_received():
            if isinstance(event, Frame):
                self._receive_event(event)
        if websocket.parser_exc is not None:
            self._fail(f"protocol violation: {websocket.parser_exc}")
        elif websocket.close_rcvd is not None:
            self._fail("")
        self._flush()

    def _fail(self, error: str) -> None:
        """Take nothing that follows a close frame or a violation (RFC 6455 sections 1.4 and 7.1.7)."""
        self._error = self._error or error
        self._deaf = True
        self._stop_sending()

    def _receive_event(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            if frame.data == KEEP_ALIVE_PING and self._pinged_at is not None:
                self._note_round_trip(self.now() - self._pinged_at)
                self._pinged_at = None
            self.owner.pong_received(bytes(frame.data))
        elif frame.opcode in {Opcode.TEXT, Opcode.CONT}:
            if frame.data:  # an endless row of empty fragments costs no memory
                self._text.append(bytes(frame.data))
            if frame.fin:
                raw, self._text = b"".join(self._text), []
                try:
                    text = raw.decode()
                except UnicodeDecodeError:
                    self.websocket.fail(_INVALID_TEXT, "text is not UTF-8")
                    self._fail("protocol violation: text is not UTF-8")
                    return
                self.owner.text_received(text)

    def _note_round_trip(self, round_trip_s: float) -> None:
        """Keep the shortest of late: the others waited behind data, here or there."""
        self._round_trips.append(round_trip_s)
        self.round_trip_s = min(self._round_trips)

    # -- Writing ----------------------------------------------------------------------------------------------------

    def _write(self, header: bytes, payload: Buffer) -> None:
        """Gather what is sent in one turn of the event loop into one TLS record and one system call."""
        if not self._unwritten:
            self._loop.call_soon(self.write_out)
        self._unwritten.append(header)
        self._unwritten.append(payload)
        self._unwritten_bytes += len(header) + len(payload)
        if self._unwritten_bytes >= WRITE_BATCH_BYTES:
            self.write_out()

    def write_out(self) -> None:
        """Write what was gathered in this turn of the event loop now rather than at its end."""
        if not self._unwritten:
            return
        # Joined: a TLS write of its own for each small header costs more than the copy.
        data = b"".join(self._unwritten)
        self._unwritten.clear()
        self._unwritten_bytes = 0
        if self.transport.is_closing():
            return
        self.transport.write(data)
        if self.transport.get_write_buffer_size() > WRITE_MAX_BYTES:
            self.abort(f"the peer does not read: more than {WRITE_MAX_BYTES} bytes wait for it")

    def _flush(self) -> None:
        """Send what the library wants sent, behind everything before it."""
        for data in self.websocket.data_to_send():
            if self.transport.is_closing():
                return
            if data:
                self._write(data, b"")
            self.write_out()
            if not data:  # the library's sign for "half-close": with TLS that is a close
                self.transport.close()

    def _later(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(delay_s, call)
