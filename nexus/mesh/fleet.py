"""Which addresses are dialled: one ``Dialler`` for each, begun and ended as the list of peers changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nexus.document.peers import PeerAddress
from nexus.mesh.links import Credentials, Dialler
from nexus.mesh.mesh import Mesh


class Fleet:
    """The diallers of a node."""

    def __init__(self, mesh: Mesh, credentials: Credentials, tasks: asyncio.TaskGroup) -> None:
        """Run them in ``tasks``, which outlives this."""
        self._mesh = mesh
        self._credentials = credentials
        self._tasks = tasks
        self._closed = False
        self._diallers: dict[PeerAddress, tuple[Dialler, asyncio.Task[None]]] = {}

    def change(self, added: Iterable[PeerAddress], removed: Iterable[PeerAddress] = ()) -> None:
        """Dial some addresses from now on, and others no more; a link that is up stays while it lasts."""
        for address in removed:
            if (found := self._diallers.pop(address, None)) is not None:
                dialler, task = found
                if not dialler.retire():
                    task.cancel()
        for address in added:
            if address not in self._diallers and not self._closed:
                dialler = Dialler(self._mesh, self._credentials, address)
                self._diallers[address] = (dialler, self._tasks.create_task(dialler.run()))

    def close(self) -> None:
        """Dial nothing any more, whatever is added; links that are up stay."""
        self._closed = True
        self.change((), tuple(self._diallers))
