"""What a refusal of a certificate authority means for the operator: one line that names the thing and the mend.

Source: RFC 8555 section 6.7 (the types of problems); RFC 8737 section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DETAIL_MAX_CHARACTERS: Final = 300  # of what the CA says; it may quote a stranger's web page

HTTP_01: Final = "http-01"
TLS_ALPN_01: Final = "tls-alpn-01"
PUBLIC_PORTS: Final = {HTTP_01: 80, TLS_ALPN_01: 443}  # RFC 8555 8.3, RFC 8737 3
_UNRESOLVED: Final = re.compile(r"could not resolve|no such host|NXDOMAIN|SERVFAIL", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CaProblem:
    """What the CA says is wrong: ``code`` is the type's last part, such as ``rateLimited``, "" for none."""

    code: str
    detail: str = ""


def explain(problem: CaProblem, hostname: str, challenge: str = "", local_port: int = 0) -> str:
    """Return why there is no certificate for ``hostname``, and what to do.

    ``challenge`` is the one that the CA checked, "" where it did not come to that; ``local_port`` is the node's port
    that the public one leads to.
    """
    what, mend = _of_challenge(problem, hostname, challenge, local_port) if challenge else ("", "")
    if not what:
        what, mend = _WORDS.get(problem.code, _OTHER)
    said = tidy(problem.detail)
    return f"{what}{f' (it says: {said})' if said else ''}; {mend}".replace("{hostname}", hostname)


def tidy(text: str) -> str:
    """Return text of the CA as one bounded line of printable characters."""
    line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()
    return line if len(line) <= DETAIL_MAX_CHARACTERS else line[: DETAIL_MAX_CHARACTERS - 3] + "..."


def _of_challenge(problem: CaProblem, hostname: str, challenge: str, local_port: int) -> tuple[str, str]:
    """Return what went wrong while the CA looked at the name, and the mend; nothing where it is something else."""
    port = PUBLIC_PORTS[challenge]
    leads = "" if local_port == port else f" and let it lead to port {local_port} of this node"
    if problem.code == "dns" or _UNRESOLVED.search(problem.detail):
        return (
            f"the CA finds no usable address of {hostname} in the DNS",
            "create an A or AAAA record that points to this node",
        )
    if problem.code in ("connection", "tls"):
        return (
            f"the CA cannot reach {hostname} on port {port}",
            f"open port {port}{leads}, and point the A and AAAA records of {hostname} at this node and nowhere else",
        )
    if problem.code in ("unauthorized", "incorrectResponse"):
        return (
            f"something other than this node answered the CA for {hostname} on port {port}",
            "point all its A and AAAA records at this node, or at nodes that share the name and mesh with this one",
        )
    return "", ""


_OTHER: Final = (
    "the CA refuses a certificate for {hostname}",
    "correct what it names; it is tried again by itself",
)
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "rateLimited": (
        "the CA's rate limit for {hostname} is reached",
        "wait, it is tried again when the CA allows it; while testing, set acmeDirectoryURL to letsencrypt-staging",
    ),
    "externalAccountRequired": (
        "the CA wants an account of its own web site",
        "set acmeEABKeyID and acmeEABKeyFile to what it gave you",
    ),
    "unauthorized": (
        "the CA does not accept the account",
        "check acmeEABKeyID and acmeEABKeyFile, or remove acme_account+key from acmeCacheDir to register anew",
    ),
    "accountDoesNotExist": (
        "the CA does not know the account any more",
        "remove acme_account+key from acmeCacheDir to register anew",
    ),
    "invalidContact": ("the CA refuses acmeEmail", "correct the address, or delete the key"),
    "unsupportedContact": ("the CA refuses acmeEmail", "correct the address, or delete the key"),
    "caa": (
        "the CAA record of {hostname} forbids this CA",
        "add its name to the record, or choose another CA by acmeDirectoryURL",
    ),
    "rejectedIdentifier": (
        "the CA issues no certificate for {hostname}",
        "check the spelling of hubPublicHostname, or choose another CA by acmeDirectoryURL",
    ),
    "dnssec": ("the DNSSEC signatures of {hostname} do not hold", "mend them at whoever serves the zone"),
    "userActionRequired": ("the CA wants something of the account's owner", "visit the address it names"),
    "badPublicKey": ("the CA refuses the kind of key", "set another acmeKeyType"),
    "invalidProfile": ("the CA does not know acmeProfile", "correct the name, or delete the key"),
    "badNonce": ("the CA refused every nonce it gave out", "nothing to do, it is tried again by itself"),
    "serverInternal": ("the CA has a fault of its own", "nothing to do, it is tried again by itself"),
}
