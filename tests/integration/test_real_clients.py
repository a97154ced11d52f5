"""curl, OpenSSL and Python reach nginx's own TLS through the node and see nginx's own certificate."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Callable

import pytest

from tests.integration.conftest import HOST, Chain
from tests.support import wire
from tests.support.client_hello import in_records, message_in
from tests.support.programs import require

pytestmark = pytest.mark.programs

PAGE = "the page of the backend\n"
ONE_LABEL, TWO_LABELS = "a.wild.example.com", "a.b.wild.example.com"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@pytest.fixture(autouse=True)
def page(chain: Chain) -> None:
    """A page at /page.txt, and another at /other.txt."""
    for name in ("page.txt", "other.txt"):
        (chain.nginx.root / name).write_text(PAGE)


def certificates_in(text: str) -> list[bytes]:
    """Return the certificates that a program printed, as DER."""
    return [ssl.PEM_cert_to_DER_cert(pem) for pem in _PEM.findall(text)]


def leaf_of(chain: Chain) -> bytes:
    """Return nginx's own certificate."""
    return certificates_in(chain.nginx.cert_file.read_text())[0]


def connect_tls(chain: Chain, host: str = HOST, *protocols: str) -> ssl.SSLSocket:
    """Return a TLS connection to ``host`` through the node."""
    context = wire.trusting(chain.pki.ca_file, *protocols)
    return context.wrap_socket(wire.connect(chain.node.tls_port), server_hostname=host)


def refusal_of(chain: Chain, host: str) -> str:
    """Return OpenSSL's name of the alert that refuses ``host``."""
    with pytest.raises(ssl.SSLError) as caught, wire.connect(chain.node.tls_port) as sock:
        wire.trusting(chain.pki.ca_file).wrap_socket(sock, server_hostname=host).close()
    return str(caught.value.reason)


# -- The certificate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_sees_the_certificate_and_the_page_of_the_backend(chain: Chain, version: str) -> None:
    """curl verifies the name, prints the chain it was shown, and speaks the HTTP version it asked for."""
    written = "\\n%{http_version}\\n%{ssl_verify_result}\\n%{certs}"
    output = wire.run_program(require("curl"), *chain.curl_options(), version, "-w", written, chain.url("/page.txt"))
    assert output.startswith(PAGE)
    spoken, verified = output.removeprefix(PAGE).splitlines()[1:3]
    assert (spoken, verified) == (version.removeprefix("--http").removesuffix(".0"), "0")
    assert certificates_in(output)[0] == leaf_of(chain)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_sees_the_certificate_and_the_page_of_the_backend(chain: Chain, version: str) -> None:
    """``openssl s_client`` verifies chain and name, shows the certificate and gets the page to its end."""
    output = wire.run_program(
        require("openssl"), "s_client", "-connect", f"127.0.0.1:{chain.node.tls_port}", "-servername", HOST, version,
        "-CAfile", chain.pki.ca_file, "-verify_return_error", "-verify_hostname", HOST, "-showcerts", "-ign_eof",
        text=wire.request(HOST, "/page.txt", "GET", "Connection: close"),
    )  # fmt: skip
    assert certificates_in(output)[0] == leaf_of(chain)
    assert "Verify return code: 0 (ok)" in output
    assert PAGE in output


def test_python_sees_the_certificate_of_the_backend_and_not_the_hubs(chain: Chain) -> None:
    """The node's own certificate is for the hub only: no byte of it is shown to a client."""
    with connect_tls(chain) as client:
        seen = client.getpeercert(binary_form=True)
        client.sendall(wire.request(HOST, "/page.txt"))
        response, body = wire.read_response(client)
    context = wire.trusting(chain.pki.ca_file)
    with context.wrap_socket(wire.connect(chain.node.hub_port), server_hostname="localhost") as backend:
        shown_by_the_hub = backend.getpeercert(binary_form=True)
    assert (response.status, body.decode()) == (200, PAGE)
    assert seen == leaf_of(chain)
    assert seen != shown_by_the_hub


@pytest.mark.parametrize("offered", ["http/1.1", "h2"])
def test_the_protocol_is_negotiated_with_the_backend(chain: Chain, offered: str) -> None:
    """ALPN is between client and nginx: each offer is met, although the hub itself speaks neither."""
    with connect_tls(chain, HOST, offered) as client:
        assert client.selected_alpn_protocol() == offered


def test_a_tls_session_is_resumed_with_the_backend(chain: Chain) -> None:
    """A ticket of the first connection is good for the second: the node is no party to it."""
    context = wire.trusting(chain.pki.ca_file)
    session = None
    for reused in (False, True):
        raw = wire.connect(chain.node.tls_port)
        with context.wrap_socket(raw, server_hostname=HOST, session=session) as client:
            client.sendall(wire.request(HOST, "/page.txt"))
            assert wire.read_response(client)[1].decode() == PAGE  # TLS 1.3 sends tickets behind the handshake
            assert client.session_reused is reused
            session = client.session


# -- Names -------------------------------------------------------------------------------------------------------------


def test_a_wildcard_serves_names_of_one_label(chain: Chain) -> None:
    """A name below the claimed wildcard reaches the backend, whose certificate is good for it."""
    options = chain.curl_options(ONE_LABEL)
    assert wire.run_program(require("curl"), *options, chain.url("/page.txt", ONE_LABEL)) == PAGE


@pytest.mark.parametrize("host", [TWO_LABELS, "wild.example.com", "other.example.org"])
def test_a_name_that_nobody_serves_is_refused_with_an_alert(chain: Chain, host: str) -> None:
    """A wildcard covers exactly one label; anything else ends with unrecognized_name and is counted."""
    counter = 'nexus_client_connections_rejected_total{reason="no_backend"}'
    before = chain.node.metric(counter)
    assert refusal_of(chain, host) == "TLSV1_UNRECOGNIZED_NAME"
    assert chain.node.metric(counter) == before + 1


def test_openssl_reports_the_alert_for_an_unknown_name(chain: Chain) -> None:
    """An operator who asks ``openssl s_client`` reads in plain words why there is no answer."""
    address = f"127.0.0.1:{chain.node.tls_port}"
    done = subprocess.run(
        [require("openssl"), "s_client", "-connect", address, "-servername", TWO_LABELS],
        input="",
        capture_output=True,
        text=True,
        timeout=wire.PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "unrecognized name" in done.stderr
    assert not certificates_in(done.stdout)


# -- Connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_reuses_its_connection(chain: Chain, version: str) -> None:
    """Two URLs in one command open one connection, and the node counts one stream."""
    before = chain.node.metric("nexus_streams_opened_total")
    output = wire.run_program(
        require("curl"), *chain.curl_options(), version, "-w", "%{num_connects}\\n",
        chain.url("/page.txt"), chain.url("/other.txt"),
    )  # fmt: skip
    assert output == f"{PAGE}1\n{PAGE}0\n"
    assert chain.node.metric("nexus_streams_opened_total") == before + 1


# -- Hellos as networks and libraries cut them -------------------------------------------------------------------------


def each_byte(hello: bytes) -> list[bytes]:
    """Cut into segments of one byte."""
    return [bytes([byte]) for byte in hello]


def several_records(hello: bytes) -> list[bytes]:
    """Cut the message into records, the first with a single byte of it; send them at once."""
    return [in_records(message_in(hello), 1, 3, 100)]


def each_byte_of_several_records(hello: bytes) -> list[bytes]:
    """Cut both ways."""
    return each_byte(b"".join(several_records(hello)))


@pytest.mark.parametrize("cut", [each_byte, several_records, each_byte_of_several_records])
def test_a_hello_in_pieces_finds_its_backend(chain: Chain, cut: Callable[[bytes], list[bytes]]) -> None:
    """However the hello is cut, the name in it is found and the backend gets every byte of it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = wire.trusting(chain.pki.ca_file).wrap_bio(incoming, outgoing, server_hostname=HOST)
    with wire.connect(chain.node.tls_port) as sock:
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        for segment in cut(outgoing.read()):
            sock.sendall(segment)

        def repeat(step: Callable[[], bytes | None]) -> bytes:
            """Move bytes between the socket and OpenSSL until a step is done."""
            while True:
                try:
                    return step() or b""
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))
                finally:
                    sock.sendall(outgoing.read())

        repeat(tls.do_handshake)
        assert tls.getpeercert(binary_form=True) == leaf_of(chain)
        tls.write(wire.request(HOST, "/page.txt", "GET", "Connection: close"))
        answer = b"".join(iter(lambda: repeat(lambda: tls.read(65536)), b""))
    assert answer.endswith(PAGE.encode())
