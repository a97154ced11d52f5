"""A container engine for tests: skipped loudly where there is none, a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = "nexus-proxy:e2e"
BUILD_TIMEOUT_S = 600


def docker(*arguments: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the client; what it says of a failure is in the test's report."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def require_engine() -> None:
    """Skip the test where no engine answers; fail in CI (``CI=true``)."""
    if shutil.which("docker") is not None and docker("info", check=False).returncode == 0:
        return
    message = "no container engine answers: start one, and set DOCKER_HOST where it is not the default"
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)


def build_image() -> None:
    """Build the image of this checkout."""
    docker("build", "--network", "host", "--tag", IMAGE, str(ROOT), timeout_s=BUILD_TIMEOUT_S)
