"""Asks the DNS, so that times to live are seen: the one module that knows the library for it.

The system's own lookup (``nexus.resolver``, ``nexus.dial``) tells no time to live and knows no SRV. The name servers,
search list and ``ndots`` are those of ``/etc/resolv.conf``, read anew each time, for it changes under laptops and VPNs;
its search list lets Kubernetes' short names work. An answer too long for a datagram is asked for again over TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from dns.asyncresolver import Resolver
from dns.exception import DNSException
from dns.rdatatype import RdataType
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV
from dns.resolver import NXDOMAIN
from dns.resolver import Answer as Records

from nexus.document.peers import HostEntry, PeerAddress, SrvEntry
from nexus.mesh.answers import Answer, Question
from nexus.mesh.dns_sockets import DnsSockets

LOOKUP_TIMEOUT_S: Final = 10.0
"""For one question, its search list, every name server and TCP; ours: five attempts of the library's 2 s."""

_SOCKETS: Final = DnsSockets()


class DnsLookup:
    """Asks the name servers of the system."""

    def __init__(self, make_resolver: Callable[[], Resolver] = Resolver, timeout_s: float = LOOKUP_TIMEOUT_S) -> None:
        """Ask with a new resolver each time; it may raise as ``Resolver`` does."""
        self._make_resolver = make_resolver
        self._timeout_s = timeout_s

    async def __call__(self, question: Question) -> Answer:
        """Return the answer, a failure included; raises nothing."""
        try:
            async with asyncio.timeout(self._timeout_s):
                records = await self._make_resolver().resolve(
                    question.entry.name,
                    RdataType[question.record],
                    raise_on_no_answer=False,
                    search=True,
                    lifetime=self._timeout_s,
                    backend=_SOCKETS,
                )
        except NXDOMAIN as error:
            return Answer(ttl_s=_negative_ttl(error))
        except TimeoutError:
            return Answer(failure=f"no answer within {self._timeout_s:g} s")
        except (DNSException, OSError, ValueError) as error:  # ValueError: of what stands in /etc/resolv.conf
            return Answer(failure=str(error) or type(error).__name__)
        return Answer(_peers(question, records), float(records.chaining_result.minimum_ttl))


def _peers(question: Question, records: Records) -> tuple[PeerAddress, ...]:
    entry = question.entry
    if isinstance(entry, HostEntry):
        return tuple(entry.address(ip) for ip in sorted(_ips(records)))
    return _targets(entry, records)


def _ips(records: Records) -> list[str]:
    return [record.address for record in records if isinstance(record, A | AAAA)]


def _targets(entry: SrvEntry, records: Records) -> tuple[PeerAddress, ...]:
    """Return the targets in the order of priorities; "." and the port 0 mean that there is none (RFC 2782)."""
    found = [
        (record.priority, entry.address(record.target.to_text(omit_final_dot=True), record.port))
        for record in records
        if isinstance(record, SRV) and record.port and record.target.labels != (b"",)
    ]
    found.sort(key=lambda each: (each[0], each[1].host, each[1].port))
    return tuple(address for _, address in found)


def _negative_ttl(error: NXDOMAIN) -> float:
    """Return how long a denial holds (RFC 2308 5), the shortest of those that the search list met."""
    responses = error.kwargs["responses"].values()
    return float(min(response.resolve_chaining().minimum_ttl for response in responses))
