"""What the stand-ins for the original's peers share: its numbers, its control messages, and running one of them.

``go_client.GoClient`` and ``go_hub.GoHub`` are written from the specification: what the original's peers send, count,
bound and forget. Where the original would break a stream they note it in ``kills`` and break it, so that a test sees
both. They are kinder than the original in one thing: at a stream's end they deliver what they hold, where the original
gives it 50 ms, so that a missing byte is our fault.

Source: spec backend-protocol 1, 2, 4, 6, 7, 8, 12, 24.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.support.loopback import Reader, Writer

MESSAGE_MAX_BYTES = 32_785
HUB_READ_BYTES = 32_768
CLIENT_READ_BYTES = 16_384
FRAGMENT_BYTES = 4_096
GRANT = 64
BATCH = 8
HUB_QUEUE = 128
CLIENT_QUEUE = 64
CLIENT_OUT_QUEUE = 256
HIGH_WATER, LOW_WATER = 48, 16
TURN_MESSAGES = 4
CLOSE_BONUS = 8
ANSWER_TIMEOUT_S = 15.0
PING_S, DEADLINE_S = 5.0, 10.0
HEADER_BYTES = 17

Dial = Callable[[], Awaitable[tuple[Reader, Writer]]]


def control(event: str, stream_id: bytes, **fields: object) -> bytes:
    """Return a control message; zero values are left out, as Go does."""
    document = {"event": event, "client_id": str(uuid.UUID(bytes=stream_id))}
    return b"\x02" + json.dumps({**document, **{k: v for k, v in fields.items() if v}}, separators=(",", ":")).encode()


def unbuffered(writer: Writer) -> None:
    """Let ``drain`` return once everything is with the kernel: a Go write is synchronous."""
    writer.transport.set_write_buffer_limits(0)


@contextlib.asynccontextmanager
async def running(main: Any, up: asyncio.Event) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_until_over(main))
        try:
            async with asyncio.timeout(10):
                await up.wait()
            yield
        finally:
            task.cancel()


async def _until_over(main: Any) -> None:
    with contextlib.suppress(Over):
        try:
            await main
        except* Over:
            pass


class Over(Exception):  # noqa: N818 — leaves a task group, is no error
    """The session ended."""
