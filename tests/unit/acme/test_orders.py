"""What a certificate authority may answer instead of a certificate; a real one is in tests/integration."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nexus.acme.orders import Authority
from nexus.acme.settings import AcmeSettings, ExternalAccount
from nexus.errors import AcmeError
from nexus.tls.localca import PemPair, create_ca, issue

HOST = "hub.example.com"
Answer = tuple[int, Mapping[str, str], object]


@dataclass
class Stand:
    """An HTTP server that says what a test wants, by path; every answer has a nonce."""

    url: str = ""
    answers: dict[str, Callable[[], Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def problem(self, path: str, kind: str, status: int = 400, **headers: str) -> None:
        """Answer with a problem document."""
        document = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": f"about {kind}"}
        self.answers[path] = lambda: (status, {"Content-Type": "application/problem+json", **headers}, document)

    def directory(self, **more: object) -> None:
        """Answer with a directory."""
        names = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order", "revokeCert": "revoke"}
        found = {name: f"{self.url}/{path}" for name, path in names.items()}
        self.answers["/dir"] = lambda: (200, {}, {**found, **more})
        self.answers["/nonce"] = lambda: (200, {}, {})


@pytest.fixture
def stand() -> Iterator[Stand]:
    """One on loopback."""
    made = Stand()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer()

        def _answer(self) -> None:
            made.asked.append(f"{self.command} {self.path}")
            status, headers, document = made.answers.get(self.path, lambda: (404, {}, "nothing"))()
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Replay-Nonce": "bm9uY2U", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_port}"
        made.directory()
        yield made
        server.shutdown()
        thread.join(10)


def authority(url: str, **settings: Any) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(AcmeSettings(HOST, f"{url}/dir", **settings), key, "nexus-proxy/test")


def never(token: str, key_authorization: str) -> None:
    pytest.fail(f"published {token} {key_authorization}")


def refusal(call: Callable[[], object]) -> AcmeError:
    with pytest.raises(AcmeError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_nobody_there_is_no_attempt_that_counts() -> None:
    """The URL and the mend."""
    error = refusal(lambda: authority("http://127.0.0.1:9"))
    assert str(error) == (
        "http://127.0.0.1:9/dir: the CA cannot be reached: Connection refused; "
        "check the URL, and that this machine may connect there"
    )
    assert not error.reached


@contextlib.contextmanager
def tls_server(directory: Path, pair: PemPair) -> Iterator[str]:
    """A web server that knows nothing; give its URL."""
    file = directory / "pair.pem"
    file.write_bytes(pair.cert_pem + pair.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_a_server_that_is_not_trusted_names_the_key(tmp_path: Path) -> None:
    """A CA of one's own has a root of its own."""
    pair = issue(create_ca("Other CA", time.time()), ["127.0.0.1"], time.time(), 1)
    with tls_server(tmp_path, pair) as url:
        error = refusal(lambda: authority(url))
    assert "the CA's own certificate is not trusted: " in str(error)
    assert "set acmeCAFile to its root" in str(error)
    assert not error.reached


def test_a_ca_of_ones_own_needs_no_key_usage(tmp_path: Path) -> None:
    """As ``openssl req -x509`` makes it; Python 3.13 would refuse it by default."""
    made = create_ca("Plain CA", time.time())
    key = serialization.load_pem_private_key(made.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    full = x509.load_pem_x509_certificate(made.cert_pem)
    plain = (
        x509.CertificateBuilder()
        .subject_name(full.subject)
        .issuer_name(full.subject)
        .public_key(key.public_key())
        .serial_number(full.serial_number)
        .not_valid_before(full.not_valid_before_utc)
        .not_valid_after(full.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca = PemPair(plain.public_bytes(serialization.Encoding.PEM), made.key_pem)
    root = tmp_path / "ca.pem"
    root.write_bytes(ca.cert_pem)
    with tls_server(tmp_path, issue(ca, ["127.0.0.1"], time.time(), 1)) as url:
        error = refusal(lambda: authority(url, ca_file=root))
    assert "501" in str(error)  # what Python's server answers who has no page: it was asked


@pytest.mark.parametrize("page", [b"<html>Welcome</html>", b"[]", b"{}", b"\xff\xfe"])
def test_a_page_that_is_no_directory_is_told(stand: Stand, page: bytes) -> None:
    """Whatever it holds instead."""
    stand.answers["/dir"] = lambda: (200, {"Content-Type": "text/html"}, page)
    error = refusal(lambda: authority(stand.url).obtain("http-01", never))
    assert "no answer of an ACME server" in str(error)
    assert "check acmeDirectoryURL" in str(error)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_rate_limit_says_how_long(stand: Stand, form: str) -> None:
    """In either form of the header."""
    later = datetime.now(UTC) + timedelta(seconds=7200)
    stand.problem(
        "/account", "rateLimited", 429, **{"Retry-After": "7200" if form == "seconds" else format_datetime(later, True)}
    )
    error = refusal(lambda: authority(stand.url).obtain("http-01", never))
    assert "rate limit" in str(error)
    assert error.reached
    assert error.retry_after_s == pytest.approx(7200, abs=60)


def test_nonces_are_replaced_until_there_is_no_hope(stand: Stand) -> None:
    """A bounded number of times."""
    stand.problem("/account", "badNonce")
    error = refusal(lambda: authority(stand.url).obtain("http-01", never))
    assert "refused every nonce" in str(error)
    assert stand.asked.count("POST /account") == 20


def test_an_account_of_the_web_site_is_asked_for(stand: Stand) -> None:
    """Before anything is sent."""
    stand.directory(meta={"externalAccountRequired": True})
    error = refusal(lambda: authority(stand.url).obtain("http-01", never))
    assert "acmeEABKeyID and acmeEABKeyFile" in str(error)
    assert "POST /account" not in stand.asked


def test_the_key_of_that_account_may_be_unusable(stand: Stand, tmp_path: Path) -> None:
    """Its file is named."""
    account = ExternalAccount("kid-1", tmp_path / "eab")
    error = refusal(lambda: authority(stand.url, external_account=account).obtain("http-01", never))
    assert f"{tmp_path / 'eab'}: cannot be read" in str(error)


def order(stand: Stand, *challenges: str) -> None:
    """Let an account and an order succeed, up to the challenges."""
    stand.answers["/account"] = lambda: (201, {"Location": f"{stand.url}/account/1"}, {"status": "valid"})
    identifier = {"type": "dns", "value": HOST}
    stand.answers["/order"] = lambda: (
        201,
        {"Location": f"{stand.url}/order/1"},
        {"status": "pending", "identifiers": [identifier], "authorizations": [f"{stand.url}/authz"], "finalize": "x"},
    )
    offered = [{"type": kind, "url": f"{stand.url}/{kind}", "token": "t" * 43} for kind in challenges]
    stand.answers["/authz"] = lambda: (200, {}, {"status": "pending", "identifier": identifier, "challenges": offered})


def test_a_challenge_that_is_not_offered_is_named(stand: Stand) -> None:
    """A CA may have none of those that a node can answer."""
    order(stand, "dns-01", "future-01")
    error = refusal(lambda: authority(stand.url).obtain("http-01", never))
    assert "the CA offers dns-01, future-01, not http-01" in str(error)
    assert "acmeChallenges" in str(error)


def test_the_answer_is_known_before_the_ca_is_asked_to_look(stand: Stand) -> None:
    """Token, dot, thumbprint of the account's key (RFC 8555 8.1)."""
    order(stand, "http-01", "tls-alpn-01")
    published: list[tuple[str, str]] = []

    def publish(token: str, key_authorization: str) -> None:
        assert not any("tls-alpn-01" in line for line in stand.asked)
        published.append((token, key_authorization))

    stand.problem("/tls-alpn-01", "serverInternal", 500)
    error = refusal(lambda: authority(stand.url).obtain("tls-alpn-01", publish))
    assert "fault of its own" in str(error)
    ((token, answer),) = published
    assert token == "t" * 43
    assert answer.startswith(f"{token}.")
    assert len(answer) == 2 * 43 + 1


def certificate() -> bytes:
    """Return one whose issuer has a key identifier."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(0x8765).not_valid_before(now).not_valid_after(now + timedelta(days=90))
    identifier = x509.AuthorityKeyIdentifier(b"\x01\x02\x03", None, None)
    signed = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_renewal_information_is_a_time_within_the_window(stand: Stand) -> None:
    """RFC 9773: asked by issuer's key and serial number, again when the CA says."""
    start = datetime.now(UTC) + timedelta(days=60)
    window = {"start": start.isoformat(), "end": (start + timedelta(days=2)).isoformat()}
    stand.directory(renewalInfo=f"{stand.url}/ari")
    stand.answers["/ari/AQID.AIdl"] = lambda: (200, {"Retry-After": "3600"}, {"suggestedWindow": window})
    advice = authority(stand.url).advise(certificate())
    assert advice.renew_at is not None
    assert start.timestamp() <= advice.renew_at <= start.timestamp() + 2 * 86_400
    assert advice.ask_at == pytest.approx(time.time() + 3600, abs=60)


def test_a_ca_without_renewal_information_suggests_nothing(stand: Stand) -> None:
    """It is asked again later all the same: it may learn it."""
    advice = authority(stand.url).advise(certificate())
    assert advice.renew_at is None
    assert advice.ask_at > time.time() + 3600


def test_renewal_information_that_fails_is_one_error(stand: Stand) -> None:
    """Of the CA."""
    stand.directory(renewalInfo=f"{stand.url}/ari")
    assert refusal(lambda: authority(stand.url).advise(certificate()))


@pytest.mark.parametrize(("knows", "sent"), [(True, ["AQID.AIdl", None]), (False, [None])])
def test_an_order_says_what_it_replaces(
    stand: Stand, knows: bool, sent: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a CA that has renewal information; one that will not hear it is asked without."""
    order(stand, "http-01")
    if knows:
        stand.directory(renewalInfo=f"{stand.url}/ari")
    stand.problem("/order", "alreadyReplaced", 409 - 9)
    found: list[str | None] = []
    it = authority(stand.url)
    post = it._network.post

    def spy(url: str, document: Any, **more: Any) -> Any:
        if url.endswith("/order"):
            found.append(document.to_json().get("replaces"))
        return post(url, document, **more)

    monkeypatch.setattr(it._network, "post", spy)
    refusal(lambda: it.obtain("http-01", never, certificate()))
    assert found == sent
