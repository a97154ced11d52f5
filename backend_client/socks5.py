"""The server's side of a SOCKS5 negotiation, up to the request (RFC 1928), with username and password (RFC 1929).

Strategy: ``Negotiation`` holds what has arrived and the step it waits for; a step takes a whole message off the front,
or nothing. ``receive`` returns what to send back and may be given one byte or all messages at once: a client may send
its request before it is answered, and bytes of its own behind that, which are left in ``rest``. Only CONNECT is served.
A name is passed on as it is: the hub resolves it.

Every reply carries 0.0.0.0:0, as the hub does not tell its own address. ``reply_to`` turns the hub's reason into the
reply that says most to a user; any text that is not one of ours becomes "connection refused", as in the original.

Source: RFC 1928 sections 3, 4, 6; RFC 1929 section 2; spec backend-protocol 12.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from backend_client.mapping import Target
from nexus.protocol.reasons import OutboundRefusal

LOGIN_MAX_BYTES: Final = 255  # RFC 1929 section 2: the length of a name or a password is one byte, and not 0
_VERSION: Final = 5
_LOGIN_VERSION: Final = 1
_NO_LOGIN, _PASSWORD, _NO_METHOD = 0x00, 0x02, 0xFF
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_REQUEST_HEAD_BYTES: Final = 4
_PORT_BYTES: Final = 2


class Reply(IntEnum):
    """The reply codes of RFC 1928 section 6 that we use."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


_REPLIES: Final = {
    OutboundRefusal.HUB: Reply.NOT_ALLOWED,
    OutboundRefusal.TOKEN: Reply.NOT_ALLOWED,
    OutboundRefusal.TARGET: Reply.FAILURE,
    OutboundRefusal.HUB_PORT: Reply.NOT_ALLOWED,
    OutboundRefusal.TOKEN_PORT: Reply.NOT_ALLOWED,
    OutboundRefusal.LIMIT: Reply.FAILURE,
    OutboundRefusal.ID: Reply.FAILURE,
    OutboundRefusal.STOPPING: Reply.FAILURE,
    OutboundRefusal.PRIVATE: Reply.NOT_ALLOWED,
    OutboundRefusal.NAME: Reply.HOST_UNREACHABLE,
    OutboundRefusal.LOOKUPS: Reply.FAILURE,
    OutboundRefusal.REFUSED: Reply.REFUSED,
    OutboundRefusal.UNREACHABLE: Reply.HOST_UNREACHABLE,
    OutboundRefusal.TIMEOUT: Reply.TTL_EXPIRED,
    OutboundRefusal.FAILED: Reply.FAILURE,
}


@dataclass(frozen=True, slots=True)
class Login:
    """What a client must say; each 1 to LOGIN_MAX_BYTES bytes long in UTF-8."""

    username: str
    password: str = field(repr=False)


class Negotiation:
    """One negotiation. It goes on until ``target`` is set or ``failed``; ``login_refused`` tells a wrong login."""

    def __init__(self, login: Login | None) -> None:
        """Require ``login`` where there is one."""
        self.target: Target | None = None
        self.failed = False
        self.login_refused = False
        self._login = login
        self._received = bytearray()
        self._step: Callable[[], bytes | None] = self._take_greeting

    @property
    def rest(self) -> bytes:
        """What came behind the request."""
        return bytes(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take bytes and return the answer to them, perhaps none; not to be called once the negotiation is over."""
        self._received += data
        answers = bytearray()
        while self.target is None and not self.failed:
            answer = self._step()
            if answer is None:
                break
            answers += answer
        return bytes(answers)

    # -- Steps: None while the message is not complete ----------------------------------------------------------------

    def _take_greeting(self) -> bytes | None:
        received = self._received
        if received and received[0] != _VERSION:
            return self._fail(b"")
        if len(received) < 2 or len(received) < 2 + received[1]:
            return None
        methods = self._take(2 + received[1])[2:]
        wanted = _NO_LOGIN if self._login is None else _PASSWORD
        if wanted not in methods:
            return self._fail(bytes([_VERSION, _NO_METHOD]) if methods else b"")
        self._step = self._take_request if self._login is None else partial(self._take_login, self._login)
        return bytes([_VERSION, wanted])

    def _take_login(self, login: Login) -> bytes | None:
        received = self._received
        if received and received[0] != _LOGIN_VERSION:
            return self._fail(bytes([_LOGIN_VERSION, 1]))
        if len(received) < 2 or len(received) < 3 + received[1]:
            return None
        name_end = 2 + received[1]
        end = name_end + 1 + received[name_end]
        if len(received) < end:
            return None
        said = self._take(end)
        if not _is_right(login, said[2:name_end], said[name_end + 1 :]):
            self.login_refused = True
            return self._fail(bytes([_LOGIN_VERSION, 1]))
        self._step = self._take_request
        return bytes([_LOGIN_VERSION, 0])

    def _take_request(self) -> bytes | None:
        received = self._received
        if received and received[0] != _VERSION:
            return self._fail(b"")
        if len(received) < _REQUEST_HEAD_BYTES:
            return None
        if received[1] != _CONNECT:
            return self._fail(reply(Reply.COMMAND_NOT_SUPPORTED))
        if received[3] not in {_IPV4, _NAME, _IPV6}:
            return self._fail(reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED))
        if len(received) <= _REQUEST_HEAD_BYTES:
            return None
        start, end = _address_span(received)
        if len(received) < end + _PORT_BYTES:
            return None
        request = self._take(end + _PORT_BYTES)
        host = _host(request[3], request[start:end])
        if not host:
            return self._fail(reply(Reply.FAILURE))
        self.target = Target(host, int.from_bytes(request[end:], "big"))
        return b""

    # -- Inside -----------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _fail(self, answer: bytes) -> bytes:
        self.failed = True
        self._received.clear()
        return answer


def reply(code: Reply) -> bytes:
    """Return the reply to a request."""
    return bytes([_VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0])


def reply_to(reason: str) -> Reply:
    """Return the reply code for a hub's reason."""
    return _REPLIES[OutboundRefusal(reason)] if reason in OutboundRefusal._value2member_map_ else Reply.REFUSED


def _is_right(login: Login, username: bytes, password: bytes) -> bool:
    """Compare both in constant time, the name also where the password is wrong."""
    expected = [text.encode("utf-8", "surrogatepass") for text in (login.username, login.password)]
    same = [hmac.compare_digest(*pair) for pair in zip((username, password), expected, strict=True)]
    return all(same)


def _address_span(request: bytearray) -> tuple[int, int]:
    """Return where the address stands in a request of which at least the first byte of the address is here."""
    start = _REQUEST_HEAD_BYTES
    if request[3] == _NAME:
        return start + 1, start + 1 + request[start]
    return start, start + (4 if request[3] == _IPV4 else 16)


def _host(kind: int, address: bytes) -> str:
    """Return the address as text; empty for a name that is none."""
    if kind == _IPV4:
        return str(IPv4Address(address))
    if kind == _IPV6:
        return str(IPv6Address(address))
    try:
        return address.decode()
    except UnicodeDecodeError:
        return ""
