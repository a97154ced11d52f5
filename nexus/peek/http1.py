"""The HTTP/1 request head at the start of a connection: method, path and host.

Strategy: the request line decides early, the rest late.

1. While the request line is unfinished, only its first ``START_JUDGED_BYTES`` bytes are judged: a method of token
   characters, a target, a version, or what can still become them. Other protocols fail here, most at their first byte.
2. The request line is judged when its LF has come, and every header line when its LF has come.
3. Once the empty line is there, the head is read as a whole. That reading alone gives the answer; 1 and 2 only
   refuse sooner what 3 would refuse anyway.

A request without a Host is a valid request whose host is None. So is the preface of HTTP/2 (RFC 9113 3.4), which was
made to be one. Anything a node and a backend could understand differently is refused: two Host fields, a malformed
one, control characters (NUL, a CR that ends no line), a framing that cannot be trusted.

The price: with ``seen`` every byte of a head is looked at a constant number of times, however it is dripped: the
search for the end and the judging of lines begin where the last call stopped. Per call there remain the judging of at
most ``START_JUDGED_BYTES`` bytes and one memchr for the first LF: about 0.2 s of CPU for 65,536 one-byte reads.
Without ``seen`` the answers are the same, but each call judges all lines again (up to 1 ms at the cap).

Source: RFC 9112 sections 2.2, 3, 5 and 6; RFC 9110 sections 4.2 and 5; spec node-and-mesh 4.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import unquote_to_bytes

from nexus.peek.values import Buffer, PeekStatus, read_dns_name

HTTP_HEAD_MAX_BYTES: Final = 65_536  # from the method to the empty line: spec node-and-mesh 4.4
METHOD_MAX_BYTES: Final = 64  # ours: the longest registered method has 17; ends the wait on text without spaces
START_JUDGED_BYTES: Final = 256  # ours: of an unfinished request line, judged at each call
CONTENT_LENGTH_MAX: Final = 2**63 - 1  # spec node-and-mesh 4.4: what the original's 64-bit integer holds

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 5.6.2
_TARGET: Final = rb"[^\x00-\x20\x7f]"  # RFC 3986 2 allows less, but bytes above 127 do occur in paths
_UNFINISHED_LINE: Final = re.compile(
    rb"(%b{1,%d})(?: (%b*)(?: (.*))?)?" % (_TOKEN, METHOD_MAX_BYTES, _TARGET), re.DOTALL
)
_UNFINISHED_TARGET: Final = re.compile(rb"/.*|\*|[A-Za-z][A-Za-z0-9+.-]*(?::.*)?|")  # RFC 9112 3.2
_REQUEST_LINE: Final = re.compile(rb"(%b{1,%d}) (%b+) HTTP/[0-9]\.[0-9]" % (_TOKEN, METHOD_MAX_BYTES, _TARGET))
_VERSION_EXAMPLE: Final = b"HTTP/1.1\r"
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]\r")
_ABSOLUTE_TARGET: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:(?://([^/?]*))?([^?]*)(?:\?.*)?")  # RFC 3986 4.3
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")  # RFC 3986 2.1
_HEAD_END: Final = re.compile(rb"\n\r?\n")  # RFC 9112 2.2: the CR is optional
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]"  # RFC 9110 5.5; like the original, no control characters but HTAB
_HEADER_LINES: Final = re.compile(rb"(?:(?:%b+:|[ \t])%b*+\r?\n)*+" % (_TOKEN, _TEXT))  # RFC 9112 5, 5.2
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")  # RFC 9112 5.2
_FIELD: Final = re.compile(rb"^(host|content-length|transfer-encoding):([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_AUTHORITY: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{0,5})?")  # RFC 3986 3.2.2, 3.2.3


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What an HTTP/1 request head says about where it wants to go.

    ``path`` is the decoded path without query (``/`` when empty, ``*`` for the asterisk form); bytes that are no
    UTF-8 become U+FFFD. ``host`` is in lower case, without port and brackets, a trailing dot kept and nothing mapped;
    None when the request names no host.
    """

    method: str
    path: str
    host: str | None


def peek_request(data: Buffer, *, seen: int = 0) -> HttpRequest | PeekStatus:
    """Read the request head at the start of ``data``, without consuming it; bytes after it are ignored.

    Never raises. NOT_THIS as soon as a judged part cannot belong to a request, and when there is no LF at all within
    ``HTTP_HEAD_MAX_BYTES``; TOO_LARGE when a valid request line's head does not end within them. ``seen`` is how many
    leading bytes of ``data`` an earlier call answered with NEED_MORE; it saves work and must not be larger than that,
    or the end of the head may be missed.
    """
    if isinstance(data, memoryview):
        data = data[:HTTP_HEAD_MAX_BYTES].tobytes()
    size = min(len(data), HTTP_HEAD_MAX_BYTES)
    line_end = data.find(b"\n", 0, size)
    if line_end < 0:
        possible = size < HTTP_HEAD_MAX_BYTES and _may_become_request_line(bytes(data[:START_JUDGED_BYTES]))
        return PeekStatus.NEED_MORE if possible else PeekStatus.NOT_THIS
    # An empty line ends at an LF that is new, so it starts at most two bytes before the new bytes.
    end = _HEAD_END.search(data, max(line_end, seen - 2), size)
    if end is not None:
        return _parse_head(bytes(data[: end.start() + 1])) or PeekStatus.NOT_THIS
    if line_end >= seen and _parse_request_line(bytes(data[:line_end])) is None:
        return PeekStatus.NOT_THIS
    if _begins_folded(data, line_end + 1) or not _new_lines_are_headers(data, max(seen, line_end + 1), size):
        return PeekStatus.NOT_THIS
    return PeekStatus.NEED_MORE if size < HTTP_HEAD_MAX_BYTES else PeekStatus.TOO_LARGE


def _may_become_request_line(start: bytes) -> bool:
    """Tell whether bytes without an LF can still become a request line; no bytes can."""
    match = _UNFINISHED_LINE.fullmatch(start)
    if match is None:
        return not start
    method, target, version = match.groups()
    if target is None:
        return True
    if version is None:
        return method == b"CONNECT" or _UNFINISHED_TARGET.fullmatch(target) is not None
    if _parse_target(method, target) is None:
        return False
    return _VERSION.fullmatch(version + _VERSION_EXAMPLE[len(version) :]) is not None


def _begins_folded(data: bytes | bytearray, position: int) -> bool:
    """Tell whether the header fields at ``position`` begin with white space, which is invalid (RFC 9112 2.2)."""
    return data[position : position + 1] in (b" ", b"\t")


def _new_lines_are_headers(data: bytes | bytearray, new: int, size: int) -> bool:
    """Tell whether the lines whose LF lies in ``data[new:size]`` are header lines; ``new`` is past the first LF."""
    last = data.rfind(b"\n", new, size)
    return last < 0 or _are_header_lines(bytes(data[data.rfind(b"\n", 0, new) + 1 : last + 1]))


def _are_header_lines(block: bytes) -> bool:
    """Tell whether every line of ``block``, each with its LF, is a header field's or continues one."""
    return _HEADER_LINES.fullmatch(block) is not None


def _parse_head(head: bytes) -> HttpRequest | None:
    """Read a head without its empty line; None if it is not that of an HTTP/1 request."""
    first, _, fields = head.partition(b"\n")
    line = _parse_request_line(first)
    if line is None or _begins_folded(fields, 0) or not _are_header_lines(fields):
        return None
    found: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": []}
    for match in _FIELD.finditer(_FOLD.sub(b" ", fields)):
        found[match[1].lower()].append(match[2].strip(b" \t"))
    hosts = found[b"host"]
    if len(hosts) > 1 or not _is_framed(found[b"content-length"], found[b"transfer-encoding"]):
        return None
    named = bool(hosts and hosts[0])
    host = parse_authority(hosts[0]) if named else None
    if named and host is None:  # RFC 9112 3.2: an invalid Host is refused, whatever the target says
        return None
    return HttpRequest(line.method, line.path, line.host or host)  # RFC 9112 3.2.2: the target's authority wins


def _is_framed(lengths: list[bytes], encodings: list[bytes]) -> bool:
    """Tell whether the body's framing is one that is understood (RFC 9112 6.1 to 6.3)."""
    if encodings and [encoding.lower() for encoding in encodings] != [b"chunked"]:
        return False
    if len(set(lengths)) > 1:
        return False
    # 19 digits hold the largest one; more would only be leading zeros, and cost time to convert.
    return all(length.isdigit() and len(length) <= 19 and int(length) <= CONTENT_LENGTH_MAX for length in lengths[:1])


def _parse_request_line(line: bytes) -> HttpRequest | None:
    """Read a request line without its LF, the host being the target's; None if it is not one (RFC 9112 3)."""
    match = _REQUEST_LINE.fullmatch(line.removesuffix(b"\r"))
    target = match and _parse_target(match[1], match[2])
    if match is None or target is None:
        return None
    path, host = target
    return HttpRequest(match[1].decode("ascii"), path, host)


def _parse_target(method: bytes, target: bytes) -> tuple[str, str | None] | None:
    """Return the path and the host of a request target (RFC 9112 3.2), or None if it has none of its four forms."""
    if target == b"*":
        return "*", None
    if target.startswith(b"/"):
        return _with_path(target.partition(b"?")[0], None)
    if method == b"CONNECT":
        host = parse_authority(target)
        return None if host is None else ("/", host)
    match = _ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        return None
    host = None if match[1] is None else parse_authority(match[1])
    if match[1] is not None and host is None:
        return None
    return _with_path(match[2] if match[2].startswith(b"/") else b"/", host)


def _with_path(path: bytes, host: str | None) -> tuple[str, str | None] | None:
    if _BAD_ESCAPE.search(path) is not None:
        return None
    return unquote_to_bytes(path).decode("utf-8", "replace"), host


def parse_authority(authority: bytes) -> str | None:
    """Return the host of ``host``, ``host:port``, ``[address]`` or ``[address]:port`` in lower case.

    None for anything else: user information, a second colon outside brackets, brackets around what is no IPv6 address
    (so ``[tcp:25]:80`` gives no port key), an IPv6 zone, percent-encoding, bytes above 127, and a name that cannot be
    one in the DNS. A trailing dot is kept. Source: RFC 9110 sections 4.2.4 and 7.2; RFC 3986 section 3.2.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    address, name = match.groups()
    if name is not None:
        host = read_dns_name(name.removesuffix(b"."))
        return host + "." if host is not None and name.endswith(b".") else host
    literal: str = address.decode("ascii").lower()
    try:
        IPv6Address(literal)
    except ValueError:
        return None
    return literal
