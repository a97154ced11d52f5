"""One authenticated backend: the hub's role in its session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from nexus.auth.grants import Grant
from nexus.hub.outbound import Outbound
from nexus.hub.registry import Registry
from nexus.hub.targets import NO_OUTBOUND, OutboundPolicy
from nexus.link.connection import Link, LinkEnd
from nexus.link.flow import FLOW_WINDOW, Address, Flow, FlowOwner
from nexus.link.session import EventHandlers, Session
from nexus.link.stream import Stream
from nexus.protocol.constants import FEATURE_DRAIN, FEATURES, HANDSHAKE_MESSAGE_MAX_BYTES, MESSAGE_MAX_BYTES
from nexus.protocol.messages import Control, new_stream_id, serialize_control, simple_message
from nexus.protocol.reasons import Reason, is_clean
from nexus.protocol.window import SendWindow
from nexus.transport import OpenRequest

_log = logging.getLogger("nexus.hub")

# A client's FIN cannot be told to a backend that does not know half-close. It may only have ended its request, so the
# stream stays for the answer, until nothing came back for so long.
UNTOLD_FIN_LINGER_S: Final = 30.0
# Where a slow client of a backend without credits held up the link, an answer may be here unread, or be far behind what
# was not read, for no fault of the backend's. It gets so much more time, and no more: who holds up the link on purpose
# must not escape the question.
HELD_GRACE_S: Final = 300.0


class BackendSession:
    """The hub's side of a session; joins the registry at once and leaves it with the link."""

    def __init__(
        self,
        link: Link,
        grant: Grant,
        registry: Registry,
        address: str,
        tasks: asyncio.TaskGroup,
        *,
        outbound: OutboundPolicy = NO_OUTBOUND,
    ) -> None:
        """Take over an authenticated link; ``tasks`` runs what it has to wait for."""
        self.grant = grant
        self.address = address
        self.session = Session(link, self, ())
        self.session.peer = self.name
        self.outbound = Outbound(self.session, grant, outbound, registry, tasks)
        self.events: EventHandlers = {
            "hello": self._on_hello,
            "ping_client": self._on_ping_client,
            "drain": self._on_drain,
            "disconnect": self._on_disconnect,
            "outbound_connect": self.outbound.request,
        }
        if registry.bandwidth is not None:
            self.session.gate = registry.bandwidth.gate()
        self._registry = registry
        self._drains = False
        self._untold_fins: set[Stream] = set()
        self._answer: asyncio.Future[str] | None = None
        link.owner = self.session
        registry.join(self)

    @property
    def name(self) -> str:
        """Who this is, for a log line."""
        return f"{self.grant.subject or 'backend'} at {self.address}"

    @property
    def udp_routes(self) -> Mapping[int, int]:
        """The UDP ports claimed, with the idle time of their flows in seconds."""
        return self.grant.udp_routes

    def open_stream(self, request: OpenRequest, route_key: str) -> Stream | None:
        """Announce a new stream to the backend; None where its link is already going down."""
        link = self.session.link
        if self.session.ended or link.is_closing():
            return None
        stream = Stream(self.session, new_stream_id(), SendWindow(paced=True))
        # Known before it is announced, so that an instant answer finds it.
        self.session.streams[stream.id] = stream
        self._registry.totals.streams += 1
        link.send_message(_connect(stream.id, request, "tcp", route_key, stream.receive_window.size))
        return stream

    def open_flow(self, request: OpenRequest, owner: FlowOwner, client: Address) -> Flow | None:
        """Announce a new UDP flow; None where the link is going down, or has too much waiting for more of them."""
        session = self.session
        if session.ended or not session.has_room():
            return None
        flow = Flow(session, new_stream_id(), owner, client)
        session.flows[flow.id] = flow
        self._registry.totals.streams += 1
        session.send_control(_connect(flow.id, request, "udp", f"udp:{request.local_port}", FLOW_WINDOW))
        return flow

    async def ask(self, question: str, grace_s: float) -> str:
        """Send a text and return the first text that comes back; call again only when this has returned.

        Meanwhile a message may be as long as a token of the handshake.

        Raises:
            TimeoutError: nothing came back within ``grace_s``.
        """
        link = self.session.link
        # Before the question is sent: no answer is too fast for it.
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answer = answer
        link.limit_messages(HANDSHAKE_MESSAGE_MAX_BYTES)
        asked_at = link.now()
        try:
            link.send_text(question)
            await asyncio.wait([answer], timeout=grace_s)
            if not answer.done() and link.held_until(link.now()) > asked_at:
                await asyncio.wait([answer], timeout=HELD_GRACE_S)
            if not answer.done():
                raise TimeoutError(f"no token within {grace_s:g} s (reauth_grace_seconds)")
            return answer.result()
        finally:
            self._answer = None
            link.limit_messages(MESSAGE_MAX_BYTES)

    def sweep(self, now: float, idle_timeout_s: float) -> None:
        """End streams that were idle too long (0: never) or whose client's FIN led to no answer, or no more of it.

        Outbound ones have a time-out of their own. A client that does not take its answer gets no FIN for that.
        """
        for stream in tuple(self.session.streams.values()):
            idle_s = stream.idle_s(now)
            limit_s = self.outbound.policy.idle_timeout_s if self.outbound.owns(stream) else idle_timeout_s
            is_answered = stream in self._untold_fins and not stream.endpoint.unwritten_bytes()
            if limit_s and idle_s >= limit_s:
                stream.close(Reason.TIMEOUT)
            elif is_answered and idle_s >= UNTOLD_FIN_LINGER_S:
                stream.end_cleanly()

    # -- Role -------------------------------------------------------------------------------------------------------

    def unknown_stream(self, stream_id: bytes) -> None:
        """Data that crossed our disconnect on the way: dropped, as the original does."""

    def ended_sending(self, stream: Stream) -> None:
        """Wait for the backend's answer to a client's FIN that cannot be told; a server's FIN ended its answer."""
        if self.outbound.owns(stream):
            stream.end_cleanly()
        else:
            self._untold_fins.add(stream)

    def overflowed(self, stream: Stream) -> None:
        """Break the stream of a backend that overran its credits; stop reading from one that knows none."""
        if stream.send_window.limited:
            self.session.note_fault("overran the credits of a stream: reset")
            stream.close(Reason.BUFFER_FULL)
        else:
            self.session.hold_for(stream)

    def paused(self, stream_id: bytes) -> None:
        """Until the backend resumes it, as to the original."""

    def text_received(self, text: str) -> None:
        """Take the answer to a question; other text has no meaning, and nothing of it is kept."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(text)
            return
        self._registry.totals.ignored_texts += 1
        _log.debug("%s sent %d characters of text that nobody asked for", self.name, len(text))

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
        self.outbound.end()
        self._registry.leave(self, end.label)
        _log.info("session of %s ended: %s", self.name, end)

    # -- Events -----------------------------------------------------------------------------------------------------

    def _on_hello(self, control: Control) -> None:
        self.session.features = frozenset(control.features) & frozenset(FEATURES)

    def _on_ping_client(self, control: Control) -> None:
        if self.session.knows(control.stream_id):
            self.session.send_control(simple_message("pong_client", control.stream_id))

    def _on_drain(self, control: Control) -> None:
        del control
        if FEATURE_DRAIN in self.session.features and not self._drains:
            self._drains = True
            self._registry.retire(self)
            _log.info("%s is draining: no new streams for it", self.name)

    def _on_disconnect(self, control: Control) -> None:
        """Of a stream that is not here: an outbound connection that is still being dialled, perhaps."""
        self.outbound.give_up(control.stream_id)


def _connect(stream_id: bytes, request: OpenRequest, transport: str, route_key: str, window: int) -> bytes:
    return serialize_control(
        Control(
            "connect",
            stream_id,
            conn_port=request.local_port,
            client_ip=request.client,
            transport=transport,
            hostname=route_key,
            is_tls=request.is_tls,
            credits=window,
        )
    )
