"""Keys whose feature is not served yet."""

from pathlib import Path

from nexus.config.keys import NODE_KEYS
from nexus.config.load import load_node_config
from nexus.config.unserved import UNSERVED, unserved_features

SAMPLE = Path(__file__).parent / "samples" / "node.yaml"


def test_every_key_in_use_gives_one_sentence() -> None:
    """A full file of the original names each such feature."""
    sentences = unserved_features(load_node_config(SAMPLE, environ={}).config)
    assert [sentence.split(":")[0] for sentence in sentences] == list(UNSERVED)
    assert sentences[0] == "registrationURL: not served by this version"


def test_a_file_without_them_gives_none(tmp_path: Path) -> None:
    """Defaults use none of these features."""
    path = tmp_path / "node.yaml"
    path.write_text(
        "{backendListenAddress: ':1', relayPorts: [1], backendsJWTSecret: x, hubTlsCertFile: a, hubTlsKeyFile: b}"
    )
    assert unserved_features(load_node_config(path, environ={}).config) == ()


def test_only_keys_of_the_table_are_named() -> None:
    """A sentence must name a key that exists."""
    assert set(UNSERVED) <= {spec.key for spec in NODE_KEYS}
