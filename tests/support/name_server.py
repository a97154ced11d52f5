"""A name server in the test's own event loop, for answers that a real one never gives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rrset
from dns.asyncresolver import Resolver
from dns.nameserver import Do53Nameserver
from dns.rcode import Rcode
from dns.rdatatype import RdataType

LIFE_S = 77
DENIAL_S = 33
_DATAGRAM_MAX_BYTES = 512  # RFC 1035 2.3.4


@dataclass
class NameServer:
    """Answers by name and type; a name without records has none of that type, a name nobody knows does not exist."""

    port: int
    records: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    rcodes: dict[str, Rcode] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    is_silent: bool = False

    def resolver(self, *search: str, ndots: int = 1) -> Resolver:
        """Return a resolver that asks it."""
        return resolver_at(self.port, *search, ndots=ndots)

    def answer(self, wire: bytes, bytes_max: int) -> bytes:
        """Return the answer to a question, b"" where it is silent."""
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(f"{name} {question.rdtype.name}")
        response = dns.message.make_response(query)
        response.set_rcode(self.rcodes.get(name, Rcode.NOERROR if name in self.records else Rcode.NXDOMAIN))
        found = self.records.get(name, {}).get(question.rdtype.name)
        if found:
            response.answer.append(dns.rrset.from_text(question.name, LIFE_S, "IN", question.rdtype.name, *found))
        else:
            soa = f"ns.test. admin.test. 1 60 60 60 {DENIAL_S}"
            response.authority.append(dns.rrset.from_text("test.", LIFE_S, "IN", RdataType.SOA.name, soa))
        full = response.to_wire()
        if len(full) > bytes_max:
            response.answer.clear()
            response.flags |= dns.flags.TC
        return b"" if self.is_silent else response.to_wire()


def resolver_at(port: int, *search: str, ndots: int = 1) -> Resolver:
    """Return a resolver that asks a port of loopback alone."""
    resolver = Resolver(configure=False)
    resolver.nameservers = [Do53Nameserver("127.0.0.1", port)]
    resolver.search = [dns.name.from_text(suffix) for suffix in search]
    resolver.ndots = ndots
    return resolver


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer: Callable[[bytes, int], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # typeshed's is wider
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if answer := self._answer(data, _DATAGRAM_MAX_BYTES):
            self._transport.sendto(answer, addr)


@contextlib.asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Run one on loopback, over UDP and TCP."""
    loop = asyncio.get_running_loop()
    stream = socket.create_server(("127.0.0.1", 0))
    server = NameServer(stream.getsockname()[1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        answer = server.answer(wire, 0xFFFF)
        writer.write(len(answer).to_bytes(2) + answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    datagrams, _ = await loop.create_datagram_endpoint(
        lambda: _Datagrams(server.answer), local_addr=("127.0.0.1", server.port)
    )
    try:
        async with await asyncio.start_server(serve, sock=stream):
            yield server
    finally:
        datagrams.close()
