"""nexus.listeners.answers: what a refused client is told, read by clients of the standard library."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from typing import cast

import pytest

from nexus.listeners.answers import UNRECOGNIZED_NAME_ALERT, answer
from nexus.routing.decide import RejectReason

STATUS = {
    RejectReason.NO_NAME: 400,
    RejectReason.NO_BACKEND: 404,
    RejectReason.TOO_LARGE: 431,
    RejectReason.OVERLOADED: 503,
}
UNTOLD = [reason for reason in RejectReason if reason not in STATUS]


class _Socket:
    """What ``HTTPResponse`` wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        """Return what arrived."""
        assert mode == "rb"
        return io.BytesIO(self._data)


@pytest.mark.parametrize("reason", RejectReason)
def test_a_tls_client_gets_a_fatal_alert(reason: RejectReason) -> None:
    """OpenSSL reads it as unrecognized_name (RFC 6066 section 3), whatever the reason."""
    incoming = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="app.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(answer(reason, is_tls=True, is_http=False))
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    assert "UNRECOGNIZED_NAME" in str(caught.value).upper().replace(" ", "_")


def test_the_alert_is_one_record_of_two_bytes() -> None:
    """Content type 21, version 3.3, length 2, level fatal (2), description 112."""
    assert list(UNRECOGNIZED_NAME_ALERT) == [21, 3, 3, 0, 2, 2, 112]


@pytest.mark.parametrize("reason", STATUS)
def test_an_http_client_gets_a_whole_page(reason: RejectReason) -> None:
    """Status, length and end are right; no cache keeps it and nothing in it is the client's."""
    page = answer(reason, is_tls=False, is_http=True)
    response = http.client.HTTPResponse(cast(socket.socket, _Socket(page)))
    response.begin()
    body = response.read()
    assert response.status == STATUS[reason]
    assert body.startswith(f"{response.status} {response.reason}\n".encode())
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("Connection") == "close"
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"
    assert page.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("reason", UNTOLD)
def test_other_reasons_have_no_page(reason: RejectReason) -> None:
    """There is nobody who would read it."""
    assert answer(reason, is_tls=False, is_http=True) == b""


@pytest.mark.parametrize("reason", RejectReason)
def test_who_speaks_something_else_is_told_nothing(reason: RejectReason) -> None:
    """Bytes that it cannot read would only confuse it."""
    assert answer(reason, is_tls=False, is_http=False) == b""
