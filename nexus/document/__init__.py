"""YAML files as typed values that remember their line.

``nodes`` turns text into nodes, ``scalars`` and ``tables`` turn nodes into values, ``addresses`` reads ``host:port``.
The usual call is ``read(load(path), FIELDS)``; ``read_file(path)`` serves files that are not YAML.
"""

from nexus.document.nodes import MappingNode, Node, Place, ScalarNode, SequenceNode, load, parse
from nexus.document.scalars import did_you_mean, shorten
from nexus.document.tables import Field, Kind, Reading, Record, Value, in_file_order, read
from nexus.files import read_file

__all__ = [
    "Field",
    "Kind",
    "MappingNode",
    "Node",
    "Place",
    "Reading",
    "Record",
    "ScalarNode",
    "SequenceNode",
    "Value",
    "did_you_mean",
    "in_file_order",
    "load",
    "parse",
    "read",
    "read_file",
    "shorten",
]
