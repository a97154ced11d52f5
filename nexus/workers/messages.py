"""What workers of one node say to each other. Both ends are the same program, so nothing is checked twice.

Strategy: texts on the link say what a worker serves and answer for its figures; messages on the channel come with a
socket and say what to do with it. Each is one JSON object with a ``type``; behind that of a client stands what was read
from it already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from nexus.routing.decide import RejectReason
from nexus.transport import OpenRequest

PREFIX: Final = '{"worker": '
"""How every text begins; no other text on a link does."""


@dataclass(frozen=True, slots=True)
class Serves:
    """A backend joined the sender; ``number`` names it from now on. ``source`` is whom it counts for."""

    number: int
    keys: tuple[str, ...]
    weight: int
    subject: str
    source: str
    udp_routes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Retires:
    """A backend of the sender gets nothing new any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Leaves:
    """A backend of the sender is gone."""

    number: int


@dataclass(frozen=True, slots=True)
class News:
    """How the sender is now, behind the backends that it has: why it does not serve, and what TCP ports peers claim."""

    reasons: tuple[str, ...]
    peer_ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The hub has a new certificate: look for it."""


@dataclass(frozen=True, slots=True)
class AskFigures:
    """Say what you have counted."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the sender, a process of this number, has counted, as ``nexus.workers.figures`` writes it."""

    process: int
    values: Mapping[str, Any]


Text: TypeAlias = Serves | Retires | Leaves | News | Look | AskFigures | Figures
_TEXTS: Final[Mapping[str, Callable[..., Text]]] = {
    kind.__name__: kind for kind in (Serves, Retires, Leaves, News, Look, AskFigures, Figures)
}


def serialize(text: Text) -> str:
    """Return a text for the link."""
    return PREFIX + json.dumps({"type": type(text).__name__, **asdict(text)}) + "}"


def parse(text: str) -> Text:
    """Return what ``serialize`` was given."""
    said: dict[str, Any] = json.loads(text)["worker"]
    kind: Callable[..., Text] = _TEXTS[said.pop("type")]
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    if kind is Serves:
        fields["udp_routes"] = {int(port): idle_s for port, idle_s in said["udp_routes"].items()}
    return kind(**fields)


@dataclass(frozen=True, slots=True)
class PassedClient:
    """A client's connection: whom it wants, what was read from it, what to answer a refusal in.

    With ``own`` only the receiver's own backends may serve it; else anybody whom the receiver knows.
    """

    request: OpenRequest
    prelude: bytes
    spoke: str
    own: bool


@dataclass(frozen=True, slots=True)
class PassedBackend:
    """A connection to the hub, of which nothing was read, and the address it is from."""

    address: str


def serialize_passed(passed: PassedClient | PassedBackend) -> bytes:
    """Return a message for the channel."""
    if isinstance(passed, PassedBackend):
        return json.dumps({"backend": passed.address}).encode() + b"\n"
    request = passed.request
    head = {
        "host": request.host,
        "is_tls": request.is_tls,
        "local_port": request.local_port,
        "client": request.client,
        "nameless": request.nameless.value,
        "spoke": passed.spoke,
        "own": passed.own,
    }
    return json.dumps(head).encode() + b"\n" + passed.prelude


def parse_passed(message: bytes) -> PassedClient | PassedBackend:
    """Return what ``serialize_passed`` was given."""
    line, _, prelude = message.partition(b"\n")
    head = json.loads(line)
    if "backend" in head:
        return PassedBackend(head["backend"])
    spoke, own, nameless = head.pop("spoke"), head.pop("own"), RejectReason(head.pop("nameless"))
    return PassedClient(OpenRequest(**head, nameless=nameless), prelude, spoke, own)
