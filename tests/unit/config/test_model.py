"""The node's configuration as a value."""

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest

from nexus.config.keys import NODE_KEYS, attribute_name
from nexus.config.load import load_node_config
from nexus.config.model import NodeConfig, PeekTimeouts, PeerAuthentication
from nexus.document import Field, Kind
from nexus.masking import MASK

SAMPLE = Path(__file__).parent / "samples" / "node.yaml"
TYPES: dict[Kind, object] = {
    Kind.INTEGER: int,
    Kind.BOOLEAN: bool,
    Kind.STRING: str,
    Kind.INTEGERS: tuple[int, ...],
    Kind.STRINGS: tuple[str, ...],
}
RECORDS: dict[str, type] = {"peekTimeouts": PeekTimeouts, "peerAuthentication": PeerAuthentication}


def fields_of(specs: tuple[Field, ...]) -> dict[str, object]:
    return {attribute_name(spec.key): RECORDS[spec.key] if spec.fields else TYPES[spec.kind] for spec in specs}


def test_the_model_has_exactly_the_keys_of_the_table_with_their_types() -> None:
    """The loader builds the model by the table, so the two must agree."""
    assert get_type_hints(NodeConfig) == fields_of(NODE_KEYS)
    for spec in NODE_KEYS:
        if spec.fields:
            assert get_type_hints(RECORDS[spec.key]) == fields_of(spec.fields)


def test_values_have_the_types_the_model_declares() -> None:
    """A loaded value is what its annotation says."""
    config = load_node_config(SAMPLE, environ={}).config
    for name, hint in get_type_hints(NodeConfig).items():
        assert isinstance(getattr(config, name), getattr(hint, "__origin__", hint))


def test_a_configuration_cannot_be_changed() -> None:
    """It is read once and shared."""
    config = load_node_config(SAMPLE, environ={}).config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.region = "x"  # type: ignore[misc]


def test_repr_masks_secrets_only() -> None:
    """A traceback shows the configuration but not the key of tokens."""
    config = load_node_config(SAMPLE, environ={}).config
    assert config.backends_jwt_secret
    assert config.backends_jwt_secret not in repr(config)
    assert f"backends_jwt_secret={MASK!r}" in repr(config)
    assert "region='eu-1'" in repr(config)
    url = dataclasses.replace(
        config, remote_verifier_url="https://u:hunter2@verify.example.com/v", peers=("wss://x:hunter2@p/mesh",)
    )
    assert "hunter2" not in repr(url)
    assert f"remote_verifier_url='https://{MASK}@verify.example.com/v'" in repr(url)
    assert "backends_jwt_secret=''" in repr(dataclasses.replace(config, backends_jwt_secret=""))
