"""What strangers do to a node, and what its logs tell them who read them."""

from __future__ import annotations

import json
import re

from tests.support.docker import docker
from tests.support.lab import Lab
from tests.support.processes import wait_for

_TOKEN = re.compile(r"eyJ[\w-]{10,}")  # how every JSON Web Token begins
_LOAD = ("python3", "/lab/tools/load.py", "https://app.lab.test/files/small", "6", "20")


def test_a_hostile_client_disturbs_nobody(lab: Lab) -> None:
    """Hundreds of connections of every bad kind at a time, and each request of the others is served meanwhile."""
    node = lab.container("node-us")
    rejected = lab.figure("us", "nexus_client_connections_rejected_total")
    lab.compose("--profile", "hostile", "up", "--detach", "hostile")
    try:
        wait_for(lambda: lab.figure("us", "nexus_client_connections_rejected_total") > rejected + 50, "it is at work")
        for tester in ("tester-us", "tester-eu"):
            outcomes = [json.loads(line)["outcome"] for line in lab.output(tester, *_LOAD).splitlines()]
            assert len(outcomes) > 80
            assert set(outcomes) == {"ok"}, [outcome for outcome in outcomes if outcome != "ok"]
    finally:
        wait_for(lambda: not lab.compose("--profile", "hostile", "ps", "--quiet", "hostile").strip(), "it ends", 60)
    tally = json.loads(lab.logs("hostile").splitlines()[-1])
    assert len([kind for kind in tally if " on " in kind and tally[kind] > 10]) >= 12, tally
    wait_for(lambda: lab.status("us").get("streams") == 0, "its streams are gone", 60)
    lab.wait_meshed()
    state = json.loads(docker("inspect", node).stdout)[0]
    assert (state["RestartCount"], state["State"]["OOMKilled"]) == (0, False)
    assert "Traceback" not in lab.logs("node-us", "node-eu", "client-us-1", "client-us-2", "client-eu")


def test_secrets_and_what_clients_say_are_in_no_log(lab: Lab) -> None:
    """Neither the backends' secret nor tokens, keys, paths or bodies, even of those who asked in clear."""
    secret = lab.output("node-us", "cat", "/secrets/backends").strip()
    assert len(secret) == 64
    lab.curl("us", "http://app.lab.test/a-private-path?with=a-private-query")
    said = lab.logs("node-us", "node-eu", "client-us-1", "client-us-2", "client-eu")
    assert "ready: backends at" in said
    assert secret not in said
    assert "PRIVATE KEY" not in said
    assert _TOKEN.search(said) is None
    assert "a-private" not in said
    assert "says hello" not in said
