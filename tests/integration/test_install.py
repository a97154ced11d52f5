"""scripts/install.sh and the unit, on a machine of their own: the real system, with whatever is written kept apart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexus.admin.probe import probe
from tests.support.processes import Process, scratch_directory, wait_for
from tests.support.programs import require

pytestmark = pytest.mark.programs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "install.sh"
UNIT = ROOT / "packaging" / "nexus-proxy.service"
HOST = "hub.example.test"
PYTHON = "/usr/bin/python3"  # one that every user may run, as on an operator's machine
WRITTEN = ("/etc", "/opt", "/usr/local", "/var/lib")
EXPOSURE_MAX = 20  # in tenths, of systemd's own judgement; a service without sandbox has 96
INSTALL_TIMEOUT_S = 240


@dataclass
class Machine:
    """A mount namespace in which the directories that an installation writes to are overlays in memory."""

    pid: int
    dist: Path

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command there; it has no terminal."""
        return subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command],
            capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
        )  # fmt: skip

    def install(self, command: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return self.run("sh", str(SCRIPT), command, *options, NEXUS_PYTHON=PYTHON, **env)

    def read(self, path: str) -> str:
        """Return a file of the machine, "" where there is none."""
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        """Tell whether there is such a thing."""
        return self.run("test", "-e", path).returncode == 0

    def mode(self, path: str) -> str:
        """Return owner, group and mode."""
        return self.run("stat", "--format", "%U:%G %a", path).stdout.strip()


@pytest.fixture(scope="module")
def wheels() -> Iterator[Path]:
    """The wheel of this version, and one of a later version, with their sums."""
    with scratch_directory() as directory:
        dist = directory / "dist"
        source = directory / "source"
        kept = ("nexus", "cli", "backend_client", "packaging", "pyproject.toml", "README.md", "LICENSE")
        source.mkdir()
        for name in kept:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
        version = source / "nexus" / "__init__.py"
        for number in (None, "99.0.0"):
            if number is not None:
                version.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{number}"', version.read_text()))
            command = [require("uv"), "build", "--quiet", "--wheel", "--out-dir", str(dist), str(source)]
            subprocess.run(command, check=True, timeout=120, capture_output=True)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in dist.glob("*.whl")]
        (dist / "SHA256SUMS").write_text("".join(sums))
        yield dist


@pytest.fixture
def machine(wheels: Path) -> Iterator[Machine]:
    """A machine on which nothing is installed."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("mounting needs root")
    store = "/mnt"
    mounts = [f"mount -t tmpfs tmpfs {store}"]
    for number, path in enumerate(WRITTEN):
        upper, work = f"{store}/u{number}", f"{store}/w{number}"
        options = f"lowerdir={path},upperdir={upper},workdir={work}"
        mounts += [f"mkdir {upper} {work}", f"mount -t overlay overlay -o {options} {path}"]
    script = " && ".join([*mounts, "echo mounted", "exec sleep infinity"])
    with subprocess.Popen(
        [require("unshare"), "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "mounted\n"
            yield Machine(holder.pid, wheels)
        finally:
            holder.kill()


def wheel(dist: Path, version: str = "") -> str:
    """Return the path of a wheel, this version's by default."""
    (found,) = [path for path in dist.glob("*.whl") if ("-99.0.0-" in path.name) is bool(version)]
    return str(found)


def test_what_is_not_verified_is_not_installed(machine: Machine, tmp_path: Path) -> None:
    """No sums, no entry, another sum, a stranger's file, no encryption: an error, and nothing on the disk."""
    good = wheel(machine.dist)
    sums = tmp_path / "SHA256SUMS"
    line = next(text for text in (machine.dist / "SHA256SUMS").read_text().splitlines() if "99.0.0" not in text)
    attempts = [
        (["--wheel", good, "--sums", str(tmp_path / "missing")], "cannot be read"),
        (["--wheel", good, "--sums", str(sums)], "has no entry, or several"),
        (["--wheel", good, "--sums", str(sums)], "another checksum"),
        (["--wheel", good, "--sums", str(sums)], "has no entry, or several"),
        (["--wheel", "/etc/passwd"], "no wheel of Nexus Proxy"),
        (["--wheel", f"http://example.test/{Path(good).name}"], "not encrypted"),
        ([], "which wheel"),
    ]
    contents = ["", "", f"{'0' * 64}  {Path(good).name}\n", f"{line}\n{line}\n", "", "", ""]
    for (options, why), content in zip(attempts, contents, strict=True):
        sums.write_text(content)
        done = machine.install("install", "--hostname", HOST, *options)
        assert done.returncode == 1, done.stderr
        assert why in done.stderr
    assert not machine.exists("/opt/nexus-proxy")
    assert not machine.exists("/etc/nexus-proxy")
    assert not machine.exists("/etc/systemd/system/nexus-proxy.service")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["install"], "is no host name; give --hostname"),
        (["install", "--hostname", "a b"], "is no host name"),
        (["install", "--colour"], "unknown option --colour"),
        (["instal"], "unknown command instal"),
        (["install", "--wheel"], "--wheel needs a value"),
        (["upgrade", "--wheel", "x"], "nothing is installed here"),
        (["rollback"], "there is no version before this one"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(machine: Machine, options: list[str], why: str) -> None:
    """Without a terminal nothing is asked, so nothing waits."""
    done = machine.install(*options)
    assert done.returncode == 1
    assert why in done.stderr
    assert not machine.exists("/opt/nexus-proxy")


def test_a_whole_life(machine: Machine) -> None:
    """Install, serve, upgrade, roll back, reconfigure, remove."""
    done = machine.install("install", "--wheel", wheel(machine.dist), "--hostname", HOST)
    assert done.returncode == 0, done.stderr
    assert "systemd does not run here" in done.stderr or "is installed" in done.stderr
    first = machine.run("/usr/local/bin/nexus", "version").stdout
    assert first.startswith("nexus-proxy ")
    assert f'hubPublicHostname: "{HOST}"' in machine.read("/etc/nexus-proxy/server.yaml")
    secret = machine.read("/etc/nexus-proxy/secret").strip()
    assert len(secret) == 64
    assert secret not in done.stdout + done.stderr
    assert machine.mode("/etc/nexus-proxy/secret") == "nexus:nexus 600"
    assert machine.mode("/etc/nexus-proxy") == "root:nexus 750"
    assert machine.mode("/var/lib/nexus-proxy") == "nexus:nexus 700"
    verified = machine.run(require("systemd-analyze"), "verify", "/etc/systemd/system/nexus-proxy.service")
    assert (verified.returncode, verified.stderr) == (0, "")
    _serves(machine)

    machine.run("mkdir", "/etc/systemd/system/nexus-proxy.service.d")
    machine.run(
        "sh",
        "-c",
        "echo '[Service]' >/etc/systemd/system/nexus-proxy.service.d/own.conf; echo x >/etc/nexus-proxy/mine",
    )
    again = machine.install("install", "--wheel", wheel(machine.dist))
    assert again.returncode == 0, again.stderr
    assert machine.read("/etc/nexus-proxy/secret").strip() == secret

    upgraded = machine.install("upgrade", "--wheel", wheel(machine.dist, "99.0.0"))
    assert upgraded.returncode == 0, upgraded.stderr
    assert machine.run("/usr/local/bin/nexus", "version").stdout.startswith("nexus-proxy 99.0.0")
    assert machine.read("/etc/nexus-proxy/secret").strip() == secret
    assert machine.exists("/etc/systemd/system/nexus-proxy.service.d/own.conf")
    assert machine.read("/etc/systemd/system/nexus-proxy.service") == UNIT.read_text()
    back = machine.install("rollback")
    assert back.returncode == 0, back.stderr
    assert machine.run("/usr/local/bin/nexus", "version").stdout == first

    renewed = machine.install("reconfigure", "--hostname", "other.example.test")
    assert renewed.returncode == 0, renewed.stderr
    assert 'hubPublicHostname: "other.example.test"' in machine.read("/etc/nexus-proxy/server.yaml")
    assert HOST in machine.run("sh", "-c", "cat /etc/nexus-proxy/server.yaml.bak-*").stdout

    gone = machine.install("uninstall")
    assert gone.returncode == 0, gone.stderr
    assert not machine.exists("/opt/nexus-proxy")
    assert not machine.exists("/usr/local/bin/nexus")
    assert not machine.exists("/etc/systemd/system/nexus-proxy.service")
    assert machine.exists("/etc/nexus-proxy/server.yaml")
    assert machine.install("uninstall", "--purge").returncode == 0
    assert not machine.exists("/etc/nexus-proxy")
    assert not machine.exists("/var/lib/nexus-proxy")
    assert machine.run("getent", "passwd", "nexus").returncode != 0


def test_an_original_s_node_moves_over(machine: Machine) -> None:
    """With its file, its account and its certificates."""
    machine.run("mkdir", "-p", "/etc/nexus-proxy-server", "/var/lib/nexus-proxy-server/acme_certs")
    original = (
        f"backendListenAddress: ':8443'\nhubPublicHostname: {HOST}\nrelayPorts: [443, 80]\nidleTimeoutSeconds: 60\n"
        f"backendsJWTSecret: {secrets.token_hex(32)}\npeers: []\n"
        "acmeCacheDir: /var/lib/nexus-proxy-server/acme_certs\n"
    )
    machine.run("sh", "-c", f"cat >/etc/nexus-proxy-server/config.yaml <<'X'\n{original}X")
    machine.run("sh", "-c", "echo key >/var/lib/nexus-proxy-server/acme_certs/acme_account+key")
    done = machine.install("install", "--wheel", wheel(machine.dist), "--migrate")
    assert done.returncode == 0, done.stderr
    assert machine.read("/etc/nexus-proxy/server.yaml") == original.replace(
        "nexus-proxy-server/acme", "nexus-proxy/acme"
    )
    assert machine.read("/var/lib/nexus-proxy/acme_certs/acme_account+key") == "key\n"
    assert machine.mode("/var/lib/nexus-proxy/acme_certs/acme_account+key").startswith("nexus:nexus")


def test_the_unit_is_sound_and_confined() -> None:
    """By systemd's own judgement."""
    analyze = require("systemd-analyze")
    judged = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(UNIT)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-500:]


def _serves(machine: Machine) -> None:
    """Run what the unit runs, as its user and with its one capability, and hear that it is ready."""
    with scratch_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        directory.chmod(0o777)
        manager.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        manager.settimeout(20)
        command = [
            "nsenter", f"--mount=/proc/{machine.pid}/ns/mnt", "unshare", "--net", "sh", "-c",
            'ip link set lo up && cd /var/lib/nexus-proxy && exec "$@"', "sh",
            "setpriv", "--reuid", "nexus", "--regid", "nexus", "--init-groups", "--no-new-privs",
            "--inh-caps", "-all,+net_bind_service", "--ambient-caps", "+net_bind_service",
            "--bounding-set", "-all,+net_bind_service",
            "/opt/nexus-proxy/current/bin/nexus", "serve", "--config", "/etc/nexus-proxy/server.yaml",
        ]  # fmt: skip
        admin = f"unix:{directory}/admin"
        env = {
            "NOTIFY_SOCKET": str(directory / "notify"),
            "WATCHDOG_USEC": "200000",
            "NEXUS_ADMIN_LISTEN_ADDRESS": admin,
        }
        with Process(command, directory / "node.log", env) as node:
            heard = manager.recv(1000).decode()
            while not heard.startswith("READY=1"):  # the watchdog may be fed first
                heard = manager.recv(1000).decode()
            assert "the hub waits for its certificate" in heard
            assert manager.recv(1000).startswith(b"WATCHDOG=1")
            assert probe(admin, "/healthz").status == 200
            wait_for(lambda: "cannot be reached" in node.output(), "the CA is out of reach here, and the node goes on")
            assert machine.mode("/var/lib/nexus-proxy/acme_certs") == "nexus:nexus 700"
            node.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                while not manager.recv(1000).startswith(b"STOPPING=1"):
                    continue
            assert node.popen.wait(20) == 0, node.output()
