"""Generated files: plain YAML that says what was asked for, whatever it holds."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.templates import ClientFileText, NodeFile, client_text, node_text

# YAML 1.1 has no way to write surrogates, and paths hold no NUL; the rest is for the quoting to manage.
names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x00\ufeff\ufffe\uffff\u2028\u2029"), min_size=1
)


@given(name=names)
def test_any_path_survives(name: str) -> None:
    """Quotes, colons, hashes and braces included."""
    node = yaml.safe_load(
        node_text(NodeFile(Path("f"), ":1", (443, 80), Path("s"), name, name, ("127.0.0.1",), "127.0.0.1:0"))
    )
    assert node["hubTlsCertFile"] == name
    assert node["relayPorts"] == [443, 80]
    client = yaml.safe_load(
        client_text(ClientFileText(Path("f"), "wss://h/", "a", Path("s"), {443: name}, (80,), name))
    )
    (backend,) = client["backends"]
    assert backend["caFile"] == name
    assert backend["portMappings"] == {443: {"default": name}}


def test_what_is_not_asked_for_stands_in_comments() -> None:
    """So that it can be found."""
    text = node_text(NodeFile(Path("f"), ":1", (443,), Path("s"), "", ""))
    assert "# relayBindAddresses: " in text
    assert "# adminListenAddress: " in text
    assert "caFile" not in client_text(ClientFileText(Path("f"), "wss://h/", "a", Path("s"), {443: "x:1"}))
