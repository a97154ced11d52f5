"""The JSON Schema of the configuration files."""

import json

import pytest

from backend_client.config_keys import CLIENT_KEYS
from nexus.config.keys import NODE_KEYS
from nexus.config.schema import DIALECT, json_schema, node_schema


def test_the_node_schema_names_every_key_and_its_limits() -> None:
    """An editor offers the keys, defaults and choices of the table."""
    schema = json.loads(json.dumps(node_schema()))
    assert schema["$schema"] == DIALECT
    assert list(schema["properties"]) == [spec.key for spec in NODE_KEYS]
    assert schema["required"] == ["backendListenAddress", "relayPorts"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["relayPorts"]["items"] == {"type": ["integer", "null"], "minimum": 0, "maximum": 65535}
    assert properties["peers"]["items"] == {"type": ["string", "number", "boolean", "null"]}
    assert properties["logLevel"]["enum"] == ["debug", "info", "warning", "error", "", None]
    assert properties["logLevel"]["default"] == "info"
    assert properties["maxConcurrentPeeks"]["default"] == 256
    assert properties["maxConcurrentPeeks"]["minimum"] == -1
    assert properties["allowOutbound"]["type"] == ["boolean", "null"]
    assert "default" not in properties["backendListenAddress"]
    inner = properties["peekTimeouts"]
    assert inner["properties"]["firstByteSeconds"]["default"] == 15
    assert inner["type"] == ["object", "null"]


def test_the_client_schema_nests_lists_and_maps() -> None:
    """The same function serves the client's table."""
    schema = json.loads(json.dumps(json_schema(CLIENT_KEYS, "client")))
    backend = schema["properties"]["backends"]["items"]
    assert backend["required"] == ["name", "nexusAddresses", "portMappings"]
    mappings = backend["properties"]["portMappings"]
    (pattern, mapping), *others = mappings["patternProperties"].items()
    assert not others
    assert pattern == "^[0-9]+$"
    assert mapping["properties"]["hosts"]["additionalProperties"]["type"] == ["string", "number", "boolean", "null"]
    assert backend["properties"]["udpRoutes"]["items"]["required"] == ["port"]


@pytest.mark.parametrize("fields", [NODE_KEYS, CLIENT_KEYS])
def test_no_secret_has_a_default_in_the_schema(fields: tuple[object, ...]) -> None:
    """Every description is text, and a schema shows no secret."""
    schema = json.dumps(json_schema(fields, "any"))  # type: ignore[arg-type]
    assert '"description": ""' not in schema
