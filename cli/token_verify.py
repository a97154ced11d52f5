"""``nexus token verify``: would this node take this token, and if not, why not.

The keys, the policy and the revocation list are read as the node reads them; a remote verifier and a key URL are asked
for real. What is found is explained by ``nexus.auth.explain``, by the very checks that a hub enforces.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli import render
from cli.options import (
    EXIT_FAILURE,
    STDIN,
    Json,
    SecretFile,
    environment_secret,
    parse_moment_or_seconds,
    read_secret,
    read_stdin,
)
from nexus import logs
from nexus.auth.checks import Finding, Outcome
from nexus.auth.explain import Explanation, Node, Question, Remote, Verdict, explain
from nexus.auth.key_url import KEY_NAME, KeyUrl
from nexus.auth.keyring import Keyring
from nexus.auth.keys import parse_key_set
from nexus.auth.mint import Stage
from nexus.auth.remote import RemoteVerifier
from nexus.auth.tokens import inspect_token
from nexus.config.admission import key_sources_of, policy_of
from nexus.config.load import load_node_config
from nexus.config.model import NodeConfig
from nexus.errors import AuthError
from nexus.files import read_file
from nexus.tls.certificates import CertificateFiles, read_certificate
from nexus.tls.contexts import WebContext
from nexus.web import WebClient

_MARKS: Mapping[Outcome, tuple[str, str]] = {
    Outcome.PASS: ("ok", "green"),
    Outcome.FAIL: ("FAIL", "bold red"),
    Outcome.SKIP: ("skip", "dim"),
    Outcome.WARN: ("warn", "bold yellow"),
}


def verify(  # noqa: PLR0913 — one option for each thing that a node knows and a command does not
    context: typer.Context,
    *,
    token: Annotated[str, typer.Argument(metavar="TOKEN|-", help="The token; - or nothing reads stdin.")] = STDIN,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The node's configuration file.")
    ] = None,
    stage: Annotated[Stage, typer.Option(help="The moment in the session the token is for.")] = "handshake",
    nonce: Annotated[str | None, typer.Option(help="The nonce of the hub's challenge, for attest and reauth.")] = None,
    first: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="The token that the session began with, for attest and reauth."),
    ] = None,
    at: Annotated[
        str, typer.Option(metavar="TIME", help="The moment to judge at: RFC 3339 or seconds since 1970; default now.")
    ] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask neither the remote verifier nor the key URL of the node.")
    ] = False,
    secret_file: SecretFile = "",
    key_file: Annotated[
        str, typer.Option(metavar="FILE", help="File of public keys, JWKS or PEM, where there is no --config.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Explain whether a node would take a token: every check in the node's order, and what mends those that fail.

    With --config all of it, by the node's own keys, policy, verifier and revocation list. With a secret or public keys
    alone the envelope: signature, issuer, audience, dates. Exit code 0 if the token is accepted, 1 if it is refused or
    something could not be checked.
    """
    if token == secret_file == STDIN:
        raise typer.BadParameter("stdin holds the token already", param_hint="--secret-file")
    text = (read_stdin() if token == STDIN else token).strip()
    now = parse_moment_or_seconds(at, "--at") if at else time.time()
    logs.configure("error", "text", sys.stderr)  # what goes wrong with others is part of the explanation
    question = Question(text, now, stage, nonce=nonce, first=inspect_token(first).claims if first else None)
    notes: tuple[Finding, ...] = ()
    if config is None:
        question = _envelope(question, secret_file, key_file)
    else:
        _refuse_own_keys(context)
        question, notes = asyncio.run(_ask_node(question, config, offline=offline))
    explained = explain(question)
    explained = Explanation((*notes, *explained.findings))
    _print(explained, question, "envelope" if config is None else "node", as_json=as_json)
    if explained.verdict is not Verdict.ACCEPTED:
        raise typer.Exit(EXIT_FAILURE)


# -- What to judge by -------------------------------------------------------------------------------------------------


def _envelope(question: Question, secret_file: str, key_file: str) -> Question:
    """Judge by a secret and keys that the user names."""
    if question.stage != "handshake":
        raise typer.BadParameter("the stages are a node's matter: give --config", param_hint="--config")
    secret = read_secret(secret_file) if secret_file else environment_secret()
    if not secret and not key_file:
        raise typer.BadParameter("give --config, or --secret-file, or --key-file", param_hint="--config")
    keys = parse_key_set(read_file(Path(key_file)), key_file).keys if key_file else ()
    return dataclasses.replace(question, secrets=(secret.encode(),) if secret else (), public_keys=keys)


def _refuse_own_keys(context: typer.Context) -> None:
    for name, option in (("secret_file", "--secret-file"), ("key_file", "--key-file")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter("--config names the secrets and keys of the node", param_hint=option)


async def _ask_node(question: Question, path: Path, *, offline: bool) -> tuple[Question, tuple[Finding, ...]]:
    """Judge by what a node has, and ask whom it would ask."""
    config = load_node_config(path, environ=os.environ).config
    keyring = Keyring(key_sources_of(config))
    question = dataclasses.replace(
        question,
        secrets=keyring.secrets,
        public_keys=keyring.public_keys,
        node=Node(policy_of(config), keyring.revocations, config.relay_ports, config.udp_relay_ports),
    )
    web = _web_client(config, offline=offline)
    try:
        if config.remote_verifier_url:
            question = dataclasses.replace(question, remote=await _ask_verifier(question.token, config, web))
        if config.backends_jwksurl and (not config.remote_verifier_url or config.remote_verifier_fallback):
            return await _with_fetched_keys(question, config, web)
        return question, ()
    finally:
        if web is not None:
            await web.aclose()


def _web_client(config: NodeConfig, *, offline: bool) -> WebClient | None:
    if offline or not (config.remote_verifier_url or config.backends_jwksurl):
        return None
    cert_file, ca_file = config.hub_tls_cert_file, config.authorizer_ca_file
    certificate = (
        read_certificate(CertificateFiles(Path(cert_file), Path(config.hub_tls_key_file))) if cert_file else None
    )
    return WebClient(WebContext(lambda: certificate, Path(ca_file) if ca_file else None))


async def _ask_verifier(token: str, config: NodeConfig, web: WebClient | None) -> Remote:
    if web is None:
        return Remote()
    try:
        claims = await RemoteVerifier(config.remote_verifier_url, web).verify(token)
    except AuthError as error:
        return Remote(refusal=error, falls_back=config.remote_verifier_fallback)
    return Remote(claims)


async def _with_fetched_keys(
    question: Question, config: NodeConfig, web: WebClient | None
) -> tuple[Question, tuple[Finding, ...]]:
    if web is None:
        note = Finding("key URL", Outcome.WARN, f"{KEY_NAME} was not asked")
        return dataclasses.replace(question, keys_missing=True), (note,)
    key_url = KeyUrl(config.backends_jwksurl, web)
    await key_url.fetch()
    if key_url.failure:
        mend = "see whether this machine can fetch it, and authorizerCAFile"
        return question, (Finding("key URL", Outcome.WARN, f"{KEY_NAME} was not fetched: {key_url.failure}", mend),)
    note = Finding("key URL", Outcome.PASS, f"{len(key_url.keys)} keys fetched")
    return dataclasses.replace(question, public_keys=(*question.public_keys, *key_url.keys)), (note,)


# -- What to print ----------------------------------------------------------------------------------------------------


def _print(explained: Explanation, question: Question, scope: str, *, as_json: bool) -> None:
    if as_json:
        checks = [
            {"name": found.name, "outcome": found.outcome.value, "detail": found.detail, "mend": found.mend}
            for found in explained.findings
        ]
        moment = render.moment(question.now)
        head = {"verdict": explained.verdict.value, "scope": scope, "stage": question.stage, "at": moment}
        render.document({**head, "checks": checks})
        return
    table = Table("check", "", "found", box=None, pad_edge=False)
    for found in explained.findings:
        mark, style = _MARKS[found.outcome]
        table.add_row(Text(found.name), Text(mark, style=style), Text(found.detail))
        if found.mend:
            table.add_row("", "", Text(found.mend, style="italic"))
    table.add_row("verdict", "", Text(_sentence(explained, scope)))
    render.show(table)


def _sentence(explained: Explanation, scope: str) -> str:
    if explained.verdict is Verdict.REFUSED:
        return f"refused: {explained.refusal()}"
    if explained.verdict is Verdict.INCOMPLETE:
        return "not refused, but not all of it could be checked"
    return "accepted" if scope == "node" else "accepted, as far as signature and dates go; --config checks the rest"
