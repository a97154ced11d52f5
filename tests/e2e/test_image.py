"""The image, as an operator runs it: read-only, without privileges, and by another user than root."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from tests.support.docker import IMAGE, build_image, docker, require_engine
from tests.support.processes import wait_for

pytestmark = pytest.mark.programs

BASE = "python:3.13-slim"
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
SIZE_MAX_BYTES = 100 * 1024 * 1024  # what the image adds to its base


def layers_of(image: str) -> list[str]:
    """Return size in bytes and origin of each layer, the newest first."""
    return docker("history", "--format", "{{.Size}} {{.CreatedBy}}", "--human=false", image).stdout.splitlines()


@pytest.fixture(scope="module")
def image() -> str:
    """The image of this checkout."""
    require_engine()
    build_image()
    return IMAGE


@pytest.fixture
def volume(image: str) -> Iterator[str]:
    """A volume with the configuration of a node, made by the image itself."""
    name = f"nexus-e2e-{secrets.token_hex(4)}"
    docker("volume", "create", name)
    options = ("--self-signed", "--hostname", "node.example.test")
    docker("run", "--rm", *CONFINED, "--volume", f"{name}:/var/lib/nexus", image, "init", "/var/lib/nexus", *options)
    yield name
    docker("volume", "rm", name)


def test_the_whole_product_runs_in_it(image: str) -> None:
    """Two nodes, a backend and a client in one confined container."""
    done = docker("run", "--rm", *CONFINED, image, "demo", "--once", "--json")
    assert json.loads(done.stdout)["ok"] is True


def test_it_is_nobody_and_holds_nothing_more_than_it_needs(image: str) -> None:
    """Not root, no installer; what it adds to the base is small, bytecode included: nobody may write that later."""
    look = "id -u; ls /opt/nexus/bin; find /opt/nexus -name '*.py' | wc -l; find /opt/nexus -name '*.pyc' | wc -l"
    said = docker("run", "--rm", "--entrypoint", "sh", image, "-c", look).stdout.splitlines()
    assert said[0] == "65532"
    assert not [name for name in said if "pip" in name]
    assert int(said[-1]) == int(said[-2]) > 1000
    layers, base = layers_of(image), layers_of(BASE)
    added = sum(int(line.split()[0]) for line in layers[: -len(base)])
    assert added < SIZE_MAX_BYTES, layers


def test_a_node_is_healthy_serves_and_stops_in_order(image: str, volume: str) -> None:
    """On privileged ports without any privilege; health by its own admin endpoint; SIGTERM is an orderly end."""
    name = volume
    command = ("serve", "--config", "/var/lib/nexus/server.yaml")
    docker("run", "--detach", "--name", name, *CONFINED, "--volume", f"{volume}:/var/lib/nexus", image, *command)
    try:
        wait_for(lambda: "ready: backends at" in docker("logs", name).stderr, "the node serves")
        assert "0.0.0.0:443" in docker("logs", name).stderr or "[::]:443" in docker("logs", name).stderr
        status = docker("exec", name, "nexus", "status", "--json")
        assert json.loads(status.stdout)["ready"] is True
        wait_for(lambda: _health(name) == "healthy", "the engine finds it healthy", 60)
        docker("stop", "--time", "20", name)
        state = json.loads(docker("inspect", name).stdout)[0]["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
        assert "stopping" in docker("logs", name).stderr
    finally:
        docker("rm", "--force", name)


def _health(name: str) -> str:
    return str(json.loads(docker("inspect", name).stdout)[0]["State"]["Health"]["Status"])


def test_what_a_token_command_leaves_behind_is_reaped(image: str) -> None:
    """PID 1 takes over orphans, passes the stop signal on, and tells the program's own exit code."""
    orphan = "(sleep 0.2 & exec sh -c 'exit 0') & wait; sleep 0.6; ls /proc | grep -c '^[0-9]'; exit 7"
    entry = docker("inspect", "--format", "{{json .Config.Entrypoint}}", image).stdout
    (*init, program) = json.loads(entry)
    assert program == "nexus"
    run = ("run", "--rm", *CONFINED, "--entrypoint", init[0], image, *init[1:])
    done = docker(*run, "sh", "-c", f"{orphan}", check=False)
    assert done.returncode == 7
    assert int(done.stdout) == 4  # the init, the shell, ls and grep: no zombie
