"""Services that speak first behind claimed TCP ports: a real SMTP and a real SSH server, asked by their own clients."""

from __future__ import annotations

import hashlib
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.processes import Client, Node, Pki, Process, is_listening, wait_for
from tests.support.programs import require

WAIT_S = 30.0
ABSOLUTE_S = 600  # longer than any test: whoever waits for a silent client is found out
_MAILBOX = """
import asyncio, hashlib, sys
from aiosmtpd.controller import Controller
class Mailbox:
    async def handle_DATA(self, server, session, envelope):
        return "250 " + hashlib.sha256(envelope.content).hexdigest()
controller = Controller(Mailbox(), hostname="127.0.0.1", port=int(sys.argv[1]))
controller.start()
asyncio.new_event_loop().run_forever()
"""


@pytest.fixture
def smtp(directory: Path) -> Iterator[int]:
    """An SMTP server that answers a message with its digest."""
    (port,) = free_ports(1)
    with Process([sys.executable, "-c", _MAILBOX, str(port)], directory / "smtp.log"):
        wait_for(lambda: is_listening(port), "the SMTP server listens")
        yield port


@pytest.fixture
def ssh(directory: Path) -> Iterator[tuple[int, str]]:
    """An SSH server and its public host key."""
    (port,) = free_ports(1)
    key = directory / "host.key"
    made = subprocess.run(
        [require("dropbearkey"), "-t", "ed25519", "-f", str(key)], capture_output=True, text=True, check=True
    )
    public = next(line for line in made.stdout.splitlines() if line.startswith("ssh-ed25519")).split()[1]
    server = [require("dropbear"), "-F", "-E", "-p", f"127.0.0.1:{port}", "-r", str(key), "-P", f"{directory}/pid"]
    with Process(server, directory / "ssh.log"):
        wait_for(lambda: is_listening(port), "the SSH server listens")
        yield port, public


def claim(directory: Path, pki: Pki, ports: list[int], **settings: object) -> Node:
    """Start a node with claimable ports, one that would wait very long for a client's first byte."""
    patience = {"firstByteSeconds": ABSOLUTE_S, "idleExtensionSeconds": ABSOLUTE_S, "absoluteMaxSeconds": ABSOLUTE_S}
    return Node(directory, pki, relayPorts=ports, allowedTCPPortClaims=ports, peekTimeouts=patience, **settings)


def test_mail_goes_through_a_port_on_which_the_server_speaks_first(directory: Path, pki: Pki, smtp: int) -> None:
    """W12, node W11: the banner comes though the client says nothing, and a message of 5 MB arrives whole."""
    (port,) = free_ports(1)
    with (
        claim(directory, pki, [port], serverFirstPorts=[port]) as node,
        Client(directory, node, {port: smtp}, tcpPorts=[port]),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as silent:
            assert silent.recv(4) == b"220 "
        message = EmailMessage()
        message["Subject"] = "test"
        message.set_content("".join(f"{number:063d}\n" for number in range(80_000)))
        content = message.as_bytes(policy=policy.SMTP)
        with smtplib.SMTP("127.0.0.1", port, timeout=WAIT_S) as client:
            client.ehlo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            code, answer = client.data(content)
        assert (code, answer.decode()) == (250, hashlib.sha256(content).hexdigest())
        assert node.rejected() == 0


def test_ssh_keys_are_exchanged_through_a_claimed_port(directory: Path, pki: Pki, ssh: tuple[int, str]) -> None:
    """``ssh-keyscan`` waits for the server's words: at once on a server-first port, else for a short while."""
    target, public = ssh
    at_once, later = free_ports(2)
    with (
        claim(directory, pki, [at_once, later], serverFirstPorts=[at_once], portClaimWaitSeconds=1) as node,
        Client(directory, node, {at_once: target, later: target}, tcpPorts=[at_once, later]),
    ):
        for port in (at_once, later):
            scan = [require("ssh-keyscan"), "-T", str(int(WAIT_S)), "-t", "ed25519", "-p", str(port), "127.0.0.1"]
            done = subprocess.run(scan, capture_output=True, text=True, timeout=2 * WAIT_S, check=False)
            assert public in done.stdout, done.stderr
        assert node.rejected() == 0
        assert node.metric(f'nexus_client_connections_total{{port="{later}"}}') == 1


def test_names_and_ports_of_one_token_are_served_side_by_side(
    directory: Path, pki: Pki, ssh: tuple[int, str], smtp: int
) -> None:
    """A name goes by the name, on a claimed port too; what names no host goes to the port."""
    target, _ = ssh
    (port,) = free_ports(1)
    hosts = {"smtp.example.com": f"127.0.0.1:{smtp}"}
    with (
        claim(directory, pki, [port], portClaimWaitSeconds=1) as node,
        Client(
            directory,
            node,
            {},
            "smtp.example.com",
            tcpPorts=[port],
            portMappings={port: {"default": f"127.0.0.1:{target}", "hosts": hosts}},
        ),
    ):
        for first, expected in ((b"", b"SSH-"), (b"GET / HTTP/1.1\r\nHost: smtp.example.com\r\n\r\n", b"220 ")):
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client:
                client.sendall(first)
                assert client.recv(4) == expected
