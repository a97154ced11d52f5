"""One authenticated backend: the hub's role in its session."""

from __future__ import annotations

import logging
from typing import Final

from websockets.frames import CloseCode

from nexus.auth.grants import Grant
from nexus.hub.registry import Registry
from nexus.link.connection import Link, LinkEnd
from nexus.link.session import EventHandlers, Session
from nexus.link.stream import Stream
from nexus.protocol.constants import FEATURE_DRAIN, FEATURES
from nexus.protocol.messages import Control, new_stream_id, serialize_control, simple_message
from nexus.protocol.reasons import Reason, is_clean
from nexus.protocol.window import SendWindow
from nexus.transport import OpenRequest

_log = logging.getLogger("nexus.hub")

# A client's FIN cannot be told to a backend that does not know half-close. It may only have ended its request, so the
# stream stays for the answer, until nothing came back for so long.
UNTOLD_FIN_LINGER_S: Final = 30.0
# A backend chooses its close code; only the registered ones are values of a metric's label.
_NAMED_CODES: Final = frozenset(code.value for code in CloseCode)


class BackendSession:
    """The hub's side of a session; joins the registry at once and leaves it with the link."""

    def __init__(self, link: Link, grant: Grant, registry: Registry, address: str) -> None:
        """Take over an authenticated link."""
        self.grant = grant
        self.address = address
        self.events: EventHandlers = {
            "hello": self._on_hello,
            "ping_client": self._on_ping_client,
            "drain": self._on_drain,
            "outbound_connect": self._on_outbound_connect,
        }
        self.session = Session(link, self, ())
        if registry.bandwidth is not None:
            self.session.share = registry.bandwidth.share()
        self._registry = registry
        self._untold_fins: set[Stream] = set()
        link.owner = self.session
        registry.join(self)

    @property
    def name(self) -> str:
        """Who this is, for a log line."""
        return f"{self.grant.subject or 'backend'} at {self.address}"

    def open_stream(self, request: OpenRequest, route_key: str) -> Stream | None:
        """Announce a new stream to the backend; None where its link is already going down."""
        link = self.session.link
        if self.session.ended or link.is_closing():
            return None
        stream = Stream(self.session, new_stream_id(), SendWindow(paced=True))
        # Known before it is announced, so that an instant answer finds it.
        self.session.streams[stream.id] = stream
        connect = Control(
            "connect",
            stream.id,
            conn_port=request.local_port,
            client_ip=request.client,
            transport="tcp",
            hostname=route_key,
            is_tls=request.is_tls,
            credits=stream.receive_window.size,
        )
        link.send_message(serialize_control(connect))
        return stream

    def sweep(self, now: float, idle_timeout_s: float) -> None:
        """End streams that were idle too long (0: never) or whose client's FIN led to no answer."""
        for stream in tuple(self.session.streams.values()):
            idle_s = stream.idle_s(now)
            if idle_timeout_s and idle_s >= idle_timeout_s:
                stream.close(Reason.TIMEOUT)
            elif stream in self._untold_fins and idle_s >= UNTOLD_FIN_LINGER_S:
                stream.end_cleanly()

    # -- Role -------------------------------------------------------------------------------------------------------

    def unknown_stream(self, stream_id: bytes) -> None:
        """Data that crossed our disconnect on the way: dropped, as the original does."""

    def ended_sending(self, stream: Stream) -> None:
        """Wait for the backend's answer to a FIN that cannot be told."""
        self._untold_fins.add(stream)

    def overflowed(self, stream: Stream) -> None:
        """Break the stream of a backend that overran its credits; stop reading from one that knows none."""
        if stream.send_window.limited:
            _log.warning("%s overran the credits of a stream: reset", self.name)
            stream.close(Reason.BUFFER_FULL)
        else:
            self.session.hold_for(stream)

    def text_received(self, text: str) -> None:
        """Text has no meaning here: no re-authentication is pending."""
        _log.debug("%s sent %d characters of text outside a handshake", self.name, len(text))

    def pong_received(self, payload: bytes) -> None:
        """A sign of life; the link has noted it."""

    def stream_ended(self, stream: Stream, reason: str) -> None:
        """Count it."""
        self._untold_fins.discard(stream)
        if not is_clean(reason):
            label = reason if reason in Reason._value2member_map_ else Reason.UNKNOWN.value
            self._registry.totals.stream_resets[label] += 1

    def session_ended(self, end: LinkEnd) -> None:
        """Leave the registry."""
        code = str(end.code) if end.code in _NAMED_CODES else "other"
        self._registry.leave(self, "error" if end.error else code)
        _log.info("session of %s ended: %s", self.name, end)

    # -- Events -----------------------------------------------------------------------------------------------------

    def _on_hello(self, control: Control) -> None:
        self.session.features = frozenset(control.features) & frozenset(FEATURES)

    def _on_ping_client(self, control: Control) -> None:
        if control.stream_id in self.session.streams:
            self.session.send_control(simple_message("pong_client", control.stream_id))

    def _on_drain(self, control: Control) -> None:
        del control
        if FEATURE_DRAIN in self.session.features:
            self._registry.retire(self)
            _log.info("%s is draining: no new streams for it", self.name)

    def _on_outbound_connect(self, control: Control) -> None:
        answer = Control(
            "outbound_result", control.stream_id, reason="outbound connections are not allowed on this hub"
        )
        self.session.send_control(serialize_control(answer))
