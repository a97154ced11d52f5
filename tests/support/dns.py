"""A real authoritative DNS server (NSD) on loopback, and the questions that a test asks through a node."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import free_ports
from tests.support.processes import Process, wait_for
from tests.support.programs import require

ZONE = "example.test"
LARGE = "large"  # its TXT records take more than a datagram
LARGE_BYTES = 20_000
_ANSWER = 0x8000
_TYPE_A = 1
_CLASS_IN = 1


class Nsd(Process):
    """NSD with one zone: ``N.hosts`` is 192.0.2.N, ``large`` has a TXT of LARGE_BYTES, and what a test adds.

    On a ``port`` that is given it follows another one that ended.
    """

    def __init__(self, directory: Path, records: str = "", port: int = 0) -> None:
        self.port = port or free_ports(1)[0]
        self._zone = directory / "zone"
        self._serial = 0
        self._write(records)
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
  zonefile: {self._zone}
""")
        super().__init__([require("nsd"), "-d", "-c", str(config)], directory / "nsd.log")
        wait_for(self.answers, "NSD answers")

    def change(self, records: str) -> None:
        """Serve other records in place of those that were added; soon, but not at once."""
        self._write(records)
        self.popen.send_signal(signal.SIGHUP)

    def _write(self, records: str) -> None:
        self._serial += 1
        texts = "\n".join(f'{LARGE} IN TXT "{number:03d}{"x" * 197}"' for number in range(LARGE_BYTES // 200))
        hosts = "\n".join(f"{number}.hosts IN A 192.0.2.{number}" for number in range(256))
        head = (
            f"$ORIGIN {ZONE}.\n$TTL 60\n@ IN SOA ns admin {self._serial} 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.1\n"
        )
        self._zone.write_text(f"{head}{texts}\n{hosts}\n{records}\n")

    def answers(self) -> bool:
        """Ask it one question."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.2)
            sock.connect(("127.0.0.1", self.port))
            sock.send(question(1, 7))
            return address_in(sock.recv(512), 1) == "192.0.2.7"
        return False


@contextlib.contextmanager
def nsd(directory: Path, records: str = "") -> Iterator[Nsd]:
    """Run NSD."""
    with Nsd(directory, records) as server:
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
