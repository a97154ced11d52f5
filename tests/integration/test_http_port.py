"""Plain HTTP by Host: the page, the challenge of an ACME server, and what the node itself answers."""

from __future__ import annotations

import pytest

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.programs import require

pytestmark = pytest.mark.programs

PAGE = "a plain page\n"
TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"  # of RFC 8555 8.3
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
CHALLENGES = ".well-known/acme-challenge"
BIG_FIELD_BYTES = 40_000  # more than one message holds
BIG_HEAD = wire.request(HOST, "/page.txt", "GET", "X-Big: " + "x" * BIG_FIELD_BYTES)


@pytest.fixture(scope="module", autouse=True)
def files(chain: Chain) -> None:
    """The page and the challenge's answer."""
    (chain.nginx.root / "page.txt").write_text(PAGE)
    folder = chain.nginx.root / CHALLENGES
    folder.mkdir(parents=True)
    (folder / TOKEN).write_text(KEY_AUTHORIZATION)


def ask(chain: Chain, head: bytes) -> tuple[int, str]:
    """Send bytes to the HTTP port at once; return status and text of the answer."""
    with wire.connect(chain.node.http_port) as client:
        client.sendall(head)
        response, body = wire.read_response(client)
        return response.status, body.decode()


def test_curl_gets_the_page_by_host(chain: Chain) -> None:
    """curl names the host with its port, as every HTTP client on an unusual port does."""
    assert wire.run_program(require("curl"), *chain.curl_options(), chain.http_url("/page.txt")) == PAGE


def test_a_wildcard_host_gets_the_page(chain: Chain) -> None:
    """A Host below the claimed wildcard is served too, whatever its case."""
    assert ask(chain, wire.request("A.Wild.Example.COM", "/page.txt")) == (200, PAGE)


def test_an_acme_server_reaches_the_backends_challenge(chain: Chain) -> None:
    """The path of HTTP-01 is not the node's: the backend answers, so it can get a certificate of its own."""
    url = chain.http_url(f"/{CHALLENGES}/{TOKEN}")
    assert wire.run_program(require("curl"), *chain.curl_options(), url) == KEY_AUTHORIZATION


def test_a_challenge_that_the_backend_does_not_know_is_its_own_404(chain: Chain) -> None:
    """An unknown token is nginx's page, not one of the node's."""
    status, text = ask(chain, wire.request(HOST, f"/{CHALLENGES}/unknown"))
    assert status == 404
    assert "nginx" in text


def test_an_unknown_host_gets_a_404_page(chain: Chain) -> None:
    """A name that nobody serves is told so in words, and counted."""
    before = chain.node.rejected()
    status, text = ask(chain, wire.request("unknown.example.org"))
    assert status == 404
    assert "Nothing is served here" in text
    assert chain.node.rejected() == before + 1


def test_a_request_without_host_gets_a_400_page(chain: Chain) -> None:
    """HTTP/1.0 without Host is a good request that names nobody."""
    status, text = ask(chain, b"GET / HTTP/1.0\r\n\r\n")
    assert status == 400
    assert "names no host" in text


def test_a_head_larger_than_a_message_passes_and_the_session_lives(chain: Chain) -> None:
    """A 40 KB head arrives whole, and the backend is still connected by the same session."""
    sessions = chain.node.metric("nexus_sessions_opened_total")
    assert ask(chain, BIG_HEAD) == (200, PAGE)
    assert ask(chain, wire.request(HOST, "/page.txt")) == (200, PAGE)
    assert chain.node.metric("nexus_sessions_opened_total") == sessions
    assert chain.node.metric("nexus_sessions") == 1


def test_a_request_in_segments_of_one_byte_is_served(chain: Chain) -> None:
    """However slowly the head comes, the host in it is found and nothing is lost."""
    with wire.connect(chain.node.http_port) as client:
        for byte in wire.request(HOST, "/page.txt"):
            client.sendall(bytes([byte]))
        response, body = wire.read_response(client)
    assert (response.status, body.decode()) == (200, PAGE)


def test_pipelined_requests_are_answered_in_order(chain: Chain) -> None:
    """What comes behind the head that was peeked at is passed on too."""
    last = wire.request(HOST, f"/{CHALLENGES}/{TOKEN}", "GET", "Connection: close")
    with wire.connect(chain.node.http_port) as client:
        client.sendall(wire.request(HOST, "/page.txt") + last)
        received = wire.read_to_end(client).decode()
    assert received.count("HTTP/1.1 200 ") == 2
    assert PAGE in received.partition(KEY_AUTHORIZATION)[0]
    assert received.endswith(KEY_AUTHORIZATION)
