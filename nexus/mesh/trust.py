"""Which nodes may be peers: by the names in their certificates, which a CA has vouched for already.

Strategy: a suffix of the configuration covers whole labels, whatever its case and with or without the dot in front:
``mesh.example`` covers itself and everything below it, ``.mesh.example`` only what is below. The original compares the
ends of texts, takes a common name for want of another, and an empty suffix for everybody; that is to be had by asking
for it (``suffixMatching: loose``), since ``evilmesh.example`` ends in ``mesh.example``, too.

Source: spec node-and-mesh 7.2; weak point W19; RFC 9525 section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from nexus.hostnames import normalize, normalize_wildcard, wildcard_suffix


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a node is: the DNS names of its certificate as they stand there, and its common name where it has one."""

    names: tuple[str, ...] = ()
    common_name: str = ""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in one spelling and one order: a renewed certificate may write them otherwise."""
        return tuple(sorted({normalize_wildcard(name) for name in self.names} - {""}))

    def __str__(self) -> str:
        """Return a short text for log lines."""
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return shown or self.common_name or "a node without a name"


NOBODY = PeerIdentity()
"""Who is at the other end of a link without TLS."""


def identity_of(certificate: bytes) -> PeerIdentity:
    """Return who a certificate (DER) names; extensions that cannot be parsed name nobody."""
    parsed = x509.load_der_x509_certificate(certificate)
    try:
        extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(sorted(extension.get_values_for_type(x509.DNSName)))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        names = ()
    common_names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return PeerIdentity(names, str(common_names[0].value) if common_names else "")


def refusal_of(identity: PeerIdentity, suffixes: Iterable[str], *, loose: bool = False) -> str:
    """Return why a node may not be a peer, in words for its operator and ours; "" where it may."""
    trusted = tuple(suffixes)
    names = (*identity.names, identity.common_name) if loose else identity.names
    covers = _ends_with if loose else covers_labels
    if any(covers(suffix, name) for suffix in trusted for name in names if name):
        return ""
    shown = ", ".join(identity.names) or "no DNS name"
    return (
        f"its certificate has {shown}, which trustedDomainSuffixes ({', '.join(trusted)}) does not cover; "
        "add a suffix there, or dial with another certificate"
    )


def covers_labels(suffix: str, name: str) -> bool:
    """Tell whether a suffix covers a name of a certificate, a wildcard taken as a name below its base."""
    bare = suffix.strip()
    below_only = bare.startswith(".")
    base, full = normalize(bare.removeprefix(".")), normalize_wildcard(name)
    if not base or not full:
        return False
    return full.endswith(f".{base}") or (full == base and not below_only)


def is_named(names: Iterable[str], hostname: str) -> bool:
    """Tell whether the names of a certificate are those of a host (normalised), a wildcard for one label."""
    suffix = wildcard_suffix(hostname)
    wanted = {hostname, f"*{suffix}"} if suffix else {hostname}
    return not wanted.isdisjoint(map(normalize_wildcard, names))


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)
