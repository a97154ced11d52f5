"""The node's configuration file and environment as a ``NodeConfig``.

Strategy: the environment overrides scalars node by node before anything is read, so that a value means the same in a
file and in a variable and every message names where it was written. Then the table of ``keys`` reads, ``rules`` check
what spans keys, and everything that is wrong is raised together. The only I/O is reading the configuration file and
the file of the token key; the environment and the lookup of service names are arguments.

Source: spec node-and-mesh 2; design 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.auth.keys import secret_fault
from nexus.config import rules
from nexus.config.keys import NODE_KEYS, attribute_name, scalar_paths, variable_name
from nexus.config.model import NodeConfig, PeekTimeouts, PeerAuthentication
from nexus.document import Field, Place, Reading, Record, ScalarNode, in_file_order, load, read, read_file
from nexus.document.addresses import ServiceResolver
from nexus.errors import ConfigError, Problem
from nexus.masking import MASK, shown

_SECRET = "backendsJWTSecret"  # noqa: S105 — the key's name
_SECRET_FILE = "backendsJWTSecretFile"  # noqa: S105 — the key's name
_TABLES: Mapping[str, type[PeekTimeouts | PeerAuthentication]] = {
    "peekTimeouts": PeekTimeouts,
    "peerAuthentication": PeerAuthentication,
}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, what is odd about it, and its effective values by key, as the file would say them.

    ``effective`` holds every key, defaults resolved and secrets masked; lists are lists, ready for JSON or YAML.
    """

    config: NodeConfig
    warnings: tuple[Problem, ...]
    effective: Mapping[str, object]


def load_node_config(
    path: Path | str, *, environ: Mapping[str, str], resolve_service: ServiceResolver | None = None
) -> LoadedConfig:
    """Read and check the node's configuration.

    A variable ``NEXUS_<KEY IN UPPER_SNAKE>`` replaces a scalar key and is parsed as the unquoted YAML scalar would be.
    ``resolve_service`` (such as ``socket.getservbyname``) checks names of services in listen addresses; without it
    they are checked by form only. Raises ``ConfigError`` with every mistake of the file and the environment, and
    then with the unknown keys as well.
    """
    reading = read(load(Path(path)), NODE_KEYS, overrides=environment_overrides(environ))
    record = reading.record
    secret, secret_problems = _token_secret(record)
    problems = (*reading.problems, *_errors(record, resolve_service), *secret_problems)
    if problems:  # an unknown key is often the misspelt name of one that is missing
        raise ConfigError(*in_file_order((*problems, *reading.warnings)))
    used = rules.lowered(record)
    return LoadedConfig(_config(used, secret), _warnings(reading, secret), _effective(used, secret))


def environment_overrides(environ: Mapping[str, str]) -> dict[str, ScalarNode]:
    """Return the scalars that the environment sets, by dotted key."""
    return {
        path: ScalarNode(Place(variable_name(path), 0), environ[variable_name(path)].strip(), plain=True)
        for path in scalar_paths()
        if variable_name(path) in environ
    }


def _errors(record: Record, resolve_service: ServiceResolver | None) -> Iterator[Problem]:
    yield from rules.apply(rules.ERRORS, record)
    yield from rules.check_addresses(record, resolve_service)


def _warnings(reading: Reading, secret: str) -> tuple[Problem, ...]:
    record = reading.record
    found = [*reading.warnings, *rules.apply(rules.WARNINGS, record)]
    if what := rules.weak_secret(secret):
        key = _SECRET_FILE if _SECRET_FILE in record.given else _SECRET
        found.append(record.problem(key, what, "make one with: openssl rand -hex 32"))
    return in_file_order(found)


def _token_secret(record: Record) -> tuple[str, list[Problem]]:
    """Return the token key, from its file if one is named, without the one newline that editors add."""
    path = record.text(_SECRET_FILE)
    if not path or _SECRET in record.given:
        secret = record.text(_SECRET)
        fault = secret_fault(secret) if secret else None
        return secret, [record.problem(_SECRET, *fault)] if fault else []
    try:
        secret = read_file(Path(path)).removesuffix("\n").removesuffix("\r")
    except ConfigError as error:
        return "", [record.problem(_SECRET_FILE, f"{path}: {found.what}", found.mend) for found in error.problems]
    if fault := secret_fault(secret):
        return "", [record.problem(_SECRET_FILE, f"{path}: {fault[0]}", fault[1])]
    return secret, []


def _config(record: Record, secret: str) -> NodeConfig:
    """Build the model by the table; a test holds its attributes and types against it."""
    values: dict[str, Any] = {}
    for spec in NODE_KEYS:
        value: object = record.values[spec.key]
        if isinstance(value, Record):
            value = _TABLES[spec.key](**_attributes(value))
        values[attribute_name(spec.key)] = value
    return NodeConfig(**values | {attribute_name(_SECRET): secret})


def _attributes(record: Record) -> dict[str, Any]:
    return {attribute_name(key): value for key, value in record.values.items()}


def _effective(record: Record, secret: str) -> dict[str, object]:
    values = {spec.key: _shown(spec, record.values[spec.key]) for spec in NODE_KEYS}
    return values | {_SECRET: MASK if secret else ""}


def _shown(spec: Field, value: object) -> object:
    if isinstance(value, Record):
        return {inner.key: _shown(inner, value.values[inner.key]) for inner in spec.fields}
    value = shown(value)
    return list(value) if isinstance(value, tuple) else value
