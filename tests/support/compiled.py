"""What can be tested of Python alone: compiled code calls its own functions directly."""

from __future__ import annotations

import pytest

from cli.version import data_path

interpreted = pytest.mark.skipif(data_path() != "Python", reason="compiled code cannot be watched from outside")
