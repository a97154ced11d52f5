"""The client's role in a session: streams that the hub announces are dialled and forwarded, or handed to a handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from backend_client.connection import Connection, StreamInfo
from backend_client.datagrams import FlowParts, LocalFlow
from backend_client.flow_table import FlowTable
from backend_client.lookups import ServiceAddress
from backend_client.mapping import PortMap, route
from backend_client.outbound import OutboundRequests
from backend_client.pauses import Pauses
from backend_client.reauth import Reauthentication
from nexus.errors import NexusError, RemoteProtocolError
from nexus.eventloop import descriptor_limit
from nexus.limits import LineBudget
from nexus.link.connection import Link, LinkEnd
from nexus.link.endpoint import SocketEndpoint
from nexus.link.quiet import wait_until_quiet
from nexus.link.session import EventHandlers, Session
from nexus.link.stream import Stream
from nexus.protocol.constants import CREDITS_INITIAL, DIAL_TIMEOUT_S, FEATURE_DRAIN, FEATURES, NIL_STREAM_ID
from nexus.protocol.handshake import parse_reauth_challenge
from nexus.protocol.messages import Control, credit_message, serialize_control, simple_message
from nexus.protocol.reasons import Reason
from nexus.protocol.window import SendWindow

_log = logging.getLogger("nexus.client")

Handler = Callable[[Connection], Awaitable[None]]
ACCEPTANCE_PING: Final = b"accepted?"
_MAP_IT: Final = "add the node's port to portMappings (nexus expose: --port)"


class Forwarder:
    """Gives streams their endpoints: the handler where one is set, else the target of the port map."""

    def __init__(
        self,
        ports: PortMap,
        handler: Handler | None,
        window: int = CREDITS_INITIAL,
        table: FlowTable[LocalFlow] | None = None,
    ) -> None:
        """Take the routes to local services; ``window`` is granted to the hub for each stream, in messages.

        ``table`` is what the clients of a process share; without it this one is taken for the only one.
        """
        self.ports = ports
        self.handler = handler
        self.window = window
        self.dial_failures = 0
        self.flows = FlowParts(FlowTable(descriptor_limit()) if table is None else table)
        self.streams_total = 0
        self._failure_lines = LineBudget()

    async def serve(self, stream: Stream, info: StreamInfo) -> None:
        """Connect ``stream`` with its endpoint; every failure ends the stream visibly and never escapes."""
        if self.handler is not None:
            await self._handle(self.handler, stream, info)
            return
        target = route(self.ports, info.port, info.hostname)
        if target is None:
            self._fail(stream, f"no port mapping for port {info.port} and {info.hostname!r}; {_MAP_IT}")
            return
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                _, endpoint = await asyncio.get_running_loop().create_connection(
                    lambda: SocketEndpoint(stream), target.host, target.port
                )
        except (OSError, UnicodeError) as error:  # TimeoutError is one; a name that IDNA refuses is a UnicodeError
            self._fail(stream, f"cannot reach {target}: {str(error) or 'no answer'}")
            return
        stream.attach(endpoint)

    def serve_flow(self, session: Session, control: Control, info: StreamInfo, tasks: asyncio.TaskGroup) -> None:
        """Give a UDP flow that the hub announced its socket; every failure ends the flow."""
        target = route(self.ports, info.port, info.hostname)
        if target is None:
            why = _MAP_IT if self.handler is None else "a handler serves TCP streams only"
            self._note(session, f"no port mapping for UDP port {info.port}; {why}")
            session.send_control(simple_message("disconnect", control.stream_id, Reason.DIAL_FAILED))
            return
        flow = LocalFlow(session, control.stream_id, control.credits, target, self.flows)
        session.flows[flow.id] = flow
        self._make_room(session, self.flows.table.add(flow))
        self.streams_total += 1
        if flow.grants:
            session.send_control(credit_message(flow.id, self.window))

        def connect(found: ServiceAddress | Exception) -> None:
            try:
                if isinstance(found, Exception):
                    raise found
                flow.connect(found)
            except (OSError, UnicodeError) as error:
                self._note(session, f"cannot reach {target}/udp: {error}")
                flow.close(Reason.DIAL_FAILED)

        self.flows.lookups.find(target, tasks, connect)

    def _make_room(self, session: Session, displaced: LocalFlow | None) -> None:
        """Close the flow that gives way, if any: TCP streams need descriptors, too."""
        if displaced is not None:
            displaced.close(Reason.LOCAL_ERROR)
            table = self.flows.table
            what = f"more than {table.limit} UDP flows: the least recently used gave way, {table.displaced} so far"
            self._warn(session, f"{what}; raise the limit of open files (LimitNOFILE, ulimit -Hn)")

    def _fail(self, stream: Stream, why: str) -> None:
        self._note(stream.session, why)
        stream.close(Reason.DIAL_FAILED)

    def _note(self, session: Session, why: str) -> None:
        self.dial_failures += 1
        self._warn(session, why)

    def _warn(self, session: Session, why: str) -> None:
        level = logging.WARNING if self._failure_lines.admit(session.link.now()) else logging.DEBUG
        _log.log(level, "%s", why)

    async def _handle(self, handler: Handler, stream: Stream, info: StreamInfo) -> None:
        connection = Connection(stream, info)
        stream.attach(connection.endpoint())
        try:
            await handler(connection)
        except NexusError as error:
            _log.debug("a stream for %s broke: %s", info.hostname, error)
            connection.abort()
        except Exception:  # noqa: BLE001 — the handler is not ours: its failure ends its stream, not the session
            _log.exception("the handler failed on a stream for %s", info.hostname)
            connection.abort()
        else:
            connection.close()


class ClientSession:
    """The client's side of one session."""

    def __init__(
        self,
        link: Link,
        hub: str,
        features: tuple[str, ...],
        forwarder: Forwarder,
        tasks: asyncio.TaskGroup,
        reauthentication: Reauthentication,
    ) -> None:
        """Take over a link behind the stage-1 token; ``features`` is what the hub offers."""
        self.hub = hub
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream_changed: Callable[[Stream, str | None], None] = lambda _stream, _reason: None
        self._forwarder = forwarder
        self._tasks = tasks
        self._reauthentication = reauthentication
        self._asked: dict[Stream, float] = {}
        self._pauses = Pauses(self._resume)
        common = tuple(name for name in FEATURES if name in features)
        self.session = Session(link, self, common)
        self.session.peer = hub
        self.outbound = OutboundRequests(self.session, self._add_stream)
        self.events: EventHandlers = {
            "connect": self._on_connect,
            "pong_client": self._on_pong_client,
            "outbound_result": self.outbound.answered,
        }
        link.owner = self.session
        if features:
            link.send_message(serialize_control(Control("hello", NIL_STREAM_ID, features=FEATURES)))
        link.ping(ACCEPTANCE_PING)

    async def drain(self, timeout_s: float) -> None:
        """Take no new streams where the hub can be told, wait for busy streams, then end all and close."""
        session = self.session
        if FEATURE_DRAIN in session.features:
            session.send_control(serialize_control(Control("drain", NIL_STREAM_ID)))
        await wait_until_quiet(session.streams.values, timeout_s, is_over=lambda: session.ended)
        if not session.ended:
            session.end_all(Reason.SHUTDOWN)
            session.link.close(reason="the backend stops")

    def check_health(self, now: float, inactivity_s: float, pong_s: float) -> None:
        """Ask the hub about streams that are idle; end those it does not answer for (spec backend-protocol 9)."""
        for stream in tuple(self.session.streams.values()):
            idle_s = stream.idle_s(now)
            asked = self._asked.get(stream)
            if asked is not None and now - max(asked, stream.unread_until(now)) >= pong_s:
                stream.close(Reason.TIMEOUT)
            elif asked is None and idle_s >= inactivity_s:
                self._asked[stream] = now
                self.session.send_control(simple_message("ping_client", stream.id))

    # -- Role -------------------------------------------------------------------------------------------------------

    def unknown_stream(self, stream_id: bytes) -> None:
        """Tell the hub that the stream is gone, as the original does."""
        self.session.send_control(simple_message("disconnect", stream_id, Reason.UNKNOWN))

    def ended_sending(self, stream: Stream) -> None:
        """A hub that does not know half-close learns of the service's FIN by the end of the stream."""
        stream.end_cleanly()

    def overflowed(self, stream: Stream) -> None:
        """A hub sends without counting until our first grant arrives: never break a stream for it."""
        self.session.hold_for(stream)

    def paused(self, stream_id: bytes) -> None:
        """A pause of the hub's ends by itself."""
        self._pauses.begin(stream_id)

    def text_received(self, text: str) -> None:
        """Text in a session asks for re-authentication, or means nothing (spec backend-protocol 4)."""
        link = self.session.link
        try:
            nonce = parse_reauth_challenge(text)
        except RemoteProtocolError as error:
            link.abort(str(error))
            return
        if nonce is None:
            _log.debug("%s sent %d characters of text that ask for nothing; ignored", self.hub, len(text))
        else:
            self._reauthentication.challenge(link, nonce)

    def pong_received(self, payload: bytes) -> None:
        """The answer to the ping behind the stage-1 token: the hub has accepted it."""
        if payload == ACCEPTANCE_PING and not self.accepted.done():
            self.accepted.set_result(None)

    def stream_ended(self, stream: Stream, reason: str) -> None:
        """Report it."""
        self._asked.pop(stream, None)
        self._pauses.forget(stream.id)
        self.stream_changed(stream, reason)

    def session_ended(self, end: LinkEnd) -> None:
        """Fetch no token any more; whoever waits for an answer fails, whoever waits for the link goes on."""
        self._reauthentication.cancel()
        self._pauses.clear()
        self.outbound.end()

    # -- Events -----------------------------------------------------------------------------------------------------

    def _on_connect(self, control: Control) -> None:
        session = self.session
        if control.stream_id == NIL_STREAM_ID or session.knows(control.stream_id):
            session.note_fault("announced a stream with an id that is in use; ignored")
            return
        info = StreamInfo(
            self.hub,
            control.hostname,
            control.conn_port,
            control.client_ip,
            "udp" if control.transport == "udp" else "tcp",
            control.is_tls,
        )
        if info.transport == "udp":
            self._forwarder.serve_flow(session, control, info, self._tasks)
            return
        stream = self._add_stream(control.stream_id, control.credits)
        self._tasks.create_task(self._forwarder.serve(stream, info))

    def _add_stream(self, stream_id: bytes, granted: int) -> Stream:
        """Make a stream with the hub's first grant, and send ours, or later where the hub is one of ours."""
        session = self.session
        stream = Stream(session, stream_id, SendWindow(granted, paced=False), receive_window=self._forwarder.window)
        session.streams[stream.id] = stream
        self._forwarder.streams_total += 1
        stream.grants = granted > 0
        if stream.grants and session.features:
            stream.grant_late()
        elif stream.grants:
            session.send_control(credit_message(stream.id, stream.receive_window.size))
        self.stream_changed(stream, None)
        return stream

    def _resume(self, stream_id: bytes) -> None:
        one = self.session.streams.get(stream_id) or self.session.flows.get(stream_id)
        if one is not None:
            one.receive_credits(0)

    def _on_pong_client(self, control: Control) -> None:
        stream = self.session.streams.get(control.stream_id)
        if stream is not None and self._asked.pop(stream, None) is not None:
            stream.active = True
