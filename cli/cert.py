"""``nexus cert``: the hub's certificate as it is on the disk; ask the running node to renew it, or give it another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from cli import render
from cli.node_file import node_config
from cli.options import EPILOG, EXIT_FAILURE, Json
from nexus.acme.store import State
from nexus.assembly import acme_settings, acme_store
from nexus.config.model import NodeConfig
from nexus.errors import ConfigError, Problem, TlsFileError
from nexus.files import file_signature, write_private, write_public
from nexus.mesh.trust import is_named
from nexus.tls.certificates import Certificate, CertificateFiles, read_certificate

HEARD_WITHIN_S: Final = 15.0  # a node looks every ten seconds
POLL_S: Final = 0.2
_DAY_S: Final = 86_400

app = typer.Typer(
    help="The hub's certificate: see it, renew it now, or import one.", no_args_is_help=True, epilog=EPILOG
)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The node's configuration file.")]


@dataclass(frozen=True, slots=True)
class Found:
    """What the disk says: ``certificate`` is None where there is none that can be used, and ``fault`` says why."""

    source: Path
    certificate: Certificate | None
    fault: str
    state: State


@app.command(epilog=EPILOG)
def status(config: ConfigFile, as_json: Json = False) -> None:
    """Print what certificate there is, when it expires and is renewed, and what failed last; 1 where there is none."""
    found = _find(node_config(config))
    now = time.time()
    expired = found.certificate is not None and found.certificate.expires_at <= now
    if as_json:
        render.document(_document(found, now))
    else:
        for line in _lines(found, now):
            render.data(line)
    if found.certificate is None or expired:
        raise typer.Exit(EXIT_FAILURE)


@app.command(epilog=EPILOG)
def renew(
    config: ConfigFile,
    timeout: Annotated[
        int, typer.Option(envvar="NEXUS_RENEW_TIMEOUT", min=1, help="How long to wait for the certificate, in seconds.")
    ] = 300,
) -> None:
    """Let the running node obtain a new certificate now, even while it waits after a failure; wait for the outcome."""
    made = node_config(config)
    if not made.hub_public_hostname:
        what = f"{made.hub_tls_cert_file}: is not obtained by the node"
        mend = "renew it where it came from; a running node takes up the changed files by itself"
        raise ConfigError(Problem(str(config), 0, "hubTlsCertFile", what, mend))
    store = acme_store(made)
    store.prepare()
    before, failures = file_signature(store.pair_file), store.state().failures
    store.ask_to_renew()
    with Console(stderr=True).status("waiting for the node"):
        if not _wait(lambda: not store.has_wish(), HEARD_WITHIN_S):
            render.fail(
                f"no node has heard it within {HEARD_WITHIN_S:g} s: it will when it starts; is `nexus serve` running "
                "with this acmeCacheDir?"
            )
            raise typer.Exit(EXIT_FAILURE)
        done = _wait(
            lambda: file_signature(store.pair_file) != before or store.state().failures > failures, float(timeout)
        )
    state = store.state()
    if not done:
        render.fail(f"no outcome within {timeout} s; see `nexus cert status` and the node's log")
    elif file_signature(store.pair_file) == before:
        render.fail(state.error)
    else:
        certificate = read_certificate(CertificateFiles(store.pair_file, store.pair_file))
        render.data(f"{made.hub_public_hostname}: valid until {render.moment(certificate.expires_at)}")
        return
    raise typer.Exit(EXIT_FAILURE)


@app.command("import", epilog=EPILOG)
def import_(
    config: ConfigFile,
    cert_file: Annotated[Path, typer.Option("--cert", metavar="FILE", help="The chain (PEM), the hub's own first.")],
    key_file: Annotated[Path, typer.Option("--key", metavar="FILE", help="Its private key (PEM), not encrypted.")],
) -> None:
    """Check a pair and put it where the node takes it up by itself; with ACME it is renewed like one of its own."""
    made = node_config(config)
    pair = read_certificate(CertificateFiles(cert_file, key_file))
    if pair.expires_at <= time.time():
        raise TlsFileError(f"{cert_file}: expired on {render.moment(pair.expires_at)}; import one that is valid")
    if not made.hub_public_hostname:
        write_private(Path(made.hub_tls_key_file), pair.key_pem)
        write_public(Path(made.hub_tls_cert_file), pair.chain_pem)
        render.say(f"{made.hub_tls_cert_file}: imported; a running node takes it up within ten seconds")
        return
    hostname = acme_settings(made).hostname
    if not is_named(pair.names, hostname):
        names = ", ".join(pair.names) or "nobody"
        raise TlsFileError(f"{cert_file}: is for {names}, not for {hostname}; import one for hubPublicHostname")
    store = acme_store(made)
    store.prepare()
    store.save_pair(pair.key_pem, pair.chain_pem)
    store.save_state(replace(State(), asked=store.state().asked))
    render.say(f"{store.pair_file}: imported; a running node takes it up within ten seconds")


def _find(config: NodeConfig) -> Found:
    if not config.hub_public_hostname:
        files = CertificateFiles(Path(config.hub_tls_cert_file), Path(config.hub_tls_key_file))
        return _read(files, State())
    store = acme_store(config)
    pairs = store.pair_files()
    if not pairs:
        return Found(store.pair_file, None, "there is none yet", store.state())
    found = [_read(CertificateFiles(path, path), store.state()) for path in pairs]
    return next((one for one in found if one.certificate is not None), found[0])


def _read(files: CertificateFiles, state: State) -> Found:
    try:
        return Found(files.cert_file, read_certificate(files), "", state)
    except TlsFileError as error:
        return Found(files.cert_file, None, str(error), state)


def _document(found: Found, now: float) -> dict[str, object]:
    certificate, state = found.certificate, found.state
    return {
        "file": str(found.source),
        "names": list(certificate.names) if certificate else [],
        "key": certificate.key_algorithm if certificate else "",
        "notBefore": certificate.not_before if certificate else None,
        "expiresAt": certificate.expires_at if certificate else None,
        "isValid": certificate is not None and certificate.not_before <= now < certificate.expires_at,
        "renewAt": state.renew_at or None,
        "failures": state.failures,
        "error": found.fault or state.error,
        "retryAt": state.retry_at or None,
    }


def _lines(found: Found, now: float) -> list[str]:
    certificate, state = found.certificate, found.state
    lines = [f"file      {found.source}"]
    if certificate is None:
        lines.append(f"valid     no: {found.fault}")
    else:
        days = (certificate.expires_at - now) / _DAY_S
        left = f"{days:.0f} days left" if days >= 0 else "expired"
        lines += [
            f"names     {', '.join(certificate.names)}",
            f"key       {certificate.key_algorithm}",
            f"valid     {render.moment(certificate.not_before)} to {render.moment(certificate.expires_at)}, {left}",
        ]
    if state.renew_at:
        lines.append(f"renewal   {render.moment(state.renew_at)}")
    if state.failures:
        lines.append(f"failed    {state.failures} times, last: {state.error}")
        lines.append(f"next try  {render.moment(state.retry_at)}, or at once by `nexus cert renew`")
    return lines


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
