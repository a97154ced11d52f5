"""Real programs for tests: found on PATH, skipped loudly where they are missing, a failure in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def require(program: str) -> str:
    """Return the program's path; skip the test where it is not installed, fail in CI (``CI=true``)."""
    path = shutil.which(program)
    if path is not None:
        return path
    message = f"{program} is not installed: `apt-get install` it to run this test"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
