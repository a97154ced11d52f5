"""What the first bytes of a client's connection say: TLS or HTTP/1, and for which host.

Strategy: the first byte tells which of the two it can be: 22 begins a TLS handshake record and no HTTP method. From
then on one reader alone judges. The bytes are read, never consumed: the listener keeps all of them as the prelude,
whatever the answer is, because a port claim serves what is neither, and valid requests without a host.

A name that comes out of here is a wish of the client, not a proof of anything: it chooses a route, it authorises
nothing. It is read once per connection, from the first hello or the first request only.

How the answer may be used, for each call with all bytes received so far::

    answer = peek(buffer, seen=seen)
    if answer is PeekStatus.NEED_MORE:
        seen = len(buffer)  # and read on, within the time allowed

Source: spec node-and-mesh 4.2 to 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from nexus.peek.http1 import HTTP_HEAD_MAX_BYTES, HttpRequest, peek_request
from nexus.peek.tls import CLIENT_HELLO_MAX_BYTES, HANDSHAKE_RECORD, ClientHello, peek_client_hello
from nexus.peek.values import Buffer, PeekStatus

__all__ = [
    "CLIENT_HELLO_MAX_BYTES",
    "HTTP_HEAD_MAX_BYTES",
    "PEEK_MAX_BYTES",
    "Buffer",
    "ClientHello",
    "HttpRequest",
    "PeekStatus",
    "Peeked",
    "peek",
    "peek_client_hello",
    "peek_request",
]

PEEK_MAX_BYTES: Final = max(CLIENT_HELLO_MAX_BYTES, HTTP_HEAD_MAX_BYTES)
"""With this many bytes the answer is never NEED_MORE: the size at which a listener may stop reading."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """What a connection is and whom it asks for.

    ``host`` is the SNI or the request's host in lower case, not yet normalised; None when none is given. It is never
    a port key. ``alpn`` is what a hello offers, ``path`` the decoded path of a request; each is empty for the other.
    """

    kind: Literal["tls", "http"]
    host: str | None
    alpn: tuple[str, ...] = ()
    path: str = ""


def peek(data: Buffer, *, seen: int = 0) -> Peeked | PeekStatus:
    """Tell what ``data``, all bytes received so far, begins with.

    Never raises. NOT_THIS means neither a ClientHello nor an HTTP/1 request, whatever follows; TOO_LARGE that it is
    one of them but exceeds its bounds. ``seen`` is how many of the bytes an earlier call answered with NEED_MORE:
    with it, a connection that drips its bytes one by one costs well below a second of CPU in all (see the two
    readers); without it the answers are the same and a dripped HTTP head costs more.
    """
    if len(data) and data[0] == HANDSHAKE_RECORD:
        hello = peek_client_hello(data)
        return Peeked("tls", hello.server_name, alpn=hello.alpn) if isinstance(hello, ClientHello) else hello
    request = peek_request(data, seen=seen)
    return Peeked("http", request.host, path=request.path) if isinstance(request, HttpRequest) else request
