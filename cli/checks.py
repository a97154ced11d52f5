"""Checking a node's file for a command: everything found wrong is one ConfigError, the rest are warnings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cli.node_file import load_node
from cli.options import SECRET_VARIABLE
from nexus.acme.store import read_account_secret
from nexus.auth.keyring import Keyring
from nexus.config.admission import key_sources_of
from nexus.config.model import NodeConfig
from nexus.document import MappingNode, ScalarNode, load
from nexus.errors import AcmeError, ConfigError, Problem, TlsFileError
from nexus.files import is_exposed
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import hub_client_context


class FileKind(StrEnum):
    """Whose file it is."""

    NODE = "node"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class CheckedNode:
    """A node's configuration that can be served, its effective values by key, and what is odd about it."""

    config: NodeConfig
    effective: Mapping[str, object]
    warnings: tuple[Problem, ...]


def kind_of(path: Path) -> FileKind:
    """Tell a client's file, which has the key ``backends``, from a node's.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    root = load(path)
    keys = [key.text for key, _ in root.pairs if isinstance(key, ScalarNode)] if isinstance(root, MappingNode) else []
    return FileKind.CLIENT if "backends" in keys else FileKind.NODE


def check_node(path: Path) -> CheckedNode:
    """Load a node's configuration and look at everything that would stop it from being served.

    Raises:
        ConfigError: mistakes in the file or the environment, features that this version does not serve, or a file it
            names that cannot be used: certificate, roots, secrets, keys, revocation list.
    """
    loaded = load_node(path)
    config = loaded.config
    keyring = Keyring(key_sources_of(config))
    oddities = _certificate_oddities(path, config)
    weak = (Problem(str(path), 0, "", text) for text in keyring.warnings if not _is_known(text, config))
    exposed = _exposed_secrets(path, config)
    return CheckedNode(config, loaded.effective, (*loaded.warnings, *oddities, *weak, *exposed))


def _certificate_oddities(path: Path, config: NodeConfig) -> tuple[Problem, ...]:
    """Return what is odd about the hub's certificate.

    Raises:
        ConfigError: a file of certificates, keys or roots cannot be used.
    """
    key = "hubTlsCertFile"
    found: tuple[str, ...] = ()
    roots = {
        "authorizerCAFile": config.authorizer_ca_file,
        "peerCAFile": config.peer_ca_file,
        "acmeCAFile": config.acme_ca_file,
    }
    try:
        if not config.hub_public_hostname:
            files = CertificateFiles(Path(config.hub_tls_cert_file), Path(config.hub_tls_key_file))
            found = read_certificate(files).warnings(time.time())
        for named, ca_file in roots.items():
            key = named
            hub_client_context(Path(ca_file) if ca_file else None)
        key = "acmeEABKeyFile"
        if config.acme_eab_key_file:
            read_account_secret(Path(config.acme_eab_key_file))
    except (TlsFileError, AcmeError) as error:
        raise ConfigError(Problem(str(path), 0, key, str(error))) from None
    return tuple(Problem(str(path), 0, "hubTlsCertFile", text) for text in found)


def _exposed_secrets(path: Path, config: NodeConfig) -> Iterator[Problem]:
    """Yield the files of secrets that others may read or write, the configuration itself where it holds one."""
    sources = key_sources_of(config)
    account = (Path(config.acme_eab_key_file),) if config.acme_eab_key_file else ()
    for file in filter(is_exposed, (*sources.secret_files, *account)):
        what = f"{file}: holds a secret and is open to other users"
        yield Problem(str(path), 0, "", what, f"run: chmod 600 {file}")
    if sources.secret and SECRET_VARIABLE not in os.environ and is_exposed(path):
        what = "is written here, and the file is open to other users"
        yield Problem(str(path), 0, "backendsJWTSecret", what, f"run: chmod 600 {path}")


def _is_known(warning: str, config: NodeConfig) -> bool:
    """Tell whether a warning is about the node's own secret, of which its loading has told."""
    return bool(config.backends_jwt_secret_file) and warning.startswith(f"{config.backends_jwt_secret_file}: ")
