"""nexus.workers.messages: what is said is what is heard."""

from __future__ import annotations

import json

import pytest

from nexus.protocol.tunnels import parse_text
from nexus.routing.decide import RejectReason
from nexus.transport import OpenRequest
from nexus.workers.messages import (
    PREFIX,
    AskFigures,
    Figures,
    Leaves,
    Look,
    News,
    PassedBackend,
    PassedClient,
    Retires,
    Serves,
    Text,
    parse,
    parse_passed,
    serialize,
    serialize_passed,
)


@pytest.mark.parametrize(
    "text",
    [
        Serves(7, ("a.example", "*.b.example", "udp:53"), 3, "backend", "192.0.2.1", {53: 30}),
        Serves(8, (), 1, "", "[2001:db8::1]", {}),
        Retires(7),
        Leaves(7),
        News(("starting", "the hub waits"), (25, 2222)),
        News((), ()),
        Look(),
        AskFigures(),
        Figures(4711, {"sessions": 1, "client_connections_total": {"443": 2}}),
    ],
)
def test_texts_arrive_as_they_were(text: Text) -> None:
    """And are no words of the mesh, with which they share a link."""
    said = serialize(text)
    assert said.startswith(PREFIX)
    assert json.loads(said)
    assert parse(said) == text
    assert parse_text(said) is None


@pytest.mark.parametrize(
    "passed",
    [
        PassedClient(OpenRequest("a.example", True, 443, "192.0.2.1:5"), b"\x16\n{", "tls", own=True),
        PassedClient(OpenRequest(None, False, 25, "[::1]:5", RejectReason.TIMEOUT), b"", "", own=False),
        PassedBackend("2001:db8::1"),
    ],
)
def test_sockets_come_with_what_was_read(passed: PassedClient | PassedBackend) -> None:
    """Whatever bytes a client sent, line ends among them."""
    assert parse_passed(serialize_passed(passed)) == passed
