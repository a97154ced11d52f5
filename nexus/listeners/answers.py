"""What a refused client is told: a TLS alert, a small HTTP page, or nothing.

Strategy: a table from reason to answer, chosen by what the client was seen to speak. The original closes silently; an
operator can have that back with ``unroutedClose: silent``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from nexus.routing.decide import RejectReason

# RFC 8446 6: alert record of TLS 1.2 (the version every stack accepts before negotiation), level fatal, description
# unrecognized_name (RFC 6066 3).
UNRECOGNIZED_NAME_ALERT: Final = bytes.fromhex("15030300020270")

_STATUS: Final = {
    RejectReason.NO_NAME: (HTTPStatus.BAD_REQUEST, "The request names no host."),
    RejectReason.NO_BACKEND: (HTTPStatus.NOT_FOUND, "Nothing is served here under this name."),
    RejectReason.TOO_LARGE: (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large."),
    RejectReason.OVERLOADED: (HTTPStatus.SERVICE_UNAVAILABLE, "The node is busy."),
}


def answer(reason: RejectReason, *, is_tls: bool, is_http: bool) -> bytes:
    """Return the bytes to send before closing; empty where the client speaks neither TLS nor HTTP."""
    if is_tls:
        return UNRECOGNIZED_NAME_ALERT
    if is_http and reason in _STATUS:
        return _page(*_STATUS[reason])
    return b""


def _page(status: HTTPStatus, text: str) -> bytes:
    body = f"{status.value} {status.phrase}\n{text}\n".encode("ascii")
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
