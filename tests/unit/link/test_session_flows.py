"""nexus.link.session: streams and flows side by side, whatever the other side sends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.link import session
from nexus.link.flow import Drop, Flow
from nexus.protocol.constants import DATA_HEADER_BYTES, KIND_CONTROL, KIND_DATA, PAYLOAD_MAX_BYTES
from nexus.protocol.framing import Buffer
from nexus.protocol.messages import id_text, simple_message
from nexus.protocol.reasons import Reason
from tests.support.sessions import LOST, Sent, Side

FLOWS = [bytes([number]) * 16 for number in range(1, 4)]
STREAM = 9
CLIENT = ("192.0.2.1", 53)
EVENTS = ["connect", "disconnect", "half_close", "pause_stream", "resume_stream", "ping_client", "hello", "", "\ud800"]

ids = st.sampled_from([*FLOWS, bytes(16), STREAM.to_bytes(2, "little") * 8]) | st.binary(min_size=16, max_size=16)
datagrams = st.builds(lambda one, rest: bytes([KIND_DATA]) + one + rest, ids, st.binary(max_size=40))
values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.lists(st.integers())
controls = st.builds(
    lambda event, one, fields: (
        bytes([KIND_CONTROL]) + json.dumps({**fields, "event": event, "client_id": one}).encode()
    ),
    st.sampled_from(EVENTS) | st.text(max_size=8),
    ids.map(id_text) | st.text(max_size=8),
    st.dictionaries(st.sampled_from(["credits", "reason", "transport", "success", "features"]), values, max_size=3),
)
hostile = datagrams | controls | st.binary(max_size=60)


class Owner:
    """Notes what flows deliver, and which of them ended."""

    def __init__(self) -> None:
        self.delivered: list[bytes] = []
        self.ended: list[bytes] = []

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        assert flow.id not in self.ended
        self.delivered.append(bytes(datagram))

    def flow_ended(self, flow: Flow) -> None:
        self.ended.append(flow.id)

    def sent(self, flow: Flow) -> None:
        pass

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        raise AssertionError("there is no cap here")


def session_with_flows() -> tuple[Side, Owner]:
    """Return a session with three flows and a stream."""
    side, owner = Side(), Owner()
    for one in FLOWS:
        side.session.flows[one] = Flow(side.session, one, owner, CLIENT)
    side.open(STREAM)
    return side, owner


@given(st.lists(hostile, max_size=40))
def test_nothing_that_arrives_breaks_a_session_with_flows(messages: list[bytes]) -> None:
    """No exception, no delivery behind an end, each flow ended once at most, and the link's end ends what is left."""
    side, owner = session_with_flows()
    for message in messages:
        side.take(Sent("message", message))
    assert set(owner.ended) | set(side.session.flows) == set(FLOWS)
    side.session.link_lost(LOST)
    assert sorted(owner.ended) == FLOWS
    assert side.session.flows == side.session.streams == {}


@given(st.lists(st.binary(max_size=PAYLOAD_MAX_BYTES), max_size=8), st.sampled_from(FLOWS))
def test_every_datagram_arrives_as_it_was_and_in_order(payloads: list[bytes], one: bytes) -> None:
    """One message is one datagram, whatever is in it."""
    side, owner = session_with_flows()
    flow = side.session.flows[one]
    assert isinstance(flow, Flow)
    for payload in payloads:
        flow.send(payload)
        side.take(Sent("message", bytes([KIND_DATA]) + one + payload))
    assert owner.delivered == payloads
    assert [sent.payload[DATA_HEADER_BYTES:] for sent in side.link.log if sent.payload[0] == KIND_DATA] == payloads


def test_stopping_ends_flows_as_it_ends_streams() -> None:
    """The peer is told of each."""
    side, _ = session_with_flows()
    side.session.end_all(Reason.SHUTDOWN)
    assert len(side.link.controls("disconnect")) == len(FLOWS) + 1
    assert side.session.flows == side.session.streams == {}


def test_many_flows_of_a_lost_link_end_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 at once would hold up everybody on the node; what is left is known until its turn, and can be closed."""
    monkeypatch.setattr(session, "LOST_FLOWS_PER_TURN", 1)
    side, owner = session_with_flows()
    side.link.closing = True
    side.session.link_lost(LOST)
    assert (len(owner.ended), len(side.link.turns), side.session.ended) == (1, 1, True)
    next(iter(side.session.flows.values())).close(Reason.NORMAL)
    while side.link.turns:
        side.link.turns.popleft()()
    assert len(owner.ended) == len(set(owner.ended)) == 2
    assert side.session.flows == {}


def test_a_stream_goes_before_a_flow_of_the_same_id() -> None:
    """Ids are the hub's, so this cannot happen; if it does, nothing is torn."""
    side, owner = session_with_flows()
    stream, endpoint = side.open(STREAM)
    side.session.flows[stream.id] = Flow(side.session, stream.id, owner, CLIENT)
    side.take(Sent("message", bytes([KIND_DATA]) + stream.id + b"x"))
    side.take(Sent("message", simple_message("disconnect", stream.id, Reason.RESET)))
    assert endpoint.received() == b"x"
    assert endpoint.aborted
    assert owner.delivered == []
