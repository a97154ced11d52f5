"""Keys that are understood and checked, but whose feature this version does not serve yet.

Strategy: a file of the original must load, and an operator must learn what it does not get. Each entry is a key and
what tells that it is in use; the caller decides whether that refuses the start or warns. An entry goes away with the
version that serves its feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nexus.config.model import NodeConfig

UNSERVED: Mapping[str, Callable[[NodeConfig], bool]] = {
    "registrationURL": lambda config: bool(config.registration_url),
}


def unserved_features(config: NodeConfig) -> tuple[str, ...]:
    """Return one sentence for each key in use whose feature this version does not serve."""
    return tuple(f"{key}: not served by this version" for key, is_used in UNSERVED.items() if is_used(config))
