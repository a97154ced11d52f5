"""``nexus token``: mint a token with the shared secret or a private key, or look into one.

The variables of the options of ``nexus token`` are those that a backend client gives to a token command (spec
backend-protocol 18), so ``nexus token --secret-file F`` is itself such a command.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli import render, token_verify
from cli.options import (
    EPILOG,
    EXIT_FAILURE,
    STDIN,
    Json,
    SecretFile,
    environment_secret,
    parse_moment_or_seconds,
    parse_ports,
    parse_udp_routes,
    read_secret,
    read_stdin,
    shared_secret,
    split_list,
)
from nexus.auth.explain import Question, explain
from nexus.auth.keys import PrivateKey, parse_private_key
from nexus.auth.mint import TOKEN_TTL_DEFAULT_S, Stage, TokenSpec, build_claims, mint_token
from nexus.auth.tokens import inspect_token
from nexus.files import read_file

_DATE_CLAIMS = ("iat", "nbf", "exp")

app = typer.Typer(
    help="Mint a backend's token; `token inspect` looks into one, `token verify` explains what a node thinks of it.",
    epilog=EPILOG,
)


@app.callback(invoke_without_command=True, epilog=EPILOG)
def mint(  # noqa: PLR0913 — one option for each claim
    context: typer.Context,
    *,
    hostname: Annotated[
        list[str] | None,
        typer.Option(envvar="NEXUS_HOSTNAMES", help="A hostname or wildcard to claim; repeat it, or a comma list."),
    ] = None,
    tcp_port: Annotated[
        list[str] | None,
        typer.Option(envvar="NEXUS_TCP_PORTS", metavar="PORT", help="A TCP port to claim; repeat it, or a comma list."),
    ] = None,
    udp_port: Annotated[
        list[str] | None,
        typer.Option(
            envvar="NEXUS_UDP_ROUTES",
            metavar="PORT[:SECONDS]",
            help="A UDP port to claim, and the idle time of its flows; repeat it, or a comma list.",
        ),
    ] = None,
    weight: Annotated[
        int, typer.Option(envvar="NEXUS_WEIGHT", help="Share of the clients among backends of a name.")
    ] = 1,
    subject: Annotated[
        str, typer.Option(envvar="NEXUS_BACKEND_NAME", help="Name of the backend: the claim sub.")
    ] = "nexus",
    ttl: Annotated[
        int, typer.Option(min=0, help="Life of the token in seconds; 0 claims no end.")
    ] = TOKEN_TTL_DEFAULT_S,
    stage: Annotated[
        Stage, typer.Option(envvar="NEXUS_ATTESTATION_STAGE", help="The moment in the session the token is for.")
    ] = "handshake",
    nonce: Annotated[
        str, typer.Option(envvar="NEXUS_SESSION_NONCE", help="The hub's nonce, for attest and reauth.")
    ] = "",
    handshake_max_age: Annotated[
        int, typer.Option(min=0, help="Greatest age of the handshake token in seconds; 0 claims none.")
    ] = 0,
    reauth_interval: Annotated[int, typer.Option(min=0, help="Seconds between re-authentications; 0 claims none.")] = 0,
    reauth_grace: Annotated[int, typer.Option(min=0, help="Seconds to answer one; 0 leaves it to the hub.")] = 0,
    maintenance_grace_cap: Annotated[
        int | None,
        typer.Option(min=0, help="Seconds that one may be deferred in maintenance; 0 is never. Default: the hub's."),
    ] = None,
    authorizer_status_uri: Annotated[str, typer.Option(help="https URL the hub asks during maintenance.")] = "",
    policy_version: Annotated[str, typer.Option(help="A note for the hub.")] = "",
    outbound_allowed: Annotated[
        bool,
        typer.Option(
            "--outbound-allowed", envvar="NEXUS_OUTBOUND_ALLOWED", help="Claim the right to outbound connections."
        ),
    ] = False,
    allowed_outbound_port: Annotated[
        list[str] | None,
        typer.Option(
            envvar="NEXUS_ALLOWED_OUTBOUND_PORTS", metavar="PORT", help="To this port only; repeat it, or a comma list."
        ),
    ] = None,
    jti: Annotated[str, typer.Option(help="Id of the token: the claim jti, by which it can be revoked.")] = "",
    not_before: Annotated[
        str, typer.Option(metavar="TIME", help="When the token begins to be valid: RFC 3339 or seconds since 1970.")
    ] = "",
    issued_at_quote: Annotated[str, typer.Option(help="The claim issued_at_quote, which no node looks at.")] = "",
    kid: Annotated[str, typer.Option(help="Id of the key, for the token's header.")] = "",
    key_file: Annotated[
        str,
        typer.Option(metavar="FILE", help="PEM private key to sign with, in the place of a secret; its kind decides."),
    ] = "",
    secret_file: SecretFile = "",
    as_json: Json = False,
) -> None:
    """Mint a backend's token with the secret shared with the hub, or a private key, and print it alone.

    `token inspect` looks into one, `token verify` explains what a node thinks of it.

    The variables are those a backend client gives to a token command, so this command can be one.
    """
    if context.invoked_subcommand is not None:
        return
    spec = TokenSpec(
        subject=subject,
        hostnames=split_list(hostname),
        tcp_ports=parse_ports(tcp_port, "--tcp-port"),
        udp_routes=parse_udp_routes(udp_port, "--udp-port"),
        weight=weight,
        ttl_s=ttl,
        handshake_max_age_s=handshake_max_age,
        reauth_interval_s=reauth_interval,
        reauth_grace_s=reauth_grace,
        maintenance_grace_cap_s=maintenance_grace_cap,
        authorizer_status_uri=authorizer_status_uri,
        policy_version=policy_version,
        outbound_allowed=outbound_allowed,
        allowed_outbound_ports=parse_ports(allowed_outbound_port, "--allowed-outbound-port"),
        token_id=jti,
        not_before=int(parse_moment_or_seconds(not_before, "--not-before")) if not_before else 0,
        issued_at_quote=issued_at_quote,
    )
    _check_request(spec, stage, nonce)
    claims = build_claims(stage, nonce, spec, time.time())
    token = mint_token(claims, _signing_key(secret_file, key_file), key_id=kid)
    if as_json:
        render.document({"token": token, "stage": stage, "claims": claims})
    else:
        render.data(token)


app.command("verify", epilog=EPILOG)(token_verify.verify)


@app.command(epilog=EPILOG)
def inspect(
    token: Annotated[str, typer.Argument(metavar="TOKEN|-", help="The token; - or nothing reads stdin.")] = STDIN,
    secret_file: SecretFile = "",
    as_json: Json = False,
) -> None:
    """Show what a token says and, where a secret is given, whether a hub with it would accept the token.

    Exit code 1 if a given secret does not verify the token, or the hub would refuse it for its issuer or dates.
    """
    if token == secret_file == STDIN:
        raise typer.BadParameter("stdin holds the token already", param_hint="--secret-file")
    text = (read_stdin() if token == STDIN else token).strip()
    found = inspect_token(text)
    secret = read_secret(secret_file) if secret_file else environment_secret()
    signature, refusal = _verdict(text, secret)
    if as_json:
        render.document(
            {
                "header": dict(found.header),
                "claims": dict(found.claims),
                "times": _times(found.claims),
                "signature": signature,
                "refusal": refusal,
            }
        )
    else:
        render.show(_table(found.header, found.claims, signature, refusal))
    if refusal is not None:
        raise typer.Exit(EXIT_FAILURE)


def _check_request(spec: TokenSpec, stage: Stage, nonce: str) -> None:
    """Refuse what no hub would accept (spec backend-protocol 3.2)."""
    if not (spec.hostnames or spec.tcp_ports or spec.udp_routes):
        raise typer.BadParameter(
            "nothing is claimed: give --hostname, --tcp-port or --udp-port", param_hint="--hostname"
        )
    if stage != "handshake" and not nonce:
        raise typer.BadParameter(f"the stage {stage} needs the hub's nonce", param_hint="--nonce")


def _signing_key(secret_file: str, key_file: str) -> bytes | PrivateKey:
    if secret_file and key_file:
        raise typer.BadParameter("give either a secret or a private key", param_hint="--key-file")
    return parse_private_key(read_file(Path(key_file)), key_file) if key_file else shared_secret(secret_file).encode()


def _verdict(token: str, secret: str) -> tuple[str, str | None]:
    """Return ``valid``, ``invalid`` or ``not checked``, and why a hub with the secret would refuse it, or None."""
    if not secret:
        return "not checked", None
    explained = explain(Question(token, time.time(), secrets=(secret.encode(),)))
    return "valid" if explained.passed("signature") else "invalid", explained.refusal()


def _times(claims: Mapping[str, object]) -> dict[str, str]:
    dates = {name: claims.get(name) for name in _DATE_CLAIMS}
    return {name: render.moment(date) for name, date in dates.items() if isinstance(date, (int, float))}


def _table(header: Mapping[str, object], claims: Mapping[str, object], signature: str, refusal: str | None) -> Table:
    table = Table("where", "name", "value", box=None, pad_edge=False)
    times = _times(claims)
    for where, values in (("header", header), ("claims", claims)):
        for name, value in values.items():
            shown = json.dumps(value, ensure_ascii=False)
            table.add_row(where, Text(name), Text(f"{shown} ({times[name]})" if name in times else shown))
    table.add_row("verdict", "signature", signature)
    if refusal is not None or signature == "valid":
        table.add_row("verdict", "hub", Text(refusal or "accepts it"))
    return table
