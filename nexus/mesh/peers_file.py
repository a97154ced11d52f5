"""The list of other nodes while a node runs: read again when its file changes, or when it is told to look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nexus.document.peers import usable_entries
from nexus.errors import ConfigError
from nexus.files import file_signature
from nexus.mesh.discovery import Discovery

_log = logging.getLogger("nexus.mesh")

WATCH_S: Final = 10.0  # ours: as for certificates and keys; a look is one stat call


class PeersFile:
    """The configuration file, of which only ``peers`` may change; a file that has become bad is logged, not used."""

    def __init__(self, path: Path, read: Callable[[], tuple[str, ...]]) -> None:
        """``read`` returns what ``peers`` says now, or raises ConfigError."""
        self._path = path
        self._read = read
        self._signature = file_signature(path)
        self._discovery: Discovery | None = None

    async def follow(self, discovery: Discovery) -> None:
        """Tell ``discovery`` of another list until cancelled."""
        self._discovery = discovery
        while True:
            await asyncio.sleep(WATCH_S)
            if file_signature(self._path) != self._signature:
                self.look()

    def look(self) -> None:
        """Read the list now."""
        self._signature = file_signature(self._path)
        try:
            entries = usable_entries(self._read())
        except ConfigError as error:
            _log.error("%s (the old list of peers stays in use)", error)
            return
        if self._discovery is not None:
            self._discovery.replace(entries)
