"""Tests of what peers serve, as they announced it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.mesh.routes import PeerRoutes, PortPolicy, port_of, usable

ALL = PortPolicy(frozenset(range(1, 65_536)))
NONE = PortPolicy(frozenset())


def keys(*routes: str) -> frozenset[str]:
    return usable(routes, ALL, ALL)[0]


def table(**announced: Iterable[str]) -> PeerRoutes[str]:
    routes: PeerRoutes[str] = PeerRoutes()
    for member, names in announced.items():
        routes.replace(member, keys(*names))
    return routes


def test_names_are_normalised_as_everywhere() -> None:
    """An original compares them as they come, and never finds an upper-case one."""
    assert keys("App.Example.COM.", " a.example ", "*.Wild.Example.com", "bücher.example", "", " ") == {
        "app.example.com",
        "a.example",
        "*.wild.example.com",
        "xn--bcher-kva.example",
    }


@pytest.mark.parametrize(
    ("route", "admitted"),
    [("tcp:25", True), ("tcp:26", False), ("udp:53", True), ("udp:25", False), ("TCP:25", True), ("tcp:025", False)],
)
def test_ports_are_believed_only_where_this_node_listens(route: str, admitted: bool) -> None:
    """What cannot be used, or is not written as a port, is refused by name."""
    found, refused = usable([route], PortPolicy(frozenset({25})), PortPolicy(frozenset({53})))
    assert found == ({route.lower()} if admitted else set())
    assert refused == (() if admitted else (route,))


def test_the_list_that_binds_backends_binds_peers_where_there_is_one() -> None:
    """A port that no backend may claim here, no peer may, either; an empty list is as in the original."""
    assert PortPolicy(frozenset({25, 443}), frozenset({25})).admits(25)
    assert not PortPolicy(frozenset({25, 443}), frozenset({25})).admits(443)
    assert PortPolicy(frozenset({443})).admits(443)


@given(
    st.text(max_size=12)
    | st.sampled_from(["tcp:", "udp:"]).flatmap(lambda t: st.text("0123456789:-x", max_size=7).map(t.__add__))
)
def test_a_port_key_is_decimal_without_padding(key: str) -> None:
    """And nothing else is one."""
    port = port_of(key)
    if port is not None:
        assert 1 <= port <= 65_535
        assert key in {f"tcp:{port}", f"udp:{port}"}


def test_exact_beats_wildcard_and_a_wildcard_covers_one_label() -> None:
    """As on the node itself."""
    routes = table(one=["*.example.com"], two=["a.example.com", "*.com"])
    assert routes.of_host("a.example.com") == ("a.example.com", ("two",))
    assert routes.of_host("b.example.com") == ("*.example.com", ("one",))
    assert routes.of_host("x.b.example.com")[1] == ()
    assert routes.of_host("example.com")[1] == ()


@pytest.mark.parametrize("name", ["tcp:25", "udp:53", "*.example.com", ""])
def test_no_name_of_a_client_reaches_a_port_or_a_wildcard_by_its_key(name: str) -> None:
    """A Host header that reads ``tcp:25`` finds nothing."""
    routes = table(one=["tcp:25", "udp:53", "*.example.com"])
    assert routes.of_host(name)[1] in {(), ("one",)}
    assert (routes.of_host(name)[1] == ("one",)) is (name == "*.example.com")
    assert routes.of_port("tcp", 25) == ("tcp:25", ("one",))
    assert routes.of_port("udp", 25)[1] == ()


def test_an_announcement_replaces_the_one_before() -> None:
    """What is missing in it is gone, at once, and leaves nothing behind."""
    routes = table(one=["a.example", "b.example"], two=["b.example"])
    routes.replace("one", keys("c.example", "b.example"))
    assert routes.of_host("a.example")[1] == ()
    assert routes.of_host("b.example")[1] == ("one", "two")
    assert sorted(routes) == ["b.example", "c.example"]
    routes.replace("one", frozenset())
    routes.replace("two", frozenset())
    assert len(routes) == 0
    assert routes.of_member("one") == frozenset()


def test_turns_count_for_each_key() -> None:
    """Two names that are asked for in turn do not keep each other from moving on."""
    routes = table(one=["a.example", "b.example"])
    assert [routes.turn("a.example"), routes.turn("b.example"), routes.turn("a.example")] == [0, 0, 1]
    routes.replace("one", frozenset())
    routes.replace("one", keys("a.example"))
    assert routes.turn("a.example") == 0
