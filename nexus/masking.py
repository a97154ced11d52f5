"""Showing what may hold a secret: in log lines, messages, reprs and ``nexus config show``.

Strategy: a URL is shown without its user and password, and without what follows its path: a query often is a key, too.
Whoever shows values of a configuration passes all of them through ``shown``, so that no key can be forgotten.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus, urlsplit

MASK: Final = "********"  # says that there is a secret, not how long it is

# RFC 3986 3.2: the authority ends at the first of "/", "?" and "#"; its last "@" ends the user and the password.
_USER: Final = re.compile(r"(?:(?<=//)|^)[^/?#]*@")
_QUERY: Final = re.compile(r"([?#]).+", re.DOTALL)
_ECHOED_QUERY: Final = re.compile(r"(?<=\?)[^\s\"'<>?]*=[^\s\"'<>]*")
SECRET_MIN_CHARACTERS: Final = 4  # ours: masking what is shorter hides words, and what is no secret


def mask_url(url: str) -> str:
    """Return a URL, which need not be a valid one, with user, password, query and fragment masked."""
    return _USER.sub(f"{MASK}@", _QUERY.sub(rf"\1{MASK}", url), count=1)


def mask_echo(text: str, url: str) -> str:
    """Return what a server said, with what it repeats of the secrets of the ``url`` that it was asked by masked.

    Secrets are queries, whole and each value of them, the fragment, user and password: as written and decoded.
    """
    text = _ECHOED_QUERY.sub(MASK, text)
    for secret in sorted(_secrets_of(url), key=len, reverse=True):  # the whole before its parts
        text = text.replace(secret, MASK)
    return text


def _secrets_of(url: str) -> set[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return set()
    values = [field.partition("=")[2] or field for field in parts.query.split("&")]
    written = {parts.query, parts.fragment, parts.username or "", parts.password or "", *values}
    return {secret for secret in written | set(map(unquote_plus, written)) if len(secret) >= SECRET_MIN_CHARACTERS}


def shown(value: object) -> object:
    """Return a value, or a tuple of values, as it may be shown: URLs masked, all else as it is."""
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    return mask_url(value) if isinstance(value, str) and "://" in value else value
