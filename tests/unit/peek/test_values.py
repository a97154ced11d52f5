"""Tests of nexus.peek.values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.hostnames import is_port_key, normalize
from nexus.peek.values import LABEL_MAX_BYTES, NAME_MAX_BYTES, read_dns_name

_LONGEST = ".".join(["a" * LABEL_MAX_BYTES] * 3 + ["b" * (NAME_MAX_BYTES - 3 * (LABEL_MAX_BYTES + 1))])


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"App.Example.COM", "app.example.com"),
        (b"localhost", "localhost"),
        (b"_acme.under_score.example", "_acme.under_score.example"),
        (b"-odd-.xn--bcher-kva.example", "-odd-.xn--bcher-kva.example"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"a" * LABEL_MAX_BYTES, "a" * LABEL_MAX_BYTES),
        (_LONGEST.encode(), _LONGEST),
    ],
)
def test_a_name_of_dns_labels_is_taken_in_lower_case(raw: bytes, name: str) -> None:
    """Letters, digits, hyphens and underscores make labels; single dots join them."""
    assert read_dns_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b".example.com",
        b"example.com.",
        b"a..b",
        b"tcp:25",
        b"udp:53",
        b"::1",
        b"a/b",
        b"a b",
        b"a\0b",
        b"a\n",
        b"a%62",
        b"*.example.com",
        b"user@example.com",
        "bücher.example".encode(),
        "\N{KELVIN SIGN}.example".encode(),
        b"a" * (LABEL_MAX_BYTES + 1),
        _LONGEST.encode() + b"b",
    ],
)
def test_anything_else_is_no_name(raw: bytes) -> None:
    """Port keys, wildcards, escapes, blanks, bytes above 127 and names beyond the DNS's lengths are refused."""
    assert read_dns_name(raw) is None


@given(st.binary(max_size=80) | st.from_regex(rb"(tcp|udp)[:.][0-9]{1,5}", fullmatch=True))
def test_no_bytes_make_a_port_key(raw: bytes) -> None:
    """Whatever is read as a name is no port key once normalised, and normalising does not change it."""
    name = read_dns_name(raw)
    assert name is None or (normalize(name) == name and not is_port_key(name))
