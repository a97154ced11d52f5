"""``nexus init``: a working configuration from nothing.

Files that exist are kept, so that the command can be run again at any time; ``--force`` replaces them and leaves each
old one beside, as ``.bak-<epoch>``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from cli import render
from cli.options import Json, parse_address
from cli.templates import ClientFileText, NodeFile, client_text, node_text
from nexus.document.addresses import is_ip, is_loopback
from nexus.errors import ConfigError, Problem
from nexus.files import read_file, write_private, write_public
from nexus.protocol.constants import CONNECT_PATH
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.localca import LEAF_MAX_DAYS, PemPair, create_ca, issue

SECRET_BYTES: Final = 32
"""Random bytes in a secret: as long as the hash of HS256 (RFC 7518 section 3.2)."""

HUB_PORT: Final = 8443
PUBLIC_RELAY_PORTS: Final = (443, 80)
DEVELOPMENT_RELAY_PORTS: Final = (8444, 8080)
"""Need no privilege, and differ from the hub's port and from the example service's."""

EXAMPLE_TARGET: Final = "127.0.0.1:9443"
_DEVELOPMENT_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_PLACEHOLDER_HUB: Final = "hub.example.com"
_PLACEHOLDER_APP: Final = "app.example.com"
_CA_NAME: Final = "Nexus Proxy development CA"


@dataclass(slots=True)
class _Written:
    """What happened to each file."""

    force: bool
    now: float
    files: list[dict[str, object]] = field(default_factory=list)

    def is_kept(self, *paths: Path) -> bool:
        """Keep files that all exist, and say so; refuse half a pair."""
        present = [path for path in paths if path.exists()]
        if self.force or not present:
            return False
        if len(present) < len(paths):
            missing = next(path for path in paths if path not in present)
            raise _refused(missing, f"is missing, while {present[0]} exists")
        self.files += [{"path": str(path), "action": "kept", "backup": None} for path in paths]
        return True

    def write(self, path: Path, content: bytes, *, private: bool = True) -> None:
        """Write a file; an old one is kept beside it."""
        backup = self._back_up(path) if path.exists() else None
        (write_private if private else write_public)(path, content)
        action = "created" if backup is None else "replaced"
        self.files.append({"path": str(path), "action": action, "backup": str(backup) if backup else None})

    def write_pair(self, cert: Path, key: Path, pair: PemPair) -> None:
        """Write a certificate, readable by everybody, and its key."""
        self.write(key, pair.key_pem)
        self.write(cert, pair.cert_pem, private=False)

    def _back_up(self, path: Path) -> Path:
        backup = path.with_name(f"{path.name}.bak-{int(self.now)}")
        count = 1
        while backup.exists():
            backup = path.with_name(f"{path.name}.bak-{int(self.now)}-{count}")
            count += 1
        path.rename(backup)  # keeps its mode
        return backup


@dataclass(frozen=True, slots=True)
class _Plan:
    """The answers to every option."""

    directory: Path
    development: bool
    own_ca: bool
    hostname: str
    acme_cache: str
    app: str
    cert: str
    key: str
    hub_port: int
    relay_ports: tuple[int, ...]
    target: str

    def file(self, *parts: str) -> Path:
        return self.directory.joinpath(*parts)


def init(  # noqa: PLR0913 — one option for each choice
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if missing.")] = Path(),
    *,
    dev: Annotated[
        bool,
        typer.Option("--dev", "--local-ca", help="Make a CA and certificates for development, in DIR/certs."),
    ] = False,
    self_signed: Annotated[
        bool,
        typer.Option(
            "--self-signed", help="Make a CA and a certificate for --hostname, in DIR/certs, for a real node."
        ),
    ] = False,
    acme: Annotated[
        bool, typer.Option("--acme", help="Let the node obtain a certificate for --hostname by itself.")
    ] = False,
    acme_cache_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it keeps account and certificate.", show_default="DIR/acme_certs"),
    ] = None,
    hostname: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name that backends dial the hub by.",
            show_default="localhost with --dev, else the certificate's first",
        ),
    ] = "",
    backend_hostname: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name that the example client serves.", show_default="app.HOSTNAME with --dev"
        ),
    ] = "",
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of the hub's certificate chain; together with --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file of the hub's private key.")] = None,
    hub_port: Annotated[int, typer.Option(min=1, max=65535, help="Port where backends connect.")] = HUB_PORT,
    relay_port: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=65535,
            help="A public TCP port; repeat it. The first is the one the example client serves.",
            show_default="443 and 80, with --dev 8444 and 8080",
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="ADDR", help="Local TLS service that the example client connects to.")
    ] = EXAMPLE_TARGET,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files; backups are kept.")] = False,
    show_secret: Annotated[bool, typer.Option("--show-secret", help="Print the secret on stdout.")] = False,
    as_json: Json = False,
) -> None:
    """Write a node's configuration with a new secret, and a backend client's that works with it.

    Existing files are kept and named. With --dev both programs run at once, on this machine and without privilege.
    """
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key belong together", param_hint="--cert")
    _check_source(hostname, {"--dev": dev, "--self-signed": self_signed, "--acme": acme, "--cert": cert is not None})
    if acme_cache_dir is not None and not acme:
        raise typer.BadParameter("has no effect without --acme", param_hint="--acme-cache-dir")
    relay_ports = tuple(relay_port or (DEVELOPMENT_RELAY_PORTS if dev else PUBLIC_RELAY_PORTS))
    if hub_port in relay_ports or len(set(relay_ports)) < len(relay_ports):
        raise typer.BadParameter("the hub and each relay port need a port of their own", param_hint="--relay-port")
    hub_name = hostname or _default_hostname(cert, key, development=dev)
    plan = _Plan(
        directory=directory.absolute(),
        development=dev,
        own_ca=dev or self_signed,
        hostname=hub_name,
        acme_cache=str((acme_cache_dir or directory / "acme_certs").absolute()) if acme else "",
        app=backend_hostname or _default_app(hub_name, development=dev),
        cert=str(cert.absolute()) if cert else "",
        key=str(key.absolute()) if key else "",
        hub_port=hub_port,
        relay_ports=relay_ports,
        target=parse_address(to, "--to"),
    )
    written = _Written(force, time.time())
    _write_all(plan, written)
    _report(plan, written, show_secret=show_secret, as_json=as_json)


def _check_source(hostname: str, given: Mapping[str, bool]) -> None:
    """Refuse two sources of one certificate, and a source that needs a name without one."""
    sources = [name for name, is_given in given.items() if is_given]
    if len(sources) > 1:
        raise typer.BadParameter(
            f"says where the certificate comes from, and so does {sources[1]}; give one", param_hint=sources[0]
        )
    for name in ("--self-signed", "--acme"):
        if given[name] and not hostname:
            raise typer.BadParameter("needs --hostname NAME, the name that backends dial", param_hint=name)
    if given["--acme"] and is_ip(hostname):
        raise typer.BadParameter("--hostname must be a name of the DNS, not an address", param_hint="--acme")


def _default_hostname(cert: Path | None, key: Path | None, *, development: bool) -> str:
    if development:
        return _DEVELOPMENT_NAMES[0]
    if cert is None or key is None:
        return _PLACEHOLDER_HUB
    names = read_certificate(CertificateFiles(cert, key)).names
    return next((name for name in names if not name.startswith("*")), _PLACEHOLDER_HUB)


def _default_app(hub_name: str, *, development: bool) -> str:
    if not development:
        return _PLACEHOLDER_APP
    return f"app.{_DEVELOPMENT_NAMES[0] if is_ip(hub_name) else hub_name}"


def _write_all(plan: _Plan, written: _Written) -> None:
    plan.directory.mkdir(parents=True, exist_ok=True)
    if plan.own_ca:
        _write_certificates(plan, written)
    _write(written, plan.file("secret"), lambda: secrets.token_hex(SECRET_BYTES) + "\n")
    _write(written, plan.file("server.yaml"), lambda: node_text(_node_file(plan)))
    _write(written, plan.file("client.yaml"), lambda: client_text(_client_file(plan)))


def _write(written: _Written, path: Path, make: Callable[[], str]) -> None:
    if not written.is_kept(path):
        written.write(path, make().encode())


def _write_certificates(plan: _Plan, written: _Written) -> None:
    certs = plan.file("certs")
    certs.mkdir(exist_ok=True)
    leaves = {
        (certs / "hub.pem", certs / "hub.key"): tuple(dict.fromkeys((plan.hostname, *_DEVELOPMENT_NAMES))),
        (certs / "app.pem", certs / "app.key"): (plan.app,),
    }
    ca_cert, ca_key = certs / "ca.pem", certs / "ca.key"
    if not written.is_kept(ca_cert, ca_key):
        orphan = next((path for pair in leaves for path in pair if path.exists()), None)
        if orphan is not None and not written.force:
            raise _refused(ca_cert, f"is missing, while {orphan} exists, which it has signed")
        written.write_pair(ca_cert, ca_key, create_ca(_CA_NAME, written.now))
    ca = ca_cert.read_bytes(), ca_key.read_bytes()
    for (cert, key), names in leaves.items():
        if not written.is_kept(cert, key):
            written.write_pair(cert, key, issue(ca, names, written.now, LEAF_MAX_DAYS))


def _node_file(plan: _Plan) -> NodeFile:
    is_local = plan.development and is_loopback(plan.hostname)
    certs = plan.file("certs")
    return NodeFile(
        path=plan.file("server.yaml"),
        hub_address=f"{'127.0.0.1' if is_local else ''}:{plan.hub_port}",
        relay_ports=plan.relay_ports,
        secret_file=plan.file("secret"),
        cert_file=str(certs / "hub.pem") if plan.own_ca else plan.cert,
        key_file=str(certs / "hub.key") if plan.own_ca else plan.key,
        public_hostname=plan.hostname if plan.acme_cache else "",
        acme_cache=plan.acme_cache,
        bind_addresses=("127.0.0.1",) if is_local else (),
    )


def _client_file(plan: _Plan) -> ClientFileText:
    host = f"[{plan.hostname}]" if ":" in plan.hostname else plan.hostname
    return ClientFileText(
        path=plan.file("client.yaml"),
        hub_url=f"wss://{host}:{plan.hub_port}{CONNECT_PATH}",
        hostname=plan.app,
        secret_file=plan.file("secret"),
        targets={plan.relay_ports[0]: plan.target},
        unmapped_ports=plan.relay_ports[1:],
        ca_file=str(plan.file("certs", "ca.pem")) if plan.own_ca else "",
    )


def _report(plan: _Plan, written: _Written, *, show_secret: bool, as_json: bool) -> None:
    secret = read_file(plan.file("secret")).rstrip("\n") if show_secret else None
    steps = _next_steps(plan)
    if as_json:
        files = written.files
        render.document({"directory": str(plan.directory), "files": files, "secret": secret, "next": steps})
        return
    for entry in written.files:
        backup = f" (the old one is {entry['backup']})" if entry["backup"] else ""
        render.data(f"{entry['action']:<8} {entry['path']}{backup}")
    if secret is not None:
        render.data(f"secret   {secret}")
    if any(entry["action"] == "kept" for entry in written.files):
        render.say("Kept files were not looked at: they may differ from the options given. --force replaces them.")
    if plan.acme_cache:
        render.say(
            f"Using ACME means that you accept the terms of the CA. Point {plan.hostname} at this node, and see "
            f"nexus cert status -c {plan.file('server.yaml')}."
        )
    elif not plan.own_ca and not plan.cert:
        render.say(
            f"Fill in hubTlsCertFile and hubTlsKeyFile in {plan.file('server.yaml')}: the hub needs a certificate."
        )
    render.say("Next:")
    for step in steps:
        render.say(f"  {step}")


def _next_steps(plan: _Plan) -> list[str]:
    steps = [
        f"nexus config check {plan.file('server.yaml')}",
        f"nexus serve -c {plan.file('server.yaml')}",
        f"nexus client run -c {plan.file('client.yaml')}",
    ]
    if plan.own_ca:
        certs = plan.file("certs")
        pair = f"-cert {certs / 'app.pem'} -key {certs / 'app.key'}"
        where = f"{plan.app}:{plan.relay_ports[0]}"
        steps += [
            f"openssl s_server -quiet -www -accept {plan.target} {pair}",
            f"curl --resolve {where}:127.0.0.1 --cacert {certs / 'ca.pem'} https://{where}/",
        ]
    return steps


def _refused(path: Path, what: str) -> ConfigError:
    return ConfigError(Problem(str(path), 0, "", what, "restore it, or run again with --force to make everything new"))
