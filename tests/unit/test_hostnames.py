"""Tests of nexus.hostnames."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.hostnames import is_port_key, is_wildcard, normalize, normalize_wildcard, wildcard_suffix

_LABEL = st.text(string.ascii_letters + string.digits + "-_äßéжא中😀İſ*:", min_size=1, max_size=12)
_HOST = st.lists(_LABEL, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("example.com", "example.com"),
        (" Example.COM. ", "example.com"),
        ("example.com..", "example.com."),
        ("", ""),
        (" \t", ""),
        (".", ""),
        ("under_score.Example", "under_score.example"),
        ("[::1]:80", "[::1]:80"),
        ("-bad-.example", "-bad-.example"),
        ("xn--BCHER-kva.example", "xn--bcher-kva.example"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("\uff25\uff38ample.com", "example.com"),
        ("bü_cher.example", "bü_cher.example"),
        ("*.bücher.example", "*.bücher.example"),
        ("BÜ CHER", "bü cher"),
        ("\ud800.example", "\ud800.example"),
        ("é.xn--a", "é.xn--a"),
    ],
)
def test_normalize_gives_the_form_that_routing_compares(name: str, expected: str) -> None:
    """Trimming, the dot, IDNA lookup and case; what IDNA refuses stays, in lower case."""
    assert normalize(name) == expected


@given(_HOST)
def test_normalize_is_idempotent(host: str) -> None:
    """A name that was normalised where it entered may be normalised again without harm."""
    once = normalize(host)
    assert normalize(once) == once


@given(st.text())
def test_normalize_accepts_any_text(text: str) -> None:
    """No text raises, and ASCII stays ASCII."""
    assert not text.isascii() or normalize(text).isascii()
    normalize_wildcard(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("*.Example.com.", "*.example.com"),
        (" *.bücher.example ", "*.xn--bcher-kva.example"),
        ("*.", ""),
        ("*. .", ""),
        ("*", "*"),
        ("", ""),
        ("A.example", "a.example"),
    ],
)
def test_normalize_wildcard_normalises_the_base_alone(name: str, expected: str) -> None:
    """The star is not for IDNA, and a wildcard without a base is blank."""
    assert normalize_wildcard(name) == expected


@pytest.mark.parametrize("name", ["*.example.com", "*.a.b.c"])
def test_a_wildcard_with_two_labels_below_is_valid(name: str) -> None:
    """The shortest base has a dot."""
    assert is_wildcard(name)


@pytest.mark.parametrize(
    "name", ["*.com", "example.com", "*", "*.", "*..com", "*.a..b", "*.a.b.", "*.*.a.b", "a.*.b.c", "**.a.b", ""]
)
def test_other_names_are_no_wildcards(name: str) -> None:
    """Too short a base, empty labels, and stars elsewhere make an ordinary name."""
    assert not is_wildcard(name)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.example.com", ".example.com"),
        ("*.example.com", ".example.com"),
        ("example.com", ".com"),
        ("localhost", None),
        ("", None),
        (".com", None),
        ("tcp:25", None),
        ("udp:5.3", None),
    ],
)
def test_the_suffix_starts_at_the_first_dot(host: str, expected: str | None) -> None:
    """A wildcard covers one label, and neither port keys nor names without a dot have a suffix."""
    assert wildcard_suffix(host) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("tcp:25", True), ("udp:", True), ("tcp", False), ("xtcp:25", False), ("", False)]
)
def test_port_keys_are_told_by_their_prefix(name: str, expected: bool) -> None:
    """Whatever starts like a port key is none of the hostnames."""
    assert is_port_key(name) is expected
