"""nexus.tls.pyopenssl_context: what the other context that accepts nodes has not; the rest is in test_peer_contexts."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from OpenSSL import SSL

from nexus.errors import TlsFileError
from nexus.tls import peer_contexts
from nexus.tls.peer_contexts import PeerContexts
from nexus.tls.pyopenssl_context import PeerServerContext
from tests.support.peer_certificates import Authority, store

MIB = 1024 * 1024


def test_nothing_is_renegotiated(tmp_path: Path) -> None:
    """The connection goes on as it is, with a warning to the other side."""
    root = Authority.root()
    accepting = PeerServerContext(store(tmp_path, "hub", root.issue()), root.save(tmp_path / "ca.pem"))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    shown = store(tmp_path, "dialler", root.issue())
    context.use_certificate_chain_file(str(shown.files.cert_file))
    context.use_privatekey_file(str(shown.files.key_file))
    client, incoming, outgoing = SSL.Connection(context, None), ssl.MemoryBIO(), ssl.MemoryBIO()
    client.set_connect_state()
    server = accepting.wrap_bio(incoming, outgoing)

    def exchange(*steps: object) -> None:
        for _ in range(4):
            for step in steps:
                assert callable(step)
                with contextlib.suppress(SSL.WantReadError, ssl.SSLWantReadError):
                    step()
                with contextlib.suppress(SSL.WantReadError):
                    incoming.write(client.bio_read(MIB))
                if outgoing.pending:
                    client.bio_write(outgoing.read())

    exchange(client.do_handshake, server.do_handshake)
    assert client.renegotiate()
    with pytest.raises(SSL.Error, match="no renegotiation"):
        exchange(client.do_handshake, server.read)


def test_a_system_without_writable_code_is_told_what_to_lift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hardened service; whoever accepts no nodes does not notice."""

    def refuse(*_: object) -> None:
        raise MemoryError("Cannot allocate write+execute memory")

    monkeypatch.setattr(peer_contexts, "leave_purpose_to_us", lambda: False)
    monkeypatch.setattr(SSL.Context, "set_verify", refuse)
    root = Authority.root()
    hub = store(tmp_path, "hub", root.issue())
    contexts = PeerContexts(lambda: hub, root.save(tmp_path / "ca.pem"))
    assert contexts.dialling()
    with pytest.raises(TlsFileError, match=r"peerListenAddress: .* lift MemoryDenyWriteExecute"):
        contexts.accepting()
