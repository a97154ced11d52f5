"""Where the backend gets its tokens: a command, or a secret that it shares with the hub.

A session needs a token at three moments (`TokenRequest.stage`). A custom provider is any object with the one method of
`TokenProvider`. The two built-in ones are `TokenIssuer`s, which say how long their token is good for, so that
`CachingProvider` can keep the token of the handshake; tokens that answer a nonce are never kept.

No token and no secret is part of an exception, its cause or context, a `repr` or a log record. That is why some errors
below are raised after their `except` block has ended: the exceptions of parsers carry what they parsed.

Source: protocol section 18.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from nexus.auth.claims import UdpRoute
from nexus.auth.mint import Stage as Stage  # noqa: PLC0414 — part of `TokenRequest`, so of this module's interface
from nexus.auth.mint import TokenSpec, build_claims, mint_token
from nexus.errors import TokenProviderError

COMMAND_TIMEOUT_DEFAULT_S: Final = 15.0
"""Limit for one run of a token command (the original's number, protocol 16). A hub waits 10 s for an answer (1.2)."""

OUTPUT_MAX_BYTES: Final = 64 * 1024
"""Longest output of a token command; a hub of ours refuses a longer token anyway."""

SECRET_FILE_MAX_BYTES: Final = 64 * 1024
"""Longest secret file; a secret has some 32 bytes, so a longer file is a wrong path."""

OUTPUT_GRACE_S: Final = 0.25
"""Wait for the end of the output of a command that has exited, in case something it left behind holds the pipe open."""

REAP_TIMEOUT_S: Final = 5.0
"""Wait for a killed command; only one that hangs in the kernel takes longer, and it is left to the event loop."""

EXPIRY_MARGIN_S: Final = 5.0
"""A kept token is not used in its last seconds: it still has to travel through dialling, TLS and the upgrade."""

_STDERR_SHOWN_BYTES: Final = 4 * 1024
_STDOUT, _STDERR = 1, 2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token is for: the moment in the session, and what the backend claims.

    ``nonce`` is the hub's, verbatim; "" at the handshake. ``hostnames`` are normalised. All sequences are tuples, so
    that a request can be a key.
    """

    stage: Stage
    nonce: str = field(repr=False)
    backend_name: str
    hostnames: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()
    udp_routes: tuple[UdpRoute, ...] = ()
    weight: int = 1
    outbound_allowed: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and, if known, the end of its life in seconds since the epoch."""

    token: str = field(repr=False)
    expires_at: float | None = None


class TokenProvider(Protocol):
    """Anything that can give the backend a token."""

    async def token(self, request: TokenRequest) -> str:
        """Return a token, without white space around it; may be cancelled.

        Raises:
            TokenProviderError: There is no token; the text holds neither token nor secret.
        """


class TokenIssuer(TokenProvider, Protocol):
    """A provider that knows when its tokens expire; `token` follows from `issue`."""

    async def token(self, request: TokenRequest) -> str:
        """Return a fresh token; errors as in `issue`."""
        return (await self.issue(request)).token

    async def issue(self, request: TokenRequest) -> IssuedToken:
        """Return a fresh token and its expiry; otherwise as `TokenProvider.token`."""


class CachingProvider:
    """Keeps handshake tokens of another provider, until ``cache_s`` after the request or shortly before they expire.

    Call `forget` when the hub has refused a token: the secret behind it may have changed.
    """

    def __init__(self, issuer: TokenIssuer, cache_s: float, clock: Callable[[], float] = time.time) -> None:
        """Take the provider to ask, the longest time to keep a token, and a wall clock."""
        self._issuer = issuer
        self._cache_s = cache_s
        self._clock = clock
        self._kept: dict[TokenRequest, tuple[str, float]] = {}

    async def token(self, request: TokenRequest) -> str:
        """Return a kept or a fresh token; only the stage ``handshake`` is ever kept. Errors are the issuer's."""
        if request.stage != "handshake":
            return await self._issuer.token(request)
        now = self._clock()
        token, until = self._kept.get(request, ("", now))
        if now < until:
            return token
        issued = await self._issuer.issue(request)
        self._keep(request, issued, now)
        return issued.token

    def forget(self) -> None:
        """Drop every kept token; the next handshake asks for a fresh one. Idempotent."""
        self._kept.clear()

    def _keep(self, request: TokenRequest, issued: IssuedToken, now: float) -> None:
        until = now + self._cache_s
        if issued.expires_at is not None:
            until = min(until, issued.expires_at - EXPIRY_MARGIN_S)
        self._kept = {key: entry for key, entry in self._kept.items() if now < entry[1]}
        self._kept[request] = (issued.token, until)


class HmacTokenProvider(TokenIssuer):
    """Signs tokens itself with a secret shared with the hub (HS256).

    A secret in a file is read for every token, so a rotated one works without a restart. White space around the secret
    is not part of it.
    """

    def __init__(self, secret: str | Path, terms: TokenSpec, clock: Callable[[], float] = time.time) -> None:
        """Take the secret itself (``str``) or its file (``Path``), the terms of the tokens, and a wall clock.

        Of ``terms`` the lifetime, the durations, the status URI and the policy version are used; who the backend is
        and what it claims comes with each request.
        """
        self._secret = secret
        self._terms = terms
        self._clock = clock

    async def issue(self, request: TokenRequest) -> IssuedToken:
        """Return a fresh token and its expiry; TokenProviderError if the secret or its file is empty or unusable."""
        secret = await self._read_secret()
        spec = dataclasses.replace(
            self._terms,
            subject=request.backend_name,
            hostnames=request.hostnames,
            tcp_ports=request.tcp_ports,
            udp_routes=request.udp_routes,
            weight=request.weight,
            outbound_allowed=request.outbound_allowed,
            allowed_outbound_ports=request.allowed_outbound_ports,
        )
        now = self._clock()
        token = mint_token(build_claims(request.stage, request.nonce, spec, now), secret)
        return IssuedToken(token, int(now) + spec.ttl_s)

    async def _read_secret(self) -> bytes:
        if isinstance(self._secret, str):
            secret = self._secret.strip().encode("utf-8", "surrogatepass")  # an encoding error would carry the secret
        else:
            secret = await asyncio.to_thread(_read_secret_file, self._secret)
        if not secret:
            where = f"file {self._secret}" if isinstance(self._secret, Path) else "setting"
            raise TokenProviderError(f"the token secret is empty ({where})")
        return secret


class CommandTokenProvider(TokenIssuer):
    """Runs a command that prints a token.

    The command gets the request in its environment, an empty stdin and a process group of its own. It must exit with
    status 0 in time and print to stdout either JSON, ``{"token": ..., "expiry": RFC 3339}``, or the token on the first
    line. Whatever is still running at the time limit, or when the caller is cancelled, is killed.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_DEFAULT_S,
    ) -> None:
        """Take a command (looked up in PATH), its arguments, additions to the environment, and the time limit."""
        self._command = command
        self._args = tuple(args)
        self._env = dict(env or {})
        self._timeout_s = timeout_s

    async def issue(self, request: TokenRequest) -> IssuedToken:
        """Run the command and return its token and expiry.

        Raises:
            TokenProviderError: The command cannot be started, fails, takes too long, prints too much, or no token. The
                text names the command, without its arguments, and counts the bytes on stderr; what stood there is
                logged at DEBUG, because it may hold secrets.
        """
        output = _Output()
        failure = await self._run(output, {**os.environ, **self._env, **request_environment(request)})
        if not failure:
            issued = parse_output(bytes(output.stdout))
            if isinstance(issued, IssuedToken):
                return issued
            failure = issued
        _LOG.debug("token command %r on stderr: %r", self._command, bytes(output.stderr_start))
        stderr = f"{output.stderr_bytes} bytes on stderr" + (", logged at DEBUG" if output.stderr_bytes else "")
        raise TokenProviderError(f"token command {self._command!r} {failure} ({stderr})")

    async def _run(self, output: _Output, environment: Mapping[str, str]) -> str:
        """Run the command to its end, whatever that is, and return what was wrong, or ""."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await _run_to_end((self._command, *self._args), environment, output)
        except TimeoutError:
            return f"did not finish within {self._timeout_s:g} s and was killed"
        except OSError as error:
            return f"could not be started: {error.strerror}"
        except ValueError:  # a NUL or a lone surrogate in an argument or a variable, the hub's nonce among them
            return "could not be started: an argument or a variable cannot be passed to a program"
        if output.overflowed:
            return f"printed more than {OUTPUT_MAX_BYTES} bytes and was killed"
        return _describe_status(status)


def request_environment(request: TokenRequest) -> dict[str, str]:
    """Return the variables that tell a token command what the token is for (protocol section 18)."""
    outbound_ports = request.allowed_outbound_ports if request.outbound_allowed else ()
    return {
        "NEXUS_ATTESTATION_STAGE": request.stage,
        "NEXUS_SESSION_NONCE": request.nonce,
        "NEXUS_BACKEND_NAME": request.backend_name,
        "NEXUS_HOSTNAMES": ",".join(request.hostnames),
        "NEXUS_WEIGHT": str(request.weight),
        "NEXUS_TCP_PORTS": ",".join(map(str, request.tcp_ports)),
        "NEXUS_UDP_ROUTES": ",".join(map(_udp_route, request.udp_routes)),
        "NEXUS_OUTBOUND_ALLOWED": "true" if request.outbound_allowed else "false",
        "NEXUS_ALLOWED_OUTBOUND_PORTS": ",".join(map(str, outbound_ports)),
    }


def parse_output(output: bytes) -> IssuedToken | str:
    """Read what a token command printed, and return the token, or what is wrong with the output."""
    text = output.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        document = _json_object(text)
        if document is None:
            return "printed JSON that cannot be parsed"
        token, expires_at = document.get("token"), _parse_expiry(document.get("expiry"))
        token = token.strip() if isinstance(token, str) else ""
    else:
        token, expires_at = text.split("\n", 1)[0].strip(), None
    if not token:
        return "printed no token"
    if not (token.isascii() and token.isprintable()):
        return "printed a token with characters other than printable ASCII"
    return IssuedToken(token, expires_at)


class _Output(asyncio.SubprocessProtocol):
    """Collects what a command prints, within bounds, and knows when there is nothing more to wait for."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr_start = bytearray()
        self.stderr_bytes = 0
        self.exited = asyncio.Event()
        self.finished = asyncio.Event()
        self._open_pipes = {_STDOUT, _STDERR}

    @property
    def overflowed(self) -> bool:
        return len(self.stdout) > OUTPUT_MAX_BYTES

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDERR:
            self.stderr_bytes += len(data)
            self.stderr_start += data[: _STDERR_SHOWN_BYTES - len(self.stderr_start)]
            return
        self.stdout += data[: OUTPUT_MAX_BYTES + 1 - len(self.stdout)]
        if self.overflowed:
            self.finished.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open_pipes.discard(fd)
        self._finish_if_done()

    def process_exited(self) -> None:
        self.exited.set()
        self._finish_if_done()
        if not self.finished.is_set():
            asyncio.get_running_loop().call_later(OUTPUT_GRACE_S, self.finished.set)

    def _finish_if_done(self) -> None:
        if self.exited.is_set() and not self._open_pipes:
            self.finished.set()


async def _run_to_end(arguments: Sequence[str], environment: Mapping[str, str], output: _Output) -> int | None:
    """Run a command until it has ended or printed too much; on the way out nothing of it is left running."""
    loop = asyncio.get_running_loop()
    # A task of its own, ended below: asyncio cancelled in the middle of a start kills the command, but not what the
    # command has started meanwhile, and then waits for as long as that holds the pipes open.
    starting = loop.create_task(
        loop.subprocess_exec(
            lambda: output, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
        )
    )
    try:
        await asyncio.shield(starting)
        await output.finished.wait()
    finally:
        await _end(starting, output)
    return starting.result()[0].get_returncode()


async def _end(starting: asyncio.Task[tuple[asyncio.SubprocessTransport, _Output]], output: _Output) -> None:
    try:
        transport, _ = await starting
    except (OSError, ValueError):
        return  # it never ran; whoever waits for the start has the same error
    try:
        await _kill_and_reap(transport.get_pid(), output)
    finally:
        transport.close()


async def _kill_and_reap(pid: int, output: _Output) -> None:
    """Kill the process group of a command that has not exited, and wait until the event loop has reaped it."""
    if output.exited.is_set():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await output.exited.wait()


def _describe_status(status: int | None) -> str:
    if status == 0:
        return ""
    if status is not None and status < 0:
        return f"was killed by signal {-status}"
    return f"failed with exit status {status}"


def _read_secret_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise TokenProviderError(f"the token secret file {path} cannot be read: {error.strerror}") from error
    if len(content) > SECRET_FILE_MAX_BYTES:
        raise TokenProviderError(f"the token secret file {path} is longer than {SECRET_FILE_MAX_BYTES} bytes")
    return content.strip()


def _udp_route(route: UdpRoute) -> str:
    return f"{route.port}:{route.flow_idle_timeout_s}" if route.flow_idle_timeout_s else str(route.port)


def _json_object(text: str) -> dict[str, object] | None:
    """Parse a JSON object; None if it is none. No exception leaves, for a `JSONDecodeError` carries the document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _parse_expiry(value: object) -> float | None:
    """Parse an RFC 3339 time to seconds since the epoch; None if it is none, as the original ignores a bad one."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None  # RFC 3339 section 5.6: the offset is required
