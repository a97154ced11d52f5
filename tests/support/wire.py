"""What test clients do on a socket: connect, speak TLS and HTTP/1, read to the end, and leave rudely."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import subprocess
from http.client import HTTPResponse
from pathlib import Path

IO_TIMEOUT_S = 30.0
PROGRAM_TIMEOUT_S = 100.0
_CHUNK_BYTES = 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def connect(port: int, *, receive_buffer_bytes: int = 0) -> socket.socket:
    """Return a connection to a loopback port on which no call waits for ever; 0 leaves the buffer to the kernel."""
    sock = socket.socket()
    sock.settimeout(IO_TIMEOUT_S)
    if receive_buffer_bytes:  # before connecting, or the window is offered already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(("127.0.0.1", port))
    return sock


def trusting(ca_file: Path, *protocols: str) -> ssl.SSLContext:
    """Return a verifying client context for one CA that offers these ALPN protocols."""
    context = ssl.create_default_context(cafile=ca_file)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def request(host: str, path: str = "/", method: str = "GET", *fields: str, body: bytes = b"") -> bytes:
    """Return an HTTP/1.1 request with these header fields besides Host and, with a body, Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_response(sock: socket.socket) -> tuple[HTTPResponse, bytes]:
    """Return one response and its whole body; a body cut short raises IncompleteRead."""
    response = HTTPResponse(sock)
    response.begin()
    return response, response.read()


def read_to_end(sock: socket.socket) -> bytes:
    """Return everything up to an orderly end; a reset raises."""
    received = bytearray()
    while chunk := sock.recv(_CHUNK_BYTES):
        received += chunk
    return bytes(received)


def read_head(sock: socket.socket) -> bytes:
    """Return bytes up to and with the empty line of an HTTP head, and what came with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = sock.recv(_CHUNK_BYTES)
        assert chunk, "the connection ended within a head"
        received += chunk
    return received


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def run_program(*arguments: str | Path, text: bytes = b"") -> str:
    """Run a program with ``text`` as its input to its good end and return what it wrote to stdout."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=text,
        capture_output=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{arguments[0]} ended with {done.returncode}: {done.stderr.decode()}\n{output}"
    return output


def write_random(file: Path, size: int) -> str:
    """Fill a file with random bytes and return their SHA-256."""
    digest = hashlib.sha256()
    with file.open("wb") as target:
        for at in range(0, size, _CHUNK_BYTES):
            chunk = os.urandom(min(_CHUNK_BYTES, size - at))
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
