"""nexus.tls.purpose: what OpenSSL is told, and where there is none to tell. Real handshakes: test_peer_contexts."""

from __future__ import annotations

import _ssl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.tls.purpose import leave_purpose_to_us
from tests.support.peer_certificates import CLIENT, CODE_SIGNING, NODE, SERVER, Authority, store

_JUDGE = """
import contextlib, json, ssl, sys
from nexus.tls.purpose import leave_purpose_to_us

def judge(shown):
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.load_verify_locations("ca.pem")
    accepting.load_cert_chain("hub.pem", "hub.key")
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.load_verify_locations("ca.pem")
    dialling.load_cert_chain(shown + ".pem", shown + ".key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accepting.wrap_bio(to_server, to_client, server_side=True)
    client = dialling.wrap_bio(to_client, to_server, server_hostname=sys.argv[1])
    try:
        for end in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return server.version()

names = ("client", "server", "code", "expired", "strange")
print(json.dumps([judge(name) for name in names]))
assert leave_purpose_to_us() and leave_purpose_to_us()
print(json.dumps([judge(name) for name in names]))
"""


def test_every_verdict_but_the_purpose_stands(tmp_path: Path) -> None:
    """Before and after; in a process of its own, because it is for the whole process."""
    root = Authority.root()
    root.save(tmp_path / "ca.pem")
    shown = {"hub": root.issue(), "client": root.issue(usages=(CLIENT,)), "server": root.issue(usages=(SERVER,))}
    shown |= {"code": root.issue(usages=(CODE_SIGNING,)), "expired": root.issue(usages=(CLIENT,), until_s=-1.0)}
    shown["strange"] = Authority.root("Another").issue(usages=(CLIENT,))
    for name, pair in shown.items():
        store(tmp_path, name, pair)
    command = [sys.executable, "-c", _JUDGE, NODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    before, after = map(json.loads, done.stdout.splitlines())
    assert before[:4] == ["TLSv1.3", *["unsuitable certificate purpose"] * 2, "certificate has expired"]
    assert after[:4] == ["TLSv1.3", "TLSv1.3", "TLSv1.3", "certificate has expired"]
    assert before[4] == after[4]
    assert "issuer" in after[4]


@pytest.mark.parametrize("file", [None, "/dev/null"])
def test_where_openssl_cannot_be_reached_the_answer_is_no(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    """Such as in a Python that has OpenSSL built in."""
    monkeypatch.setattr(_ssl, "__file__", file)
    assert not leave_purpose_to_us.__wrapped__()
