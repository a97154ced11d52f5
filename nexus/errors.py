"""The error tree of Nexus Proxy.

    NexusError
    ├── ConfigError           an operator's file, option or variable is wrong: names file, line, key and mend
    ├── ProtocolError
    │   ├── LocalProtocolError    our own code asked for something the protocol forbids: a bug of ours
    │   └── RemoteProtocolError   the other side sent something the protocol forbids
    ├── AuthError             a token, or a claim in it, is refused
    │   └── TokenUnverified       nobody can tell now whether a token is good; it is no fault of the token
    ├── WebError              a web server could not be asked, or its answer was too long
    ├── AcmeError             a certificate authority issued no certificate
    ├── TokenProviderError    the backend client could not obtain a token
    ├── RejectedError         the hub refused this backend
    ├── OutboundError         a hub opened no outbound connection
    ├── StreamReset           a stream broke before its orderly end
    └── TlsFileError          a certificate or key file cannot be used

Bytes that are merely incomplete are never an error: parsers answer "need more" as a value.
"""

from __future__ import annotations

from dataclasses import dataclass


class NexusError(Exception):
    """Base of every error this project raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: where it is, what is wrong, and what mends it.

    ``line`` counts from 1; 0 means the whole file, an option or the environment. ``key`` is the dotted path of the key
    (``peers[2]``, ``peekTimeouts.firstByteSeconds``), empty for the whole document.
    """

    source: str
    line: int
    key: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        """``server.yaml:12: relayPorts: what is wrong; mend``."""
        where = f"{self.source}:{self.line}" if self.line else self.source
        parts = [where, *([self.key] if self.key else []), self.what]
        return ": ".join(parts) + (f"; {self.mend}" if self.mend else "")


class ConfigError(NexusError):
    """A configuration cannot be used; ``problems`` holds every mistake found, in file order."""

    def __init__(self, *problems: Problem) -> None:
        """Take at least one problem."""
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """One line per problem."""
        return "\n".join(str(problem) for problem in self.problems)


class ProtocolError(NexusError):
    """The wire protocol was violated."""


class LocalProtocolError(ProtocolError):
    """Our own code asked for something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something the protocol forbids."""


class AuthError(NexusError):
    """A token or a claim is refused.

    ``str(error)`` may be shown to the refused side: it never contains a secret, a nonce or the token.
    """


class TokenUnverified(AuthError):  # noqa: N818 — a state of knowledge, not a mistake
    """A token could be judged neither way: keys or verifier are out of reach for now.

    ``str(error)`` is for the backend and holds none of the words by which original backends know a lasting refusal;
    ``detail`` is for this node's log.
    """

    def __init__(self, detail: str) -> None:
        """Take what is wrong, in words for the operator of the node."""
        super().__init__("the token could not be verified, try later")
        self.detail = detail


class WebError(NexusError):
    """A web server could not be asked, or answered too much (``answered``); ``str(error)`` says why."""

    def __init__(self, what: str, *, answered: bool = False) -> None:
        """Take what is wrong, without secrets of the URL or the request."""
        super().__init__(what)
        self.answered = answered


class AcmeError(NexusError):
    """A certificate authority issued no certificate; ``str(error)`` is one line that names the mend.

    ``reached`` tells whether the CA answered, and so counts the attempt; ``retry_after_s`` how long it asked to wait.
    """

    def __init__(self, what: str, *, reached: bool = True, retry_after_s: float | None = None) -> None:
        """Take the words."""
        super().__init__(what)
        self.reached = reached
        self.retry_after_s = retry_after_s


class TokenProviderError(NexusError):
    """The backend client could not obtain a token; ``str(error)`` holds no token and no secret."""


class RejectedError(NexusError):
    """The hub refused this backend: by WebSocket close code 1008, or by an HTTP status other than 101."""

    def __init__(self, reason: str, http_status: int = 0) -> None:
        """Take the hub's words; ``http_status`` is 0 where it was a close code."""
        super().__init__(reason)
        self.http_status = http_status


class TlsFileError(NexusError):
    """A certificate or key file cannot be read, parsed, or does not match its pair."""


class OutboundError(NexusError):
    """A hub opened no outbound connection; ``by_hub`` tells whether ``str(error)`` are the hub's words."""

    def __init__(self, reason: str, *, by_hub: bool = False) -> None:
        """Take the words."""
        super().__init__(reason)
        self.by_hub = by_hub


class StreamReset(NexusError):  # noqa: N818 — the glossary's word for the outcome
    """A stream broke before its orderly end: bytes may be missing."""
