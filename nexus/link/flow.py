"""One UDP flow in a session: a datagram a message, at the hub's end.

Strategy: UDP promises nothing, so nothing waits here. A datagram goes on at once or is dropped, and whoever drops it
counts it; no flow can hold up another. (Under a bandwidth cap a few wait for their turn, in the session's gate.) A
flow is a handful of fields (200,000 of them must fit), not a ``Stream``: no window in front of it, no buffer, no socket
of its own. Towards the backend credits are not enforced, because original backends grant 64 for a flow and never more;
in the other direction they are granted as for any stream.

Source: spec backend-protocol 7.2, 10; weak points W4, W26.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from nexus.protocol.framing import Buffer
from nexus.protocol.reasons import Reason

if TYPE_CHECKING:
    from nexus.link.session import Session

# What a backend may have under way on a flow. Nothing is kept here, so it costs no memory: 512 datagrams of 1,200
# bytes let a flow have 49 Mbit/s over a round trip of 100 ms, where the original's 64 give 6.
FLOW_WINDOW: Final = 512
FLOW_BATCH: Final = 64  # ours: granted again eight times a window, so that credits are few beside datagrams

Address = tuple[str, int] | tuple[str, int, int, int]
"""What the kernel says of the client: IP address and port, for IPv6 also flow label and scope."""


class SessionFlow(Protocol):
    """What a session tells a flow, of either role; calls never block and never raise."""

    id: bytes

    def receive(self, datagram: Buffer) -> None:
        """One datagram from the peer."""

    def receive_credits(self, count: int) -> None:
        """Handle ``resume_stream``."""

    def receive_pause(self) -> None:
        """Handle ``pause_stream``."""

    def receive_disconnect(self, reason: str) -> None:
        """Handle ``disconnect``: the session has forgotten the flow."""

    def session_lost(self) -> None:
        """The link is gone."""

    def close(self, reason: Reason) -> None:
        """End the flow from this side."""


class Drop(StrEnum):
    """Why a flow dropped a datagram; the values are those of a metric's label."""

    BACKEND_SLOW = "backend_slow"  # the link to the backend is full, or closing
    NO_TURN = "no_turn"  # its turn under the bandwidth cap is too far off
    FLOW_ENDED = "flow_ended"  # before its turn came
    PEER_SLOW = "peer_slow"  # the link to the node that has the client is full, or closing


class FlowOwner(Protocol):
    """The public port that a flow belongs to."""

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        """Send a datagram of the backend to the client of the flow, or drop and count it."""

    def sent(self, flow: Flow) -> None:
        """Count a datagram of the client that went to the backend."""

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        """Count datagrams, of either direction, that the flow had to drop."""

    def flow_ended(self, flow: Flow) -> None:
        """The backend, or the end of its session, ended the flow: forget it. The next datagram opens another."""


class Flow:
    """One client of a public UDP port, as the hub holds it in ``session.flows``."""

    __slots__ = ("client", "held", "id", "last_seen", "local", "owner", "session")

    def __init__(self, session: Session, flow_id: bytes, owner: FlowOwner, client: Address) -> None:
        """Start a flow of ``client``; ``local`` is the owner's note of the address that the client asked."""
        self.session = session
        self.id = flow_id
        self.owner = owner
        self.client = client
        self.local = b""
        self.held = 0
        self.last_seen = 0.0

    def send(self, datagram: Buffer) -> None:
        """Send a datagram of the client to the backend, under a cap in its turn; the owner hears what becomes of it."""
        session = self.session
        if session.gate is None:
            self._send_now(datagram)
        elif not session.has_room():
            self.owner.dropped(self, Drop.BACKEND_SLOW)
        elif not session.gate.offer(self.id, datagram, self._send_now, to_backend=True):
            self.owner.dropped(self, Drop.NO_TURN)

    def receive(self, datagram: Buffer) -> None:
        """Hand a datagram of the backend to the owner, under a cap in its turn, and grant again what was taken."""
        gate = self.session.gate
        if gate is None:
            self.owner.deliver(self, datagram)
        elif not gate.offer(self.id, datagram, self._deliver_in_turn, to_backend=False):
            self.owner.dropped(self, Drop.NO_TURN)
        self.held += 1
        if self.held >= FLOW_BATCH and self.session.wire.grants_flows:
            self.session.send_control(self.session.wire.credits(self.id, self.held))
            self.held = 0

    def receive_credits(self, count: int) -> None:
        """Not enforced on UDP."""

    def receive_pause(self) -> None:
        """Not heeded on UDP, as in the original: what is too much is dropped where it does not fit."""

    def receive_disconnect(self, reason: str) -> None:
        """Tell the owner."""
        del reason
        self._end()

    def session_lost(self) -> None:
        """Tell the owner."""
        self._end()

    def close(self, reason: Reason) -> None:
        """Tell the backend that the flow is over; a no-op once it is."""
        if self.session.flows.pop(self.id, None) is not None:
            self._forget_waiting()
            self.session.send_control(self.session.wire.disconnect(self.id, reason))

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._forget_waiting()
        self.owner.flow_ended(self)

    def _send_now(self, datagram: Buffer) -> None:
        if self.session.send_datagram(self.id, datagram):
            self.owner.sent(self)
        else:
            self.owner.dropped(self, Drop.BACKEND_SLOW)

    def _deliver_in_turn(self, datagram: Buffer) -> None:
        self.owner.deliver(self, datagram)

    def _forget_waiting(self) -> None:
        """Drop what waits for its turn: a flow that is over has nobody to send it to."""
        gate = self.session.gate
        if gate is not None and (count := gate.forget(self.id)):
            self.owner.dropped(self, Drop.FLOW_ENDED, count)
