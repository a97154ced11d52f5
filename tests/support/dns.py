"""A real authoritative DNS server (NSD) on loopback, and the questions that a test asks through a node."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import Process, free_ports, wait_for
from tests.support.programs import require

ZONE = "example.test"
LARGE = "large"  # its TXT records take more than a datagram
LARGE_BYTES = 20_000
_ANSWER = 0x8000
_TYPE_A = 1
_CLASS_IN = 1


class Nsd(Process):
    """NSD with one zone: ``N.hosts`` is 192.0.2.N, and ``large`` has a TXT of LARGE_BYTES."""

    def __init__(self, directory: Path) -> None:
        (self.port,) = free_ports(1)
        texts = "\n".join(f'{LARGE} IN TXT "{number:03d}{"x" * 197}"' for number in range(LARGE_BYTES // 200))
        hosts = "\n".join(f"{number}.hosts IN A 192.0.2.{number}" for number in range(256))
        zone = directory / "zone"
        zone.write_text(f"$ORIGIN {ZONE}.\n$TTL 60\n@ IN SOA ns admin 1 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.1\n")
        with zone.open("a") as rest:
            rest.write(f"{texts}\n{hosts}\n")
        config = directory / "nsd.conf"
        config.write_text(f"""\
server:
  ip-address: 127.0.0.1@{self.port}
  username: ""
  zonesdir: "{directory}"
  xfrdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
  xfrdfile: "{directory}/xfrd.state"
  pidfile: "{directory}/nsd.pid"
  server-count: 1
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {zone}
""")
        super().__init__([require("nsd"), "-d", "-c", str(config)], directory / "nsd.log")
        wait_for(self.answers, "NSD answers")

    def answers(self) -> bool:
        """Ask it one question."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.2)
            sock.connect(("127.0.0.1", self.port))
            sock.send(question(1, 7))
            return address_in(sock.recv(512), 1) == "192.0.2.7"
        return False


@contextlib.contextmanager
def nsd(directory: Path) -> Iterator[Nsd]:
    """Run NSD."""
    with Nsd(directory) as server:
        yield server


def question(query_id: int, number: int) -> bytes:
    """Return a query for the address of ``<number>.hosts`` (RFC 1035 section 4.1)."""
    labels = [str(number), "hosts", *ZONE.split(".")]
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    return struct.pack("!HHHHHH", query_id, 0, 1, 0, 0, 0) + name + struct.pack("!HH", _TYPE_A, _CLASS_IN)


def address_in(answer: bytes, query_id: int) -> str:
    """Return the address that answers a query of ``question``; "" where it answers another one, or has none."""
    found_id, flags, _, answers = struct.unpack_from("!HHHH", answer)
    if found_id != query_id or not flags & _ANSWER or not answers:
        return ""
    name_end = answer.index(b"\0", 12) + 1
    at = name_end + 4 + 2 + 2 + 2 + 4 + 2  # question's type and class; compressed name, type, class, TTL, length
    return socket.inet_ntoa(answer[at : at + 4])


def random_id() -> int:
    """Return a query id."""
    return secrets.randbelow(0x10000)
