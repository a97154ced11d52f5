"""TLS from end to end: the certificate and the bytes are the backend's, in whichever region the client is."""

from __future__ import annotations

import secrets

import pytest

from tests.support.client_hello import client_hello, extension, in_records, sni
from tests.support.lab import HOMES, NODES, Lab

REGIONS = tuple(NODES)
ALERT, UNRECOGNIZED_NAME = 21, 112  # RFC 8446 6: content type of an alert; RFC 6066 3
_ECDHE_ECDSA_AES128_GCM = b"\xc0\x2b"
_GROUPS = extension(10, b"\0\4\0\x1d\0\x17")  # x25519, P-256
_SIGNATURES = extension(13, b"\0\4\4\3\x08\4")  # ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
_ECH = extension(
    0xFE0D, b"\0\0\1\0\1\1\0\x20" + bytes(32) + b"\0\x90" + bytes(144)
)  # RFC 9849 5: outer, of GREASE form
ASK_HELLO = """
import socket, sys
sock = socket.create_connection(("edge.lab.test", 443), 10)
sock.settimeout(5)
sock.sendall(sys.stdin.buffer.read())
seen = b""
try:
    while len(seen) < 7 or (seen[0] == 22 and bytes.fromhex(sys.argv[1]) not in seen):
        chunk = sock.recv(65536)
        if not chunk:
            break
        seen += chunk
except TimeoutError:
    pass
sys.stdout.buffer.write(seen)
"""


def fingerprint_of(lab: Lab, service: str) -> str:
    """Return that of the certificate which a web server has on its disk."""
    file = "/shared/certs/web/cert.pem"
    return lab.output(service, "openssl", "x509", "-in", file, "-noout", "-fingerprint", "-sha256").strip()


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("name", HOMES)
def test_the_certificate_is_the_backends_own(lab: Lab, region: str, name: str) -> None:
    """Verified by OpenSSL against the CA, and the very one that the web server got for itself."""
    command = (
        f"openssl s_client -connect {name}:443 -servername {name} -verify_return_error -verify_hostname {name} "
        "</dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256"
    )
    assert lab.output(f"tester-{region}", "sh", "-c", command).strip() == fingerprint_of(lab, HOMES[name])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_bodies_arrive_to_the_byte(lab: Lab, region: str, version: str) -> None:
    """8 MiB of noise down, 8 MiB of noise up and down again, in either version of HTTP."""
    url, name = "https://shop.lab.test/files", f"upload-{secrets.token_hex(4)}"
    expected = lab.output("web-eu", "sha256sum", "/srv/files/random").split()[0]
    fetch = f"curl --silent --show-error --fail {version} --write-out '%{{stderr}}%{{http_version}}'"
    command = f"set -e; {fetch} {url}/random | sha256sum; head -c 8388608 /dev/urandom >/tmp/{name}; "
    command += (
        f"{fetch} --upload-file /tmp/{name} {url}/{name}; {fetch} {url}/{name} | cmp - /tmp/{name}; rm /tmp/{name}"
    )
    done = lab.run(f"tester-{region}", "sh", "-c", command)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split()[0].decode() == expected
    assert done.stderr.decode() == {"--http1.1": "1.1", "--http2": "2"}[version] * 3
    lab.output("web-eu", "rm", f"/srv/files/{name}")


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("options", [["-noservername"], ["-servername", "nobody.lab.test"]])
def test_no_name_and_a_name_of_nobody_get_an_alert(lab: Lab, region: str, options: list[str]) -> None:
    """As RFC 6066 section 3 has it; no certificate is shown, least of all the node's."""
    done = lab.run(f"tester-{region}", "openssl", "s_client", "-connect", "edge.lab.test:443", *options)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode != 0
    assert "unrecognized name" in said
    assert "no peer certificate available" in said


def hello_with_ech(outer_name: bytes) -> bytes:
    """Return a ClientHello that a server of TLS 1.2 with an ECDSA key can answer."""
    extensions = (sni(outer_name), _GROUPS, _SIGNATURES, _ECH)
    return in_records(client_hello(*extensions, cipher_suites=_ECDHE_ECDSA_AES128_GCM))


def test_encrypted_client_hello_goes_by_its_outer_name(lab: Lab) -> None:
    """The ClientHello reaches the backend whole, which answers in TLS 1.2, whose certificate can be seen."""
    certificate = lab.run("web-us-1", "openssl", "x509", "-in", "/shared/certs/web/cert.pem", "-outform", "DER").stdout
    hello = hello_with_ech(b"app.lab.test")
    expected = certificate[:64].hex()
    answer = lab.run("tester-eu", "python3", "-c", ASK_HELLO, expected, data=hello).stdout
    assert certificate in answer


def test_encrypted_client_hello_for_nobody_gets_an_alert(lab: Lab) -> None:
    """No inner name is guessed at."""
    hello = hello_with_ech(b"ech.lab.test")
    answer = lab.run("tester-us", "python3", "-c", ASK_HELLO, "00", data=hello).stdout
    assert (answer[0], answer[-1]) == (ALERT, UNRECOGNIZED_NAME)
