"""The hub's certificate from a real certificate authority (Pebble), on real nodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from nexus.admin.probe import probe
from tests.support import wire
from tests.support.pebble import ACCOUNT_ID, ACCOUNT_KEY, Pebble, Zone, zone
from tests.support.ports import free_ports
from tests.support.processes import (
    NEXUS,
    Nginx,
    Node,
    Pki,
    Process,
    client_command,
    wait_for,
)
from tests.support.programs import require

pytestmark = pytest.mark.programs

HUB, APP = "hub.example.test", "app.example.test"
CHALLENGES = "/.well-known/acme-challenge/"
NOBODY = "127.0.0.9"  # an address of loopback on which nothing listens
SHORT_S = 30
ISSUE_TIMEOUT_S = 60.0


class Waiting(Node):
    """A node that is waited for until it listens, whether or not it has its certificate."""

    def _start(self) -> None:
        Process.__init__(self, [*self.prefix, *NEXUS, "serve", "-c", str(self.file)], self.directory / "node.log")
        wait_for(self.is_alive, "the node listens")

    def is_alive(self) -> bool:
        """Ask /healthz."""
        with contextlib.suppress(OSError):
            return probe(self.admin, "/healthz").status == 200
        return False

    def readiness(self) -> str:
        """Return what /readyz says."""
        return probe(self.admin, "/readyz").body


@dataclass
class World:
    """A CA, its name server, and the ports that the CA takes for 80 and 443."""

    directory: Path
    pki: Pki
    names: Zone
    http_port: int
    tls_port: int

    def ca(self, **options: object) -> Pebble:
        """Return a CA, not started."""
        ports = {"http_port": self.http_port, "tls_port": self.tls_port}
        return Pebble(self.directory, self.pki, self.names, **ports, **options)  # type: ignore[arg-type]

    def settings(self, ca: Pebble, directory: Path | None = None, **more: object) -> dict[str, object]:
        """Return what lets a node get its certificate."""
        ports = {"acmeHTTPPort": self.http_port, "acmeTLSPort": self.tls_port}
        relay = {"relayPorts": [self.http_port, self.tls_port]}
        return ca.settings(directory or self.directory, HUB, **ports, **relay, **more)

    @property
    def cache(self) -> Path:
        """The directory of the first node's account and certificate."""
        return self.directory / "acme"


@pytest.fixture
def world(directory: Path) -> Iterator[World]:
    """Everything but a CA and a node."""
    with zone(directory) as names:
        yield World(directory, Pki.create(directory), names, *free_ports(2))


def serial(node: Node, ca: Pebble) -> int:
    """Return the serial number of the certificate that the hub shows, verified by name and root."""
    context = ssl.create_default_context(cafile=str(ca.root_file))
    with wire.connect(node.hub_port) as plain, context.wrap_socket(plain, server_hostname=HUB) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_name_is_enough(world: World) -> None:
    """First issuance: files for the owner alone, one ECDSA certificate, the expiry in the metrics, one order."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        assert serial(node, ca)
        assert ca.orders() == 1
        modes = {path.name: path.stat().st_mode & 0o777 for path in world.cache.iterdir()}
        assert modes == {HUB: 0o600, f"{HUB}+nexus": 0o600, "acme_account+key": 0o600}
        assert world.cache.stat().st_mode & 0o777 == 0o700
        leaf = x509.load_pem_x509_certificate((world.cache / HUB).read_bytes())
        assert node.metric("nexus_hub_certificate_expiry_timestamp_seconds") == leaf.not_valid_after_utc.timestamp()
        assert (world.cache / HUB).read_text().startswith("-----BEGIN EC PRIVATE KEY-----")


def test_a_warm_cache_asks_nobody(world: World) -> None:
    """A restarted node serves the certificate that it has, and so does one on which the state of ours is lost."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        first = serial(node, ca)
        for lost in ((), (f"{HUB}+nexus",)):
            node.stop()
            for name in lost:
                (world.cache / name).unlink()
            node.restart()
            assert serial(node, ca) == first
        assert ca.orders() == 1


def test_the_cache_of_an_original_is_taken_over(world: World) -> None:
    """Its account key, and its pair of either kind: no new order, no new account."""
    with world.ca() as ca:
        settings = world.settings(ca, acmeKeyType="rsa-2048")
        with Node(world.directory, world.pki, **settings) as node:
            first = serial(node, ca)
            node.stop()
            (world.cache / f"{HUB}+nexus").unlink()
            (world.cache / HUB).rename(world.cache / f"{HUB}+rsa")
            node.restart()
            assert serial(node, ca) == first
        assert ca.orders() == 1


def test_a_short_lived_certificate_is_renewed_in_time(world: World) -> None:
    """At two thirds of its lifetime; a session that stands is not dropped, and new handshakes see the new one."""
    with world.ca(lifetime_s=SHORT_S) as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        first = serial(node, ca)
        with backend(world, node, ca, APP, {}) as client:
            wait_for(lambda: serial(node, ca) != first, "the certificate is renewed", ISSUE_TIMEOUT_S)
            assert node.metric("nexus_sessions") == 1
            assert node.metric("nexus_sessions_opened_total") == 1, client.output()
            assert probe(node.admin, "/readyz").status == 200
        with backend(world, node, ca, APP, {}):  # a new session, by the new certificate
            assert node.metric("nexus_sessions_opened_total") == 2


def test_refused_nonces_are_replaced(world: World) -> None:
    """Pebble refuses six good ones of ten on purpose."""
    with world.ca(refused_nonces=60) as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        assert serial(node, ca)
        assert ca.log.count("HEAD /nonce-plz") > 1


def test_a_node_without_its_ca_serves_and_says_so(world: World) -> None:
    """Public ports serve at once; health names the URL and the mend; when the CA is back there is a certificate."""
    ca = world.ca()
    with Waiting(world.directory, world.pki, **world.settings(ca)) as node:
        wait_for(lambda: "cannot be reached" in node.readiness(), "health says why")
        assert "the hub waits for its certificate" in node.readiness()
        assert ca.url in node.readiness()
        with wire.connect(world.http_port) as client:
            client.sendall(wire.request("nobody.example.test"))
            response, _ = wire.read_response(client)
            assert response.status == 404
        with ca:
            node.popen.send_signal(signal.SIGHUP)
            wait_for(node.is_ready, "there is a certificate", ISSUE_TIMEOUT_S)
            assert serial(node, ca)
        before = serial(node, ca)
        wish(node)  # and now the CA is down again
        wait_for(lambda: node.output().count("cannot be reached") >= 2, "the second failure is told")
        assert probe(node.admin, "/readyz").status == 200
        assert serial(node, ca) == before


def test_a_wrong_record_is_named_until_it_is_mended(world: World) -> None:
    """First no address, then one of nobody, then the node's own."""
    with world.ca() as ca:
        world.names.remove(HUB)
        with Waiting(world.directory, world.pki, **world.settings(ca, acmeChallenges=["http-01"])) as node:
            wait_for(lambda: "no certificate" in node.output(), "the failure is told", ISSUE_TIMEOUT_S)
            assert "create an A or AAAA record that points to this node" in node.readiness(), node.readiness()
            world.names.restore(HUB)
            world.names.point(HUB, NOBODY)
            node.popen.send_signal(signal.SIGHUP)
            wait_for(lambda: f"cannot reach {HUB}" in node.readiness(), "the second failure, too", ISSUE_TIMEOUT_S)
            assert f"open port 80 and let it lead to port {world.http_port} of this node" in node.readiness()
            assert "Traceback" not in node.output()
            world.names.point(HUB, "127.0.0.1")
            node.popen.send_signal(signal.SIGHUP)
            wait_for(node.is_ready, "there is a certificate", ISSUE_TIMEOUT_S)


def test_another_server_at_the_name_is_told(world: World) -> None:
    """Its answer to the challenge is some page."""
    (world.directory / "nginx").mkdir()
    other = Nginx(world.directory / "nginx", *world.pki.issue("other", HUB))
    other.http_port = world.http_port
    with world.ca() as ca, other:
        settings = world.settings(ca, relayBindAddresses=["127.0.0.2"])
        with Waiting(world.directory, world.pki, **settings) as node:
            wait_for(lambda: "no certificate" in node.output(), "the failure is told", ISSUE_TIMEOUT_S)
            assert "something other than this node answered the CA" in node.readiness(), node.readiness()


def test_the_command_line_sees_renews_and_imports(world: World) -> None:
    """On a running node."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        first = serial(node, ca)
        cert = [*NEXUS, "cert"]
        status = subprocess.run([*cert, "status", "-c", str(node.file)], capture_output=True, timeout=30, check=True)
        assert f"names     {HUB}".encode() in status.stdout
        kept = (world.cache / HUB).read_bytes()
        subprocess.run([*cert, "renew", "-c", str(node.file)], capture_output=True, timeout=ISSUE_TIMEOUT_S, check=True)
        wait_for(lambda: serial(node, ca) != first, "the new one is in service")
        pair = world.directory / "kept.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(kept)
        subprocess.run(
            [*cert, "import", "-c", str(node.file), "--cert", str(pair), "--key", str(pair)],
            capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        node.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: serial(node, ca) == first, "the imported one is in service")
        assert node.metric('nexus_acme_attempts_total{result="issued"}') == 2


def test_a_failed_attempt_is_not_repeated_by_a_restart(world: World) -> None:
    """A node that is restarted in a loop must not use up what the CA allows."""
    with world.ca() as ca:
        world.names.point(HUB, NOBODY)
        with Waiting(world.directory, world.pki, **world.settings(ca)) as node:
            wait_for(lambda: "no certificate" in node.output(), "the failure is told", ISSUE_TIMEOUT_S)
            placed = ca.orders()
            for _ in range(2):
                node.stop()
                node.restart()
                wait_for(lambda: "tried again in" in node.output(), "the node says when")
            assert ca.orders() == placed
            world.names.point(HUB, "127.0.0.1")
            wish(node)
            wait_for(node.is_ready, "an operator's wish is heard", ISSUE_TIMEOUT_S)


def test_tls_alpn_is_the_second_choice(world: World) -> None:
    """Without a port 80 of its own, the node proves its name on 443; clients of other names are not disturbed."""
    with world.ca() as ca:
        settings = world.settings(ca) | {"relayPorts": [world.tls_port]}
        with Node(world.directory, world.pki, **settings) as node:
            assert serial(node, ca)
            assert "Attempting to validate w/ HTTP" not in ca.log


def test_an_account_of_the_cas_web_site_is_used(world: World) -> None:
    """External Account Binding; without it the failure names the keys."""
    with world.ca(wants_account=True) as ca:
        with Waiting(world.directory, world.pki, **world.settings(ca)) as node:
            wait_for(lambda: "no certificate" in node.output(), "the failure is told", ISSUE_TIMEOUT_S)
            assert "acmeEABKeyID and acmeEABKeyFile" in node.readiness()
        key_file = world.directory / "eab.key"
        key_file.touch(mode=0o600)
        key_file.write_text(f"{ACCOUNT_KEY}\n")
        shutil.rmtree(world.cache)
        settings = world.settings(ca, acmeEABKeyID=ACCOUNT_ID, acmeEABKeyFile=str(key_file))
        with Node(world.directory, world.pki, **settings) as node:
            assert serial(node, ca)


def test_damaged_files_are_replaced(world: World) -> None:
    """Half a pair, a state that is no JSON, an account key that is none: told of, and a new certificate obtained."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        node.stop()
        pair = (world.cache / HUB).read_bytes()
        (world.cache / HUB).write_bytes(pair[: len(pair) - 100])
        (world.cache / f"{HUB}+nexus").write_text('{"renew_at": "yesterday", "failures"')
        (world.cache / "acme_account+key").write_text("no key\n")
        node.restart()
        assert serial(node, ca)
        assert ca.orders() == 2
        assert len(list(world.cache.glob("acme_account+key.damaged-*"))) == 1
        assert "Traceback" not in node.output()


def test_another_ca_means_another_certificate(world: World) -> None:
    """Whoever tried with a staging CA and then configures another one does not keep what nobody trusts."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        first = serial(node, ca)
        node.stop()
        state = world.cache / f"{HUB}+nexus"
        state.write_text(state.read_text().replace(ca.url, "https://staging.example.test/directory"))
        node.restart()
        assert serial(node, ca) != first


def test_a_backend_gets_and_serves_its_own_certificate(world: World) -> None:
    """By HTTP-01 through the node's port 80 with a real ACME client; then HTTPS through 443."""
    dehydrated = require("dehydrated")
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        (world.directory / "nginx").mkdir()
        nginx = Nginx(world.directory / "nginx", *world.pki.issue("app", APP))
        targets = {world.http_port: nginx.http_port, world.tls_port: nginx.tls_port}
        challenges = nginx.root / ".well-known" / "acme-challenge"
        challenges.mkdir(parents=True)
        with nginx, backend(world, node, ca, APP, targets):
            done = subprocess.run(
                [dehydrated, "--register", "--accept-terms", *_dehydrated(world, ca, challenges)],
                capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            done = subprocess.run(
                [dehydrated, "--cron", "--domain", APP, *_dehydrated(world, ca, challenges)],
                capture_output=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            issued = world.directory / "certs" / APP
            nginx.cert_file.write_bytes((issued / "fullchain.pem").read_bytes())
            nginx.key_file.write_bytes((issued / "privkey.pem").read_bytes())
            nginx.process.popen.send_signal(signal.SIGHUP)
            (nginx.root / "page").write_text("served by its owner\n")
            url = f"https://{APP}:{world.tls_port}/page"
            options = ["--silent", "--show-error", "--resolve", f"{APP}:{world.tls_port}:127.0.0.1", "--retry", "5"]
            command = [*options, "--retry-all-errors", "--cacert", str(ca.root_file), url]
            assert wire.run_program(require("curl"), *command) == "served by its owner\n"


def test_a_backend_with_the_hubs_name_gets_no_challenge_of_it(world: World) -> None:
    """Else it could obtain the hub's certificate."""
    with world.ca() as ca, Node(world.directory, world.pki, **world.settings(ca)) as node:
        (world.directory / "nginx").mkdir()
        nginx = Nginx(world.directory / "nginx", *world.pki.issue("app", HUB))
        folder = nginx.root / ".well-known" / "acme-challenge"
        folder.mkdir(parents=True)
        (folder / "token").write_text("of the backend")
        (nginx.root / "page").write_text("a page")
        with nginx, backend(world, node, ca, HUB, {world.http_port: nginx.http_port}):
            assert ask(world.http_port, "/page") == (200, b"a page")
            assert ask(world.http_port, f"{CHALLENGES}token")[0] == 404


def test_nodes_of_one_name_answer_for_each_other(world: World) -> None:
    """The second has the first's cache; the CA asks the second only, and still renews the first's certificate."""
    with world.ca() as ca, contextlib.ExitStack() as stack:
        first_port, second_port = free_ports(2)
        first = _sharing(world, ca, "127.0.0.1", first_port, second_port)
        stack.enter_context(first)
        shutil.copytree(first.directory / "acme", world.directory / "127.0.0.2" / "acme")
        second = _sharing(world, ca, "127.0.0.2", second_port, first_port)
        stack.enter_context(second)
        for node in (first, second):
            wait_for(lambda node=node: node.metric("nexus_mesh_links") >= 1, "the nodes are linked")  # type: ignore[misc]
        before = serial(first, ca)
        assert serial(second, ca) == before
        world.names.point(HUB, "127.0.0.2")
        wish(first)
        wait_for(lambda: serial(first, ca) != before, "the first has a new certificate", ISSUE_TIMEOUT_S)
        assert serial(second, ca) == before
        assert ask(world.http_port, f"{CHALLENGES}unknown", "127.0.0.2")[0] == 404


def _sharing(world: World, ca: Pebble, address: str, own: int, other: int) -> Node:
    """Start a node of the shared name; to it, that name is the other node."""
    directory = world.directory / address
    directory.mkdir(exist_ok=True)
    mesh = {
        "relayBindAddresses": [address],
        "peerListenAddress": f"0.0.0.0:{own}",
        "peers": [f"wss://{HUB}:{other}/mesh"],
        "peerAuthentication": {"trustedDomainSuffixes": [HUB]},
        "peerCAFile": str(ca.root_file),
    }
    kind = type("Sharing", (Node,), {"prefix": tuple(own_hosts(directory))})
    made: Node = kind(directory, world.pki, **world.settings(ca, directory, **mesh))
    return made


def wish(node: Node) -> None:
    """Ask the node for a new certificate, as an operator does."""
    cache = Path(str(node.config["acmeCacheDir"]))
    (cache / f"{HUB}+renew").touch()
    node.popen.send_signal(signal.SIGHUP)


def ask(port: int, path: str, address: str = "127.0.0.1") -> tuple[int, bytes]:
    """Ask a node for a page of the hub's own name."""
    with socket.create_connection((address, port), timeout=10) as client:
        client.sendall(wire.request(HUB, path))
        response, body = wire.read_response(client)
        return response.status, body


@contextlib.contextmanager
def backend(world: World, node: Node, ca: Pebble, name: str, targets: Mapping[int, int]) -> Iterator[Process]:
    """Run ``nexus client run`` where the hub's name is 127.0.0.1, trusting the CA's root alone."""
    before = node.metric("nexus_sessions_opened_total")
    url = f"wss://{HUB}:{node.hub_port}/connect"
    command, log = client_command(world.directory, url, world.pki, targets or {1: 1}, name, caFile=str(ca.root_file))
    with Process([*own_hosts(world.directory), *command], log) as client:
        wait_for(lambda: node.metric("nexus_sessions_opened_total") > before, "the hub has the client's session")
        yield client
        client.stop()


def own_hosts(directory: Path) -> list[str]:
    """Return what runs a command for which the hub's name is 127.0.0.1."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("a hosts file of its own needs root")
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {HUB}\n")
    return [require("unshare"), "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]


def _dehydrated(world: World, ca: Pebble, challenges: Path) -> list[str]:
    config = world.directory / "dehydrated.conf"
    config.write_text(
        f'CA="{ca.url}"\nCURL_OPTS="--cacert {world.pki.ca_file}"\nBASEDIR="{world.directory}"\n'
        f'WELLKNOWN="{challenges}"\nCHALLENGETYPE="http-01"\nKEY_ALGO=prime256v1\n'
    )
    return ["--config", str(config)]
