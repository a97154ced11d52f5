"""nexus.hub.registry: whose turn it is, who steps in, and what is left when a backend leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

from nexus.auth.grants import Grant
from nexus.hub.backend import BackendSession
from nexus.hub.registry import Registry
from nexus.link.connection import Link, LinkEnd
from nexus.link.flow import FLOW_WINDOW, Drop, Flow
from nexus.link.session import DATAGRAMS_WAITING_MAX_BYTES
from nexus.link.stream import Stream
from nexus.protocol.framing import Buffer
from nexus.routing.decide import Reject, RejectReason
from nexus.transport import Dialer, OpenRequest
from tests.support.sessions import LOST, FakeLink

HOST = "app.example.com"
REQUEST = OpenRequest(HOST, is_tls=True, local_port=443, client="203.0.113.9:51234")


def join(
    registry: Registry, *hostnames: str, weight: int = 1, subject: str = "b", **ports: Any
) -> tuple[BackendSession, FakeLink]:
    """Let a backend behind a fake link serve names and ports."""
    link = FakeLink()
    grant = Grant(hostnames=hostnames or (HOST,), weight=weight, subject=subject, **ports)
    return BackendSession(cast(Link, link), grant, registry, "192.0.2.1:5", asyncio.TaskGroup()), link


def lose(backend: BackendSession, link: FakeLink, end: LinkEnd = LOST) -> None:
    """End a backend's link."""
    link.closing = True
    link.writable = False
    backend.session.link_lost(end)


def test_a_registry_is_a_dialer() -> None:
    """The listeners need no more than that."""
    dialer: Dialer = Registry()
    assert dialer.open_stream(REQUEST) == Reject(RejectReason.NO_BACKEND, HOST)


def test_streams_are_shared_by_weight() -> None:
    """Over 400 streams weights 3, 1 and 4 get their exact shares (spec backend-protocol 13)."""
    registry = Registry()
    members = {join(registry, weight=weight)[0]: weight for weight in (3, 1, 4)}
    counts: Counter[BackendSession] = Counter()
    for _ in range(400):
        stream = registry.open_stream(REQUEST)
        assert isinstance(stream, Stream)
        counts[cast(BackendSession, stream.session.role)] += 1
    assert counts == {member: 400 * weight // 8 for member, weight in members.items()}
    assert registry.totals.streams == 400
    assert len(tuple(registry.streams())) == 400


def test_the_next_backend_steps_in_where_a_link_is_going_down() -> None:
    """A client never sees a backend that has left, nor one that is leaving."""
    registry = Registry()
    links = [join(registry)[1] for _ in range(3)]
    links[0].closing = links[1].closing = True
    for _ in range(6):
        assert isinstance(registry.open_stream(REQUEST), Stream)
    assert [len(link.controls("connect")) for link in links] == [0, 0, 6]


def test_nobody_is_left_where_every_link_is_going_down() -> None:
    """The client is refused, nothing counts as a stream."""
    registry = Registry()
    for _ in range(2):
        join(registry)[1].closing = True
    assert registry.open_stream(REQUEST) == Reject(RejectReason.NO_BACKEND, HOST)
    assert registry.totals.streams == 0


def test_a_connection_without_a_name_is_refused_for_its_reason() -> None:
    """The listener's reason is kept."""
    registry = Registry()
    join(registry)
    request = OpenRequest(None, is_tls=False, local_port=80, client="c:1", nameless=RejectReason.UNRECOGNISED)
    assert registry.open_stream(request) == Reject(RejectReason.UNRECOGNISED)


def test_a_retired_backend_gets_no_new_streams_but_keeps_its_own() -> None:
    """Retiring twice is no different."""
    registry = Registry()
    backend, _ = join(registry)
    stream = registry.open_stream(REQUEST)
    registry.retire(backend)
    registry.retire(backend)
    assert registry.open_stream(REQUEST) == Reject(RejectReason.NO_BACKEND, HOST)
    assert tuple(registry.streams()) == (stream,)
    assert backend in registry.sessions


def test_what_a_backend_moved_outlives_it() -> None:
    """Sums count sessions that are gone; the subject holds none any more."""
    registry = Registry()
    backend, link = join(registry)
    stream = registry.open_stream(REQUEST)
    assert isinstance(stream, Stream)
    stream.send(b"12345")
    backend.session.message_received(b"\x01" + stream.id + b"abc")
    lose(backend, link)
    assert (registry.totals.bytes_to_backends, registry.totals.bytes_to_clients) == (5, 3)
    assert registry.totals.session_ends == {"error": 1}
    assert registry.totals.stream_resets == {"session_ended": 1}
    assert not registry.sessions
    assert not tuple(registry.streams())
    assert len(registry.table) == 0


def test_sessions_are_counted_by_subject() -> None:
    """One that nobody knows has none, and leaves no entry behind."""
    registry = Registry()
    first, second, other = join(registry), join(registry), join(registry, subject="other")
    assert [registry.sessions_of(name) for name in ("b", "other", "nobody")] == [2, 1, 0]
    lose(*first)
    lose(*other)
    assert [registry.sessions_of(name) for name in ("b", "other")] == [1, 0]
    lose(*second)
    assert not registry._subjects
    assert registry.totals.sessions == 3


# -- Ports ------------------------------------------------------------------------------------------------------------

SSH = OpenRequest(None, is_tls=False, local_port=22, client="203.0.113.9:51234")
DNS = OpenRequest(None, is_tls=False, local_port=53, client="203.0.113.9:51234")
RESOLVER = ("203.0.113.9", 51234)


class NoPort:
    """The owner of flows that nobody looks at."""

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        """Nothing."""

    def flow_ended(self, flow: Flow) -> None:
        """Nothing."""

    def sent(self, flow: Flow) -> None:
        """Nothing."""

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        """Nothing."""


def test_a_claimed_tcp_port_serves_clients_without_a_name() -> None:
    """``connect`` carries the route key; the listener can ask beforehand."""
    registry = Registry()
    assert not registry.claims_port(22)
    backend, link = join(registry, tcp_ports=(22,), udp_routes={53: 30})
    assert registry.claims_port(22)
    assert not registry.claims_port(53)
    stream = registry.open_stream(SSH)
    assert isinstance(stream, Stream)
    (control,) = link.controls("connect")
    assert (control.hostname, control.conn_port, control.transport, control.is_tls) == ("tcp:22", 22, "tcp", False)
    registry.retire(backend)
    assert not registry.claims_port(22)


def test_a_claimed_udp_port_opens_flows() -> None:
    """``connect`` says so, and grants; the flow is known before it is announced, and counted as a stream."""
    registry = Registry()
    backend, link = join(registry, udp_routes={53: 30})
    flow = registry.open_flow(DNS, NoPort(), RESOLVER)
    assert isinstance(flow, Flow)
    (control,) = link.controls("connect")
    assert (control.hostname, control.conn_port, control.transport) == ("udp:53", 53, "udp")
    assert (control.client_ip, control.stream_id, control.credits) == (DNS.client, flow.id, FLOW_WINDOW)
    assert backend.session.flows == {flow.id: flow}
    assert registry.totals.streams == 1


def test_flows_are_shared_by_weight() -> None:
    """One selection for each new flow (spec backend-protocol 13)."""
    registry = Registry()
    links = {join(registry, weight=weight, udp_routes={53: 30})[1]: weight for weight in (1, 3)}
    for _ in range(40):
        registry.open_flow(DNS, NoPort(), RESOLVER)
    assert {link: len(link.controls("connect")) for link in links} == {
        link: 10 * weight for link, weight in links.items()
    }


def test_a_flow_goes_to_the_next_backend_where_a_link_is_full_or_going_down() -> None:
    """Announcements are bounded as datagrams are; where nobody has room the client is refused for that reason."""
    registry = Registry()
    assert registry.open_flow(DNS, NoPort(), RESOLVER) == Reject(RejectReason.NO_BACKEND)
    links = [join(registry, udp_routes={53: 30})[1] for _ in range(3)]
    links[0].closing = True
    links[1].waiting = DATAGRAMS_WAITING_MAX_BYTES
    for _ in range(3):
        assert isinstance(registry.open_flow(DNS, NoPort(), RESOLVER), Flow)
    assert [len(link.controls("connect")) for link in links] == [0, 0, 3]
    links[2].closing = True
    assert registry.open_flow(DNS, NoPort(), RESOLVER) == Reject(RejectReason.OVERLOADED)


def test_the_idle_time_of_a_port_is_the_greatest_of_its_backends() -> None:
    """Spec backend-protocol 10: of those that are connected now; without any it is the node's."""
    registry = Registry(flow_idle_default_s=17)
    assert registry.flow_idle_s(53) == 17
    short, _ = join(registry, udp_routes={53: 5})
    long, _ = join(registry, udp_routes={53: 60, 123: 90})
    assert (registry.flow_idle_s(53), registry.flow_idle_s(123)) == (60, 90)
    registry.retire(long)
    assert registry.flow_idle_s(53) == 5
    registry.retire(short)
    assert registry.flow_idle_s(53) == 17
