"""The HTTP upgrade of a link (RFC 6455 section 4), of either role, without I/O.

Strategy: the ``websockets`` library parses and judges the HTTP messages; it gets the head exactly, since the frames
that may follow in the same segment are for our codec. An answer other than 101 has a body, which is fed to it as well.
What the library wants sent stands in its ``data_to_send``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, cast

from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from nexus.errors import NexusError, RejectedError, RemoteProtocolError
from nexus.protocol.constants import UPGRADE_HEAD_MAX_BYTES

REFUSAL_SHOWN_CHARS: Final = 300  # ours: a log line, not a page
_HEAD_END: Final = b"\r\n\r\n"


class Upgrade:
    """Call ``receive`` until it is ``done`` (frames follow) or there is a ``failure``; never both."""

    __slots__ = ("_head_done", "_path", "_websocket", "done", "failure", "refusal")

    def __init__(self, websocket: ServerProtocol | ClientProtocol, path: str) -> None:
        """Take a fresh sans-I/O protocol; a server answers only ``path``."""
        self.done = False
        self.failure: NexusError | None = None
        self.refusal = ""  # why a server refuses whoever asks
        self._websocket = websocket
        self._path = path
        self._head_done = False

    def receive(self, view: memoryview, end: int) -> int:
        """Take bytes from ``view[:end]`` and return how many; 0 asks for more."""
        stop = end
        if not self._head_done:
            found = bytes(view[:end]).find(_HEAD_END)
            stop = found + len(_HEAD_END) if found >= 0 else end
            if stop > UPGRADE_HEAD_MAX_BYTES:
                self._refuse_large_head()
                return end
            if found < 0:
                return 0
            self._head_done = True
        self._feed(bytes(view[:stop]))
        return stop

    def receive_eof(self) -> None:
        """Judge an answer whose body ends with the connection; idempotent."""
        if not self.done and not self._websocket.reader.eof:
            self._websocket.receive_eof()
            self._take_events()

    def _feed(self, part: bytes) -> None:
        websocket = self._websocket
        websocket.receive_data(part)
        self._take_events()
        if not self.done and (websocket.handshake_exc is not None or websocket.eof_sent):
            self._fail(str(websocket.handshake_exc or "the request was refused"))

    def _take_events(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._answer(event)
            elif isinstance(event, Response):
                self._judge(event)

    def _answer(self, request: Request) -> None:
        websocket = cast(ServerProtocol, self._websocket)
        if request.path.partition("?")[0] != self._path:
            response = websocket.reject(HTTPStatus.NOT_FOUND, f"WebSockets are served at {self._path}.\n")
        elif self.refusal:
            response = websocket.reject(HTTPStatus.FORBIDDEN, f"{self.refusal}\n")
        else:
            response = websocket.accept(request)
        websocket.send_response(response)
        self.done = websocket.state is State.OPEN

    def _judge(self, response: Response) -> None:
        self.done = self._websocket.state is State.OPEN
        if not self.done and response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            status = f"{response.status_code} {response.reason_phrase}".strip()
            why = _first_line(response.body)
            self.failure = RejectedError(f"HTTP {status} instead of 101{why and f': {why}'}", response.status_code)

    def _refuse_large_head(self) -> None:
        why = f"the HTTP head is longer than {UPGRADE_HEAD_MAX_BYTES} bytes"
        if isinstance(self._websocket, ServerProtocol):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._websocket.send_response(self._websocket.reject(status, f"{why}.\n"))
        self._fail(why)

    def _fail(self, why: str) -> None:
        self.failure = self.failure or RemoteProtocolError(f"the upgrade failed: {why}")


def _first_line(body: bytes | bytearray | None) -> str:
    """Return what a refusal says for people: the first line of its body, where that is short and plain text."""
    line = bytes(body or b"").partition(b"\n")[0].decode("ascii", "replace").strip()
    return line if line.isprintable() and len(line) <= REFUSAL_SHOWN_CHARS and not line.startswith("<") else ""
