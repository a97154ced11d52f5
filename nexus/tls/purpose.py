"""Certificates of whoever connects, judged by Python's ``ssl`` for everything but what they were issued for.

Python's ``ssl`` lets OpenSSL judge them by its parameters named ``ssl_client``, whose purpose no context can change.
OpenSSL looks such a name up among parameters that a program added before it takes its own. So ours are added: the same,
but with any purpose. They hold for the whole process, in which the listener for nodes alone asks those who
connect for a certificate; whoever does has to judge the purpose itself (``verdict.refusal_of_chain``).

Sources: X509_VERIFY_PARAM_set_flags(3), openssl/x509_vfy.h, openssl/x509v3.h; docs/decisions/0024.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
from typing import Final

_NAME: Final = b"ssl_client"
_PURPOSE_ANY: Final = 7  # X509_PURPOSE_ANY
_TRUST_SSL_CLIENT: Final = 2  # X509_TRUST_SSL_CLIENT: what those of this name have


@functools.cache
def leave_purpose_to_us() -> bool:
    """Have ``ssl`` take a certificate of any purpose from whoever connects; return False where that cannot be had.

    It cannot where Python is linked with OpenSSL statically: there is none to be found by name then.
    """
    file = getattr(_ssl, "__file__", None)  # none where it is part of the program
    if file is None:
        return False
    try:
        openssl = ctypes.CDLL(file)  # is loaded already; names are looked up in what it is linked with, too
        make, add = openssl.X509_VERIFY_PARAM_new, openssl.X509_VERIFY_PARAM_add0_table
        set_name, set_purpose = openssl.X509_VERIFY_PARAM_set1_name, openssl.X509_VERIFY_PARAM_set_purpose
        set_trust = openssl.X509_VERIFY_PARAM_set_trust
    except (OSError, AttributeError):
        return False
    make.restype = ctypes.c_void_p
    parameters = ctypes.c_void_p(make())
    named = set_name(parameters, _NAME)
    chosen = set_purpose(parameters, _PURPOSE_ANY) and set_trust(parameters, _TRUST_SSL_CLIENT)
    return bool(parameters and named and chosen and add(parameters))  # "add0": they are the table's now
