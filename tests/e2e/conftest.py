"""The lab, put up once for all tests that use it, as anybody puts it up, and taken down behind them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from pytest_docker.plugin import Services, get_docker_services

from tests.support.docker import require_engine
from tests.support.lab import COMPOSE_FILE, PROJECT, Lab

_DOWN = "--profile '*' down --volumes --remove-orphans --timeout 5"
_TIMEOUT_S = 300
"""Longest time of one test here; the lab's start counts with the first of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test of this folder its time."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    """The file that the users of the lab have."""
    return str(COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    """Its own name: its subnets are fixed, so there is one lab at a time."""
    return PROJECT


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """Take down what a run before left, and put the lab up until all of it is healthy."""
    require_engine()
    return [_DOWN, "up --build --quiet-pull --wait --wait-timeout 240"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    """Leave nothing."""
    return [_DOWN]


@pytest.fixture(scope="session")
def docker_services(
    docker_compose_command: str,
    docker_compose_file: str,
    docker_compose_project_name: str,
    docker_setup: list[str],
    docker_cleanup: list[str],
) -> Iterator[Services]:
    """pytest-docker's, which says what the services said when they do not come up."""
    try:
        with get_docker_services(
            docker_compose_command, docker_compose_file, docker_compose_project_name, docker_setup, docker_cleanup
        ) as services:
            yield services
    except BaseException:
        sys.stderr.write(Lab().logs()[-20_000:])
        raise


@pytest.fixture(scope="session")
def lab_up(docker_services: Services) -> Lab:
    """The lab, since the first test that asked for it."""
    del docker_services
    return Lab()


@pytest.fixture
def lab(lab_up: Lab) -> Lab:
    """The lab, whole: both nodes know both regions' backends."""
    lab_up.wait_meshed()
    return lab_up
