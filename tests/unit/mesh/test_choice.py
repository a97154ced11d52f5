"""Tests of the choice among peers: near before far, heard before silent, then in turn."""

from __future__ import annotations

from dataclasses import dataclass

from nexus.mesh.choice import choose, nearest


@dataclass(frozen=True)
class Known:
    """What is known of a peer."""

    name: str
    round_trip_s: float | None = None
    is_silent: bool = False


NEAR = Known("near", 0.020)
NEAR_TOO = Known("near too", 0.030)
FAR = Known("far", 0.150)
NEW = Known("new")
SILENT = Known("silent", 0.001, is_silent=True)


def test_near_peers_share_the_tunnels_in_turn() -> None:
    """A far one gets none while they are there."""
    picks = [choose([NEAR, FAR, NEAR_TOO], turn) for turn in range(4)]
    assert picks == [NEAR, NEAR_TOO, NEAR, NEAR_TOO]


def test_within_a_data_centre_times_tell_nothing() -> None:
    """0.2 and 4 ms differ by noise."""
    assert nearest([Known("a", 0.0002), Known("b", 0.004)]) == [Known("a", 0.0002), Known("b", 0.004)]


def test_a_peer_without_a_measured_time_counts_as_near() -> None:
    """It has just come up, and will be measured in seconds."""
    assert nearest([FAR, NEW, NEAR]) == [NEW, NEAR]
    assert nearest([NEW]) == [NEW]


def test_a_silent_peer_is_asked_only_when_nobody_else_is_left() -> None:
    """It may be dead, or only busy."""
    assert nearest([SILENT, FAR]) == [FAR]
    assert nearest([SILENT]) == [SILENT]
    assert choose([SILENT, FAR], 0, exclude={FAR}) == SILENT


def test_nobody_is_chosen_where_all_were_tried() -> None:
    """The tunnel fails then."""
    assert choose([NEAR], 3, exclude={NEAR}) is None
    assert choose([], 0) is None
