"""Checking a backend client's file for a command: everything found wrong is one ConfigError, the rest are warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from backend_client.config import ClientFile, load_client_file
from backend_client.config_keys import CLIENT_KEYS
from nexus.document import Field, Kind, Record, load, read
from nexus.errors import ConfigError, Problem, TlsFileError
from nexus.masking import MASK, shown
from nexus.tls.contexts import hub_client_context


def check_client(path: Path) -> tuple[ClientFile, tuple[Problem, ...]]:
    """Load a client's configuration, with the files it names; return it and its warnings.

    Raises:
        ConfigError: mistakes in the file, or a ``caFile`` that cannot be used.
    """
    loaded = load_client_file(path)
    if problems := tuple(_ca_problems(path, loaded.file)):
        raise ConfigError(*problems)
    return loaded.file, loaded.warnings


def effective_client(path: Path) -> dict[str, object]:
    """Return every key of a client's file with its value in effect, secrets masked.

    Raises:
        ConfigError: mistakes in the file.
    """
    load_client_file(path)
    return _shown_table(read(load(path), CLIENT_KEYS, strict=True).record, CLIENT_KEYS)


def _ca_problems(path: Path, file: ClientFile) -> Iterator[Problem]:
    for index, backend in enumerate(file.backends):
        try:
            hub_client_context(Path(backend.ca_file) if backend.ca_file else None)
        except TlsFileError as error:
            yield Problem(str(path), 0, f"backends[{index}].caFile", str(error))


def _shown_table(record: Record, fields: tuple[Field, ...]) -> dict[str, object]:
    return {spec.key: _shown(spec, record.values[spec.key]) for spec in fields}


def _shown(spec: Field, value: object) -> object:
    if isinstance(value, Record):
        return _shown_table(value, spec.fields)
    if spec.kind is Kind.TABLES and isinstance(value, tuple):
        return [_shown(spec, item) for item in value]
    if isinstance(value, Mapping):
        return {key: MASK if spec.secret else _shown(spec, item) for key, item in value.items()}
    if spec.secret:
        return _masked(value)
    value = shown(value)
    return list(value) if isinstance(value, tuple) else value


def _masked(value: object) -> object:
    """Tell that there is a secret, or how many; nothing where there is none."""
    if isinstance(value, tuple):
        return [MASK] * len(value)
    return MASK if value else ""
