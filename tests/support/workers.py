"""Several workers of one node in a test's own event loop, each on ports of its own: a test chooses who accepts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nexus.app import Node, NodeAddresses
from nexus.assembly import bind, helper_config
from nexus.workers.channel import channel_pair
from nexus.workers.siblings import FIRST, Siblings
from tests.support.hub import eventually
from tests.support.node import Running, configurations
from tests.support.processes import Pki


def introduce(one: Siblings, other: Siblings) -> None:
    """Connect two workers as the supervisor does."""
    links, channels = socket.socketpair(), channel_pair()
    for sock in links:
        sock.setblocking(False)
    one.meet(other.index, links[0], channels[0])
    other.meet(one.index, links[1], channels[1])


def siblings(worker: Running) -> Siblings:
    """Return what a worker knows of the others."""
    assert worker.node.siblings is not None
    return worker.node.siblings


@contextlib.asynccontextmanager
async def team(pki: Pki, directory: Path, count: int = 2, **settings: Any) -> AsyncIterator[list[Running]]:
    """Run workers that know each other."""
    config = configurations(pki, directory)(workers=count, **settings)
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        workers: list[Running] = []
        for index in range(count):
            own = config if index == FIRST else helper_config(config)
            node = Node(own, worker=index)
            assert node.siblings is not None
            node.siblings.tasks = tasks
            ready: asyncio.Future[NodeAddresses] = asyncio.get_running_loop().create_future()
            task = tasks.create_task(node.run(ready.set_result, bind(own, stack)))
            workers.append(Running(node, await ready, task, pki, stack))
        for worker in workers:
            for other in workers[: siblings(worker).index]:
                introduce(siblings(other), siblings(worker))
        await eventually(lambda: all(worker.node.readiness().ready for worker in workers), "all know each other")
        try:
            yield workers
        finally:
            for worker in workers:
                worker.node.stop()
