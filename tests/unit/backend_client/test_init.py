"""backend_client: what a program needs stands in the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import backend_client


def test_the_package_offers_what_it_lists_and_loads_it_late() -> None:
    """A module of the package costs nothing of the others; a name that is not there is an error as ever."""
    look = "import sys, backend_client.mapping; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert not {"backend_client.client", "websockets", "jwt"} & {*loaded}
    assert {"connect", "BackendClient", "Connection", "Event", "TokenProvider"} <= {*backend_client.__all__}
    for name in backend_client.__all__:
        assert getattr(backend_client, name).__name__ == name or name == "Handler"
    assert {*backend_client.__all__} <= {*dir(backend_client)}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = backend_client.nothing
