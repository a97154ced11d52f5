"""The answers to the certificate authority, and what is left to backends."""

from __future__ import annotations

import hashlib
import ssl

import pytest
from cryptography import x509

from nexus.acme.challenges import ALPN_PROTOCOL, HTTP_PATH, ChallengePorts, Challenges, challenge_context
from nexus.peek import Peeked

HOST = "hub.example.com"
HTTP, TLS = 80, 443
TOKEN, ANSWER = "token", "token.thumbprint"


@pytest.fixture
def challenges() -> Challenges:
    """One that is waited for."""
    made = Challenges(HOST, ChallengePorts(HTTP, TLS))
    made.publish(TOKEN, ANSWER)
    return made


def http(path: str = HTTP_PATH + TOKEN, host: str | None = HOST) -> Peeked:
    return Peeked("http", host, path=path)


def tls(*alpn: str, host: str | None = HOST) -> Peeked:
    return Peeked("tls", host, alpn=alpn)


@pytest.mark.parametrize("host", [HOST, f"{HOST}."])
def test_a_known_token_is_answered(challenges: Challenges, host: str) -> None:
    """With the key authorization and nothing else."""
    answer = challenges.answer(HTTP, http(host=host))
    assert isinstance(answer, bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(ANSWER)}".encode() in head
    assert b"Connection: close" in head
    assert body == ANSWER.encode()


@pytest.mark.parametrize("path", [HTTP_PATH + "other", HTTP_PATH, f"{HTTP_PATH}{TOKEN}/x", f"{HTTP_PATH}../x"])
def test_any_other_challenge_of_the_hub_is_not_found(challenges: Challenges, path: str) -> None:
    """And never a backend's: it could obtain the hub's certificate."""
    answer = challenges.answer(HTTP, http(path))
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("port", "peeked"),
    [
        (HTTP, http(host="app.example.com")),
        (HTTP, http(host=None)),
        (HTTP, http("/")),
        (HTTP, http("/.well-known/acme-challenge")),
        (8080, http()),
        (TLS, http()),
        (TLS, tls("h2", "http/1.1")),
        (TLS, tls()),
        (TLS, tls(ALPN_PROTOCOL, host="app.example.com")),
        (TLS, tls(ALPN_PROTOCOL, host=None)),
        (8443, tls(ALPN_PROTOCOL)),
    ],
)
def test_everything_else_is_routed(challenges: Challenges, port: int, peeked: Peeked) -> None:
    """Other names, other paths, other ports, other protocols."""
    assert challenges.answer(port, peeked) is None


def test_what_peers_know_is_answered_too(challenges: Challenges) -> None:
    """Nodes of one name answer for each other; what this node waits for comes first."""
    challenges.shared = lambda: {"theirs": "theirs.thumbprint", TOKEN: "token.false"}
    theirs, ours = challenges.answer(HTTP, http(HTTP_PATH + "theirs")), challenges.answer(HTTP, http())
    assert isinstance(theirs, bytes)
    assert theirs.endswith(b"theirs.thumbprint")
    assert isinstance(ours, bytes)
    assert ours.endswith(ANSWER.encode())


def test_whoever_shares_is_told_of_changes(challenges: Challenges) -> None:
    """Of a new one, and of the end, once."""
    told: list[dict[str, str]] = []
    challenges.changed = lambda: told.append(dict(challenges.known))
    challenges.publish("second", "second.thumbprint")
    challenges.withdraw()
    challenges.withdraw()
    assert told == [{TOKEN: ANSWER, "second": "second.thumbprint"}, {}]


def test_a_handshake_for_a_challenge_is_the_nodes(challenges: Challenges) -> None:
    """It gets a context, or an end while nothing is waited for."""
    assert isinstance(challenges.answer(TLS, tls(ALPN_PROTOCOL)), ssl.SSLContext)
    challenges.withdraw()
    assert challenges.answer(TLS, tls(ALPN_PROTOCOL)) == b""


def test_the_certificate_proves_the_challenge() -> None:
    """RFC 8737 section 3: the name, and the digest in a critical extension."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = challenge_context(HOST, ANSWER).wrap_bio(there, back, server_side=True)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    client_context.set_alpn_protocols([ALPN_PROTOCOL])
    client = client_context.wrap_bio(back, there, server_hostname=HOST)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.selected_alpn_protocol() == ALPN_PROTOCOL
    shown = client.getpeercert(binary_form=True)
    assert shown is not None
    certificate = x509.load_der_x509_certificate(shown)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST]
    proof = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert proof.critical
    assert isinstance(proof.value, x509.UnrecognizedExtension)
    assert proof.value.value == b"\x04\x20" + hashlib.sha256(ANSWER.encode()).digest()
