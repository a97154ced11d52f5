"""A node's file as it is in effect, for commands that ask what it says and not whether it can be served."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from nexus.config.load import LoadedConfig, load_node_config
from nexus.config.model import NodeConfig


def load_node(path: Path) -> LoadedConfig:
    """Read a node's file as the node does: with the environment, and with names of services resolved.

    Raises:
        ConfigError: mistakes in the file or the environment.
    """
    return load_node_config(path, environ=os.environ, resolve_service=socket.getservbyname)


def effective_node(path: Path) -> Mapping[str, object]:
    """Return the values in effect, secrets masked, whether or not this version can serve them."""
    return load_node(path).effective


def node_config(path: Path) -> NodeConfig:
    """Return a node's configuration, with defaults resolved, whether or not the files that it names can be used.

    Raises:
        ConfigError: mistakes in the file or the environment.
    """
    return load_node(path).config
