"""Showing what may hold a secret: in log lines, messages, reprs and ``nexus config show``.

Strategy: a URL is shown without its user and password, and without what follows its path: a query often is a key, too.
Whoever shows values of a configuration passes all of them through ``shown``, so that no key can be forgotten.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "********"  # says that there is a secret, not how long it is

# RFC 3986 3.2: the authority ends at the first of "/", "?" and "#"; its last "@" ends the user and the password.
_USER: Final = re.compile(r"(?:(?<=//)|^)[^/?#]*@")
_QUERY: Final = re.compile(r"([?#]).+", re.DOTALL)


def mask_url(url: str) -> str:
    """Return a URL, which need not be a valid one, with user, password, query and fragment masked."""
    return _USER.sub(f"{MASK}@", _QUERY.sub(rf"\1{MASK}", url), count=1)


def shown(value: object) -> object:
    """Return a value, or a tuple of values, as it may be shown: URLs masked, all else as it is."""
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    return mask_url(value) if isinstance(value, str) and "://" in value else value
