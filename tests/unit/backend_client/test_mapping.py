"""Choosing the local address of a stream: order of overrides, spelling of hosts, targets and their mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_client.mapping import PortMap, Target, parse_target, route
from nexus.errors import ConfigError

EXAMPLE = PortMap.compile(
    {
        443: (
            "localhost:8443",
            {
                "www.example.com": "10.0.0.1:443",
                "*.example.com": "10.0.0.2:443",
                "*.a.example.com": "10.0.0.3:443",
                "*.internal": "10.0.0.4:443",
                "*.BÜCHER.example": "10.0.0.5:443",
            },
        ),
        80: ("", {"only.example.com": "127.0.0.1:8080"}),
        53: ("[::1]:5353", {}),
    }
)

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
PORTS = st.integers(min_value=1, max_value=65535)


@pytest.mark.parametrize(
    ("port", "hostname", "target"),
    [
        (443, "www.example.com", "10.0.0.1:443"),
        (443, "WWW.Example.COM.", "10.0.0.1:443"),
        (443, " www.example.com ", "10.0.0.1:443"),
        (443, "other.example.com", "10.0.0.2:443"),
        (443, "x.a.example.com", "10.0.0.3:443"),
        (443, "a.example.com", "10.0.0.2:443"),
        (443, "printer.internal", "10.0.0.4:443"),
        (443, "www.bücher.example", "10.0.0.5:443"),
        (443, "www.xn--bcher-kva.example", "10.0.0.5:443"),
        (443, "example.com", "localhost:8443"),
        (443, "x.y.example.com", "localhost:8443"),
        (443, ".example.com", "localhost:8443"),
        (443, "www.example.com.evil.test", "localhost:8443"),
        (443, "", "localhost:8443"),
        (443, "localhost", "localhost:8443"),
        (443, "tcp:443", "localhost:8443"),
        (80, "only.example.com", "127.0.0.1:8080"),
        (80, "other.example.com", None),
        (80, "tcp:80", None),
        (80, "", None),
        (53, "udp:53", "[::1]:5353"),
        (8080, "www.example.com", None),
    ],
)
def test_the_most_specific_entry_of_the_exact_port_wins(port: int, hostname: str, target: str | None) -> None:
    """Exact override, then the wildcard of one more label, then the default, then no route."""
    found = route(EXAMPLE, port, hostname)
    assert (None if found is None else str(found)) == target


def test_a_route_key_never_matches_an_override() -> None:
    """Even an override spelled like a route key is passed over for the default."""
    port_map = PortMap.compile({53: ("127.0.0.1:1", {"udp:53": "127.0.0.1:2", "*.x": "127.0.0.1:3"})})
    assert route(port_map, 53, "udp:53") == Target("127.0.0.1", 1)
    assert route(port_map, 53, "udp:53.x") == Target("127.0.0.1", 1)


@given(labels=st.lists(LABELS, min_size=1, max_size=5), port=PORTS)
def test_a_wildcard_covers_exactly_one_label(labels: list[str], port: int) -> None:
    """`*.x.y` takes `label.x.y` and neither `x.y` itself nor anything deeper."""
    suffix = ".".join(labels)
    port_map = PortMap.compile({443: ("", {f"*.{suffix}": f"[::1]:{port}"})})
    assert route(port_map, 443, f"www.{suffix}") == Target("::1", port)
    assert route(port_map, 443, suffix) is None
    assert route(port_map, 443, f"one.two.{suffix}") is None


@given(hostname=st.text(max_size=80), port=st.integers())
def test_any_text_from_a_hub_is_answered(hostname: str, port: int) -> None:
    """A hostile hostname or port leads to a configured target or to none, never to an error."""
    found = route(EXAMPLE, port, hostname)
    assert found is None or found.port > 0


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("localhost:8080", Target("localhost", 8080)),
        (" 127.0.0.1:1 ", Target("127.0.0.1", 1)),
        ("[::1]:65535", Target("::1", 65535)),
        ("[fe80::1%eth0]:80", Target("fe80::1%eth0", 80)),
        (":8080", Target("localhost", 8080)),
        ("my_service:09", Target("my_service", 9)),
    ],
)
def test_targets_are_parsed(text: str, target: Target) -> None:
    """Names, both families of addresses, and a bare port for this machine."""
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "localhost",
        "8080",
        "localhost:",
        "localhost:http",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:123456",
        "localhost:8\uff10",
        "::1:8080",
        "[::1]",
        "[]:80",
        "[::1:80",
        "[[::1]]:80",
        "http://localhost:80",
        "two words:80",
        "tab\tbed:80",
    ],
)
def test_targets_that_cannot_be_dialled_are_refused(text: str) -> None:
    """A mistake is an error with the text in it, not a dial that fails later."""
    with pytest.raises(ValueError, match="target ") as caught:
        parse_target(text)
    assert repr(text) in str(caught.value)


@given(host=LABELS | st.ip_addresses().map(str), port=PORTS)
def test_a_target_survives_its_own_spelling(host: str, port: int) -> None:
    """Writing a target and parsing it again gives the same target."""
    target = Target(host, port)
    assert parse_target(str(target)) == target


def test_every_mistake_is_reported_at_once() -> None:
    """The error lists all problems, each with the file and the key it is about."""
    with pytest.raises(ConfigError) as caught:
        PortMap.compile(
            {
                0: ("localhost:1", {}),
                80: ("", {}),
                81: ("nowhere", {"a.example": "", "  ": "localhost:1", "*.": "localhost:1"}),
                82: ("", {"A.example": "localhost:1", "a.example.": "localhost:2", "*.b": "[::1]:1", "*.B": "[::1]:2"}),
            },
            source="client.yaml",
        )
    problems = caught.value.problems
    assert {problem.source for problem in problems} == {"client.yaml"}
    assert [problem.key for problem in problems] == [
        "portMappings.0",
        "portMappings.80",
        "portMappings.81.hosts.a.example",
        "portMappings.81.hosts.'  '",
        "portMappings.81.hosts.'*.'",
        "portMappings.81.default",
        "portMappings.82.hosts.a.example",
        "portMappings.82.hosts.*.b",
    ]


def test_two_spellings_of_one_host_may_share_a_target() -> None:
    """Saying the same thing twice is harmless."""
    port_map = PortMap.compile({80: ("", {"A.example": "localhost:1", "a.example.": "localhost:1"})})
    assert route(port_map, 80, "a.example") == Target("localhost", 1)
