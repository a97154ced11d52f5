"""Connections that a session asks its hub for, until the hub has answered.

The stream is made while the answer is handled, not when whoever waits for it wakes up: data may follow at once. Whoever
gives up (time limit, cancellation) leaves nothing behind: the hub is told, now or when its late success arrives, and a
stream that came meanwhile is broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backend_client.mapping import Target
from nexus.errors import OutboundError
from nexus.link.session import Session
from nexus.link.stream import Stream
from nexus.protocol.constants import OUTBOUND_ANSWER_TIMEOUT_S
from nexus.protocol.messages import Control, new_stream_id, serialize_control, simple_message
from nexus.protocol.reasons import Reason


class OutboundRequests:
    """The requests of one session."""

    def __init__(self, session: Session, make_stream: Callable[[bytes, int], Stream]) -> None:
        """Take what makes a stream of an id and the hub's first grant, and grants to the hub."""
        self._session = session
        self._make_stream = make_stream
        self._waiting: dict[bytes, asyncio.Future[Stream]] = {}

    async def open(self, target: Target) -> Stream:
        """Have the hub dial ``target``; return a stream without an endpoint, which the caller attaches.

        Raises:
            OutboundError: the hub refused, did not answer in time, or the session ended.
        """
        if self._session.ended or self._session.link.is_closing():
            raise OutboundError("the session with the hub has ended")
        stream_id = new_stream_id()
        answer: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = answer
        self._session.send_control(serialize_control(Control("outbound_connect", stream_id, target_addr=str(target))))
        try:
            async with asyncio.timeout(OUTBOUND_ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError:
            self._give_up(stream_id, Reason.TIMEOUT)
            raise OutboundError(f"the hub did not answer within {OUTBOUND_ANSWER_TIMEOUT_S:g} s") from None
        except asyncio.CancelledError:
            self._give_up(stream_id, Reason.SHUTDOWN)
            raise
        finally:
            self._waiting.pop(stream_id, None)

    def answered(self, result: Control) -> None:
        """Handle ``outbound_result``; a success that nobody waits for is given back."""
        answer = self._waiting.pop(result.stream_id, None)
        if answer is not None and not answer.done():
            if result.success:
                answer.set_result(self._make_stream(result.stream_id, result.credits))
            else:
                answer.set_exception(OutboundError(result.reason or "the hub gave no reason", by_hub=True))
        elif result.success and result.stream_id not in self._session.streams:
            self._session.send_control(simple_message("disconnect", result.stream_id, Reason.UNKNOWN))

    def end(self) -> None:
        """Fail everybody who waits: the session is over."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(OutboundError("the session with the hub ended before it answered"))

    def _give_up(self, stream_id: bytes, reason: Reason) -> None:
        stream = self._session.streams.get(stream_id)
        if stream is not None:
            stream.close(reason)
        else:
            self._session.send_control(simple_message("disconnect", stream_id, reason))
