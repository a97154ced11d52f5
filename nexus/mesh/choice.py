"""Which of several peers gets the next tunnel.

Strategy: a plain function over what is known of each. A peer that is silent is asked only when nobody else is left.
Of the rest those near enough to the nearest, by round-trip time, share the tunnels in turn: within a region the times
differ by noise, between regions by more than ``NEAR_RATIO``. A peer whose time is not known yet counts as near.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, Protocol, TypeVar

NEAR_RATIO: Final = 1.5
NEAR_SLACK_S: Final = 0.005  # ours: below it the times of one data centre tell nothing


class Measured(Protocol):
    """What is known of a peer."""

    @property
    def round_trip_s(self) -> float | None:
        """Its shortest round-trip time of late, in seconds; None before the first pong."""

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come from it for longer than it should take."""


P = TypeVar("P", bound=Measured)


def choose(peers: Sequence[P], turn: int, exclude: Container[P] = ()) -> P | None:
    """Return the peer for the next tunnel, or None where all are excluded; ``turn`` counts the choices for a route."""
    near = nearest([peer for peer in peers if peer not in exclude])
    return near[turn % len(near)] if near else None


def nearest(peers: Sequence[P]) -> list[P]:
    """Return the peers that share the tunnels, in their order."""
    candidates = [peer for peer in peers if not peer.is_silent] or list(peers)
    times = [peer.round_trip_s for peer in candidates if peer.round_trip_s is not None]
    if not times:
        return candidates
    limit = min(times) * NEAR_RATIO + NEAR_SLACK_S
    return [peer for peer in candidates if peer.round_trip_s is None or peer.round_trip_s <= limit]
