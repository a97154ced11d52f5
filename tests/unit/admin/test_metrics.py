"""nexus.admin.metrics: every field of NodeStats is exported, truly and as documented."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.registry import DuplicateTimeseries

from nexus.admin.mesh_metrics import mesh_families
from nexus.admin.metrics import ACCEPT_PLAIN, NodeCollector, NodeStats, families, node_registry, render
from tests.support.metrics import FULL_MESH, samples

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (gauge|counter) \|\s*([^|]*?)\s*\| (.+) \|$", re.MULTILINE)

FULL = NodeStats(
    version="1.2.3",
    start_time_seconds=1_800_000_000.5,
    workers=2,
    sessions=1,
    unauthenticated=2,
    streams=3,
    udp_flows=18,
    peeking=4,
    paused_streams=5,
    buffered_bytes=6,
    routes=7,
    hub_certificate_expiry_seconds=1_900_000_000.0,
    bandwidth_limit_bytes_per_second=18,
    bandwidth_waiting_bytes=19,
    bandwidth_waiting_backends=20,
    bandwidth_charged_bytes_total=21,
    sessions_total=8,
    streams_total=9,
    bytes_to_backends_total=10,
    bytes_to_clients_total=2**53,
    client_connections_total={443: 12, 80: 13},
    rejected_total={"no_route": 14},
    session_ends_total={"timeout": 15},
    auth_failures_total={"stage_0": 16},
    streams_reset_total={"dial_failed": 17},
    datagrams_to_backends_total=19,
    datagrams_to_clients_total=20,
    datagrams_dropped_total={"no_backend": 21},
    udp_flow_ends_total={"idle": 22},
    reauthentications_total={"renewed": 23},
    ignored_texts_total=24,
    session_faults_total=26,
    outbound_connections=18,
    outbound_total=19,
    outbound_refusals_total={"private": 20},
    key_set_fetched_seconds=1_850_000_000.0,
    verifier_answers_total={"refused": 18},
    key_set_fetches_total={"ok": 19},
    hub_certificate_renewal_seconds=1_860_000_000.0,
    acme_attempts_total={"refused": 27},
    stun_requests_total={"limited": 28},
    registered_seconds=1_870_000_000.0,
    registration_next_seconds=1_870_000_060.0,
    registration_failures=30,
    registrations_total={"failed": 29},
    mesh=FULL_MESH,
)


def exposed_type(metric: Metric) -> str:
    """Return a family's type as the plain text format shows it."""
    return "gauge" if metric.type == "info" else metric.type


def exposed_name(metric: Metric) -> str:
    """Return a family's name as the plain text format shows it."""
    return metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")


def test_every_field_of_the_node_is_exported_under_its_name() -> None:
    """The whole mapping, value by value."""
    assert samples(families(FULL)) == {
        ("nexus_build_info", "1.2.3"): 1,
        ("nexus_start_time_seconds", ""): 1_800_000_000.5,
        ("nexus_workers", ""): 2,
        ("nexus_sessions", ""): 1,
        ("nexus_sessions_unauthenticated", ""): 2,
        ("nexus_streams", ""): 3,
        ("nexus_client_connections_peeking", ""): 4,
        ("nexus_streams_paused", ""): 5,
        ("nexus_buffered_bytes", ""): 6,
        ("nexus_routes", ""): 7,
        ("nexus_hub_certificate_expiry_timestamp_seconds", ""): 1_900_000_000.0,
        ("nexus_bandwidth_limit_bytes_per_second", ""): 18,
        ("nexus_bandwidth_waiting_bytes", ""): 19,
        ("nexus_bandwidth_waiting_backends", ""): 20,
        ("nexus_bandwidth_charged_bytes_total", ""): 21,
        ("nexus_sessions_opened_total", ""): 8,
        ("nexus_streams_opened_total", ""): 9,
        ("nexus_relayed_bytes_total", "to_backends"): 10,
        ("nexus_relayed_bytes_total", "to_clients"): 2**53,
        ("nexus_outbound_connections", ""): 18,
        ("nexus_outbound_connections_opened_total", ""): 19,
        ("nexus_outbound_refusals_total", "private"): 20,
        ("nexus_client_connections_total", "443"): 12,
        ("nexus_client_connections_total", "80"): 13,
        ("nexus_client_connections_rejected_total", "no_route"): 14,
        ("nexus_session_ends_total", "timeout"): 15,
        ("nexus_auth_failures_total", "stage_0"): 16,
        ("nexus_stream_resets_total", "dial_failed"): 17,
        ("nexus_udp_flows", ""): 18,
        ("nexus_udp_datagrams_total", "to_backends"): 19,
        ("nexus_udp_datagrams_total", "to_clients"): 20,
        ("nexus_udp_datagrams_dropped_total", "no_backend"): 21,
        ("nexus_udp_flow_ends_total", "idle"): 22,
        ("nexus_reauthentications_total", "renewed"): 23,
        ("nexus_ignored_texts_total", ""): 24,
        ("nexus_session_faults_total", ""): 26,
        ("nexus_key_set_fetched_timestamp_seconds", ""): 1_850_000_000.0,
        ("nexus_verifier_answers_total", "refused"): 18,
        ("nexus_key_set_fetches_total", "ok"): 19,
        ("nexus_hub_certificate_renewal_timestamp_seconds", ""): 1_860_000_000.0,
        ("nexus_acme_attempts_total", "refused"): 27,
        ("nexus_stun_requests_total", "limited"): 28,
        ("nexus_registered_timestamp_seconds", ""): 1_870_000_000.0,
        ("nexus_registration_next_timestamp_seconds", ""): 1_870_000_060.0,
        ("nexus_registration_failures", ""): 30,
        ("nexus_registrations_total", "failed"): 29,
        **samples(list(mesh_families(FULL_MESH))),
    }


@pytest.mark.parametrize("name", [field.name for field in fields(NodeStats) if field.name != "mesh"])
def test_no_field_is_forgotten(name: str) -> None:
    """A field added to NodeStats has to be given a value in FULL, and then the test above a family."""
    value = getattr(FULL, name)
    assert value
    shown = {*samples(families(FULL)).values(), FULL.version}
    assert set(value.values() if isinstance(value, dict) else [value]) <= shown


def test_a_node_without_certificate_exports_no_expiry() -> None:
    """A zero would read as expired in 1970."""
    stats = NodeStats(version="1", start_time_seconds=0)
    assert not any("certificate" in name for name, _ in samples(families(stats)))


def test_a_node_without_a_cap_exports_no_limit() -> None:
    """A limit of zero would read as a node that may send nothing."""
    shown = {name for name, _ in samples(families(NodeStats(version="1", start_time_seconds=0)))}
    assert {name for name in shown if "bandwidth" in name} == {"nexus_bandwidth_charged_bytes_total"}


def test_gauges_are_those_of_the_moment_of_the_scrape() -> None:
    """Nothing is remembered between two scrapes."""
    sessions = iter([5, 3])
    registry = node_registry(lambda: NodeStats(version="1", start_time_seconds=0, sessions=next(sessions)))
    assert b"\nnexus_sessions 5.0\n" in render(registry, ACCEPT_PLAIN)[0]
    assert b"\nnexus_sessions 3.0\n" in render(registry, ACCEPT_PLAIN)[0]


def test_registering_does_not_need_a_running_node() -> None:
    """The registry is made before the node that it describes."""

    def not_yet() -> NodeStats:
        raise AssertionError

    node_registry(not_yet)


def test_two_nodes_in_one_process_have_registries_of_their_own() -> None:
    """And one registry refuses a second node, rather than mixing the two."""
    first, second = (node_registry(lambda v=v: NodeStats(version=v, start_time_seconds=0)) for v in ("1", "2"))  # type: ignore[misc]
    assert first.get_sample_value("nexus_build_info", {"version": "1"}) == 1
    assert second.get_sample_value("nexus_build_info", {"version": "1"}) is None
    with pytest.raises(DuplicateTimeseries):
        first.register(NodeCollector(lambda: FULL))


def test_process_and_interpreter_are_exported_too() -> None:
    """Memory, descriptors and collector runs are what an operator looks at first."""
    names = {metric.name for metric in node_registry(lambda: FULL).collect()}
    assert {"python_info", "python_gc_collections"} <= names
    assert ("process_open_fds" in names) == sys.platform.startswith("linux")


def test_the_document_names_exactly_the_exported_families() -> None:
    """Name, type, labels and words of every row of the tables in ``docs/metrics.md``."""
    documented = {name: (kind, labels, text) for name, kind, labels, text in ROW.findall(DOCUMENT.read_text())}
    exported = {
        exposed_name(metric): (
            exposed_type(metric),
            ", ".join(f"`{label}`" for label in sorted({label for s in metric.samples for label in s.labels})),
            metric.documentation,
        )
        for metric in node_registry(lambda: FULL).collect()
    }
    if not sys.platform.startswith("linux"):  # pragma: no cover
        documented = {name: row for name, row in documented.items() if not name.startswith("process_")}
    assert documented == exported


def test_every_metric_named_anywhere_in_the_document_exists() -> None:
    """The suggested alerts too."""
    named = set(re.findall(r"\b(?:nexus|process|python)_[a-z_]+", DOCUMENT.read_text())) - {"process_"}
    assert named == {exposed_name(metric) for metric in node_registry(lambda: FULL).collect()}


def test_the_plain_format_is_what_prometheus_parses() -> None:
    """Read back by the library's own parser."""
    body, content_type = render(node_registry(lambda: FULL), ACCEPT_PLAIN)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(list(parse_plain(body.decode())))
    assert samples(families(FULL)).items() <= found.items()


def test_openmetrics_is_offered_to_those_who_ask() -> None:
    """Its parser is strict: it refuses, for example, a counter and a gauge of one name."""
    body, content_type = render(
        node_registry(lambda: FULL), "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    )
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    found = samples(list(parse_openmetrics(body.decode())))  # type: ignore[no-untyped-call]
    assert samples(families(FULL)).items() <= found.items()


@pytest.mark.parametrize(
    "accept", ["text/plain;version=x", "application/openmetrics-text;version=1.x", "*/*", ",;=", "text/plain;version=."]
)
def test_an_accept_header_without_sense_gets_the_plain_format(accept: str) -> None:
    """The library trips over version numbers that are none."""
    assert render(CollectorRegistry(), accept) == (b"", "text/plain; version=0.0.4; charset=utf-8")


@given(
    accept=st.builds(
        "{};{}={}".format,
        st.sampled_from(["text/plain", "application/openmetrics-text", "x"]),
        st.sampled_from(["version", "escaping", "q"]),
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=12),
    )
)
def test_no_accept_header_is_an_error(accept: str) -> None:
    """It comes from whoever connects."""
    body, content_type = render(CollectorRegistry(), accept)
    assert body in {b"", b"# EOF\n"}
    assert "\n" not in content_type


def test_an_error_of_the_node_reaches_the_caller() -> None:
    """The server makes a 500 of it; half an exposition would be a lie."""

    def broken() -> NodeStats:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        render(node_registry(broken), ACCEPT_PLAIN)
