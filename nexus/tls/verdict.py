"""What is said of a certificate that OpenSSL will not believe, and the one case in which it is believed all the same.

Strategy: a node has one certificate, issued for servers (public CAs issue no others any more), and shows it also where
it is the client. OpenSSL then wants one for clients. So this judges anew what OpenSSL's verdict about the purpose
covers: the extended key usage of the leaf and of each CA above it, the key usage of the leaf, and that a CA is one. It
is as strict as OpenSSL in everything but the role. All other verdicts stand; they are put into words with a mend.

It is asked during the handshake, about what OpenSSL refuses (``refusal_of``), or after it, about a chain whose purpose
OpenSSL was told to leave to us (``refusal_of_chain``).

Sources: spec node-and-mesh 7.2, 18.1; RFC 5280 4.2.1.3, 4.2.1.9, 4.2.1.12; openssl-verification-options(1), "Purpose".
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL.SSL import X509VerificationCodes as Codes

_TLS_USAGES: Final = frozenset(
    {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)
_SUBJECT_MAX_CHARACTERS: Final = 128  # of a stranger's certificate, in a line of a log
_UNKNOWN_ISSUER: Final = (
    "was issued by a CA that is not known here; add its root to peerCAFile, or have the node show its whole chain"
)
_WORDS: Final = {  # what an operator meets; anything else is named as OpenSSL names it
    Codes.ERR_CERT_NOT_YET_VALID: "is not valid yet; check the clocks of both machines",
    Codes.ERR_CERT_HAS_EXPIRED: "has expired; renew it",
    Codes.ERR_UNABLE_TO_GET_ISSUER_CERT: _UNKNOWN_ISSUER,
    Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _UNKNOWN_ISSUER,
    Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _UNKNOWN_ISSUER,
    Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "is signed by itself and not trusted here; issue it by a trusted CA",
    Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "is a root that is not trusted here; add it to peerCAFile",
    Codes.ERR_INVALID_CA: "signed another one without being that of a CA; have that one issued by a CA",
    Codes.ERR_CERT_REVOKED: "is revoked; replace it",
}
NO_CERTIFICATE: Final = "the node showed no certificate; it has to dial with the one of its hub"
UNREADABLE: Final = "the node's certificate, or one above it, cannot be read; issue it anew"
_UNREADABLE_EXTENSIONS: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_NAMES: Final = {code: name for name, code in vars(Codes).items() if name.startswith("ERR_")}


def refusal_of(code: int, certificate: x509.Certificate, depth: int) -> str:
    """Return why a certificate is refused, in words with a mend; "" where it is not, whatever OpenSSL says.

    ``code`` is OpenSSL's verdict (``X509_V_ERR_*``); ``depth`` is 0 for the node's own certificate, and counts the CAs
    above it.
    """
    if code == Codes.ERR_INVALID_PURPOSE:
        what = _usage_refusal(certificate, depth)
        if not what and depth > 0 and not _is_ca(certificate):
            what = _WORDS[Codes.ERR_INVALID_CA]
    else:
        name = _NAMES.get(code, f"error {code}").removeprefix("ERR_").lower().replace("_", " ")
        what = _WORDS.get(code, f"is not valid: {name}; issue it anew")
    return what and _about(certificate, depth, what)


def refusal_of_chain(chain: Sequence[bytes]) -> str:
    """Return why whoever shows ``chain`` is no node, in words with a mend; "" where its purpose will do.

    ``chain`` is what OpenSSL verified but for the purpose, in DER, from the leaf to the root. It is empty where a
    session was resumed: nothing was verified then.
    """
    if not chain:
        return "it resumed a TLS session, in which it shows no certificate; it has to dial without"
    try:
        certificates = [x509.load_der_x509_certificate(certificate) for certificate in chain]
    except (ValueError, x509.InvalidVersion):  # OpenSSL reads more than the library does
        return UNREADABLE
    for depth, certificate in enumerate(certificates):
        # That issuers are CAs is OpenSSL's to see; it trusts roots that do not say so.
        if what := _usage_refusal(certificate, depth):
            return _about(certificate, depth, what)
    return ""


def words_of(error: BaseException) -> str:
    """Return what a handshake with a node failed of, with a mend where that was its certificate."""
    if getattr(error, "reason", None) == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return NO_CERTIFICATE
    verdict = getattr(error, "verify_message", "")  # of ``ssl`` alone: pyOpenSSL's callback has words of its own
    if not isinstance(error, ssl.SSLCertVerificationError) or not verdict:
        return str(error)
    what = _WORDS.get(error.verify_code, f"is refused: {verdict}; check its names and peerCAFile")
    return f"the node's certificate, or a CA certificate above it, {what}"


def _usage_refusal(certificate: x509.Certificate, depth: int) -> str:
    try:
        extensions = certificate.extensions
    except _UNREADABLE_EXTENSIONS:
        return "has extensions that cannot be read; issue it anew"
    if not _is_for_tls(extensions):
        return "is for something other than TLS; issue it with the extended key usage serverAuth"
    if depth == 0 and not _may_sign(extensions):
        return "may not sign handshakes; issue it with the key usage digitalSignature"
    return ""


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _about(certificate: x509.Certificate, depth: int, what: str) -> str:
    whose = "the node's certificate" if depth == 0 else "a CA certificate above the node's"
    return f"{whose} ({_subject(certificate)}) {what}"


def _is_for_tls(extensions: x509.Extensions) -> bool:
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:  # RFC 5280 4.2.1.12: then for any purpose
        return True
    return not _TLS_USAGES.isdisjoint(usages)


def _may_sign(extensions: x509.Extensions) -> bool:
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.digital_signature or usage.key_agreement


def _subject(certificate: x509.Certificate) -> str:
    try:
        subject = certificate.subject.rfc4514_string()
    except ValueError:
        return "with a subject that cannot be read"
    return subject[:_SUBJECT_MAX_CHARACTERS] or "without a subject"
