"""Token providers: real commands, good and bad, a shared secret, and the cache in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from backend_client import tokens
from backend_client.tokens import (
    COMMAND_TIMEOUT_DEFAULT_S,
    EXPIRY_MARGIN_S,
    OUTPUT_MAX_BYTES,
    SECRET_FILE_MAX_BYTES,
    CachingProvider,
    CommandTokenProvider,
    HmacTokenProvider,
    IssuedToken,
    TokenProvider,
    TokenRequest,
    parse_output,
    request_environment,
)
from nexus.auth.claims import UdpRoute
from nexus.auth.mint import TokenSpec
from nexus.auth.tokens import verify_token
from nexus.errors import TokenProviderError

SECRET = "correct-horse-battery-staple"
NOW = 1_700_000_000.5
SHORT_TIMEOUT_S = 0.2

HANDSHAKE = TokenRequest(stage="handshake", nonce="", backend_name="web")
ATTEST = TokenRequest(
    stage="attest",
    nonce="n-1",
    backend_name="web",
    hostnames=("a.example", "*.b.example"),
    tcp_ports=(22, 443),
    udp_routes=(UdpRoute(53, 30), UdpRoute(67), UdpRoute(68, 0)),
    weight=3,
    outbound_allowed=True,
    allowed_outbound_ports=(25, 587),
)
REAUTH = TokenRequest(stage="reauth", nonce="n-2", backend_name="web")


def sh(
    script: str, *, env: dict[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_DEFAULT_S
) -> TokenProvider:
    """Make a provider that runs a shell script."""
    return CommandTokenProvider("sh", ["-c", script], env, timeout_s)


async def failure(provider: TokenProvider, request: TokenRequest = ATTEST) -> str:
    """Return the text of the error, having checked that neither it nor its chain holds the secret."""
    with pytest.raises(TokenProviderError) as caught:
        await provider.token(request)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        assert not isinstance(error, UnicodeError | json.JSONDecodeError)
        error = error.__cause__ or error.__context__
    return str(caught.value)


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note the process id of every command of a test, and check at its end that each is gone and no zombie is left."""
    pids: list[int] = []
    original = tokens._kill_and_reap

    async def note(pid: int, output: tokens._Output) -> None:
        pids.append(pid)
        await original(pid, output)

    monkeypatch.setattr(tokens, "_kill_and_reap", note)
    yield pids
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def run_on_uvloop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test on the event loop that production uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "token"),
    [
        ("echo t.o.k", "t.o.k"),
        ("printf '\\n  t.o.k \\r\\nsecond line\\n'", "t.o.k"),
        ('echo \'{"token": " t.o.k "}\'', "t.o.k"),
        ("cat; echo t.o.k", "t.o.k"),
        ("echo noise >&2; echo t.o.k; echo noise >&2", "t.o.k"),
        ("head -c 1000000 /dev/zero >&2; echo t.o.k", "t.o.k"),
        ("echo $NEXUS_ATTESTATION_STAGE/$NEXUS_SESSION_NONCE/$OWN/$PARENT", "attest/n-1/mine/parents"),
    ],
)
async def test_a_command_prints_the_token_to_stdout(monkeypatch: pytest.MonkeyPatch, script: str, token: str) -> None:
    """First line or JSON, with an empty stdin, and whatever stands on stderr is no part of it."""
    monkeypatch.setenv("PARENT", "parents")
    assert await sh(script, env={"OWN": "mine", "NEXUS_SESSION_NONCE": "not this"}).token(ATTEST) == token


def test_the_request_is_told_in_the_environment() -> None:
    """Every variable of the protocol's section 18, in its spelling."""
    assert request_environment(ATTEST) == {
        "NEXUS_ATTESTATION_STAGE": "attest",
        "NEXUS_SESSION_NONCE": "n-1",
        "NEXUS_BACKEND_NAME": "web",
        "NEXUS_HOSTNAMES": "a.example,*.b.example",
        "NEXUS_WEIGHT": "3",
        "NEXUS_TCP_PORTS": "22,443",
        "NEXUS_UDP_ROUTES": "53:30,67,68",
        "NEXUS_OUTBOUND_ALLOWED": "true",
        "NEXUS_ALLOWED_OUTBOUND_PORTS": "25,587",
    }
    assert request_environment(HANDSHAKE) == {
        "NEXUS_ATTESTATION_STAGE": "handshake",
        "NEXUS_SESSION_NONCE": "",
        "NEXUS_BACKEND_NAME": "web",
        "NEXUS_HOSTNAMES": "",
        "NEXUS_WEIGHT": "1",
        "NEXUS_TCP_PORTS": "",
        "NEXUS_UDP_ROUTES": "",
        "NEXUS_OUTBOUND_ALLOWED": "false",
        "NEXUS_ALLOWED_OUTBOUND_PORTS": "",
    }


def test_outbound_ports_are_told_only_when_outbound_is_allowed() -> None:
    """A list of ports without the permission means nothing."""
    request = TokenRequest("handshake", "", "web", allowed_outbound_ports=(25,))
    assert request_environment(request)["NEXUS_ALLOWED_OUTBOUND_PORTS"] == ""


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("exit 3", "'sh' failed with exit status 3 (0 bytes on stderr)"),
        ("echo token; printf 12345 >&2; exit 1", "failed with exit status 1 (5 bytes on stderr, logged at DEBUG)"),
        ("head -c 100000 /dev/zero >&2; exit 1", "failed with exit status 1 (100000 bytes on stderr"),
        ("kill -KILL $$", "was killed by signal 9"),
        ("true", "printed no token"),
        ("printf ' \\n \\n'", "printed no token"),
        ("echo '{}'", "printed no token"),
        (f'echo \'{{"token": "{SECRET}\'', "printed JSON that cannot be parsed"),
        (f"printf '{SECRET}\\377'", "characters other than printable ASCII"),
        (f"printf '{SECRET}\\033[31m'", "characters other than printable ASCII"),
        ("yes", f"printed more than {OUTPUT_MAX_BYTES} bytes and was killed"),
        ("head -c 1000000 /dev/zero", f"printed more than {OUTPUT_MAX_BYTES} bytes and was killed"),
    ],
)
async def test_a_command_that_fails_is_told_by_its_name_and_its_end(script: str, what: str) -> None:
    """Exit status, signal, no token, too much of it: each has its own words, and none quotes the output."""
    assert what in await failure(sh(script))


async def test_stderr_is_shown_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    """What a command writes to stderr may be secret: its length is in the error, its text only in the debug log."""
    provider = sh(f"echo {SECRET} >&2; echo token; exit 1")
    caplog.set_level(logging.INFO)
    assert f"({len(SECRET) + 1} bytes on stderr, logged at DEBUG)" in await failure(provider)
    assert SECRET not in caplog.text
    caplog.set_level(logging.DEBUG, logger="backend_client.tokens")
    await failure(provider)
    assert SECRET in caplog.text


async def test_arguments_and_variables_stay_out_of_errors_and_reprs() -> None:
    """Both are where operators put secrets."""
    provider = CommandTokenProvider("sh", ["-c", "exit 1", SECRET], {"SECRET": SECRET})
    await failure(provider)
    assert SECRET not in repr(provider)


@pytest.mark.parametrize(
    ("command", "what"), [("/does/not/exist", "No such file or directory"), ("/", "Permission denied")]
)
async def test_a_command_that_cannot_be_started_is_named(command: str, what: str) -> None:
    """The reason of the system follows the name."""
    assert f"{command!r} could not be started: {what}" in await failure(CommandTokenProvider(command))


@pytest.mark.parametrize("nonce", ["a\0b", f"{SECRET}\ud800"])
async def test_a_hostile_nonce_is_an_error_not_a_crash(nonce: str) -> None:
    """What no environment can hold is refused in words that do not repeat it."""
    request = TokenRequest("attest", nonce, "web")
    assert "cannot be passed to a program" in await failure(sh("echo token"), request)


@pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM INT HUP; while :; do sleep 1000; done"])
async def test_a_command_is_killed_at_the_time_limit(script: str) -> None:
    """One that sleeps and one that ignores polite signals are gone and reaped when the error is raised."""
    assert "did not finish within 0.2 s and was killed" in await failure(sh(script, timeout_s=SHORT_TIMEOUT_S))


def test_a_command_is_killed_at_the_time_limit_on_uvloop() -> None:
    """The same holds on the event loop that production uses, where other code reaps."""

    async def scenario() -> None:
        assert "was killed" in await failure(sh("trap '' TERM; sleep 1000", timeout_s=SHORT_TIMEOUT_S))
        assert "printed more than" in await failure(sh("yes"))
        assert "exit status 7" in await failure(sh("exit 7"))
        assert await sh("echo t.o.k").token(ATTEST) == "t.o.k"

    run_on_uvloop(scenario())


async def test_cancelling_kills_the_whole_process_group(tmp_path: Path) -> None:
    """A cancelled request leaves no process behind: not the command and not what the command started."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(reader, started.set)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sh(f"exec 9>{fifo}; (sleep 1000) & echo ready >&9; wait").token(ATTEST))
            await started.wait()
            loop.remove_reader(reader)
            task.cancel()
        os.set_blocking(reader, True)
        assert await asyncio.to_thread(os.read, reader, 100) == b"ready\n"
        # The end of the file comes only when every process that held the other end is gone.
        assert await asyncio.to_thread(os.read, reader, 100) == b""
    finally:
        loop.remove_reader(reader)
        os.close(reader)


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_in_the_middle_of_a_start_kills_the_command_too(turns: int, commands: list[int]) -> None:
    """However far the start has come when the caller is cancelled, what has begun is killed as a group, and reaped."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sh("sleep 1000 & wait").token(ATTEST))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert len(commands) == (1 if turns else 0)


async def test_cancelling_a_start_that_fails_anyway_is_still_a_cancellation() -> None:
    """The failure of the start is neither raised in its place nor logged as forgotten."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(CommandTokenProvider("/does/not/exist").token(ATTEST))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_something_left_in_the_background_does_not_hold_the_token_up(tmp_path: Path) -> None:
    """A command that has exited well is believed even if a process it started keeps its output open."""
    pid_file = tmp_path / "pid"
    try:
        assert await sh(f"sleep 1000 & echo $! >{pid_file}; echo t.o.k").token(ATTEST) == "t.o.k"
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def wait_until_reaped(pid: int) -> None:
    """Return once somebody else has reaped a child."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_process_that_will_not_die_is_left_to_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, commands: list[int]
) -> None:
    """If killing is not permitted, the error comes all the same after a bounded wait."""

    def refuse(_group: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr("backend_client.tokens.REAP_TIMEOUT_S", 0.0)
    assert "was killed" in await failure(sh("exec sleep 1000", timeout_s=SHORT_TIMEOUT_S))
    await asyncio.to_thread(wait_until_reaped, commands[0])


# --- output of commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expiry", "expires_at"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20.123456789+01:00", 1_700_000_000.123456),
        ("0001-01-01T00:00:00+14:00", -62135647200.0),
        ("2023-11-14T22:13:20", None),
        ("tomorrow", None),
        ("", None),
        (1_700_000_000, None),
        (None, None),
    ],
)
def test_an_expiry_is_rfc_3339_or_ignored(expiry: object, expires_at: float | None) -> None:
    """A bad expiry is no reason to refuse the token, as in the original."""
    output = json.dumps({"token": "t.o.k", "expiry": expiry}).encode()
    assert parse_output(output) == IssuedToken("t.o.k", expires_at)


@pytest.mark.parametrize("output", [b"{", b'{"token": 1}', b'{"token": "\\u00e9"}', b'{"a":' * 10_000, b"\xff", b"\0"])
def test_output_without_a_token_is_described(output: bytes) -> None:
    """Anything else is answered with words, even JSON nested too deep to parse."""
    assert isinstance(parse_output(output), str)


@given(st.binary() | st.text().map(str.encode) | st.text().map(lambda text: json.dumps({"token": text}).encode()))
def test_any_output_is_answered_with_a_token_that_can_be_sent_or_with_words(output: bytes) -> None:
    """No output is an error of the parser, and a token is one line of visible text."""
    answer = parse_output(output)
    if isinstance(answer, IssuedToken):
        assert answer.token
        assert answer.token == answer.token.strip()
        assert answer.token.isprintable()


def test_tokens_and_nonces_stay_out_of_reprs() -> None:
    """Values that end up in debug logs do not bring secrets with them."""
    assert SECRET not in repr(IssuedToken(SECRET))
    assert SECRET not in repr(TokenRequest("attest", SECRET, "web"))


# --- shared secret ------------------------------------------------------------------------------------------------


async def test_a_token_signed_with_the_shared_secret_is_one_that_the_hub_verifies() -> None:
    """Claims come from the request, durations from the terms, and the hub's own check accepts the signature."""
    terms = TokenSpec("ignored", hostnames=("ignored.example",), weight=99, ttl_s=60, reauth_interval_s=300)
    issued = await HmacTokenProvider(SECRET, terms, lambda: NOW).issue(ATTEST)
    assert issued.expires_at == int(NOW) + 60
    claims = verify_token(issued.token, [SECRET.encode()], NOW)
    assert claims == {
        "iss": "authorizer",
        "aud": ["nexus"],
        "sub": "web",
        "iat": int(NOW),
        "exp": int(NOW) + 60,
        "weight": 3,
        "hostnames": ["a.example", "*.b.example"],
        "tcp_ports": [22, 443],
        "udp_routes": [{"port": 53, "flow_idle_timeout_seconds": 30}, {"port": 67}, {"port": 68}],
        "outbound_allowed": True,
        "allowed_outbound_ports": [25, 587],
        "session_nonce": "n-1",
        "reauth_interval_seconds": 300,
    }


async def test_the_clock_of_a_provider_is_the_wall_clock_unless_told_otherwise() -> None:
    """A token made now is valid now."""
    token = await HmacTokenProvider(SECRET, TokenSpec("")).token(HANDSHAKE)
    assert "session_nonce" not in verify_token(token, [SECRET.encode()], time.time())


async def test_white_space_around_the_secret_does_not_count() -> None:
    """Neither in the setting nor at the end of the file."""
    token = await HmacTokenProvider(f"  {SECRET}\n", TokenSpec(""), lambda: NOW).token(HANDSHAKE)
    verify_token(token, [SECRET.encode()], NOW)


async def test_a_rotated_secret_file_works_without_a_restart(tmp_path: Path) -> None:
    """The next token after the file changed is signed with the new secret."""
    file = tmp_path / "secret"
    provider = HmacTokenProvider(file, TokenSpec(""), lambda: NOW)
    for secret in (b"first \xff secret", b"other \xfe secret"):
        file.write_bytes(b"\n" + secret + b"\r\n")
        verify_token(await provider.token(REAUTH), [secret], NOW)


async def test_an_unusable_secret_is_named_and_not_shown(tmp_path: Path) -> None:
    """Missing, empty and absurd files are told apart, by path; an empty setting is told as such."""
    file = tmp_path / "secret"
    provider = HmacTokenProvider(file, TokenSpec(""))
    assert await failure(provider) == f"the token secret file {file} cannot be read: No such file or directory"
    file.write_bytes(b" \n")
    assert await failure(provider) == f"the token secret is empty (file {file})"
    file.write_bytes(SECRET.encode() * SECRET_FILE_MAX_BYTES)
    assert await failure(provider) == f"the token secret file {file} is longer than {SECRET_FILE_MAX_BYTES} bytes"
    assert await failure(HmacTokenProvider(" ", TokenSpec(""))) == "the token secret is empty (setting)"


async def test_a_secret_that_is_not_unicode_does_not_end_up_in_an_encoding_error() -> None:
    """Such an error would carry the secret."""
    provider = HmacTokenProvider(f"{SECRET}\ud800", TokenSpec(""))
    assert await provider.token(HANDSHAKE)
    assert SECRET not in repr(provider)


# --- cache --------------------------------------------------------------------------------------------------------


class Numbered:
    """An issuer whose tokens are numbers, in order."""

    def __init__(self, lifetime_s: float | None = None) -> None:
        self.now = NOW
        self.issued = 0
        self.lifetime_s = lifetime_s

    def clock(self) -> float:
        """Return the time that a test has set."""
        return self.now

    async def token(self, request: TokenRequest) -> str:
        """Return the next number."""
        return (await self.issue(request)).token

    async def issue(self, _request: TokenRequest) -> IssuedToken:
        """Return the next number with its expiry."""
        self.issued += 1
        return IssuedToken(str(self.issued), None if self.lifetime_s is None else self.now + self.lifetime_s)


@pytest.mark.parametrize(
    ("cache_s", "lifetime_s", "kept_s"),
    [
        (60.0, None, 60.0),
        (60.0, 1000.0, 60.0),
        (60.0, 30.0, 30.0 - EXPIRY_MARGIN_S),
        (60.0, EXPIRY_MARGIN_S, 0.0),
        (60.0, -1.0, 0.0),
        (0.0, None, 0.0),
    ],
)
async def test_a_handshake_token_is_kept_until_the_earlier_of_both_limits(
    cache_s: float, lifetime_s: float | None, kept_s: float
) -> None:
    """The setting limits it, and so does the token's own life, less what the way to the hub may take."""
    issuer = Numbered(lifetime_s)
    provider = CachingProvider(issuer, cache_s, issuer.clock)
    assert await provider.token(HANDSHAKE) == "1"
    if kept_s:
        issuer.now = NOW + kept_s - 0.5
        assert await provider.token(HANDSHAKE) == "1"
    issuer.now = NOW + kept_s
    assert await provider.token(HANDSHAKE) == "2"


async def test_only_handshake_tokens_are_kept() -> None:
    """A token that answers a nonce is good once."""
    issuer = Numbered()
    provider = CachingProvider(issuer, 60.0, issuer.clock)
    assert [await provider.token(request) for request in (ATTEST, ATTEST, REAUTH, REAUTH)] == ["1", "2", "3", "4"]


async def test_a_kept_token_serves_only_the_request_it_was_made_for() -> None:
    """Another backend, or the same one with other claims, gets a token of its own, and dead entries go."""
    issuer = Numbered()
    provider = CachingProvider(issuer, 60.0, issuer.clock)
    other = TokenRequest("handshake", "", "web", hostnames=("a.example",))
    assert [await provider.token(request) for request in (HANDSHAKE, other, HANDSHAKE, other)] == ["1", "2", "1", "2"]
    issuer.now += 60.0
    assert await provider.token(other) == "3"
    assert list(provider._kept) == [other]


async def test_forgetting_brings_a_fresh_token() -> None:
    """After a refusal a kept token is of no use."""
    issuer = Numbered()
    provider = CachingProvider(issuer, 60.0, issuer.clock)
    assert await provider.token(HANDSHAKE) == "1"
    provider.forget()
    provider.forget()
    assert await provider.token(HANDSHAKE) == "2"


async def test_a_failure_is_not_kept() -> None:
    """The next request after an error asks again."""
    provider = CachingProvider(CommandTokenProvider("sh", ["-c", "exit 1"]), 60.0)
    for _ in range(2):
        await failure(provider, HANDSHAKE)


async def test_both_built_in_providers_can_be_cached(tmp_path: Path) -> None:
    """A command runs once for two handshakes; a signed token is the same text twice."""
    runs = tmp_path / "runs"
    command = CommandTokenProvider("sh", ["-c", f"echo run >>{runs}; echo token"])
    for issuer in (command, HmacTokenProvider(SECRET, TokenSpec(""))):
        provider = CachingProvider(issuer, 60.0)
        assert await provider.token(HANDSHAKE) == await provider.token(HANDSHAKE)
        assert SECRET not in repr(provider)
    assert runs.read_text() == "run\n"
