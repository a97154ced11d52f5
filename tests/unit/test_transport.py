"""nexus.transport: the seam between listeners and whoever carries a stream."""

from __future__ import annotations

import dataclasses

import pytest

from nexus.hub.registry import Registry
from nexus.routing.decide import RejectReason
from nexus.transport import Dialer, OpenRequest


def test_a_request_is_a_value() -> None:
    """It may be passed on and kept; without a reason of its own a nameless client has no name."""
    request = OpenRequest("a.example.com", is_tls=True, local_port=443, client="c:1")
    assert request == OpenRequest("a.example.com", is_tls=True, local_port=443, client="c:1")
    assert request.nameless is RejectReason.NO_NAME
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.local_port = 80  # type: ignore[misc]


def test_the_hub_is_a_dialer() -> None:
    """The type checker holds the signature, this test the fact."""
    dialer: Dialer = Registry()
    assert callable(dialer.open_stream)
