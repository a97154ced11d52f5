"""The cap of a node as the event loop sees it: one timer, and a gate for each backend.

The timer is set for the moment when the bucket holds the next piece; while nobody waits there is none. Between two
rounds that the bucket allows at once the loop looks at its sockets first, see ``scheduler``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final

from nexus.bandwidth.datagrams import DatagramQueues, Send
from nexus.bandwidth.endpoint import PacedEndpoint
from nexus.bandwidth.scheduler import BYTES_PER_MEGABIT, Scheduler
from nexus.link.endpoint import OnClosed, SocketEndpoint
from nexus.link.stream import Endpoint, Stream
from nexus.protocol.framing import Buffer

# Both event loops count their timers in milliseconds; uvloop rounds to the nearest, so an exact time would come too
# early and then be asked for again and again. To be late costs nothing, see ``BURST_S``.
_TIMER_STEP_S: Final = 0.001


class Limiter:
    """The cap of one node."""

    def __init__(self, megabits_per_second: int) -> None:
        """Allow so many 10^6 bits a second, both directions of all backends together."""
        self.scheduler = Scheduler(megabits_per_second * BYTES_PER_MEGABIT, self._arm)
        self._armed = False

    def gate(self) -> BackendGate:
        """Return the gate of a new backend; nothing need be told of its end."""
        return BackendGate(self.scheduler)

    def _arm(self) -> None:
        """Come back when somebody's turn is affordable."""
        if self._armed:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        at = self.scheduler.next_at(now)
        if at is None:
            return
        self._armed = True
        if at > now:
            steps = math.ceil((at - now) / _TIMER_STEP_S)
            loop.call_later(steps * _TIMER_STEP_S, self._serve)
        else:
            # Two turns: what is called in the next one may come before the sockets are looked at.
            loop.call_soon(loop.call_soon, self._serve)

    def _serve(self) -> None:
        try:
            self.scheduler.round(asyncio.get_running_loop().time())
        finally:
            self._armed = False
            self._arm()


class BackendGate:
    """``nexus.link.splice.Gate``: one backend's share, as its streams and flows meet it."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Use ``Limiter.gate``."""
        self._share = scheduler.share()
        self._to_backend = DatagramQueues(self._share)
        self._to_clients = DatagramQueues(self._share)
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    def pace(
        self, stream: Stream, transport: asyncio.Transport | None, on_closed: OnClosed | None
    ) -> tuple[SocketEndpoint, Endpoint]:
        """Return a socket's protocol, and the endpoint of the stream that goes with it."""
        paced = PacedEndpoint(stream, self._share, self._now)
        socket = SocketEndpoint(paced, transport, on_closed)
        paced.socket = socket
        return socket, paced

    def between(self, stream: Stream) -> PacedEndpoint:
        """Return what stands between two streams; the other one's endpoint is its ``socket``, still to be set."""
        return PacedEndpoint(stream, self._share, self._now, joined=True)

    def offer(self, flow: Hashable, datagram: Buffer, send: Send, *, to_backend: bool) -> bool:
        """Send a datagram at once or in its turn; False means that the caller drops and counts it."""
        queues = self._to_backend if to_backend else self._to_clients
        return queues.offer(flow, datagram, send, self._now())

    def forget(self, flow: Hashable) -> int:
        """Drop what waits for a flow that ended, in both directions; return how many datagrams."""
        return self._to_backend.forget(flow) + self._to_clients.forget(flow)
