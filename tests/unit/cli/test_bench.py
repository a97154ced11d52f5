"""``nexus bench`` against a real node, and what it says where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import nexus
from tests.support.processes import SECRET, Node, Pki, scratch_directory

HOST = "bench.example.test"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One as a process."""
    with scratch_directory() as directory, Node(directory, Pki.create(directory)) as started:
        (directory / "secret").write_text(SECRET)
        (directory / "secret").chmod(0o600)
        yield started


def options(node: Node, **more: str) -> list[str]:
    found = {
        "--hub": node.hub_url,
        "--node": f"127.0.0.1:{node.tls_port}",
        "--ca-file": str(node.pki.ca_file),
        "--secret-file": str(node.directory / "secret"),
        "--size": "4",
        "--streams": "4",
        "--seconds": "0.2",
    }
    return [text for pair in {**found, **more}.items() for text in pair]


def test_a_node_is_measured_from_both_sides(node: Node) -> None:
    """Every stream completes; what is printed are the figures of each measurement."""
    document = nexus("bench", HOST, *options(node), "--json").document()
    assert (document["node"], document["hostname"]) == (f"127.0.0.1:{node.tls_port}", HOST)
    figures = {result["name"]: result["figures"] for result in document["results"]}
    assert [*figures] == [
        "download, 1 streams",
        "download, 4 streams",
        "upload, 1 streams",
        "upload, 4 streams",
        "round trips",
        "connections, 1 at once",
        "connections, 16 at once",
    ]
    assert all(value > 0 for found in figures.values() for value in found.values())
    assert all(result["failed"] == 0 and not result["reasons"] for result in document["results"])
    assert node.metric('nexus_relayed_bytes_total{direction="to_clients"}') > 2 * 4 * 2**20


def test_people_get_a_table(node: Node) -> None:
    """A line for each measurement."""
    outcome = nexus("bench", HOST, *options(node))
    assert outcome.code == 0
    assert len(outcome.stdout.splitlines()) == 8
    assert "MiB/s" in outcome.stdout
    assert "round trips: done" in outcome.stderr


def test_a_place_where_the_name_leads_nowhere_is_told(node: Node) -> None:
    """The public port is another program's, or nobody's: streams fail, and that is no figure of zero in silence."""
    outcome = nexus("bench", HOST, *options(node, **{"--node": "127.0.0.1:9"}), "--json")
    assert outcome.code == 1
    results = outcome.document()["results"]
    assert all(result["failed"] > 0 for result in results)
    assert {reason for result in results for reason in result["reasons"]} == {"Connection refused"}


def test_a_hub_that_lets_nobody_in_is_told(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way to learn more."""
    monkeypatch.setattr("cli.bench._CONNECT_TIMEOUT_S", 0.5)
    (tmp_path / "other").write_text("another-secret-of-thirty-two-bytes")
    outcome = nexus("bench", HOST, *options(node, **{"--secret-file": str(tmp_path / "other")}))
    assert outcome.code == 1
    assert f"error: {node.hub_url}: no session within 0.5 s; see why with --log-level info" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["*.example.com", "--hub", "wss://127.0.0.1:1"], "is not a hostname"),
        ([HOST, "--hub", "http://127.0.0.1"], "is not a hub's URL"),
        ([HOST, "--hub", "wss://127.0.0.1:1", "--node", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_of_usage_are_told(arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is dialled."""
    monkeypatch.setenv("NEXUS_BACKENDS_JWT_SECRET", SECRET)
    outcome = nexus("bench", *arguments)
    assert outcome.code == 2
    assert complaint in outcome.stderr
