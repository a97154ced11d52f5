"""The table of the node's keys."""

from nexus.config.keys import ENVIRONMENT_PREFIX, NODE_KEYS, attribute_name, scalar_paths, variable_name
from nexus.document import Kind


def test_every_key_is_named_once_and_documented() -> None:
    """A table without duplicates, each key with a meaning."""
    keys = [spec.key for spec in NODE_KEYS]
    assert len(keys) == len(set(keys))
    assert all(spec.doc for spec in NODE_KEYS)


def test_attributes_are_snake_case_and_times_end_in_s() -> None:
    """Acronyms stay whole; seconds become ``_s``."""
    assert attribute_name("backendsJWTSecret") == "backends_jwt_secret"
    assert attribute_name("allowedTCPPortClaims") == "allowed_tcp_port_claims"
    assert attribute_name("idleTimeoutSeconds") == "idle_timeout_s"
    assert attribute_name("peers") == "peers"


def test_variables_are_upper_snake_case() -> None:
    """Nested keys are joined by underscores as well."""
    assert variable_name("backendsJWTSecret") == "NEXUS_BACKENDS_JWT_SECRET"
    assert variable_name("remoteVerifierURL") == "NEXUS_REMOTE_VERIFIER_URL"
    assert variable_name("peekTimeouts.firstByteSeconds") == "NEXUS_PEEK_TIMEOUTS_FIRST_BYTE_SECONDS"


def test_every_scalar_has_its_own_variable() -> None:
    """No two keys share a variable, and lists have none."""
    paths = list(scalar_paths())
    names = {variable_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all(name.startswith(ENVIRONMENT_PREFIX) for name in names)
    assert "peekTimeouts.absoluteMaxSeconds" in paths
    assert not {spec.key for spec in NODE_KEYS if spec.kind is Kind.INTEGERS} & set(paths)
