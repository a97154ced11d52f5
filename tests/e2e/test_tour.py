"""The guided tour of ``lab/README.md``, and ``nexus lab`` around it: what people copy and paste, done to the letter."""

from __future__ import annotations

import json

import pytest

from cli.compose import Compose
from cli.lab import read_tour, run_step
from cli.tour import Step, is_as_shown
from tests.support.command_line import nexus
from tests.support.docker import docker
from tests.support.lab import COMPOSE_FILE, PROJECT, Lab

COMPOSE = Compose(COMPOSE_FILE)
STEPS = read_tour(COMPOSE)


def test_the_file_is_valid_for_compose(lab: Lab) -> None:
    """All of it, extras too, without a warning."""
    done = docker("compose", "--file", str(COMPOSE_FILE), "--profile", "*", "config", "--quiet")
    assert done.stderr == ""
    services = lab.compose("--profile", "*", "config", "--services").split()
    assert {"node-us", "node-eu", "pebble", "coredns", "dns-backend", "tester-us", "tester-eu", "hostile"} <= {
        *services
    }


def test_the_lab_is_put_up_again_without_harm(lab: Lab) -> None:
    """A second ``up`` leaves what is well as it is, and shows it."""
    before = docker("inspect", "--format", "{{.State.StartedAt}}", lab.container("node-us")).stdout
    outcome = nexus("lab", "up", "--no-build")
    assert outcome.code == 0, outcome.stderr
    assert "node-us" in outcome.stdout
    assert "Next: nexus lab tour" in outcome.stderr
    assert docker("inspect", "--format", "{{.State.StartedAt}}", lab.container("node-us")).stdout == before


@pytest.mark.parametrize("step", STEPS, ids=[step.title for step in STEPS])
def test_each_step_of_the_tour_prints_what_it_shows(lab: Lab, step: Step) -> None:
    """In its order; the README says where anything may stand."""
    del lab
    printed = run_step(COMPOSE, step)
    assert is_as_shown(step, printed), f"{step.command}\nprinted:\n{printed}\nand the README shows:\n{step.expected}"


def test_the_tour_is_walked_by_the_command_line(lab: Lab) -> None:
    """Step by step; a step that is not there is a mistake of usage."""
    del lab
    outcome = nexus("lab", "tour", "--yes", "--step", "2", "--step", "4")
    assert outcome.code == 0, outcome.stdout
    assert outcome.stdout.count("✓") == 2
    assert "10.231.2.10" in outcome.stdout
    assert nexus("lab", "tour", "--step", "99").code == 2


def test_the_status_is_that_of_all_services(lab: Lab) -> None:
    """For people and as JSON; one that is not well is told, and so is the exit code."""
    document = nexus("lab", "status", "--json").document()
    assert {service["name"] for service in document["services"]} >= {"node-us", "coredns", "web-eu"}
    assert all(service["well"] for service in document["services"])
    assert document["nodes"]["node-us"]["sessions"] == 2
    lab.compose("kill", "client-eu")
    try:
        outcome = nexus("lab", "status")
        assert outcome.code == 1
        assert "failed with 137" in outcome.stdout
    finally:
        lab.compose("start", "client-eu")


def test_nothing_is_left_when_it_is_taken_down(lab: Lab) -> None:
    """No container, no volume, no network; then there is no status, and that is no mistake in the file."""
    del lab
    assert nexus("lab", "down").code == 0
    for kind in ("container", "volume", "network"):
        everything = ["--all"] if kind == "container" else []
        found = docker(kind, "ls", *everything, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
        assert found.stdout == ""
    outcome = nexus("lab", "status", "--json")
    assert (outcome.code, json.loads(outcome.stdout)["services"]) == (1, [])
